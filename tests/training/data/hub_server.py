"""A stand-in for the Hugging Face hub: one data set at one commit, on this machine.

It answers what ``datasets`` asks for: the commit, its tree and its files.
"""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


@contextmanager
def hub_server(name: str, commit: str, files: dict[str, bytes]) -> Iterator[str]:
    """The address of a server that has the data set ``name`` at ``commit``."""

    class Handler(_Handler):
        api, resolve = f"/api/datasets/{name}", f"/datasets/{name}/resolve/{commit}/"

    Handler.commit, Handler.files, Handler.name = commit, files, name
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    api = resolve = commit = name = ""
    files: dict[str, bytes]

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        tree = f"{self.api}/tree/{self.commit}"
        if path == f"{self.api}/revision/{self.commit}":
            siblings = [{"rfilename": file} for file in self.files]
            self._json({"_id": "1", "id": self.name, "sha": self.commit, "private": False, "siblings": siblings})
        elif path == tree or path.startswith(f"{tree}/"):
            found = self._tree(path.removeprefix(tree).strip("/"))
            self._json(found, 200 if found else 404)
        elif path.startswith(self.resolve) and path.removeprefix(self.resolve) in self.files:
            content = self.files[path.removeprefix(self.resolve)]
            self._send(200, content, {"ETag": f'"{_digest(content)}"', "X-Repo-Commit": self.commit})
        else:
            self._json({"error": "not found"}, 404)

    do_GET = do_HEAD = do_POST = _answer

    def _tree(self, folder: str) -> list[dict[str, Any]]:
        inside = {file: file.removeprefix(folder).lstrip("/") for file in self.files if file.startswith(folder)}
        folders = {rest.split("/")[0] for rest in inside.values() if "/" in rest}
        return [
            *({"type": "directory", "path": f"{folder}/{name}".lstrip("/"), "oid": "0", "size": 0} for name in folders),
            *(
                {"type": "file", "path": file, "oid": _digest(self.files[file]), "size": len(self.files[file])}
                for file, rest in inside.items()
                if "/" not in rest
            ),
        ]

    def _json(self, value: Any, status: int = 200) -> None:
        code = {"X-Error-Code": "EntryNotFound"} if status == 404 else {}
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json", **code})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


def _digest(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
