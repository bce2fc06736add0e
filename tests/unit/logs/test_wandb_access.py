"""Whether W&B can be used, told without its package's menus and within seconds."""

import base64
import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from fusionrun.logs import wandb_access
from fusionrun.logs.wandb_access import WandbMode, access_problem, effective_mode, package_problem

KEY = "0123456789" * 4


class Server(BaseHTTPRequestHandler):
    """Knows one key."""

    status = 401

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        expected = f"Basic {base64.b64encode(f'api:{KEY}'.encode()).decode()}"
        known = self.headers.get("Authorization") == expected
        self.send_response(200 if known else self.status)
        self.end_headers()
        viewer = {"id": "x"} if known else None
        self.wfile.write(json.dumps({"data": {"viewer": viewer}}).encode())

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(autouse=True)
def no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("API_KEY", "BASE_URL", "CONFIG_DIR", "IDENTITY_TOKEN_FILE", "MODE"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    for name in ("NETRC", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Server) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("WANDB_BASE_URL", f"{url}/")
        yield url
        server.shutdown()
        thread.join()


def found(problem: tuple[str, str] | None) -> str:
    assert problem is not None and "logs.wandb=" in problem[1]
    return problem[0]


def test_no_key_is_said_before_the_network_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb_access, "_refusal", lambda *_: pytest.fail("asked"))
    assert found(access_problem()).startswith("no W&B key for https://api.wandb.ai, neither in")


def test_a_key_that_the_server_knows_passes(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert access_problem() is None


@pytest.mark.parametrize("name", [".netrc", "elsewhere"])
def test_a_key_in_netrc_passes(
    name: str, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).write_text(f"machine 127.0.0.1\n  login user\n  password {KEY}\n")
    if name != ".netrc":
        monkeypatch.setenv("NETRC", str(tmp_path / name))
    assert access_problem() is None


def test_the_server_of_wandbs_settings_is_asked(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_BASE_URL")
    (tmp_path / ".config/wandb").mkdir(parents=True)
    (tmp_path / ".config/wandb/settings").write_text(f"[default]\nbase_url = {server}\n")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert access_problem() is None


@pytest.mark.parametrize("status", [401, 403, 200])
def test_a_refused_key(status: int, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Server, "status", status)
    monkeypatch.setenv("WANDB_API_KEY", "wrong")
    assert found(access_problem()) == f"{server} refuses the W&B key"


def test_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:1")
    assert "http://127.0.0.1:1 can't be reached" in found(access_problem())


def test_a_bad_gateway_is_no_network(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Server, "status", 502)
    monkeypatch.setenv("WANDB_API_KEY", "any")
    assert "can't be reached (Bad Gateway)" in found(access_problem())


def test_a_server_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr(wandb_access, "NETWORK_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.monotonic()
        assert "can't be reached" in found(access_problem())
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("wanted", "asked", "mode"),
    [
        ("online", "", "online"),
        ("online", "offline", "offline"),
        ("online", "dryrun", "offline"),
        ("online", "disabled", "off"),
        ("offline", "online", "offline"),
        ("off", "online", "off"),
    ],
)
def test_wandbs_own_variable_asks_for_less(
    wanted: WandbMode, asked: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", asked)
    assert effective_mode(wanted) == mode


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("def init(): ...", None),
        ("raise RuntimeError('built for another system')", "can't be imported (RuntimeError: bui"),
        ("import a_package_that_is_not_there", "can't be imported (No module named 'a_package"),
        ("", "isn't installed; "),
    ],
)
def test_the_package(
    code: str, words: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wandb").mkdir()
    if code:  # else an empty folder, as W&B leaves in its working directory
        (tmp_path / "wandb/__init__.py").write_text(code)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    problem = package_problem()
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    if words is None:
        assert problem is None
    else:
        assert words in found(problem)


def test_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert found(package_problem()) == "the package wandb isn't installed"
