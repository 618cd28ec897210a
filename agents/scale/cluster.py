"""Ray: a cluster is joined, actors are hired, and those that die are replaced.

Ray starts a dead actor anew and asks it again what it owed. That changes no result: whatever our
actors answer follows from how they were made and from the question.
"""

import contextlib
import importlib
import os
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

LOCAL = "local"
# An actor that has died so often dies of something that starting it anew does not mend.
RESTARTS = 10


class ClusterError(RuntimeError):
    """The cluster could not be joined, is too small, or lost an actor for good."""


@contextlib.contextmanager
def hired(
    kind: type,
    arguments: Sequence[tuple[Any, ...]],
    *,
    address: str,
    cpus: int = 1,
    gpus: float = 0.0,
) -> Iterator[list[Any]]:
    """Actors of a class, one for each tuple of arguments; they end with the block.

    Args:
        kind: The class.
        arguments: Of each actor's constructor.
        address: "local" starts Ray on this machine alone, "auto" finds the cluster that this
            machine belongs to, HOST:PORT names one.
        cpus: Cores of each actor.
        gpus: GPUs of each actor; half a one lets two share it.

    Raises:
        ImportError: Ray is not installed.
        ClusterError: There is no such cluster, or it has no room for all of them.
    """
    count = len(arguments)
    with joined(address, cores=count * cpus) as ray:
        check_room(ray, {"CPU": count * cpus, "GPU": count * gpus}, count)
        hire = ray.remote(kind).options(
            num_cpus=cpus, num_gpus=gpus, max_restarts=RESTARTS, max_task_retries=RESTARTS
        )
        actors = [hire.remote(*own) for own in arguments]
        try:
            yield actors
        finally:
            for actor in actors:
                ray.kill(actor)


@contextlib.contextmanager
def joined(address: str, *, cores: int) -> Iterator[ModuleType]:
    """Ray within a cluster. One that this process has joined already is used, and kept.

    Args:
        address: As for `hired`.
        cores: At least so many are pretended where Ray is started here: two actors on one core are
            slow, but they work.
    """
    ray = import_ray()
    if ray.is_initialized():
        yield ray
        return
    # Else Ray reports each start of it to its makers.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    options: dict[str, Any] = {"address": address, "log_to_driver": False}
    if address == LOCAL:
        options |= {"num_cpus": max(cores, os.cpu_count() or 1), "include_dashboard": False}
    try:
        ray.init(**options, logging_level="error")
    except Exception as error:  # Ray raises that very class when its start takes too long
        raise ClusterError(
            f"no Ray cluster could be joined at {address!r}: {error}. Start one with 'ray start "
            "--head' and 'ray start --address=HOST:6379', or stay on this machine with 'local'"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def check_room(ray: ModuleType, needed: dict[str, float], actors: int) -> None:
    """Refuse what would wait for ever."""
    held = ray.cluster_resources()
    for resource, amount in needed.items():
        if amount > held.get(resource, 0):
            raise ClusterError(
                f"{actors} actors need {amount:g} {resource}s, the cluster has "
                f"{held.get(resource, 0):g}: ask for fewer, or let more machines join it"
            )


def answers(references: Sequence[Any]) -> list[Any]:
    """What actors answered, in the order of the references.

    Raises:
        ClusterError: An actor could not be made, or has died too often.
        Exception: What an actor raised, as it raised it.
    """
    ray = import_ray()
    try:
        return list(ray.get(list(references)))
    except ray.exceptions.RayTaskError as error:
        failure: Exception = error.cause
        failure.add_note(f"in a Ray actor:\n{error}")
        raise failure from None
    except ray.exceptions.RayActorError as error:
        fate = "could not be made" if error.actor_init_failed else f"died {RESTARTS + 1} times"
        raise ClusterError(f"a Ray actor {fate}: {error}") from error


def import_ray() -> ModuleType:
    """Ray itself, where it is used."""
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise ImportError(
            'recording or dreaming on a cluster needs Ray: pip install "kairos-env[ray]"'
        ) from error
