"""The same question to worlds: where is what comes out again after g hidden frames?

All worlds dream the same held-out episodes. `copy` shows the last true picture for ever: it never
knows, and stands for what forgetting costs.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from kairos_env.benchmarks.cells import Json
from kairos_env.benchmarks.fidelity.behaviour import out_of_sight, reappearance
from kairos_env.benchmarks.fidelity.config import FidelityConfig
from kairos_env.benchmarks.fidelity.episodes import HeldOut
from kairos_env.benchmarks.fidelity.measure import COPY, TRUTH, gather
from kairos_env.benchmarks.fidelity.metrics import Yardstick
from kairos_env.benchmarks.fidelity.predictors import CopyLast, Dream, Predictor
from kairos_env.benchmarks.fidelity.report import plain
from kairos_env.benchmarks.fidelity.statistics import Bootstrap
from kairos_env.benchmarks.fidelity.strips import Picture, strips
from kairos_env.benchmarks.transformer import own_model

if TYPE_CHECKING:
    from kairos_env.worlds import World


SHOWN = 4  # episodes in the picture
EVERY = 4  # frames between its columns


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compared:
    """What was measured, and a picture of it."""

    document: Json
    strips: Picture
    """Truth above, the worlds below it in their order, then `copy`."""


class UnlikeWorldsError(ValueError):
    """Worlds that cannot be asked the same question."""


def compare_worlds(
    worlds: Sequence["World"],
    config: FidelityConfig,
    *,
    earlier: Json | None = None,
    tell: Callable[[str, int, int], None] | None = None,
) -> Compared:
    """Error of what comes back into sight, by hidden gap, for every world.

    Args:
        worlds: Of one environment.
        config: Which episodes, and how they are judged.
        earlier: The document of another comparison on the same episodes. Its worlds stand beside
            these as they were found then, unless they are compared again.
        tell: Hears how far it is.

    Raises:
        UnlikeWorldsError: The worlds are of different environments, nothing hides in theirs, or
            the earlier comparison was on other episodes.
    """
    names = [world.name for world in worlds]
    first = worlds[0]
    environment = first.manifest.environment
    for world in worlds[1:]:
        theirs = world.manifest.environment
        if (theirs, world.model.config.history) != (environment, first.model.config.history):
            raise UnlikeWorldsError(
                f"{world.name} is a world of {theirs.id} and {first.name} of {environment.id}, or "
                "their chunks, frames or histories differ; compare worlds of one environment"
            )
    if len(set(names)) != len(names):
        raise UnlikeWorldsError(f"worlds need different names, got {', '.join(names)}")
    asked = {"environment": environment.id, "config": plain(dataclasses.asdict(config))}
    if earlier is not None:
        _require_same_question(asked, earlier)
    held_out = HeldOut(environment, first.model.config.history, config)
    predictors: dict[str, Predictor] = {world.name: Dream(own_model(world)) for world in worlds}
    try:
        evidence = gather(
            held_out,
            predictors | {COPY: CopyLast(environment.frames_per_chunk)},
            config,
            on_progress=tell,
        )
    finally:
        held_out.close()
    things = evidence.finder.objects if evidence.finder else ()
    if not any(thing.gone_behind for thing in things):
        raise UnlikeWorldsError(
            f"nothing goes out of sight in {environment.id}; give worlds of KairosOcclude-v0"
        )
    yard = Yardstick(
        config=config,
        bootstrap=Bootstrap(len(evidence.valid), resamples=config.resamples, seed=config.seed),
        truth=evidence.traces[TRUTH],
        valid=evidence.valid,
        finder=evidence.finder,
        state_names=environment.state_names,
    )
    facts = {world.name: _facts(world) for world in worlds}
    document = {
        **asked,
        "worlds": facts,
        "back_in_sight": {
            name: plain(reappearance(yard, trace))
            for name, trace in evidence.traces.items()
            if name != TRUTH
        },
    }
    if earlier is not None:
        document = _beside(document, earlier)
    beyond = max(told["reach"] or 0 for told in facts.values())
    strip = _picture(yard, evidence.pictures, config.shown, beyond)
    return Compared(document=document, strips=strip)


def _require_same_question(asked: Json, earlier: Json) -> None:
    """Refuse a document of other episodes, before any are dreamed."""
    for name, now in asked.items():
        then = earlier.get(name)
        if now != then:
            raise UnlikeWorldsError(
                f"the earlier comparison has {name} {then}, this one {now}; repeat its command "
                "with other worlds"
            )


def _beside(found: Json, earlier: Json) -> Json:
    """The document with the worlds of an earlier one, and when and where those were measured.

    What the last true picture is off by, which no network draws, says whether the episodes are the
    same.
    """
    now, then = found["back_in_sight"], earlier["back_in_sight"]
    if now[COPY] != then[COPY]:
        raise UnlikeWorldsError(
            "the earlier comparison was on episodes of the same seed that went another way (the "
            "scene or its physics has changed since); compare its worlds again"
        )
    source = {name: earlier[name] for name in ("commit", "measured_at", "machine")}
    kept = {
        name: {"measured": source} | facts
        for name, facts in earlier["worlds"].items()
        if name not in found["worlds"]
    }
    rows = {name: then[name] for name in kept}
    mine = {name: row for name, row in now.items() if name != COPY}
    back = mine | rows | {COPY: now[COPY]}
    return found | {"worlds": found["worlds"] | kept, "back_in_sight": back}


def _picture(yard: Yardstick, pictures: Mapping[str, Picture], kept: int, beyond: int) -> Picture:
    """Kept episodes in which something is hidden for more than `beyond` frames, frame by frame.

    By how long it is hidden they are as far from each other as can be: nobody has chosen them.
    """
    assert yard.finder is not None
    hidden = np.zeros(yard.valid.shape, bool)
    for i, thing in enumerate(yard.finder.objects):
        if thing.gone_behind:
            hidden |= out_of_sight(yard, i)
    frames_hidden = hidden[:kept].sum(1)
    by_length = np.argsort(frames_hidden, kind="stable")
    far = by_length[frames_hidden[by_length] > beyond]
    candidates = far if len(far) else by_length
    spread = np.linspace(0, len(candidates) - 1, min(SHOWN, len(candidates)))
    chosen = candidates[spread.round().astype(int)]
    rows = [frames[chosen] for frames in pictures.values()]
    lengths = yard.valid.sum(1)[chosen]
    columns = range(EVERY, int(lengths.max()) + 1, EVERY)
    return strips(rows, lengths, columns=columns, zoom=1)


def _facts(world: "World") -> Json:
    shape = world.model.config.transformer
    return {
        "fingerprint": world.fingerprint,
        "layers": list(shape.layers),
        "parameters": sum(p.numel() for p in world.model.parameters()),
        "reach": None if "GLA" in shape.layers else shape.reach,
        "frames_that_windows_reach": shape.reach,
    }
