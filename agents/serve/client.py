"""The other side of the policy service, with the standard library alone.

    policy = PolicyClient("http://127.0.0.1:8000")
    chunk = policy.act(picture, prompt="push the block", state=state)   # (A, D)

A request carries all that its answer depends on, seed included. So a client that lost its server in
the middle asks again, and gets what it would have got (to rounding: batches differ in size).
"""

import http.client
import importlib.util
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kairos_env.agents.serve.wire import JSON, MSGPACK, dump, load

LONGEST_PAUSE = 5.0  # seconds


class ServiceError(RuntimeError):
    """The service refused a request; `status` is HTTP's."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(f"the policy service answered {status}: {detail}")
        self.status = status


class PolicyClient:
    """Asks a policy service for actions.

    Args:
        url: Where it is.
        token: What it wants to be told, if anything.
        timeout: Seconds to wait for an answer.
        retries: How often to ask again when the connection fails or the service is busy.
        pause: Seconds before the second try; doubled each time, up to LONGEST_PAUSE.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        timeout: float = 120.0,
        retries: int = 5,
        pause: float = 0.25,
    ) -> None:
        self._connection: http.client.HTTPConnection | None = None
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError(f"expected an address such as http://127.0.0.1:8000, got {url!r}")
        self._address = (parts.hostname, parts.port or 80)
        self._token, self._timeout = token, timeout
        self._retries, self._pause = retries, pause
        self._kind = MSGPACK if importlib.util.find_spec("msgpack") else JSON

    def act(
        self,
        frames: NDArray[np.uint8],
        *,
        prompt: str = "",
        state: ArrayLike | None = None,
        state_mask: ArrayLike | None = None,
        horizon: int | None = None,
        steps: int | None = None,
        seed: int = 0,
        tiled: bool = False,
    ) -> NDArray[np.float32]:
        """What to do next: (A, D).

        Args:
            frames: (H, W, 3) uint8, or (T, H, W, 3) for a history, oldest first.
            prompt: The task in words.
            state: (S,) the robot's state.
            state_mask: (S,), 1 where it is known.
            horizon: A; None takes the policy's own.
            steps: Denoising steps.
            seed: The same request with the same seed has the same answer.
            tiled: Encode large pictures in tiles.

        Raises:
            ServiceError: The request was refused.
            ConnectionError: The service cannot be reached.
        """
        asked = {
            "input_image": np.asarray(frames),
            "prompt": prompt,
            "robot_state": None if state is None else np.asarray(state, np.float32),
            "robot_state_mask": None if state_mask is None else np.asarray(state_mask, np.float32),
            "robot_action_horizon": horizon,
            "num_inference_steps": steps,
            "seed": seed,
            "tiled": tiled,
        }
        told = {name: value for name, value in asked.items() if value is not None}
        actions: NDArray[np.float32] = self.ask("/infer", told)["output"][1][0]
        return actions

    def health(self) -> dict[str, Any]:
        """What is served and how busy it is."""
        return self.ask("/health", None)

    def close(self) -> None:
        """Drop the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def __del__(self) -> None:
        """A forgotten client leaves no connection open."""
        self.close()

    def ask(self, path: str, content: Mapping[str, Any] | None) -> dict[str, Any]:
        """GET, or POST the content; asks again when that may help."""
        pause = self._pause
        for left in range(self._retries, -1, -1):
            try:
                return self._once(path, content)
            except ServiceError as error:
                if error.status != http.client.SERVICE_UNAVAILABLE or not left:
                    raise
            except (OSError, http.client.HTTPException) as error:
                self.close()
                if not left:
                    raise ConnectionError(
                        f"no policy service at {self._address[0]}:{self._address[1]} ({error})"
                    ) from error
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        raise AssertionError("the last try returns or raises")

    def _once(self, path: str, content: Mapping[str, Any] | None) -> dict[str, Any]:
        if self._connection is None:
            self._connection = http.client.HTTPConnection(*self._address, timeout=self._timeout)
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        if content is None:
            self._connection.request("GET", path, headers=headers)
        else:
            headers["Content-Type"] = self._kind
            self._connection.request("POST", path, dump(content, self._kind), headers)
        answer = self._connection.getresponse()
        body = answer.read()
        told = load(body, str(answer.headers.get_content_type()))
        if answer.status != http.client.OK:
            raise ServiceError(answer.status, str(told.get("detail", told)))
        return dict(told)
