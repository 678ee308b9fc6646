"""A stand-in of the Hugging Face hub on the loopback: as much of its API as an upload needs."""

from __future__ import annotations

import base64
import hashlib
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_stand_in"


class HubStandIn(ThreadingHTTPServer):
    """Keeps what is uploaded.

    Attributes:
        repositories: By name whether they are private.
        files: By name what the last commit holds of small files, and by SHA-256 of large ones.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, bool] = {}
        self.files: dict[str, bytes] = {}
        self.large: dict[str, bytes] = {}

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: HubStandIn

    def log_message(self, *_: object) -> None:
        """Keep quiet."""

    def _answer(self, content: object, status: int = 200, **headers: str) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_GET(self) -> None:
        """Who the user is; what a repository is."""
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._answer({"error": "Invalid username or password."}, 401)
        elif self.path.startswith("/api/whoami"):
            self._answer({"type": "user", "name": "someone", "orgs": []})
        else:
            name = self.path.partition("?")[0].removeprefix("/api/models/")
            name = "/".join(name.split("/")[:2])
            if name not in self.server.repositories:
                self._answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
            else:
                private = self.server.repositories[name]
                self._answer({"id": name, "modelId": name, "private": private, "siblings": []})

    do_HEAD = do_GET  # noqa: N815

    def do_PUT(self) -> None:
        """Take a large file."""
        content = self._body()
        self.server.large[hashlib.sha256(content).hexdigest()] = content
        self._answer({})

    def do_POST(self) -> None:
        """Make a repository; say how files go; take a commit."""
        text = self._body()
        if self.path == "/api/repos/create":
            asked = json.loads(text)
            owner = asked.get("organization") or "someone"
            name = f"{owner}/{asked['name']}"
            if owner != "someone":
                self._answer({"error": "You don't have the rights"}, 403)
                return
            exists = name in self.server.repositories
            self.server.repositories.setdefault(name, asked.get("visibility") == "private")
            self._answer({"url": f"{self.server.address}/{name}"}, 409 if exists else 200)
        elif "/preupload/" in self.path:
            files = [
                {"path": file["path"], "uploadMode": _mode(file["path"]), "shouldIgnore": False}
                for file in json.loads(text)["files"]
            ]
            self._answer({"files": files})
        elif self.path.endswith("/info/lfs/objects/batch"):
            self._answer(
                {"transfer": "basic", "objects": [self._upload(one) for one in _objects(text)]}
            )
        elif "/commit/" in self.path:
            for line in text.splitlines():
                self._commit(json.loads(line))
            name = "/".join(self.path.split("/")[3:5])
            url = f"{self.server.address}/{name}/commit/{'0' * 40}"
            self._answer({"commitUrl": url, "commitOid": "0" * 40, "success": True})
        else:
            self._answer({})  # the card's YAML is valid

    def _upload(self, one: dict[str, Any]) -> dict[str, Any]:
        action = {"href": f"{self.server.address}/large/{one['oid']}", "header": {}}
        return {"oid": one["oid"], "size": one["size"], "actions": {"upload": action}}

    def _commit(self, line: dict[str, Any]) -> None:
        value = line["value"]
        if line["key"] == "file":
            self.server.files[value["path"]] = base64.b64decode(value["content"])
        elif line["key"] == "lfsFile":
            self.server.files[value["path"]] = self.server.large[value["oid"]]


def _mode(path: str) -> str:
    return "lfs" if path.endswith((".safetensors", ".onnx")) else "regular"


def _objects(text: bytes) -> list[dict[str, Any]]:
    objects: list[dict[str, Any]] = json.loads(text)["objects"]
    return objects
