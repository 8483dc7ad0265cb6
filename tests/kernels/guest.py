"""Boot a kernel in QEMU on a copy of this machine's root, and run a command there."""

from __future__ import annotations

import lzma
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from tests.kernels.debian import Kernel

HERE = Path(__file__).parent
_MODULES = ("virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay")
"""What the guest needs before it has its root."""
_PROCESSOR = "qemu64,+popcnt,+sse4.1,+sse4.2,+ssse3,+rdrand"
_CONSOLE = (
    # Emulated clocks drift under load, and mitigations cost what an emulation cannot leak.
    "console=ttyS0 quiet loglevel=1 panic=-1 mitigations=off tsc=reliable no_timer_check "
    "apparmor=0 random.trust_cpu=on"
)


def run(
    kernel: Kernel,
    command: str,
    out: Path,
    *,
    append: str = "",
    seconds: float,
    memory: str = "4G",
    output: IO[bytes] | None = None,
) -> int | None:
    """Run a shell command in a guest; give its exit code, None if the guest had no time to end.

    What the command writes to /run/out is in the folder `out` afterwards; what it prints goes to
    `output`, if that is given, else to our terminal, from which it then reads. Everything else that
    it writes is gone.
    """
    (out / "command").write_text(command)
    status = out / "status"
    status.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="ig-guest-") as folder:
        words = _machine(kernel, _initramfs(kernel, Path(folder)), out, append, memory)
        try:
            stdin = subprocess.DEVNULL if output else None
            subprocess.run(words, check=True, timeout=seconds, stdin=stdin, stdout=output)
        except subprocess.TimeoutExpired:
            return None
    return int(status.read_text()) if status.exists() else None


def _machine(kernel: Kernel, initramfs: Path, out: Path, append: str, memory: str) -> Sequence[str]:
    # One processor: with several, probes that are attached under load crash the emulated kernel.
    words = ["qemu-system-x86_64", "-accel", "tcg", "-machine", "q35", "-smp", "1", "-m", memory]
    words += ["-cpu", _PROCESSOR, "-nodefaults", "-no-user-config", "-no-reboot", "-nic", "none"]
    words += ["-display", "none", "-serial", f"file:{out}/console"]
    words += ["-kernel", str(kernel.image), "-initrd", str(initramfs)]
    words += ["-append", f"{_CONSOLE} {append}".strip()]
    words += ["-device", "virtio-serial-pci", "-chardev", "stdio,id=terminal,signal=off"]
    words += ["-device", "virtconsole,chardev=terminal"]
    for name, path, how in (
        ("root", "/", ",readonly=on,multidevs=remap"),
        ("modules", kernel.modules, ",readonly=on"),
        ("out", out, ""),
    ):
        words += ["-fsdev", f"local,id={name},path={path},security_model=none{how}"]
        words += ["-device", f"virtio-9p-pci,fsdev={name},mount_tag={name}"]
    return words


def _initramfs(kernel: Kernel, folder: Path) -> Path:
    """Pack busybox, our first init and the modules that lead to the root."""
    tree = folder / "tree"
    (tree / "modules").mkdir(parents=True)
    (tree / "bin").mkdir()
    shutil.copy(shutil.which("busybox") or "/bin/busybox", tree / "bin/busybox")
    for source, target in (("first-init", "init"), ("second-init", "second-init")):
        shutil.copy(HERE / source, tree / target)
        (tree / target).chmod(0o755)
    order = []
    for path in dict.fromkeys(path for name in _MODULES for path in _depends(kernel, name)):
        data = path.read_bytes()
        target = path.name.removesuffix(".xz")
        (tree / "modules" / target).write_bytes(
            lzma.decompress(data) if target != path.name else data
        )
        order.append(target)
    (tree / "modules/order").write_text("".join(f"{name}\n" for name in order))
    archive = folder / "initramfs"
    names = "\n".join(str(path.relative_to(tree)) for path in sorted(tree.rglob("*")))
    with archive.open("wb") as packed:
        words = ["cpio", "--quiet", "-o", "-H", "newc", "-R", "0:0"]
        subprocess.run(words, input=names.encode(), stdout=packed, cwd=tree, check=True)
    return archive


def _depends(kernel: Kernel, name: str) -> list[Path]:
    root = kernel.modules.parents[2]
    words = [
        "modprobe",
        "--show-depends",
        "-d",
        str(root),
        "-S",
        kernel.release,
        "-C",
        "/var/empty",
    ]
    done = subprocess.run([*words, name], capture_output=True, text=True, check=False)
    lines = [line.split() for line in done.stdout.splitlines()]
    return [Path(words[1]) for words in lines if words and words[0] == "insmod"]


if __name__ == "__main__":
    sys.exit("this is a part of tests/kernels: run `make kernels`")
