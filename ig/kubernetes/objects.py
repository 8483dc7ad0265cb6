"""What of a pod or a Service names a far end: its name, its addresses, its ports.

Source: k8s.io/api/core/v1. What the API answers is not trusted: see `ig.containers.untrusted`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

from ig.container import Container
from ig.containers.holdings import is_usual
from ig.containers.untrusted import ADDRESSES, PORTS, address, mapping, port, text, timestamp

RUNTIME = "kubernetes"
"""The runtime of what Kubernetes has named."""
_NAME = r"[a-z0-9](?:[-.a-z0-9]{0,251}[a-z0-9])?"  # RFC 1123's subdomains, as the API requires
_ENDED = ("Succeeded", "Failed")
"""The phases of pods that have given their addresses back."""


def parse(kind: str, item: object) -> Container | None:
    """Return a pod or a Service as the owner of its addresses; None for what is none.

    It is `running` if it has any. Those of a pod in the host's network namespace are the node's.
    """
    found = mapping(item)
    metadata = mapping(found.get("metadata"))
    name, namespace = text(metadata.get("name")), text(metadata.get("namespace"))
    identifier = text(metadata.get("uid"))
    if not (identifier and re.fullmatch(_NAME, name) and re.fullmatch(_NAME, namespace)):
        return None
    return Container(
        identifier,
        "",
        RUNTIME,
        pod_namespace=namespace,
        scope=kind,
        **_KINDS[kind](name, found),
    )


def _pod(name: str, pod: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is known of a pod as a container."""
    status, given = mapping(pod.get("status")), list[str]()
    if not mapping(pod.get("spec")).get("hostNetwork") and status.get("phase") not in _ENDED:
        listed = (mapping(each).get("ip") for each in _listed(status.get("podIPs")))
        node = address(status.get("hostIP"))
        given = [each for each in _addresses([status.get("podIP"), *listed]) if each != node]
    return {
        "pod_name": name,
        "started": timestamp(status.get("startTime")) or _made(pod),
        "running": bool(given),
        "addresses": tuple(given),
    }


def _service(name: str, service: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is known of a Service as a container.

    Its `ports` are (address, port, port), with 0 in the end for external addresses: those may also
    be a host's that connects, while nothing connects from a cluster IP.
    """
    spec = mapping(service.get("spec"))
    balancer = mapping(mapping(service.get("status")).get("loadBalancer"))
    own = list(_addresses([spec.get("clusterIP"), *_listed(spec.get("clusterIPs"))]))
    balanced = [mapping(each).get("ip") for each in _listed(balancer.get("ingress"))]
    external = _addresses([*_listed(spec.get("externalIPs")), *balanced])
    listed = map(mapping, _listed(spec.get("ports"))[:PORTS])
    numbers = [port(each.get("port")) for each in listed if each.get("protocol", "TCP") == "TCP"]
    places = [(each, True) for each in own]
    places += [(each, False) for each in external if each not in own]
    ports = (
        (each, number, number if inner else 0)
        for each, inner in places
        for number in dict.fromkeys(filter(None, numbers))
    )
    found = tuple(islice(ports, PORTS))
    return {"service": name, "started": _made(service), "running": bool(found), "ports": found}


_KINDS: Mapping[str, Callable[[str, Mapping[str, Any]], dict[str, Any]]] = {
    "pods": _pod,
    "services": _service,
}
KINDS = tuple(_KINDS)
"""The kinds of objects that name far ends, as the API's paths call them."""


def _made(item: Mapping[str, Any]) -> int:
    return timestamp(mapping(item.get("metadata")).get("creationTimestamp"))


def _listed(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _addresses(given: list[object]) -> Iterator[str]:
    """Yield the distinct addresses among values, as far as they can be distinguished from others'.

    A headless Service has `None` as its cluster IP.
    """
    found = dict.fromkeys(address(each) for each in given[:ADDRESSES])
    yield from (each for each in found if each and is_usual(each))
