"""`kairos bench serve`: the policy service under load, under attack, and killed.

The service runs in its own process, as it does in use. Clients ask without pause; beside them come
broken, oversized and pickled bodies, which must be refused and change nothing. At the end it is
told to close in the middle of requests, and then killed in the middle of requests and started
again: every client must have its answer. How many are bit for bit those of before is counted too:
batches of other sizes round in another way.
"""

import contextlib
import http.client
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from kairos_env.agents.serve.client import PolicyClient
from kairos_env.agents.serve.wire import JSON, MSGPACK
from kairos_env.benchmarks.machine import write_results
from kairos_env.official import Import, import_official
from kairos_env.world_model.published.untrained import write_checkpoint
from kairos_env.worlds import load_world

IMPORTED = "imported"
LARGEST = 1.0  # megabytes, so that an oversized body is soon sent
SECONDS_TO_START = 1200.0
HOSTILE: tuple[tuple[str, str, bytes], ...] = (
    ("no JSON", JSON, b'{"input_image": '),
    ("no msgpack", MSGPACK, b"\xc1\xff"),
    ("a pickle", "application/octet-stream", pickle.dumps({"seed": 0})),
    ("no picture", JSON, b"{}"),
    ("an array that lies", JSON, b'{"input_image": {"dtype": "uint8", "shape": [9], "data": ""}}'),
    ("nested too deep", JSON, b"[" * 100_000),
    ("oversized", JSON, b"0" * int(2 * LARGEST * 2**20)),
)


@dataclass(frozen=True, kw_only=True)
class ServeBench:
    """Load a policy service with clients, feed it broken requests, kill it."""

    worlds: tuple[str, ...] = ("push", IMPORTED)
    """Worlds to serve; "imported" is a small random network in the official layout."""
    clients: int = 8
    seconds: float = 60.0
    """Of load, for each world."""
    steps: int = 10
    """Denoising steps of a request."""
    out: Path | None = None
    """Folder for the results; benchmarks/results of the checkout by default."""


def main(argv: Sequence[str]) -> int:
    """The command."""
    command = tyro.cli(ServeBench, args=list(argv), prog="kairos bench serve")
    rows = []
    with tempfile.TemporaryDirectory() as folder, Progress(console=Console(stderr=True)) as bar:
        for world in command.worlds:
            task = bar.add_task(world, total=command.seconds)
            name = made_world(Path(folder)) if world == IMPORTED else world
            row = measure(name, command, lambda done, task=task: bar.update(task, completed=done))
            rows.append({"world": world} | row)
    path = write_results(
        "serve", {"rows": rows, "load_average": os.getloadavg()[0]}, folder=command.out
    )
    Console().print(f"wrote {path}")
    return 0 if all(row["errors"] == 0 and row["lost"] == 0 for row in rows) else 1


def made_world(folder: Path) -> str:
    """A small imported world with random weights."""
    picture = torch.randint(0, 256, (4, 64, 64, 3), generator=torch.Generator().manual_seed(0))
    checkpoint = write_checkpoint(folder / "checkpoint", picture.byte())
    options = Import(folder=checkpoint, out=folder / IMPORTED, frame_size=64, clip_frames=4)
    return str(import_official(options))


def measure(world: str, command: ServeBench, tell: Any) -> dict[str, Any]:
    """One world: load, hostility, a polite end, a hard one."""
    frames = load_world(world).starts.frames
    frames = frames[:, -1] if len(frames) == 1 else frames  # imported networks read one picture
    with service(world) as (process, url):
        times, errors = load(url, frames, command, tell)
        refused = hostile(url)
        health = PolicyClient(url).health()
        before = together(url, frames, command.steps, command.clients)
        drained = interrupted(process, url, frames, command)
    port = int(url.rsplit(":", 1)[1])
    with service(world, port) as (process, url):
        killed = interrupted(process, url, frames, command, hard=True, world=world, port=port)
    pairs = zip(before, killed, strict=True)
    same = sum(a is not None and b is not None and np.array_equal(a, b) for a, b in pairs)
    return {
        "clients": command.clients,
        "steps": command.steps,
        "seconds": command.seconds,
        "requests": len(times),
        "errors": errors,
        "per_second": len(times) / command.seconds,
        "mean_batch": health["answered"] / max(1, health["batches"]),
        "latency_ms": {f"p{q}": 1000 * float(np.percentile(times, q)) for q in (50, 90, 99)},
        "hostile": refused,
        "drained": sum(chunk is not None for chunk in drained),
        "after_kill": sum(chunk is not None for chunk in killed),
        "after_kill_same": same,
        "lost": 2 * command.clients - sum(chunk is not None for chunk in (*drained, *killed)),
    }


@contextlib.contextmanager
def service(world: str, port: int | None = None) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """`kairos serve` in a process of its own; ended however it comes out."""
    port = port or free_port()
    process = started(world, port)
    try:
        yield process, f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def started(world: str, port: int) -> subprocess.Popen[bytes]:
    """A service that answers."""
    program = [sys.executable, "-m", "kairos_env.cli", "serve", world, "--port", str(port)]
    options = ["--largest-body", str(LARGEST), "--threads", "1"]
    process = subprocess.Popen([*program, *options], stderr=subprocess.DEVNULL)
    until = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < until and process.poll() is None:
        try:
            PolicyClient(f"http://127.0.0.1:{port}", retries=0).health()
            return process
        except ConnectionError:
            time.sleep(0.2)
    process.kill()
    raise RuntimeError(f"kairos serve {world} did not start within {SECONDS_TO_START:g} s")


def free_port() -> int:
    """A port that nobody has at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def load(
    url: str, frames: NDArray[np.uint8], command: ServeBench, tell: Any
) -> tuple[list[float], int]:
    """Seconds of every answer to clients that ask without pause, and how many failed."""
    begin, times, failures = time.monotonic(), [], Counter[str]()
    end = begin + command.seconds

    def client(number: int) -> None:
        policy = PolicyClient(url, retries=0)
        turn = number
        while time.monotonic() < end:
            asked = time.perf_counter()
            try:
                policy.act(frames[turn % len(frames)], seed=turn, steps=command.steps)
            except (RuntimeError, OSError) as error:
                failures[str(error)] += 1
            else:
                times.append(time.perf_counter() - asked)
            turn += command.clients

    threads = [threading.Thread(target=client, args=(i,)) for i in range(command.clients)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        hostile(url)
        tell(min(time.monotonic() - begin, command.seconds))
        time.sleep(1.0)
    return times, failures.total()


def hostile(url: str) -> dict[str, int]:
    """The status that each broken request is answered with; 0 where the connection broke."""
    statuses = {}
    for name, kind, body in HOSTILE:
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
        try:
            connection.request("POST", "/infer", body, {"Content-Type": kind})
            statuses[name] = connection.getresponse().status
        except OSError:
            statuses[name] = 0
        finally:
            connection.close()
    return statuses


def together(
    url: str, frames: NDArray[np.uint8], steps: int, clients: int
) -> list[NDArray[np.float32] | None]:
    """The answers to clients that ask at once; None for one that never came."""

    def ask(number: int) -> NDArray[np.float32] | None:
        policy = PolicyClient(url, retries=int(SECONDS_TO_START))
        try:
            return policy.act(frames[number % len(frames)], seed=number, steps=steps)
        except (RuntimeError, OSError):
            return None

    with ThreadPoolExecutor(clients) as pool:
        return list(pool.map(ask, range(clients)))


def interrupted(
    process: subprocess.Popen[bytes],
    url: str,
    frames: NDArray[np.uint8],
    command: ServeBench,
    *,
    hard: bool = False,
    world: str = "",
    port: int = 0,
) -> list[NDArray[np.float32] | None]:
    """Answers to clients whose service ends while it works; after a hard end it is started anew."""
    with ThreadPoolExecutor(1) as pool:
        answers = pool.submit(together, url, frames, command.steps, command.clients)
        while PolicyClient(url).health()["open"] < command.clients:
            if answers.done():
                break
        process.send_signal(signal.SIGKILL if hard else signal.SIGTERM)
        process.wait()
        again = started(world, port) if hard else None
        try:
            return answers.result()
        finally:
            if again is not None:
                again.kill()
                again.wait()
