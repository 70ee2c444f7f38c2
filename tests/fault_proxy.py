"""A proxy before an S3 server that fails as networks and servers do, also after the server has acted."""

from __future__ import annotations

import http.client
import os
import random
import socket
import struct
import threading
import time
from collections import Counter, deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

FAULTS = ("503", "reset", "500 after", "reset after", "cut after", "headless after")
"""What the client sees: an error, a reset, half the answer, half its header; "after" the server has acted."""


class FaultProxy:
    """Listens at `endpoint` and passes requests on to `target`. A context manager.

    Of all requests a share of `rate` fails, by a generator of this `seed`. `script` fails the next requests,
    one fault each ("" for none; a number is a status that the server is not asked for). `asked` are methods,
    paths and headers (small letters) of all requests; `sent` counts bytes of what was read, by path.
    """

    def __init__(self, target: str, rate: float = 0.0, seed: int = 0) -> None:
        self.rate = rate
        self.script: deque[str] = deque()
        self.faults: Counter[str] = Counter()
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self.sent: Counter[str] = Counter()
        self.requests = 0
        self._target = urlsplit(target).netloc
        self._random = random.Random(seed)
        self.lock = threading.Lock()
        self._outage: tuple[int, float] | None = None
        self._down_until = 0.0

    def outage(self, seconds: float, after: int = 0) -> None:
        """Every connection is reset for so long, from `after` more requests on."""
        self._outage = (self.requests + after, seconds)

    def __enter__(self) -> FaultProxy:
        proxy = self

        class Handler(_Handler):
            owner = proxy

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def fault(self) -> str:
        """What the next request meets; "" for nothing."""
        with self.lock:
            self.requests += 1
            if self._outage is not None and self.requests > self._outage[0]:
                self._down_until = time.monotonic() + self._outage[1]
                self._outage = None
            if time.monotonic() < self._down_until:
                fault = "reset"
            elif self.script:
                fault = self.script.popleft()
            else:
                fault = self._random.choice(FAULTS) if self._random.random() < self.rate else ""
            self.faults[fault] += 1
            return fault

    def ask(self, method: str, path: str, headers: Any, body: bytes) -> tuple[int, list[Any], bytes]:
        """The answer of the server: status, headers, body."""
        connection = http.client.HTTPConnection(self._target, timeout=60)
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in headers.items():
                if name.lower() not in ("expect", "connection"):
                    connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: FaultProxy

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except OSError:                      # the client has gone
            self.close_connection = True

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.owner.asked.append((self.command, self.path, headers))
        fault = self.owner.fault()
        if fault == "reset":
            return self._reset()
        if fault.isdigit():
            return self._answer(int(fault), [], b"")
        status, headers, data = self.owner.ask(self.command, self.path, self.headers, body)
        if self.command == "GET":
            with self.owner.lock:
                self.owner.sent[self.path.partition("?")[0]] += len(data)
        if fault == "reset after":
            return self._reset()
        if fault == "500 after":
            return self._answer(500, [], b"")
        self._answer(status, headers, data, fault)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve  # noqa: N815

    def _answer(self, status: int, headers: list[Any], data: bytes, fault: str = "") -> None:
        held = [f"HTTP/1.1 {status} {self.responses.get(status, ('', ''))[0]}"]
        for name, value in headers:
            head = self.command == "HEAD" and name.lower() == "content-length"
            if head or name.lower() not in ("content-length", "transfer-encoding", "connection"):
                held.append(f"{name}: {value}")
        if self.command != "HEAD" and status != 204:
            held.append(f"Content-Length: {len(data)}")
        raw = "\r\n".join([*held, "", ""]).encode("latin-1") + (b"" if self.command == "HEAD" else data)
        if fault.startswith(("cut", "headless")):
            body = 0 if self.command == "HEAD" else len(data)
            head = len(raw) - body
            raw = raw[: head + body // 2] if body and fault.startswith("cut") else raw[: head // 2]
            self.close_connection = True
        self.wfile.write(raw)

    def _reset(self) -> None:
        """End the connection with RST instead of FIN."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(self.connection.detach())

    def log_message(self, *arguments: object) -> None:
        pass
