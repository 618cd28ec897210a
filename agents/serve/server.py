"""The policy service: HTTP with the standard library, one thread a connection, one for the network.

| request | answer |
|---|---|
| GET /health | what is served and how busy it is |
| GET /load_engine | the same: the world is loaded before the port opens (published clients ask) |
| POST /infer | {"success": true, "output": [null, actions (1, A, D)]} |

Errors are JSON {"detail": ...}: 400 a request that cannot be answered, 401 no token, 411 and 413 no
or too large a body, 415 a body that is not read, 503 busy or closing, 504 too slow.
"""

import hmac
import threading
from concurrent.futures import TimeoutError as TooSlowError
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from kairos_env.agents.serve.batching import Batcher, BusyError
from kairos_env.agents.serve.policies import Policy
from kairos_env.agents.serve.request import RequestError, read_request
from kairos_env.agents.serve.wire import JSON, MSGPACK, WireError, dump, load

MEGABYTE = 2**20
# How much of a body that is too large is read before the connection is closed.
DISCARDED = 4


class AnswerError(Exception):
    """A request that ends in an error status."""

    def __init__(self, status: HTTPStatus, detail: str) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail


class PolicyServer:
    """Serves a policy.

    Args:
        policy: What answers.
        host: Where to listen; other machines can ask when it is not 127.0.0.1.
        port: 0 takes any free port.
        token: What clients must send as `Authorization: Bearer TOKEN`; None asks for none.
        largest_body: Bytes of a request.
        timeout: Seconds that an answer may take, and that a client may take to send its request.
        batch: Requests answered together.

    Raises:
        OSError: The port is taken.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        token: str | None = None,
        largest_body: int = 16 * MEGABYTE,
        timeout: float = 60.0,
        batch: int = 16,
    ) -> None:
        self.policy, self.token = policy, token
        self.largest_body, self.timeout = largest_body, timeout
        self.open, self._idle = 0, threading.Condition()
        self._http = _Http((host, port), Handler)
        self._http.service = self
        self.batcher = Batcher(policy, most=batch)
        self.port: int = self._http.server_address[1]
        self.url = f"http://{host}:{self.port}"

    def serve_forever(self) -> None:
        """Answer until `shutdown`, which another thread or a signal calls."""
        try:
            self._http.serve_forever(poll_interval=0.05)
        finally:
            self._http.server_close()
            self.batcher.close()
            with self._idle:  # until the last answer has been written
                self._idle.wait_for(lambda: self.open == 0, self.timeout)

    def shutdown(self) -> None:
        """Take no new connections, answer what was asked, and let `serve_forever` return."""
        threading.Thread(target=self._http.shutdown, daemon=True).start()

    def answering(self, change: int) -> None:
        """Count requests that are being answered."""
        with self._idle:
            self.open += change
            self._idle.notify_all()


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    service: PolicyServer


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: _Http
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        """A client that sends nothing does not hold a thread for ever."""
        self.request.settimeout(self.server.service.timeout)
        super().setup()

    def do_GET(self) -> None:
        """Say what is served."""
        self._answer(self._about)

    def do_POST(self) -> None:
        """Answer with actions."""
        self._answer(self._infer)

    def log_message(self, format: str, *args: Any) -> None:
        """Silent: /health counts."""

    def _answer(self, work: Any) -> None:
        service = self.server.service
        service.answering(+1)
        try:
            try:
                status, content = HTTPStatus.OK, work()
            except AnswerError as error:
                status, content = error.status, {"detail": error.detail}
                self.close_connection = True  # its body may not have been read
            except (BrokenPipeError, ConnectionError, TimeoutError):
                raise
            except Exception as error:  # a fault of ours must not end the service
                status = HTTPStatus.INTERNAL_SERVER_ERROR
                content = {"detail": f"{type(error).__name__}: {error}"}
                self.close_connection = True
            self._send(status, content)
        except (BrokenPipeError, ConnectionError, TimeoutError):
            self.close_connection = True  # the client has gone
        finally:
            service.answering(-1)

    def _about(self) -> dict[str, Any]:
        if self.path not in ("/health", "/load_engine"):
            raise AnswerError(HTTPStatus.NOT_FOUND, f"no page {self.path}; there is /health")
        service = self.server.service
        about: dict[str, Any] = {
            "status": "ok",
            "model_loaded": True,
            "already_loaded": True,
            "workers_loaded": 1,
        }
        about["open"] = service.open - 1  # beside this one
        return about | service.policy.describe() | service.batcher.load()

    def _infer(self) -> dict[str, Any]:
        service = self.server.service
        if self.path != "/infer":
            raise AnswerError(HTTPStatus.NOT_FOUND, f"no page {self.path}; there is /infer")
        self._require_token()
        body = self._body()
        try:
            request = read_request(load(body, self._kind()))
            service.policy.check(request)
            actions = service.batcher.submit(request).result(service.timeout)
        except WireError as error:
            known = self._kind() in (JSON, MSGPACK)
            status = HTTPStatus.BAD_REQUEST if known else HTTPStatus.UNSUPPORTED_MEDIA_TYPE
            raise AnswerError(status, str(error)) from error
        except RequestError as error:
            raise AnswerError(HTTPStatus.BAD_REQUEST, str(error)) from error
        except BusyError as error:
            raise AnswerError(HTTPStatus.SERVICE_UNAVAILABLE, str(error)) from error
        except TooSlowError as error:
            raise AnswerError(
                HTTPStatus.GATEWAY_TIMEOUT, f"no answer within {service.timeout:g} s"
            ) from error
        return {"success": True, "output": [None, actions[None]]}

    def _require_token(self) -> None:
        token = self.server.service.token
        sent = self.headers.get("Authorization", "")
        if token is not None and not hmac.compare_digest(sent.encode(), f"Bearer {token}".encode()):
            raise AnswerError(HTTPStatus.UNAUTHORIZED, "send Authorization: Bearer TOKEN")

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            raise AnswerError(HTTPStatus.LENGTH_REQUIRED, "send a Content-Length, no chunks")
        largest = self.server.service.largest_body
        if int(length) > largest:
            self._discard(min(int(length), DISCARDED * largest))
            raise AnswerError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"a request has at most {largest} bytes, got {length}",
            )
        body = self.rfile.read(int(length))
        if len(body) != int(length):
            raise AnswerError(HTTPStatus.BAD_REQUEST, "the body ended early")
        return body

    def _discard(self, count: int) -> None:
        """Read what nobody wants: a client that is still sending would not see the answer."""
        while count > 0 and (part := self.rfile.read(min(count, MEGABYTE))):
            count -= len(part)

    def _kind(self) -> str:
        """The body's content type; the answer has the same, or what the client accepts."""
        return str(self.headers.get_content_type()) if "Content-Type" in self.headers else ""

    def _send(self, status: HTTPStatus, content: dict[str, Any]) -> None:
        kind = MSGPACK if self._kind() == MSGPACK and status == HTTPStatus.OK else JSON
        body = dump(content, kind)
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if status == HTTPStatus.SERVICE_UNAVAILABLE:
            self.send_header("Retry-After", "1")
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)
