"""A real HTTP server that gives out one model folder as the Hub does, to the real client."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "1" * 40


class Hub(BaseHTTPRequestHandler):
    """Describes the repository `server.repo` and sends its files."""

    server: HubServer

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        path, folder, repo = unquote(urlsplit(self.path).path), self.server.folder, self.server.repo
        files = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
        if path.startswith(f"/api/models/{repo}/tree/"):
            entries = [
                {"type": "file", "path": name, "size": (folder / name).stat().st_size, "oid": _etag(folder / name)} for name in files
            ]
            return self._send(json.dumps(entries).encode(), {"Content-Type": "application/json"}, with_body)
        if path.startswith(f"/api/models/{repo}"):
            info = {"_id": "1", "id": repo, "modelId": repo, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
            info |= {"private": False, "gated": False, "disabled": False, "tags": [], "downloads": 0, "likes": 0}
            return self._send(json.dumps(info).encode(), {"Content-Type": "application/json"}, with_body)
        name = path.partition(f"/{repo}/resolve/{COMMIT}/")[2]
        if name not in files:
            self.send_error(404)
            return None
        if with_body:
            self.server.sent[name] += 1
        headers = {"ETag": f'"{_etag(folder / name)}"', "X-Repo-Commit": COMMIT}
        return self._send((folder / name).read_bytes(), headers, with_body)

    def _send(self, content: bytes, headers: dict[str, str], with_body: bool) -> None:
        self.send_response(200)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


class HubServer(ThreadingHTTPServer):
    """Counts how often each file was sent."""

    def __init__(self, repo: str, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Hub)
        self.repo, self.folder, self.sent = repo, folder, Counter[str]()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def serve_model(repo: str, folder: Path) -> Iterator[HubServer]:
    """The Hub with that one model, while the block lasts."""
    with HubServer(repo, folder) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def _etag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()
