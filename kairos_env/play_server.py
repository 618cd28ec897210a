"""A session of `kairos play` behind HTTP, on this machine only, with the standard library alone.

Requests are answered by many threads, but the session lives in one: simulators and their OpenGL
contexts belong to the thread that made them. Only this machine's own page may speak to it: other
sites are kept out by the checks of Host and content type, which a form on their pages cannot set.
"""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any

import gymnasium

from kairos_env.play import Session

HOST = "127.0.0.1"
LARGEST_BODY = 10_000
SECONDS_TO_WAIT = 60.0


class PlayServer:
    """Serves the page and its session.

    Args:
        make_session: Called once, in the thread that the session will live in.
        port: 0 takes any free port.

    Raises:
        OSError: The port is taken.
    """

    def __init__(self, make_session: Callable[[], Session], *, port: int = 0) -> None:
        self._stage = ThreadPoolExecutor(max_workers=1, thread_name_prefix="kairos-play")
        try:
            self._http = _Http((HOST, port), PageHandler)
        except OverflowError as error:
            raise OSError(f"a port is a number from 0 to 65535, got {port}") from error
        except OSError as error:
            raise OSError(f"port {port} cannot be used ({error}); choose another --port") from error
        self._http.play = self
        try:
            self._session = self._stage.submit(make_session).result()
        except BaseException:
            self._http.server_close()
            raise
        self.port: int = self._http.server_address[1]
        self.url = f"http://{HOST}:{self.port}/"

    def serve_forever(self) -> None:
        """Answer until `close` or an interrupt."""
        self._http.serve_forever(poll_interval=0.1)

    def close(self) -> None:
        """Stop and free everything; safe while serving in another thread."""
        self._http.server_close()
        self._stage.submit(self._session.close).result(SECONDS_TO_WAIT)
        self._stage.shutdown()

    def shutdown(self) -> None:
        """Make `serve_forever` return."""
        self._http.shutdown()

    def ask(self, command: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Do a command in the session's own thread."""
        if command not in COMMANDS:
            raise KeyError(f"no command {command!r}; there are {', '.join(COMMANDS)}")
        job = COMMANDS[command]
        return self._stage.submit(job, self._session, arguments).result(SECONDS_TO_WAIT)


COMMANDS: dict[str, Callable[[Session, dict[str, Any]], dict[str, Any]]] = {
    "describe": lambda session, _: session.describe(),
    "view": lambda session, _: session.view(),
    "reset": lambda session, told: session.reset(_seed(told)),
    "step": lambda session, told: session.step(told.get("action")),
    "keep": lambda session, _: session.keep(),
    "back": lambda session, _: session.go_back(),
    "fork": lambda session, _: session.fork(),
}


def page() -> bytes:
    """The page, without anything from elsewhere."""
    return resources.files("kairos_env").joinpath("play.html").read_bytes()


def _seed(told: dict[str, Any]) -> int | None:
    seed = told.get("seed")
    if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool) or seed < 0):
        raise ValueError(f"a seed is a whole number from 0 on, got {seed!r}")
    return seed


class _Http(ThreadingHTTPServer):
    """Knows whose requests it takes."""

    daemon_threads = True
    play: PlayServer


class PageHandler(BaseHTTPRequestHandler):
    """The page at `/`, and the session's commands as POSTs of JSON."""

    server: _Http
    timeout = 30  # a browser may open a connection and send nothing

    def do_GET(self) -> None:
        """Give out the page."""
        if not self._is_from_here():
            return
        if self.path == "/":
            self._send(HTTPStatus.OK, page(), "text/html; charset=utf-8")
        else:
            self._answer(HTTPStatus.NOT_FOUND, {"error": f"no page {self.path}"})

    def do_POST(self) -> None:
        """Do a command."""
        if not self._is_from_here():
            return
        try:
            answer = self.server.play.ask(self.path.removeprefix("/"), self._body())
        except KeyError as error:
            self._answer(HTTPStatus.NOT_FOUND, {"error": str(error.args[0])})
        except (ValueError, FloatingPointError, gymnasium.error.Error) as error:
            self._answer(HTTPStatus.BAD_REQUEST, {"error": str(error)})
        else:
            self._answer(HTTPStatus.OK, answer)

    def log_message(self, format: str, *args: Any) -> None:
        """Silent: the page shows what happens."""

    def _body(self) -> dict[str, Any]:
        length = int(self.headers.get("Content-Length") or 0)
        is_json = self.headers.get_content_type() == "application/json"
        if not is_json or not 0 <= length <= LARGEST_BODY:
            raise ValueError(f"expected JSON of at most {LARGEST_BODY} bytes")
        told = json.loads(self.rfile.read(length) or b"{}")
        if not isinstance(told, dict):
            raise ValueError(f"expected a JSON object, got {type(told).__name__}")
        return told

    def _is_from_here(self) -> bool:
        """A page of another name that resolves to this machine is not ours."""
        play = self.server.play
        if self.headers.get("Host") in (f"{HOST}:{play.port}", f"localhost:{play.port}"):
            return True
        self._answer(HTTPStatus.FORBIDDEN, {"error": f"open {play.url} itself"})
        return False

    def _answer(self, status: HTTPStatus, content: dict[str, Any]) -> None:
        self._send(status, json.dumps(content).encode(), "application/json")

    def _send(self, status: HTTPStatus, content: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(content)
