"""A web server on the loopback that serves a folder, with what goes wrong on the web at the test's command."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Web:
    """`ranges`: whether parts can be asked for. `fail_after`: so many bytes are given, then connections break."""

    def __init__(self) -> None:
        self.url = ""
        self.ranges = True
        self.fail_after: int | None = None
        self.sent = 0
        self.requests: list[str] = []
        self.on_sent: Any = None


class Handler(SimpleHTTPRequestHandler):
    web: Web

    def __init__(self, *args: Any, web: Web, **kwargs: Any) -> None:
        self.web = web
        super().__init__(*args, **kwargs)

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        asked = self.headers.get("Range")
        self.web.requests.append(f"{path.name} {asked or ''}".strip())
        if not path.is_file():
            super().do_GET()
            return
        data = path.read_bytes()
        status = 200
        if asked and self.web.ranges:
            begin, _, end = asked.removeprefix("bytes=").partition("-")
            whole, data = len(data), data[int(begin) : int(end) + 1 if end else None]
            status = 206
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        if status == 206:
            self.send_header("Content-Range", f"bytes {begin}-{int(begin) + len(data) - 1}/{whole}")
        self.end_headers()
        for at in range(0, len(data), 1 << 20):
            part = data[at : at + (1 << 20)]
            if self.web.fail_after is not None and self.web.sent + len(part) > self.web.fail_after:
                self.close_connection = True
                return
            self.web.sent += len(part)
            try:
                self.wfile.write(part)
            except (BrokenPipeError, ConnectionResetError):
                return
            if self.web.on_sent is not None:
                self.web.on_sent(self.web)


@contextmanager
def serving(folder: Path) -> Iterator[Web]:
    """The folder at `web.url`."""
    web = Web()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, web=web, directory=str(folder)))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    web.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield web
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
