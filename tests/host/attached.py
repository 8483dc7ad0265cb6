"""What is loaded into the kernel's BPF subsystem now, from whomever."""

import ctypes
import errno


def _ids(function: str) -> set[int]:
    libbpf = None
    for name in ("libbpf.so.1", "libbpf.so.0"):
        try:
            libbpf = ctypes.CDLL(name, use_errno=True)
            break
        except OSError:
            continue
    assert libbpf, "libbpf is needed to see what is loaded"
    found: set[int] = set()
    number = ctypes.c_uint32(0)
    while getattr(libbpf, function)(number, ctypes.byref(number)) == 0:
        found.add(number.value)
    if ctypes.get_errno() != errno.ENOENT:
        raise OSError(ctypes.get_errno(), function)
    return found


def loaded() -> dict[str, set[int]]:
    """Return the ids of all programs, maps and links; links are held by a descriptor."""
    return {kind: _ids(f"bpf_{kind}_get_next_id") for kind in ("prog", "map", "link")}


def added(before: dict[str, set[int]]) -> dict[str, set[int]]:
    """Return what is loaded now and was not then, without the kinds that have nothing new."""
    now = loaded()
    return {kind: new for kind in now if (new := now[kind] - before[kind])}
