"""A server on 127.0.0.1 that speaks as much of the hub's API as fetching a model takes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import urlsplit


@dataclass
class Hub:
    """Models as name -> revision -> commit, and the files of each commit in a folder."""

    address: str = ""
    revisions: dict[str, dict[str, str]] = field(default_factory=dict)
    folders: dict[str, Path] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    sent: list[str] = field(default_factory=list)
    """Names of the files whose content went out, in order."""
    asked: list[str] = field(default_factory=list)

    def publish(self, repo: str, folder: Path, commit: str, *names: str) -> None:
        known = self.revisions.setdefault(repo, {})
        known |= dict.fromkeys((*(names or ("main",)), commit), commit)
        self.folders[commit] = folder


@contextmanager
def serving() -> Iterator[Hub]:
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            self._answer(body=True)

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def _answer(self, body: bool) -> None:
            path = urlsplit(self.path).path
            hub.asked.append(path)
            parts = path.strip("/").split("/")
            if parts[:2] == ["api", "models"]:
                repo, what = "/".join(parts[2:4]), parts[4:]
            else:
                repo, what = "/".join(parts[:2]), parts[2:]
            what = what or ["revision", "main"]
            if repo in hub.gated:
                return self._fault(403, "GatedRepo")
            if repo not in hub.revisions:
                return self._fault(404, "RepoNotFound")
            commit = hub.revisions[repo].get(what[1])
            if commit is None:
                return self._fault(404, "RevisionNotFound")
            folder = hub.folders[commit]
            match what:
                case ["revision", _]:
                    self._json({"id": repo, "sha": commit, "siblings": _files(folder, "rfilename")})
                case ["tree", *_]:
                    self._json(_files(folder, "path"))
                case ["resolve", _, *name]:
                    self._file(folder / "/".join(name), commit, body)

        def _json(self, content: Any) -> None:
            self._send(json.dumps(content).encode(), {"Content-Type": "application/json"})

        def _file(self, file: Path, commit: str, body: bool) -> None:
            if not file.is_file():
                return self._fault(404, "EntryNotFound")
            content = file.read_bytes()
            if body:
                hub.sent.append(file.name)
            etag = hashlib.sha256(content).hexdigest()
            self._send(content, {"ETag": f'"{etag}"', "X-Repo-Commit": commit}, body)

        def _send(self, content: bytes, headers: dict[str, str], body: bool = True) -> None:
            self.send_response(200)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

        def _fault(self, status: int, code: str) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _files(folder: Path, name: str) -> list[dict[str, Any]]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return [
        {
            "type": "file",
            name: file.relative_to(folder).as_posix(),
            "size": file.stat().st_size,
            "oid": hashlib.sha1(file.read_bytes()).hexdigest(),
        }
        for file in files
    ]
