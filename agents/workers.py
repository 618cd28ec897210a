"""Record episodes in several processes, and notice when one of them fails, dies or is told to stop.

Processes are spawned, not forked: a fork with a live renderer hangs. Each has a pipe of its own,
so a killed worker cannot leave a lock behind that the others wait for.
"""

import contextlib
import multiprocessing
import signal
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from kairos_env.agents.collect import CollectError, Recipe, Recorder
from kairos_env.agents.data.files import DiskFullError
from kairos_env.agents.data.writer import staging_worker


@dataclass(frozen=True)
class _Recorded:
    """A worker staged the episode it was given."""

    length: int


@dataclass(frozen=True)
class _Failed:
    """A worker could not, and has stopped."""

    message: str
    details: str
    disk_full: bool


@dataclass
class _Worker:
    process: Any  # a spawn context's Process
    pipe: Connection
    episode: int | None = None  # what it is recording


def record_in_processes(
    recipe: Recipe, root: Path, episodes: Sequence[int], workers: int
) -> Iterator[int]:
    """Have the episodes staged by `workers` processes; yields the length of each as it is finished.

    Raises:
        CollectError: A worker failed or died.
        DiskFullError: A worker found no space.
    """
    waiting = deque(episodes)
    crew = [_start(recipe, root) for _ in range(workers)] if waiting else []
    try:
        for worker in crew:
            _give(worker, waiting)
        while any(worker.episode is not None for worker in crew):
            busy = {worker.pipe: worker for worker in crew if worker.episode is not None}
            for pipe in wait(list(busy)):
                worker = busy[pipe]  # type: ignore[index]  # only pipes were waited for
                yield _receive(worker).length
                _give(worker, waiting)
    finally:
        _stop(crew)


def _start(recipe: Recipe, root: Path) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(recipe, root, theirs), daemon=True)
    process.start()
    theirs.close()  # so that its end of the pipe closes when it dies
    return _Worker(process, ours)


def _give(worker: _Worker, waiting: deque[int]) -> None:
    worker.episode = waiting.popleft() if waiting else None
    if worker.episode is not None:
        try:
            worker.pipe.send(worker.episode)
        except BrokenPipeError:
            raise _died(worker) from None


def _receive(worker: _Worker) -> _Recorded:
    try:
        answer = worker.pipe.recv()
    except (EOFError, ConnectionResetError):
        raise _died(worker) from None
    if isinstance(answer, _Recorded):
        return answer
    error: Exception = CollectError(answer.message)
    if answer.disk_full:
        error = DiskFullError(answer.message)
    error.add_note(f"in a worker process:\n{answer.details}")
    raise error


def _died(worker: _Worker) -> CollectError:
    worker.process.join(timeout=5)
    code = worker.process.exitcode
    cause = f"exit code {code}"
    if code is not None and code < 0:
        cause = f"killed by {signal.Signals(-code).name}"
        if -code == signal.SIGKILL:
            cause += ", perhaps for want of memory: try fewer workers"
    if code == 1:  # it did not even get to say why
        cause += "; a script that records with several workers must call this below "
        cause += 'if __name__ == "__main__":'
    return CollectError(
        f"a worker process died while recording episode {worker.episode} ({cause}). "
        "Earlier episodes are intact; run the same command again to continue"
    )


def _stop(crew: Sequence[_Worker]) -> None:
    """End all workers. What they are writing is renamed into place or not at all."""
    for worker in crew:
        worker.pipe.close()
        if worker.episode is not None:  # not idle: it would finish its episode first
            worker.process.terminate()
    for worker in crew:
        worker.process.join(timeout=10)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()
        worker.process.close()


def _work(recipe: Recipe, root: Path, pipe: Connection) -> None:
    """A worker's life: a number in, an episode staged, its length out; until the pipe closes."""
    # Ctrl-C reaches every process of the terminal; the parent decides what happens.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    recorder: Recorder | None = None
    try:
        with staging_worker(root):
            # From here on the next collector waits for this process; before, it may have started.
            if not _parent_lives():
                return
            recorder = Recorder(recipe)
            one_thread()
            while True:
                pipe.send(_Recorded(recorder.stage(root, pipe.recv())))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the parent has finished, or is gone
    except Exception as error:
        failure = _Failed(str(error), traceback.format_exc(), isinstance(error, DiskFullError))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            pipe.send(failure)
    finally:
        if recorder is not None:
            recorder.close()


def _parent_lives() -> bool:
    parent = multiprocessing.parent_process()
    return parent is not None and parent.is_alive()


def one_thread() -> None:
    """One core a worker: torch (a checkpoint's network) would take them all."""
    import sys

    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
