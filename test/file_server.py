"""A real HTTP server for download tests: one file, ranges, and faults for successive requests."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Fault = Callable[["Handler", "FileServer"], None]


@dataclass
class FileServer:
    """The served file and the received requests. faults: each handles one request; later ones are served normally."""

    content: bytes
    etag: str | None = '"v1"'
    last_modified: str | None = None
    ranges: bool = True
    faults: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    address: str = ""

    def url(self, path: str = "/weights.pth") -> str:
        return self.address + path

    def ranges_asked(self) -> list[str | None]:
        return [headers.get("Range") for _, headers in self.requests]


class Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        state = self.server.state
        state.requests.append((self.path, dict(self.headers.items())))
        fault = state.faults.pop(0) if state.faults else None
        (fault or serve)(self, state)
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    state: FileServer


@contextmanager
def running(state: FileServer) -> Iterator[FileServer]:
    server = _Server(("127.0.0.1", 0), Handler)
    server.state = state
    state.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def begin(handler: Handler, state: FileServer, declared: int | None = -1) -> bytes:
    """Send status and headers by RFC 9110; return the body. declared: wrong Content-Length, None for no such header."""
    wanted = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", "")) if state.ranges else None
    condition = handler.headers.get("If-Range")
    if condition is not None and condition not in (state.etag, state.last_modified):
        wanted = None
    start = int(wanted[1]) if wanted else 0
    if wanted and start >= len(state.content):
        handler.send_response(416)
        handler.send_header("Content-Range", f"bytes */{len(state.content)}")
        handler.end_headers()
        return b""
    body = state.content[start:]
    handler.send_response(206 if wanted else 200)
    if wanted:
        handler.send_header("Content-Range", f"bytes {start}-{len(state.content) - 1}/{len(state.content)}")
    if declared is not None:
        handler.send_header("Content-Length", str(len(body) if declared < 0 else declared))
    for name, value in (("ETag", state.etag), ("Last-Modified", state.last_modified)):
        if value:
            handler.send_header(name, value)
    handler.end_headers()
    return body


def serve(handler: Handler, state: FileServer) -> None:
    handler.wfile.write(begin(handler, state))


def cut_after(count: int) -> Fault:
    """Announce the full length, send `count` bytes, then close the connection."""

    def fault(handler: Handler, state: FileServer) -> None:
        handler.wfile.write(begin(handler, state)[:count])

    return fault


def status(code: int, **headers: str) -> Fault:
    def fault(handler: Handler, state: FileServer) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return fault


def drip(seconds: float) -> Fault:
    """Send one byte every 20 ms, so that no single read times out."""

    def fault(handler: Handler, state: FileServer) -> None:
        body = begin(handler, state)
        pause = threading.Event()
        for place in range(int(seconds / 0.02)):
            try:
                handler.wfile.write(body[place : place + 1])
            except OSError:
                return
            pause.wait(0.02)

    return fault


def silence(seconds: float) -> Fault:
    def fault(handler: Handler, state: FileServer) -> None:
        threading.Event().wait(seconds)

    return fault
