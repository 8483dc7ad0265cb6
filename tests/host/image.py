"""The image of packaging/Dockerfile, on a base system that debootstrap makes."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import docker
import pytest

from tests.host.engine import Engine
from tests.kernels.debian import cache, mirror

CHECKOUT = Path(__file__).parents[2]
SUITE = "bookworm"
_SECONDS = 1200  # for a mirror and an index that are slow
_AUTHORITIES = "/etc/ssl/certs/ca-certificates.crt"
_COPY = "/etc/ssl/authorities.crt"  # installing ca-certificates makes the file above anew


def base_system() -> Path:
    """Return a tar archive of Debian, made once. Skips the test where it cannot be had."""
    archive = cache().parent / f"{SUITE}.tar"
    if archive.exists():
        return archive
    if not shutil.which("debootstrap"):
        pytest.skip("needs debootstrap")
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="ig-", dir="/var/tmp") as folder:
        root, packed = f"{folder}/root", f"{folder}/packed"
        words = ["debootstrap", "--variant=minbase", SUITE, root, mirror()]
        done = subprocess.run(words, capture_output=True, text=True, timeout=_SECONDS, check=False)
        if done.returncode:
            pytest.skip(f"debootstrap made no base system: {(done.stdout + done.stderr)[-500:]}")
        subprocess.run(["tar", "--numeric-owner", "-C", root, "-cf", packed, "."], check=True)
        partial = archive.with_suffix(".partial")
        shutil.copy(packed, partial)
    partial.rename(archive)
    return archive


def storage() -> str:
    """Return the fastest storage driver that an engine in /var/tmp can have."""
    with tempfile.TemporaryDirectory(prefix="ig-", dir="/var/tmp") as folder:
        script = (
            "mkdir lower upper work point && mount -t overlay overlay "
            "-o lowerdir=lower,upperdir=upper,workdir=work point"
        )
        command = ["unshare", "--mount", "sh", "-c", script]
        done = subprocess.run(command, cwd=folder, capture_output=True, check=False)
    return "vfs" if done.returncode else "overlay2"


@contextmanager
def built(engine: Engine) -> Iterator[str]:
    """Build the image with an engine, and return its name; it is removed in the end."""
    client = docker.DockerClient(base_url=engine.socket, timeout=_SECONDS)
    base, name = f"{engine.prefix}-base", f"{engine.prefix}-ig"
    try:
        client.api.import_image_from_file(str(base_system()), repository=base, tag="plain")
        client.images.build(
            fileobj=_context(f"{base}:plain"), custom_context=True, tag=f"{base}:here", rm=True
        )
        client.images.build(
            path=str(CHECKOUT),
            dockerfile="packaging/Dockerfile",
            buildargs={"BASE": f"{base}:here", **_proxies()},
            tag=name,
            network_mode="host",
            rm=True,
            forcerm=True,
        )
        yield name
    finally:
        for image in (name, f"{base}:here", f"{base}:plain"):
            if client.images.list(name=image):
                client.images.remove(image, force=True)
        client.close()


def _proxies() -> dict[str, str]:
    names = ("http_proxy", "https_proxy", "no_proxy")
    both = (*names, *map(str.upper, names))
    return {name: os.environ[name] for name in both if name in os.environ}


def _context(base: str) -> io.BytesIO:
    """Return the context of an image that reaches mirrors and indexes as this machine does."""
    archive = io.BytesIO()
    lines = [f"FROM {base}", "COPY root /"]
    indexes = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST")
    lines += [f"ENV {name}={os.environ[name]}" for name in indexes if name in os.environ]
    with tarfile.open(fileobj=archive, mode="w") as tar:
        entry = tarfile.TarInfo("root")
        entry.type, entry.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(entry)
        if os.path.exists("/etc/pip.conf"):
            tar.add("/etc/pip.conf", "root/etc/pip.conf")
        if os.path.exists(_AUTHORITIES):
            for name in (_AUTHORITIES, _COPY):
                tar.add(os.path.realpath(_AUTHORITIES), f"root{name}")
            lines.append(f"ENV PIP_CERT={_COPY}")
        text = "\n".join(lines).encode()
        entry = tarfile.TarInfo("Dockerfile")
        entry.size = len(text)
        tar.addfile(entry, io.BytesIO(text))
    archive.seek(0)
    return archive
