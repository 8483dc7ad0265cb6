"""Kubeconfigs and service accounts: what is read of them, and what is refused."""

from __future__ import annotations

import base64
import json
import os
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from ig.errors import IgError
from ig.kubernetes import credentials
from ig.kubernetes.credentials import AUTO, Credentials, find, usual


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate and its key."""
    paths = tmp_path / "some.crt", tmp_path / "some.key"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-subj", "/CN=some", "-out", str(paths[0]), "-keyout", str(paths[1])]
    subprocess.run(command, check=True, capture_output=True)
    return paths


@pytest.fixture(autouse=True)
def _nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let there be no credentials in the usual places."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(credentials, "SERVICE_ACCOUNT", str(tmp_path / "account"))
    for name in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"):
        monkeypatch.delenv(name, raising=False)


def config(cluster: dict[str, Any], user: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "it", "user": "me"}}],
        "clusters": [{"name": "it", "cluster": cluster}],
        "users": [{"name": "me", "user": user}],
        **more,
    }


def written(path: Path, content: object) -> Credentials:
    path.write_text(json.dumps(content))
    return Credentials((str(path),))


def test_kubeconfig_in_yaml_has_server_authority_and_token(
    tmp_path: Path, pair: tuple[Path, Path]
) -> None:
    cluster = {
        "server": "https://[2001:db8::1]:6443/clusters/a/",
        "certificate-authority": "some.crt",
        "tls-server-name": "api",
    }
    path = tmp_path / "config"
    path.write_text(yaml.safe_dump(config(cluster, {"token": "secret"})))
    found = Credentials((str(path),))
    access = found.access()
    assert access.url == "https://[2001:db8::1]:6443/clusters/a"
    assert (access.server, access.token) == ("api", "secret")
    assert access.tls
    assert access.tls.cert_store_stats()["x509"] == 1
    assert not access.tls.verify_flags & ssl.VERIFY_X509_STRICT  # from Python 3.13 on
    assert found.files() == [str(path), str(pair[0])]


def test_kubeconfig_may_contain_the_certificates(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    certificate, key = (base64.b64encode(each.read_bytes()).decode() for each in pair)
    cluster = {"server": "https://192.0.2.1", "certificate-authority-data": certificate}
    user = {"client-certificate-data": certificate, "client-key-data": key}
    found = written(tmp_path / "config", config(cluster, user))
    before = set(os.listdir("/proc/self/fd"))
    access = found.access()
    assert access.url == "https://192.0.2.1:443"
    assert access.tls
    assert access.tls.cert_store_stats()["x509"] == 1
    assert set(os.listdir("/proc/self/fd")) == before


def test_kubeconfigs_of_the_environment_are_merged_and_the_first_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    written(first, {"users": [{"name": "me", "user": {"token": "mine"}}]})
    written(second, config({"server": "https://192.0.2.1"}, {"token": "other"}))
    monkeypatch.setenv("KUBECONFIG", f"{first}:{second}")
    access = find(AUTO).access()
    assert (access.url, access.token) == ("https://192.0.2.1:443", "mine")


def test_service_account_of_a_pod_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pair: tuple[Path, Path]
) -> None:
    account = tmp_path / "account"
    account.mkdir()
    (account / "token").write_text("first\n")
    (account / "ca.crt").write_bytes(pair[0].read_bytes())
    assert usual() is None
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "192.0.2.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "6443")
    found = find(AUTO)
    assert (found.access().url, found.access().token) == ("https://192.0.2.1:6443", "first")
    (account / "token").write_text("second\n")
    assert found.access().token == "second"
    assert found.files() == [f"{account}/token", f"{account}/ca.crt"]


def test_no_credentials_are_an_error_that_says_where_they_could_be() -> None:
    with pytest.raises(IgError) as error:
        find(AUTO)
    assert "KUBECONFIG" in error.value.found


SERVER = {"server": "https://192.0.2.1"}
REFUSED: dict[str, tuple[object, str]] = {
    "no file": (None, "No such file"),
    "a list": ([], "no current context"),
    "no cluster": (config(SERVER, {}, clusters=[]), "cluster of its current context"),
    "another scheme": (config({"server": "ssh://192.0.2.1"}, {}), "https://HOST:PORT"),
    "a port that is none": (config({"server": "https://a:b"}, {}), "ort"),
    "a proxy": (config({**SERVER, "proxy-url": "http://192.0.2.2"}, {}), "proxy-url"),
    "a program": (config(SERVER, {"exec": {"command": "touch"}}), "`exec`"),
    "a token with an end of line": (config(SERVER, {"token": "a\r\nb: c"}), "token"),
    "no certificate": (config(SERVER, {"client-certificate-data": "AAAA"}), ""),
    "no base64": (config({**SERVER, "certificate-authority-data": "?"}, {}), ""),
}


@pytest.mark.parametrize("case", REFUSED)
def test_kubeconfig_that_cannot_be_used_is_an_error(tmp_path: Path, case: str) -> None:
    content, words = REFUSED[case]
    path = tmp_path / "config"
    found = Credentials((str(path),)) if content is None else written(path, content)
    with pytest.raises(IgError) as error:
        found.access()
    assert str(path) in error.value.failed
    assert words in error.value.found


def test_token_is_not_sent_without_encryption(tmp_path: Path) -> None:
    found = written(
        tmp_path / "config", config({"server": "http://127.0.0.1:8001"}, {"token": "secret"})
    )
    assert (found.access().url, found.access().token) == ("http://127.0.0.1:8001", "")
