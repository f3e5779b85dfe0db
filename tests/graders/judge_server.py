"""A real HTTP server on this machine that speaks chat completions, and misbehaves as it is told."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Reply:
    """What the server sends after ``delay`` seconds; of ``content`` only the first ``cut`` bytes."""

    content: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    cut: int | None = None


def says(text: str, *, delay: float = 0.0, cut: int | None = None) -> Reply:
    """A chat completion."""
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return Reply(json.dumps({"object": "chat.completion", "choices": [choice]}).encode(), delay=delay, cut=cut)


def fails(status: int, message: str = "no luck", **headers: str) -> Reply:
    """An error as OpenAI words it; ``Retry_After`` is the header Retry-After."""
    content = json.dumps({"error": {"message": message}}).encode()
    return Reply(content, status, {name.replace("_", "-"): value for name, value in headers.items()})


@dataclass
class Asked:
    """One request as it came."""

    path: str
    headers: dict[str, str]
    body: dict[str, object]
    time: float

    @property
    def prompt(self) -> str:
        return str(self.body["messages"][0]["content"])  # type: ignore[index]

    @property
    def answer(self) -> str:
        """The answer to judge, as the default template has it."""
        return re.search(r"<answer>\n(.*)\n</answer>", self.prompt, re.DOTALL)[1]  # type: ignore[index]


Script = Callable[[Asked, int], Reply]
"""``(request, how often this very prompt was asked before) -> reply``"""


class JudgeServer:
    """What the server was asked, and how many requests were under way at once at most."""

    def __init__(self, script: Script, *, remember: bool = True) -> None:
        self.script = script
        self.asked: list[Asked] = []
        self.most_in_flight = 0
        self._in_flight = 0
        self._times: dict[str, int] = {}
        self._lock = threading.Lock()
        self._remember = remember
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.http.daemon_threads = True
        self.http.block_on_close = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_address[1]}/v1"

    @property
    def answers(self) -> list[str]:
        """The answers that were asked about, in order."""
        return [asked.answer for asked in self.asked]

    def reply(self, asked: Asked) -> Reply:
        with self._lock:
            before = 0
            if self._remember:
                before = self._times.get(asked.prompt, 0)
                self._times[asked.prompt] = before + 1
                self.asked.append(asked)
            self._in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self._in_flight)
        try:
            reply = self.script(asked, before)
            time.sleep(reply.delay)
            return reply
        finally:
            with self._lock:
                self._in_flight -= 1

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        judge = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # a response is one packet

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                reply = judge.reply(Asked(self.path, dict(self.headers), body, time.monotonic()))
                try:
                    self.send_response(reply.status)
                    for name, value in reply.headers.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(reply.content)))
                    self.end_headers()
                    self.wfile.write(reply.content[: reply.cut])
                    self.wfile.flush()
                except OSError:  # the client has gone
                    self.close_connection = True
                if reply.cut is not None:
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)

            def log_message(self, format: str, *args: object) -> None:
                """Says nothing."""

        return Handler


@contextmanager
def serving(script: Script, *, remember: bool = True) -> Iterator[JudgeServer]:
    """A server that runs while the context lasts."""
    server = JudgeServer(script, remember=remember)
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.http.shutdown()
        server.http.server_close()
        thread.join()


def by_answer(asked: Asked, before: int) -> Reply:
    """Says what the answer wants to hear: its last word is the verdict."""
    return says(f"It says so.\nVERDICT: {asked.answer.split()[-1].upper()}")
