"""A real kube-apiserver with an etcd of its own, on the loopback interface."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import subprocess
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError

from tests.features import apiserver
from tests.host.namespace import Program
from tests.host.waiting import PATIENCE, until

TOKENS = {"admin": "system:masters", "reader": "", "nobody": ""}
"""Users, whose tokens are their names, and the group of each."""
_GROUP = "rbac.authorization.k8s.io"


def free_port() -> int:
    """Return a port that nobody has now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class ApiServer:
    """The server; `reader` may list and watch pods and Services, `nobody` may do nothing."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port, store, peers = free_port(), free_port(), free_port()
        self.url = f"https://127.0.0.1:{self._port}"
        lines = [f"{name},{name},{name},{group}" for name, group in TOKENS.items()]
        (folder / "tokens.csv").write_text("\n".join(lines))
        subprocess.run(
            ["openssl", "genrsa", "-out", str(folder / "accounts.key"), "2048"],
            check=True,
            capture_output=True,
        )
        etcd = shutil.which("etcd")
        assert etcd
        urls = {"client": f"http://127.0.0.1:{store}", "peer": f"http://127.0.0.1:{peers}"}
        options = [f"--data-dir={folder}/etcd", f"--initial-cluster=default={urls['peer']}"]
        for name, url in urls.items():
            options += [f"--listen-{name}-urls={url}"]
        options += [f"--advertise-client-urls={urls['client']}"]
        options += [f"--initial-advertise-peer-urls={urls['peer']}"]
        self._etcd = Program([etcd, *options])
        self._options = [
            f"--etcd-servers={urls['client']}",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            f"--secure-port={self._port}",
            f"--cert-dir={folder}/certificates",
            "--service-cluster-ip-range=198.18.8.0/24",
            f"--token-auth-file={folder}/tokens.csv",
            "--authorization-mode=RBAC",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={folder}/accounts.key",
            f"--service-account-signing-key-file={folder}/accounts.key",
            "--disable-admission-plugins=ServiceAccount",
        ]
        self.start()
        self._allow()

    def start(self) -> None:
        """Start it, or start it again, and wait until it answers."""
        self._server = Program([str(apiserver()), *self._options])
        until(self._ready, "the API server", 4 * PATIENCE)

    def stop(self) -> None:
        """End the server; what it has stored stays."""
        self._server.stop()

    def close(self) -> None:
        self._server.stop()
        self._etcd.stop()

    def kubeconfig(self, user: str = "reader") -> Path:
        """Write the kubeconfig of a user."""
        certificate = f"{self._folder}/certificates/apiserver.crt"
        cluster = {"server": self.url, "certificate-authority": certificate}
        config = {
            "current-context": "here",
            "contexts": [{"name": "here", "context": {"cluster": "it", "user": user}}],
            "clusters": [{"name": "it", "cluster": cluster}],
            "users": [{"name": user, "user": {"token": user}}],
        }
        path = self._folder / f"{user}.kubeconfig"
        path.write_text(json.dumps(config))
        return path

    def put_pod(self, name: str, address: str, namespace: str = "shop") -> None:
        """Create a pod that runs and has this address, as a kubelet reports it."""
        containers = [{"name": "it", "image": "none"}]
        body = {"metadata": {"name": name}, "spec": {"containers": containers}}
        path = f"/api/v1/namespaces/{namespace}/pods"
        self.ask("POST", path, body)
        status = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}
        self.ask("PATCH", f"{path}/{name}/status", {"status": status})

    def put_service(self, name: str, port: int, namespace: str = "shop") -> str:
        """Create a Service, and return its cluster IP."""
        body = {"metadata": {"name": name}, "spec": {"ports": [{"port": port}]}}
        found = self.ask("POST", f"/api/v1/namespaces/{namespace}/services", body)
        return str(found["spec"]["clusterIP"])

    def delete_pod(self, name: str, namespace: str = "shop") -> None:
        path = f"/api/v1/namespaces/{namespace}/pods/{name}?gracePeriodSeconds=0"
        self.ask("DELETE", path)

    def ask(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        """Ask for something as its administrator."""
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        request = urllib.request.Request(
            self.url + path,
            json.dumps(body).encode() if body else None,
            {"Authorization": "Bearer admin", "Content-Type": kind},
            method=method,
        )
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        with urllib.request.urlopen(request, timeout=PATIENCE, context=context) as reply:
            found: dict[str, Any] = json.load(reply)
        return found

    def _ready(self) -> bool:
        with suppress(HTTPError, URLError, OSError, ValueError):
            self.ask("GET", "/api/v1/namespaces/default")
            return True
        assert self._server.process.poll() is None, "the API server has ended"
        return False

    def _allow(self) -> None:
        """Let `reader` read what `--kubernetes` needs, as docs/guide.md has it."""
        self.ask("POST", "/api/v1/namespaces", {"metadata": {"name": "shop"}})
        rule = {
            "apiGroups": [""],
            "resources": ["pods", "services"],
            "verbs": ["list", "watch"],
        }
        path = f"/apis/{_GROUP}/v1"
        role = {"metadata": {"name": "ig"}, "rules": [rule]}
        self.ask("POST", f"{path}/clusterroles", role)
        subject = {"kind": "User", "name": "reader", "apiGroup": _GROUP}
        reference = {"kind": "ClusterRole", "name": "ig", "apiGroup": _GROUP}
        binding = {"metadata": {"name": "ig"}, "roleRef": reference, "subjects": [subject]}
        self.ask("POST", f"{path}/clusterrolebindings", binding)
