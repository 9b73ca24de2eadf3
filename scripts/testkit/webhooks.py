"""A receiver of notices."""

from __future__ import annotations

import http.server
import json
import queue
import threading
from typing import Any

from .processes import DEADLINE


class Webhook:
    """What a webhook's URL leads to, until `close`.

    Attributes:
        url: Its address.
        received: The path and the body of each request that was accepted.
        answer: What it answers.
        asked: How many requests came.
    """

    def __init__(self) -> None:
        self.received: queue.SimpleQueue[tuple[str, dict[str, Any]]] = queue.SimpleQueue()
        self.answer = 200
        self.asked = 0
        mine = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                assert self.headers["Content-Type"] == "application/json"
                assert "Authorization" not in self.headers
                mine.asked += 1
                self.send_response(mine.answer)
                self.send_header("Content-Length", "0")
                self.end_headers()
                if mine.answer == 200:
                    mine.received.put((self.path, json.loads(body)))

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def next(self) -> tuple[str, dict[str, Any]]:
        """Wait for the next request that was accepted: its path, and its body."""
        return self.received.get(timeout=DEADLINE)

    def close(self) -> None:
        """End it."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
