"""A small server that speaks as much of the Hub's protocol as its client needs, and keeps a log of what was asked."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

FORBIDDEN = "org/secret"


class Hub:
    """Serves the folders ROOT/org/name; a repository has the revisions `main`, `v1` and its commit."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.sent: list[tuple[str, int]] = []  # file, and bytes of it that were sent
        self.url = ""

    def fetched(self, name: str) -> int:
        """Bytes that were sent of the files of this name."""
        return sum(count for file, count in self.sent if file.endswith(f"/{name}"))

    def commit(self, repo: str) -> str:
        return hashlib.sha1(repo.encode()).hexdigest()

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes, str]:
        """Status, headers, content, and the file that it is of."""
        parts = unquote(urlsplit(path).path).strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        org, name, *rest = parts[2:] if api else parts
        repo, folder = f"{org}/{name}", self.root / org / name
        if repo == FORBIDDEN or not folder.is_dir():
            code = "GatedRepo" if repo == FORBIDDEN else "RepoNotFound"
            return (403 if repo == FORBIDDEN else 404), {"X-Error-Code": code, "X-Error-Message": "no"}, b"{}", ""
        revision = rest[1] if len(rest) > 1 else "main"
        if revision not in ("main", "v1", self.commit(repo)):
            return 404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "no"}, b"{}", ""
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        if api and rest[:1] == ["tree"]:
            entries = [
                {"type": "file", "path": str(f.relative_to(folder)), "size": f.stat().st_size, "oid": "0" * 40}
                for f in files
            ]
            return 200, {}, json.dumps(entries).encode(), ""
        if api:
            siblings = [{"rfilename": str(f.relative_to(folder)), "size": f.stat().st_size} for f in files]
            content = {"id": repo, "sha": self.commit(repo), "siblings": siblings, "tags": [], "private": False}
            return 200, {}, json.dumps(content).encode(), ""
        file = folder.joinpath(*rest[2:])
        if not file.is_file():
            return 404, {"X-Error-Code": "EntryNotFound", "X-Error-Message": "no"}, b"", ""
        data = file.read_bytes()
        return (
            200,
            {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": self.commit(repo)},
            data,
            str(file),
        )


@contextmanager
def serving(root: Path) -> Iterator[Hub]:
    """A Hub at work."""
    hub = Hub(root)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._send(body=False)

        def do_GET(self) -> None:
            self._send(body=True)

        def _send(self, body: bool) -> None:
            status, headers, data, file = hub.answer(self.path)
            span = self.headers.get("Range")
            if body and span and file:
                first, _, last = span.removeprefix("bytes=").partition("-")
                stop = min(int(last) + 1, len(data)) if last else len(data)
                headers |= {"Content-Range": f"bytes {first}-{stop - 1}/{len(data)}"}
                status, data = 206, data[int(first) : stop]
            self.send_response(status)
            for name, value in ({"Accept-Ranges": "bytes", "Content-Length": str(len(data))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                hub.sent.append((file, len(data)))
                self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
