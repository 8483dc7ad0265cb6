"""What a kernel may lack without being wrong: features that `@pytest.mark.needs(…)` names."""

import ctypes
import errno
import subprocess
import uuid
from functools import cache

IO_URING_SETUP = 425  # the same on every architecture since Linux 5.1


@cache
def has_netem() -> bool:
    """Say whether packets can be delayed (root only), by delaying them in a namespace."""
    name = f"igt-{uuid.uuid4().hex[:8]}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        tc = ["tc", "-n", name, "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms"]
        return subprocess.run(tc, capture_output=True, check=False).returncode == 0
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


@cache
def has_io_uring() -> bool:
    """Say whether io_uring exists and is allowed; asked with no parameters, it answers EFAULT."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall(IO_URING_SETUP, 1, None)
    return ctypes.get_errno() == errno.EFAULT


FEATURES = {"netem": has_netem, "io_uring": has_io_uring}
