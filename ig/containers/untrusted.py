"""Read what a runtime answered without trusting its types, sizes or characters."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime, timezone
from ipaddress import ip_address
from typing import Any

NAME_LENGTH = 256
LABELS = 256
LABEL_LENGTH = 4096
ADDRESSES = 64
PORTS = 1024
NAMESPACES = 256
CONTAINERS = 65536
"""How many containers all runtimes together are believed to have."""


def text(value: object, limit: int = NAME_LENGTH) -> str:
    """Return a string of at most `limit` characters that can be encoded, else ""."""
    if not isinstance(value, str):
        return ""
    if value.isascii():
        return value[:limit]
    # JSON may smuggle in half a surrogate pair, which no output could encode.
    return value[:limit].encode("utf-8", "replace").decode("utf-8")


def number(value: object) -> int:
    """Return a whole number from 0 to 2^63-1; 0 for anything else."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63:
        return value
    return 0


def port(value: object) -> int:
    """Return a port that was given as a number or in decimal digits; 0 for anything else."""
    if isinstance(value, str) and len(value) <= 5 and value.isascii() and value.isdigit():
        value = int(value)
    found = number(value)
    return found if found <= 65535 else 0


def mapping(value: object) -> Mapping[str, Any]:
    """Return a JSON object; an empty one for anything else."""
    return value if isinstance(value, dict) else {}


def labels(value: object, without: Collection[str] = ()) -> dict[str, str]:
    """Return the first labels of a JSON object or map, shortened to what anybody could need."""
    found: dict[str, str] = {}
    items = value.items() if isinstance(value, Mapping) else ()
    for key, content in items:
        if len(found) == LABELS:
            break
        if isinstance(key, str) and isinstance(content, str) and key not in without:
            found[text(key)] = text(content, LABEL_LENGTH)
    return found


def address(value: object) -> str:
    """Return an IP address in its one canonical spelling, without prefix length; "" for others."""
    try:
        return str(ip_address(text(value).partition("/")[0]))
    except ValueError:
        return ""


def timestamp(value: object) -> int:
    """Return nanoseconds since the epoch for an RFC 3339 time such as Go prints; 0 for others."""
    whole, _, rest = text(value).replace("Z", "+00:00").partition(".")
    digits = rest[: len(rest) - len(rest.lstrip("0123456789"))]
    try:
        moment = datetime.fromisoformat(whole + rest[len(digits) :])
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=timezone.utc)
        seconds = int(moment.timestamp())
    except (ValueError, OverflowError):
        return 0
    # Go's zero time is the year 1.
    return max(0, seconds * 1_000_000_000 + int(digits[:9].ljust(9, "0") or 0))


def pod(found: Mapping[str, str], sandbox: bool) -> dict[str, Any]:
    """Return the fields of a Container that the kubelet's labels hold.

    The labels are `io.kubernetes.*` (kubelet's pkg/kubelet/types/labels.go). An image may have the
    same ones: this is for labels that a kubelet's runtime has put, and `sandbox` is what says of
    itself whether it is a pod's pause container.
    """
    return {
        "pod_namespace": text(found.get("io.kubernetes.pod.namespace")),
        "pod_name": text(found.get("io.kubernetes.pod.name")),
        "pod_container": "" if sandbox else text(found.get("io.kubernetes.container.name")),
        "pod_uid": text(found.get("io.kubernetes.pod.uid")),
        "sandbox": sandbox,
    }


def dockers_pod(name: str, found: Mapping[str, str]) -> dict[str, Any]:
    """Return the fields of a Container that cri-dockerd encodes in its name and labels.

    The name is `k8s_CONTAINER_POD_NAMESPACE_UID_ATTEMPT`, where the container of a pause is `POD`
    (cri-dockerd's core/naming.go). Docker shows the labels of an image as the container's own, but
    no image makes a name: the labels count where they agree with it.
    """
    if not name.startswith("k8s_"):
        return _NO_POD
    _, *parts = name.split("_")
    keys = ("container.name", "pod.name", "pod.namespace", "pod.uid")
    given = [found.get(f"io.kubernetes.{key}", "") for key in keys]
    sandbox = parts[:1] == ["POD"]
    if sandbox and not given[0]:
        given[0] = "POD"
    if len(parts) < 5 or parts[:4] != given:
        return _NO_POD
    return pod(found, sandbox)


_NO_POD = pod({}, sandbox=False)
