"""A proxy as it stands before a server with ``TRIPTYCH_AUTHENTICATION=header``: it logs users in and names them."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import requests

HEADER = "X-User"
DROPPED = {"host", "connection", "authorization", "content-length", "transfer-encoding", "content-encoding"}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    behind = ""

    def handle_one_request(self) -> None:
        self.raw_requestline = self.rfile.readline(65537)
        if not self.raw_requestline or not self.parse_request():
            self.close_connection = True
            return
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        # Whatever a client calls by the header's name, in any spelling, goes no further.
        kept = {n: v for n, v in self.headers.items() if n.lower() not in DROPPED and "user" not in n.lower()}
        login = base64.b64decode(self.headers.get("Authorization", "").removeprefix("Basic ")).decode()
        if user := login.partition(":")[0]:
            kept[HEADER] = user
        answer = requests.request(
            self.command, self.behind + self.path, headers=kept, data=content, timeout=120, allow_redirects=False
        )
        self.send_response(answer.status_code)
        for name, value in answer.headers.items():
            if name.lower() not in DROPPED:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.content)))
        self.end_headers()
        self.wfile.write(answer.content)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def proxied(behind: str) -> Iterator[str]:
    """Run the proxy before the server at ``behind``; gives its URL."""
    handler = type("Handler", (_Handler,), {"behind": behind})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
