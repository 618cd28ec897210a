"""One worker thread that answers many clients together: the network likes batches.

Requests wait in a queue. The worker takes the oldest and all others of its kind, up to a limit, and
answers them in one call. A little patience at the beginning lets clients of one tact meet.
"""

import threading
import time
from collections import deque
from concurrent.futures import Future
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kairos_env.agents.serve.policies import Policy
from kairos_env.agents.serve.request import Request

Actions = NDArray[np.float32]


class BusyError(RuntimeError):
    """More requests wait than can be answered in time, or the service is closing."""


class Batcher:
    """Answers requests with a policy.

    Args:
        policy: What answers.
        most: Requests answered together.
        patience: Seconds that the first of a batch waits for others.
        longest_queue: Requests that may wait; more are refused.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        most: int = 16,
        patience: float = 0.005,
        longest_queue: int = 128,
    ) -> None:
        self.policy = policy
        self._most, self._patience, self._longest = most, patience, longest_queue
        self._waiting: deque[tuple[Request, Future[Actions]]] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self.answered, self.batches = 0, 0
        self._worker = threading.Thread(target=self._work, name="kairos-serve", daemon=True)
        self._worker.start()

    def submit(self, request: Request) -> "Future[Actions]":
        """The actions (A, D) of a request, when they are there.

        Raises:
            BusyError: Too many wait, or the service is closing.
        """
        future: Future[Actions] = Future()
        with self._changed:
            if self._closing:
                raise BusyError("the service is closing")
            if len(self._waiting) >= self._longest:
                raise BusyError(f"{self._longest} requests are waiting already; ask again later")
            self._waiting.append((request, future))
            self._changed.notify()
        return future

    def load(self) -> dict[str, Any]:
        """How busy it is."""
        with self._changed:
            waiting = len(self._waiting)
        return {"waiting": waiting, "answered": self.answered, "batches": self.batches}

    def close(self) -> None:
        """Take no more requests, answer those that wait, and return."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._worker.join()

    def _work(self) -> None:
        while batch := self._next():
            live = [(request, future) for request, future in batch if not future.cancelled()]
            if live:
                self._answer(live)

    def _next(self) -> list[tuple[Request, "Future[Actions]"]]:
        """The oldest request and others of its kind; nothing when closed and all is answered."""
        with self._changed:
            while not self._waiting and not self._closing:
                self._changed.wait()
            if not self._waiting:
                return []
            until = time.monotonic() + self._patience
            while len(self._waiting) < self._most and not self._closing:
                if not self._changed.wait(until - time.monotonic()):
                    break
            kind = self._waiting[0][0].kind
            batch: list[tuple[Request, Future[Actions]]] = []
            others: deque[tuple[Request, Future[Actions]]] = deque()
            for item in self._waiting:
                fits = len(batch) < self._most and item[0].kind == kind
                (batch if fits else others).append(item)
            self._waiting = others
            return batch

    def _answer(self, batch: list[tuple[Request, "Future[Actions]"]]) -> None:
        running = [(r, future) for r, future in batch if future.set_running_or_notify_cancel()]
        try:
            actions = self.policy.act([request for request, _ in running])
        except Exception as error:  # whatever it is, the clients hear of it and the service lives
            for _, future in running:
                future.set_exception(error)
            return
        self.answered += len(running)
        self.batches += 1
        for (_, future), chunk in zip(running, actions, strict=True):
            future.set_result(chunk)
