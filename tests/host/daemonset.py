"""The DaemonSet of packaging/ as options of a container: what a kubelet asks a runtime for.

A field that is neither translated here nor listed as one without a meaning for a container is an
error, so that the manifest and what the tests run cannot differ.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

PACKAGING = Path(__file__).parents[2] / "packaging"
NODE = "node-1"
Object = Mapping[str, Any]
_OF_CLUSTER = {
    *("serviceAccountName", "automountServiceAccountToken", "tolerations", "nodeSelector"),
    "terminationGracePeriodSeconds",
}
_OF_KUBELET = {
    *("image", "imagePullPolicy", "startupProbe", "readinessProbe", "livenessProbe", "ports"),
}
_RUNTIME = "runtime"  # the volume with its socket
_UNITS = {"Ki": 10, "Mi": 20, "Gi": 30}


def documents(name: str) -> list[Object]:
    """Return the objects in a file of packaging/."""
    return list(yaml.safe_load_all((PACKAGING / name).read_text()))


def daemonset() -> Object:
    """Return the DaemonSet."""
    return next(each for each in documents("daemonset.yaml") if each["kind"] == "DaemonSet")


def container() -> Object:
    """Return its container."""
    (found,) = daemonset()["spec"]["template"]["spec"]["containers"]
    return dict(found)


def arguments() -> list[str]:
    """Return the arguments of ig."""
    return list(container()["args"])


def options(socket: str, tracefs: str = "/sys/kernel/tracing") -> dict[str, Any]:
    """Return docker-py's options for its container.

    In the place of the folder of the node's runtime is the socket of the engine that runs this;
    `tracefs` is where this host has it.
    """
    pod = dict(daemonset()["spec"]["template"]["spec"])
    holder = dict(container())
    _leave(pod, _OF_CLUSTER | {"containers"})
    _leave(holder, _OF_KUBELET | {"name", "args"})
    found = {
        "pid_mode": "host" if pod.pop("hostPID") else None,
        "environment": dict(_environment(holder.pop("env"))),
        **_resources(holder.pop("resources")["limits"]),
        **_security(dict(holder.pop("securityContext"))),
        **_mounts(pod.pop("volumes"), holder.pop("volumeMounts"), socket, tracefs),
    }
    assert not pod, f"not translated: {pod}"
    assert not holder, f"not translated: {holder}"
    return found


def _leave(fields: dict[str, Any], names: set[str]) -> None:
    for name in names:
        fields.pop(name, None)


def _environment(variables: Sequence[Object]) -> Iterator[tuple[str, str]]:
    values: dict[str, str] = {}
    for each in variables:
        if "value" in each:
            text = re.sub(r"\$\((\w+)\)", lambda match: values[match[1]], each["value"])
        else:
            assert each["valueFrom"] == {"fieldRef": {"fieldPath": "spec.nodeName"}}
            text = NODE
        values[each["name"]] = text
        yield each["name"], text


def _resources(limits: Object) -> dict[str, Any]:
    assert limits.keys() == {"cpu", "memory"}
    return {"nano_cpus": int(float(limits["cpu"]) * 10**9), "mem_limit": _bytes(limits["memory"])}


def _bytes(text: str) -> int:
    return int(text[:-2]) << _UNITS[text[-2:]]


def _security(context: dict[str, Any]) -> dict[str, Any]:
    capabilities = context.pop("capabilities")
    found = {
        "user": str(context.pop("runAsUser")),
        "read_only": context.pop("readOnlyRootFilesystem"),
        "cap_drop": capabilities["drop"],
        "cap_add": capabilities["add"],
        "security_opt": [
            f"label=type:{context.pop('seLinuxOptions')['type']}",
            *(
                f"{name}={context.pop(f'{key}Profile')['type'].lower()}"
                for name, key in (("seccomp", "seccomp"), ("apparmor", "appArmor"))
            ),
            *(() if context.pop("allowPrivilegeEscalation") else ("no-new-privileges",)),
        ],
    }
    assert not context, f"not translated: {context}"
    return found


def _mounts(
    volumes: Sequence[Object], mounts: Sequence[Object], socket: str, tracefs: str
) -> dict[str, Any]:
    sources = {each["name"]: each for each in volumes}
    bound: dict[str, Any] = {}
    memory: dict[str, str] = {}
    for each in mounts:
        source, target = sources.pop(each["name"]), each["mountPath"]
        if "emptyDir" in source:
            memory[target] = f"size={_bytes(source['emptyDir']['sizeLimit'])}"
            continue
        path = source["hostPath"]["path"]
        if each["name"] == _RUNTIME:
            path = target = socket.removeprefix("unix://")
        if each["name"] == "tracing":
            path = tracefs
        bound[path] = {"bind": target, "mode": "ro" if each.get("readOnly") else "rw"}
    assert not sources, f"not mounted: {sources}"
    return {"volumes": bound, "tmpfs": memory}
