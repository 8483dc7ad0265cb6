"""Where the Kubernetes API is, and what is shown to it: a pod's service account, or a kubeconfig.

Files are read anew for each connection, since tokens and certificates are replaced from time to
time. Source: k8s.io/client-go's rest and tools/clientcmd/api/v1, whose rules these are. What would
run a program (`exec`, `auth-provider`) or needs a proxy is refused.
"""

from __future__ import annotations

import base64
import json
import os
import ssl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from ig.containers.runtimes.http_api import Address
from ig.containers.untrusted import mapping
from ig.errors import IgError, MissingDependency

SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
"""The folder of a pod's credentials."""
AUTO = "auto"
"""What the option is where the user names no file."""
_USUAL = "~/.kube/config"
_LARGEST = 1 << 20  # bytes of a file
_REFUSED = ("exec", "auth-provider", "username", "password")
_PORTS = {"https": 443, "http": 80}


@dataclass(frozen=True)
class Access:
    """How the API is asked."""

    address: Address
    prefix: str = ""
    """What paths of the API begin with, where a proxy serves several."""
    server: str = ""
    """The name that the server's certificate must have, if not the host's."""
    tls: ssl.SSLContext | None = None
    token: str = ""

    @property
    def url(self) -> str:
        """Return the URL of the API."""
        scheme = "https" if self.address.tls else "http"
        return f"{scheme}://{self.address.authority}{self.prefix}"


@dataclass(frozen=True)
class _Entry:
    """A cluster or a user of a kubeconfig, and the folder that its paths begin in."""

    values: Mapping[str, Any]
    folder: str = ""

    def text(self, name: str) -> str:
        value = self.values.get(name)
        return value if isinstance(value, str) else ""

    def path(self, name: str) -> str:
        return os.path.join(self.folder, self.text(name)) if self.text(name) else ""


@dataclass(frozen=True)
class Credentials:
    """Credentials in kubeconfig files, of which the first that has an entry counts; or a pod's."""

    paths: tuple[str, ...] = ()
    """The kubeconfig files; none for the service account of this pod."""

    @property
    def place(self) -> str:
        """Return where they are, for messages."""
        return ":".join(self.paths) or SERVICE_ACCOUNT

    def files(self) -> list[str]:
        """Return the files that are read for each connection. Raises IgError."""
        if not self.paths:
            return [f"{SERVICE_ACCOUNT}/{name}" for name in ("token", "ca.crt")]
        cluster, user = self._entries()
        names = ("tokenFile", "client-certificate", "client-key")
        found = [cluster.path("certificate-authority"), *map(user.path, names)]
        return [*self.paths, *filter(None, found)]

    def access(self) -> Access:
        """Read them. Raises IgError."""
        try:
            return self._of_kubeconfig() if self.paths else self._of_pod()
        except (OSError, ValueError) as error:  # TLS's own are among them
            raise self._invalid(str(error)) from error

    def _invalid(self, found: str) -> IgError:
        plain = "".join(each if each.isprintable() else "?" for each in found[:200])
        return IgError(f"Cannot use the Kubernetes credentials of {self.place}.", plain)

    def _of_pod(self) -> Access:
        host = os.environ.get("KUBERNETES_SERVICE_HOST", "")
        port = int(os.environ.get("KUBERNETES_SERVICE_PORT") or _PORTS["https"])
        context = _context(f"{SERVICE_ACCOUNT}/ca.crt")
        token = _token(_read(f"{SERVICE_ACCOUNT}/token").decode("ascii"))
        return Access(Address("", host, port, True), tls=context, token=token)

    def _of_kubeconfig(self) -> Access:
        cluster, user = self._entries()
        parts = urlsplit(cluster.text("server"))
        if parts.scheme not in _PORTS or not parts.hostname or parts.query or parts.username:
            raise ValueError("expected a server https://HOST:PORT")
        if cluster.text("proxy-url"):
            raise ValueError("a proxy-url is not supported")
        address = Address(
            "", parts.hostname, parts.port or _PORTS[parts.scheme], parts.scheme == "https"
        )
        prefix = parts.path.rstrip("/")
        if not address.tls:  # nothing secret is sent without encryption
            return Access(address, prefix)
        refused = [name for name in _REFUSED if user.values.get(name)]
        file = user.path("tokenFile")
        token = _token(_read(file).decode("ascii") if file else user.text("token"))
        if refused and not token and not _has_certificate(user):
            raise ValueError(f"its user has `{refused[0]}`: expected a token or a certificate")
        return Access(address, prefix, cluster.text("tls-server-name"), _tls(cluster, user), token)

    def _entries(self) -> tuple[_Entry, _Entry]:
        """Return the cluster and the user of the current context."""
        clusters: dict[object, _Entry] = {}
        users: dict[object, _Entry] = {}
        contexts: dict[object, _Entry] = {}
        current = ""
        for path in self.paths:
            try:
                config = _parsed(path, _read(path))
            except (OSError, ValueError) as error:
                raise self._invalid(str(error)) from error
            for found, names, name in (
                (clusters, "clusters", "cluster"),
                (users, "users", "user"),
                (contexts, "contexts", "context"),
            ):
                for each in map(mapping, _listed(config.get(names))):
                    entry = _Entry(mapping(each.get(name)), os.path.dirname(path))
                    found.setdefault(str(each.get("name")), entry)
            current = current or str(config.get("current-context") or "")
        context = contexts.get(current)
        if context is None:
            raise self._invalid("It has no current context.")
        cluster = clusters.get(context.text("cluster"))
        if cluster is None:
            raise self._invalid("The cluster of its current context is missing.")
        return cluster, users.get(context.text("user"), _Entry({}))


def find(given: str) -> Credentials:
    """Return the credentials in that file; if `auto`, in the places that kubectl has.

    Raises IgError if there are none.
    """
    if given != AUTO:
        return Credentials((given,))
    found = usual()
    if found is None:
        raise IgError(
            "No Kubernetes credentials found.",
            f"There is no service account of a pod ({SERVICE_ACCOUNT}), no KUBECONFIG, and no "
            f"{_USUAL}.",
            "Use --kubernetes=PATH of a kubeconfig.",
        )
    return found


def usual() -> Credentials | None:
    """Return the credentials of KUBECONFIG, of this pod, or of ~/.kube/config; None without."""
    named = [path for path in os.environ.get("KUBECONFIG", "").split(":") if path]
    if named:
        return Credentials(tuple(named))
    if os.environ.get("KUBERNETES_SERVICE_HOST") and os.path.exists(f"{SERVICE_ACCOUNT}/token"):
        return Credentials()
    path = os.path.expanduser(_USUAL)
    return Credentials((path,)) if os.path.exists(path) else None


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        content = file.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        raise ValueError(f"{path} is too large")
    return content


def _parsed(path: str, content: bytes) -> Mapping[str, Any]:
    try:
        return mapping(json.loads(content))
    except ValueError:
        pass
    try:
        import yaml
    except ImportError:
        raise MissingDependency(
            f"Cannot read {path}: PyYAML is not installed.",
            remedy="Use `pip install 'ig[kubernetes]'`, or a kubeconfig in JSON "
            "(kubectl config view --raw -o json).",
        ) from None
    try:
        return mapping(yaml.safe_load(content))
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from error


def _listed(value: object) -> Sequence[object]:
    return value if isinstance(value, list) else ()


def _token(text: str) -> str:
    """Return a token without blanks around it. Raises ValueError for what no header may have."""
    token = text.strip()
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise ValueError("its token has characters that no token has")
    return token


def _has_certificate(user: _Entry) -> bool:
    return bool(user.text("client-certificate-data") or user.text("client-certificate"))


def _context(authority: str | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=authority)
    # From Python 3.13 on; clusters' own authorities may lack what it demands, as for client-go.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


def _tls(cluster: _Entry, user: _Entry) -> ssl.SSLContext:
    with _file(cluster, "certificate-authority") as authority:
        context = _context(authority or None)
    if cluster.values.get("insecure-skip-tls-verify") is True:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if _has_certificate(user):
        names = ("client-certificate", "client-key")
        with _file(user, names[0]) as certificate, _file(user, names[1]) as key:
            # A key that wants a password must not ask for it on the terminal.
            context.load_cert_chain(certificate, key or None, password="")
    return context


@contextmanager
def _file(entry: _Entry, name: str) -> Iterator[str]:
    """Yield the path of a file, also where the kubeconfig has its content; "" where neither is."""
    encoded = entry.text(f"{name}-data")
    if not encoded:
        yield entry.path(name)
        return
    content = base64.b64decode(encoded, validate=True)
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC)  # so that no key is on a disk
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        yield f"/proc/self/fd/{descriptor}"
