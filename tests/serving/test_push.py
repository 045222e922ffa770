"""A folder for the hub goes up as one commit: the other side is a small server that speaks the hub's API."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from vlbench.disk.digests import file_digest
from vlbench.errors import RunFailed, UserError
from vlbench.serving.push import push

PLACE = "https://huggingface.co/mine/small"  # the client reads no other host's addresses


class Hub(ThreadingHTTPServer):
    """repositories: name -> whether it is private. commits: of each, path -> content. closed: it takes nothing."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.repositories: dict[str, bool] = {}
        self.commits: list[dict[str, bytes]] = []
        self.messages: list[str] = []
        self.closed = False


class Answers(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert self.headers["Authorization"] == "Bearer hf_mine"
        if self.server.closed:
            return self.answer({"error": "You cannot write here."}, 403)
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization', 'me')}/{asked['name']}"
            self.server.repositories[name] = asked.get("private", asked.get("visibility") == "private")
            return self.answer({"url": PLACE})
        if "/preupload/" in self.path:
            paths = [file["path"] for file in json.loads(body)["files"]]
            return self.answer({"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in paths]})
        if "/commit/" in self.path:
            lines = [json.loads(line) for line in body.splitlines()]
            files = [line["value"] for line in lines if line["key"] == "file"]
            self.server.commits.append({file["path"]: base64.b64decode(file["content"]) for file in files})
            self.server.messages.append(lines[0]["value"]["summary"])
            return self.answer({"commitUrl": f"{PLACE}/commit/1", "commitOid": "1", "hookOutput": ""})
        return self.answer({})

    def answer(self, content: Any, code: int = 200) -> None:
        text = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import constants

    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """As an export leaves it, small."""
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    names = ("README.md", "config.json", "model.safetensors")
    files = {name: file_digest(tmp_path / name) for name in names}
    (tmp_path / "proof.json").write_text(json.dumps({"run": "mini-mine", "runtime": "hub-folder", "files": files}))
    return tmp_path


def test_what_was_proved_goes_up_and_nothing_else(hub: Hub, folder: Path) -> None:
    """One commit, private where nothing else is asked for; a card that was edited is what goes up."""
    (folder / "notes.txt").write_text("my own")
    (folder / "README.md").write_text("# Edited\n")
    assert push(folder, "mine/small", public=False) == f"{PLACE}/commit/1"
    assert hub.repositories == {"mine/small": True}
    assert hub.messages == ["mini-mine, by vlbench"]
    (commit,) = hub.commits
    assert sorted(commit) == ["README.md", "config.json", "model.safetensors", "proof.json"]
    assert commit["README.md"] == b"# Edited\n"
    assert commit["model.safetensors"] == b"weights"
    push(folder, "mine/other", public=True)
    assert hub.repositories["mine/other"] is False


def test_a_folder_that_was_changed_is_refused_before_anything_is_sent(hub: Hub, folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"others")
    with pytest.raises(UserError, match=r"model.safetensors was changed after its proof"):
        push(folder, "mine/small", public=False)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(folder / "config.json")
    with pytest.raises(UserError, match="is missing, or a link"):
        push(folder, "mine/small", public=False)
    proof = json.loads((folder / "proof.json").read_text())
    (folder / "proof.json").write_text(json.dumps({**proof, "files": {"../x": "0"}}))
    with pytest.raises(UserError, match="which is no file inside"):
        push(folder, "mine/small", public=False)
    (folder / "proof.json").write_text(json.dumps({**proof, "runtime": "onnx"}))
    with pytest.raises(UserError, match="is no proof of a folder for the hub"):
        push(folder, "mine/small", public=False)
    (folder / "proof.json").unlink()
    with pytest.raises(UserError, match=r"vlbench export RUN .* --to hub-folder"):
        push(folder, "mine/small", public=False)
    assert not hub.repositories


def test_words_and_logins(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="should be OWNER/NAME"):
        push(folder, "small", public=False)
    hub.closed = True
    with pytest.raises(RunFailed, match=r"the hub did not take mine/small \(HfHubHTTPError\): .*403"):
        push(folder, "mine/small", public=False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(UserError, match="hf auth login"):
        push(folder, "mine/small", public=False)


def test_a_hub_that_does_not_answer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(RunFailed, match="the hub did not take mine/small"):
        push(folder, "mine/small", public=False)
