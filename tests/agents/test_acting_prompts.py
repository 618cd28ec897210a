"""Promises of prompt self-alignment."""

import dataclasses

import numpy as np
import pytest

from kairos_env.agents.act.deciders import StreamDecider
from kairos_env.agents.act.prompts import Prompt, align, changed_words, dreamed_score
from kairos_env.agents.planning.following import FollowingPolicy, first_sight
from kairos_env.untrained import untrained_world
from kairos_env.world_model.text import TextConfig
from kairos_env.world_model.world_model import WorldModel
from kairos_env.worlds import World

WORDS = ("push", "the", "red", "block", "slowly")
WANTED = {"push", "the", "block"}


@pytest.fixture(scope="module")
def reading():
    """The untrained world, reading text."""
    world = untrained_world()
    config = world.manifest.model
    transformer = dataclasses.replace(config.transformer, text_dim=TextConfig().dim)
    config = dataclasses.replace(config, transformer=transformer, text=TextConfig())
    model = WorldModel(config)
    for parameter in model.parameters():
        parameter.data.add_(0.05 * parameter.data.new_ones(()).expand_as(parameter))
    manifest = dataclasses.replace(world.manifest, model=config)
    return World(None, manifest, model, world.starts)


def likeness(texts):
    """Highest, 0, for the wanted words and no others."""
    return [-float(len(WANTED ^ set(text.split()))) for text in texts]


def aligned(seed=0, rounds=12):
    generator = np.random.default_rng(seed)
    return align(["red block"], likeness, changed_words(WORDS), generator=generator, rounds=rounds)


def test_the_best_words_are_found_and_all_is_told_best_first() -> None:
    tried = aligned()
    assert set(tried[0].text.split()) == WANTED
    assert tried[0].dreamed == 0.0
    assert Prompt("red block", -3.0) in tried
    assert [p.dreamed for p in tried] == sorted((p.dreamed for p in tried), reverse=True)
    assert len({p.text for p in tried}) == len(tried)
    assert aligned() == tried
    assert aligned(rounds=0) == [Prompt("red block", -3.0)]


def test_no_text_is_scored_twice() -> None:
    asked = []

    def score(texts):
        asked.extend(texts)
        return likeness(texts)

    align(["a", "a"], score, changed_words(["a", "b"]), generator=np.random.default_rng(0))
    assert len(asked) == len(set(asked))


def test_a_dreamed_score_depends_on_the_words_alone(reading) -> None:
    score = dreamed_score(reading, horizon=2, denoise_steps=2)
    one, other, again = score(["push the block", "wait", "push the block"])
    assert one == again != other


def test_a_policy_is_told_its_prompt(reading) -> None:
    frame = reading.starts.frames[0, 0]
    told, untold = (first_sight(reading, frame, 0, text).text for text in ("wait", ""))
    assert told is not None
    assert untold is not None
    assert not np.allclose(told, untold)
    assert FollowingPolicy(StreamDecider(reading), text="wait").text == "wait"


def test_a_world_without_text_says_so() -> None:
    world = untrained_world()
    with pytest.raises(ValueError, match="reads no text"):
        dreamed_score(world)
    with pytest.raises(ValueError, match="reads no text, got 'wait'"):
        FollowingPolicy(StreamDecider(world), text="wait")
    with pytest.raises(ValueError, match="texts to begin with"):
        align([], likeness, changed_words(WORDS), generator=np.random.default_rng(0))
