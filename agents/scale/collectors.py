"""Actors that record episodes of a real environment, on one machine or many.

An episode follows from the recipe and its number. So collectors change how fast a dataset grows,
never what is in it, and an episode whose collector died is simply recorded again.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from kairos_env.agents.collect import CollectError, Recipe, Recorder
from kairos_env.agents.data.staging import stage_packed
from kairos_env.agents.scale.cluster import ClusterError, answers, hired, import_ray
from kairos_env.agents.workers import one_thread


class Collector:
    """An environment and who acts in it; an actor.

    Args:
        recipe: What to record. Files that it names must be there on every machine.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._recorder = Recorder(recipe)
        one_thread()

    def record(self, index: int) -> tuple[int, int, bytes]:
        """An episode's number, its number of frames, and what the writer is to find."""
        return index, *self._recorder.packed(index)


def record_on_cluster(
    recipe: Recipe, root: Path, episodes: Sequence[int], collectors: int, address: str
) -> Iterator[int]:
    """Have episodes recorded anywhere and staged here; yields the length of each.

    Args:
        recipe: What to record.
        root: Folder of the dataset, on this machine.
        episodes: Their numbers.
        collectors: How many actors record.
        address: As for `hired`.

    Raises:
        CollectError: An episode failed, or a collector died again and again.
        DiskFullError: There is no space left here.
    """
    if not episodes:
        return
    waiting = deque(episodes)
    try:
        with hired(Collector, [(recipe,)] * collectors, address=address) as actors:
            ray = import_ray()
            idle = deque(actors)
            busy: dict[Any, Any] = {}  # what an actor will answer: the actor
            while waiting or busy:
                while idle and waiting:
                    actor = idle.popleft()
                    busy[actor.record.remote(waiting.popleft())] = actor
                [ready], _ = ray.wait(list(busy), num_returns=1)
                [(index, length, packed)] = answers([ready])
                stage_packed(root, index, packed)
                idle.append(busy.pop(ready))
                yield length
    except ClusterError as error:
        raise CollectError(
            f"{error}. Earlier episodes are intact; run the same command again to continue"
        ) from error
