"""Fetch Debian's kernels into a cache folder; nothing of the host's own apt is touched."""

from __future__ import annotations

import lzma
import os
import re
import shutil
import subprocess
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SUITES = {"5.10": "bullseye", "6.1": "bookworm", "6.12": "trixie", "newest": "sid"}
"""The suite that has each kernel."""
_PACKAGE = re.compile(r"Depends: (linux-(?:image|binary|modules)-\S+)")
_MAGIC = (b"\xfd7zXZ\x00", b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd")
"""How the beginnings of images look that xz, gzip and zstd compressed."""


def cache() -> Path:
    """Return the folder that kernels are kept in."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "ig" / "kernels"


@dataclass(frozen=True, slots=True)
class Kernel:
    """An unpacked kernel."""

    name: str
    """As it is asked for: a key of SUITES."""
    image: Path
    """The uncompressed image, which boots faster under emulation."""
    modules: Path
    """The folder that is /lib/modules/RELEASE in the guest."""

    @property
    def release(self) -> str:
        """What `uname -r` says there."""
        return self.modules.name


def fetch(name: str) -> Kernel:
    """Return a kernel, from the cache if it is there. Raises RuntimeError if it cannot be had."""
    folder = cache() / name
    if not (folder / "vmlinux").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        _unpack(name, folder)
    (modules,) = (folder / "root").glob("**/lib/modules/*/kernel")
    return Kernel(name, folder / "vmlinux", modules.parent)


def _unpack(name: str, folder: Path) -> None:
    options = _private_apt(SUITES[name], folder / "apt")
    _run("apt-get", *options, "-q", "update")
    packages = sorted(set(_needed("linux-image-amd64", options)) - {"linux-image-amd64"})
    _run("apt-get", *options, "-q", "download", *packages, folder=folder)
    root = folder / "root"
    for package in folder.glob("*.deb"):
        _run("dpkg-deb", "-x", str(package), str(root))
        package.unlink()
    (modules,) = root.glob("**/lib/modules/*/kernel")
    _run("depmod", "-b", str(modules.parents[3]), modules.parent.name)
    (image,) = root.glob("**/vmlinuz*")
    partial = folder / "vmlinux.partial"
    partial.write_bytes(_uncompressed(image.read_bytes()))
    shutil.rmtree(folder / "apt")
    partial.rename(folder / "vmlinux")


def _private_apt(suite: str, folder: Path) -> list[str]:
    """Make a folder for apt of its own, with one suite of the mirror that this host uses."""
    lists, sources = folder / "lists", folder / "sources.list"
    (lists / "partial").mkdir(parents=True)
    sources.write_text(f"deb {mirror()} {suite} main\n")
    settings = {
        "Dir::Etc::SourceList": sources,
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State::Lists": lists,
        "Dir::Cache": folder,
        "APT::Sandbox::User": "root",
        "APT::Architecture": "amd64",
    }
    return [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]


def mirror() -> str:
    """Return the URL of the Debian mirror that this host uses."""
    said = _run("apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages")
    for address in said.decode().split():
        if address.rstrip("/").endswith("/debian"):
            return address
    return "http://deb.debian.org/debian/"


def _needed(package: str, options: list[str]) -> Iterator[str]:
    """Yield the package and those that the kernel is spread over since 7.x."""
    yield package
    said = _run("apt-cache", *options, "depends", "--important", package).decode()
    for match in _PACKAGE.finditer(said):
        yield from _needed(match[1], options)


def _uncompressed(image: bytes) -> bytes:
    """Return the ELF file within a bzImage. Source: the kernel's scripts/extract-vmlinux."""
    for magic in _MAGIC:
        place = image.find(magic, 1024)
        while place >= 0:
            data = _undone(magic, image[place:])
            if data.startswith(b"\x7fELF"):
                return data
            place = image.find(magic, place + 1)
    raise ValueError("there is no kernel in this image that we can unpack")


def _undone(magic: bytes, data: bytes) -> bytes:
    """Decompress what it begins with; give nothing if it is not what it looks like."""
    try:
        if magic.startswith(b"\xfd"):
            return lzma.LZMADecompressor().decompress(data)
        if magic.startswith(b"\x1f"):
            return zlib.decompressobj(31).decompress(data)
        return _run("zstd", "-dc", given=data, check=False)
    except (lzma.LZMAError, zlib.error):
        return b""


def _run(
    *words: str, given: bytes | None = None, folder: Path | None = None, check: bool = True
) -> bytes:
    done = subprocess.run(words, input=given, capture_output=True, cwd=folder, check=False)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.decode(errors='replace')[-2000:]}")
    return done.stdout
