"""``upload`` against a hub of this machine: its HTTP interface, the bytes that arrive, refusals."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlc_bridge import ConvertJob, GenConfigJob, convert_weight, gen_config

TOKEN = "hf_right"


class Hub(BaseHTTPRequestHandler):
    """The routes that an upload uses; small files arrive in the commit, others by LFS."""

    store: dict[str, bytes]
    repos: list[dict[str, Any]]
    commits: list[str]

    def log_message(self, *_: Any) -> None: ...

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, found: Any, code: int = 200) -> None:
        text = json.dumps(found).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_PUT(self) -> None:
        self.store[self.path.rpartition("/")[2]] = self._body()
        self._answer({})

    def do_POST(self) -> None:
        body, home = self._body(), f"http://{self.headers['Host']}"
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer({"error": "Invalid username or password."}, 401)
        if self.path == "/api/validate-yaml":
            return self._answer({"errors": [], "warnings": []})
        if self.path == "/api/repos/create":
            self.repos.append(json.loads(body))
            return self._answer({"url": f"{home}/org/name"})
        if "/preupload/" in self.path:
            files = [
                {"path": f["path"], "shouldIgnore": False,
                 "uploadMode": "lfs" if f["path"].endswith(".bin") else "regular"}
                for f in json.loads(body)["files"]
            ]  # fmt: skip
            return self._answer({"files": files})
        if self.path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**o, "actions": {"upload": {"href": f"{home}/put/{o['oid']}"}}}
                for o in json.loads(body)["objects"]
            ]
            return self._answer({"transfer": "basic", "objects": objects})
        assert "/commit/" in self.path
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                self.store[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.store[value["path"]] = self.store.pop(value["oid"])
            else:
                self.commits.append(value["summary"])
        return self._answer(
            {"commitUrl": f"{home}/org/name/commit/{'0' * 40}", "commitOid": "0" * 40,
             "success": True}
        )  # fmt: skip


@pytest.fixture
def hub() -> Iterator[type[Hub]]:
    kind = type("Fresh", (Hub,), {"store": {}, "repos": [], "commits": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    kind.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield kind
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, example_awq: Path) -> Path:
    out = tmp_path_factory.mktemp("upload") / "model"
    gen_config(GenConfigJob(example_awq, out))
    convert_weight(ConvertJob(example_awq, out))
    return out


def upload(hub: Any, model: Path, *flags: str, token: str = TOKEN) -> Any:
    env = {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": token, "HF_HUB_DISABLE_XET": "1"}
    return subprocess.run(
        [sys.executable, "-m", "mlc_bridge", "upload", str(model), "--repo", "org/name", *flags],
        capture_output=True, text=True, check=False, env=env,
    )  # fmt: skip


def test_every_file_arrives_with_a_card(hub: Any, model: Path) -> None:
    ran = upload(hub, model, "--base-model", "org/origin", "--private", "--json")
    assert ran.returncode == 0, ran.stderr
    report = json.loads(ran.stdout)
    assert set(report["files"]) == set(hub.store)
    assert hub.repos[0]["name"] == "name"
    assert len(hub.commits) == 1
    sent = {n: hashlib.sha256(b).hexdigest() for n, b in hub.store.items() if n != "README.md"}
    assert sent == {n: hashlib.sha256((model / n).read_bytes()).hexdigest() for n in sent}
    assert {
        "mlc-chat-config.json",
        "tensor-cache.json",
        "params_shard_0.bin",
        "tokenizer.json",
    } <= (set(sent))
    head, text = hub.store["README.md"].decode().split("---\n")[1:]
    card = yaml.safe_load(head)
    assert card["base_model"] == "org/origin"
    assert "q4f16_autoawq" in card["tags"]
    assert "mlc-bridge chat HF://org/name" in text


def test_what_is_not_whole_is_not_uploaded(hub: Any, model: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(model, other)
    shard = bytearray((other / "params_shard_0.bin").read_bytes())
    shard[100] ^= 1
    (other / "params_shard_0.bin").write_bytes(shard)
    ran = upload(hub, other)
    assert (ran.returncode, hub.store) == (2, {})
    assert "params_shard_0.bin: damaged" in ran.stderr
    ran = upload(hub, model, "--with-lib")
    assert (ran.returncode, hub.store) == (2, {})
    assert "no compiled library" in ran.stderr


def test_a_hub_that_refuses_is_told_in_one_paragraph(hub: Any, model: Path) -> None:
    ran = upload(hub, model, token="hf_wrong")
    assert (ran.returncode, hub.store) == (2, {})
    assert ran.stderr.splitlines()[-1].startswith("error: org/name: the hub does not take")
    hub.url = "http://127.0.0.1:9"  # nobody listens there
    assert upload(hub, model).returncode == 2
