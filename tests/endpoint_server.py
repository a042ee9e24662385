"""A small OpenAI-compatible server on loopback that answers, or fails, as a test says, and keeps what it was asked."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, Any, dict[str, str]]
"""Status, body (bytes as they are, else JSON), headers."""
Behaviour = Callable[[dict[str, Any], int], Reply]
"""What is answered to a request body, and to which attempt at it (1-based)."""


def chat(content: str | None, reason: str = "stop", tokens: int | None = 5, **message: Any) -> Reply:
    answer = {
        "model": "served-name",
        "system_fingerprint": "fp1",
        "choices": [{"message": {"role": "assistant", "content": content, **message}, "finish_reason": reason}],
        "usage": None if tokens is None else {"completion_tokens": tokens, "prompt_tokens": 10},
    }
    return 200, answer, {}


class Server(ThreadingHTTPServer):
    """Answers as a behaviour says, and keeps what it was asked."""

    daemon_threads = True

    def __init__(self, behaviour: Behaviour, models: Any = None, key: str = "") -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.behaviour, self.models, self.key = behaviour, models, key
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.times: list[float] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that went away are part of the tests."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_args: Any) -> None:
        """Tests are quiet."""

    def reply(self, status: int, body: Any, headers: dict[str, str]) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def refused(self) -> bool:
        sent = self.headers.get("Authorization", "")
        if self.server.key and sent != f"Bearer {self.server.key}":
            self.reply(401, {"error": {"message": f"Incorrect API key provided: {sent}"}}, {})
            return True
        return False

    def do_GET(self) -> None:
        if not self.refused():
            models = self.server.models
            self.reply(404 if models is None else 200, {"data": models}, {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.requests.append((self.path, body))
            self.server.times.append(time.monotonic())
            attempt = sum(before == body for _, before in self.server.requests)
        if not self.refused():
            self.reply(*self.server.behaviour(body, attempt))


@contextmanager
def serving(behaviour: Behaviour, **options: Any) -> Iterator[Server]:
    server = Server(behaviour, **options)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
