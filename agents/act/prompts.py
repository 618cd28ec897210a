"""Prompt self-alignment: which words make a world act best? It dreams them and finds out.

    propose variants -> dream each -> score -> keep the best -> propose again

The dreamed score is the world's own opinion. What a prompt is truly worth is seen when a
`FollowingPolicy` is told it in the real twin; report both.

Shapes: B starts, K low-level actions per step, D numbers per action.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kairos_env.agents.act.deciders import drawn_seeds
from kairos_env.agents.planning.planner import dreaming_model, legal_tensor
from kairos_env.agents.planning.returns import Objective, dreamed_returns
from kairos_env.world_model.state import DreamState
from kairos_env.worlds import World


@dataclass(frozen=True)
class Prompt:
    """What the world may be told, and the return that it dreams of then."""

    text: str
    dreamed: float


ScoreTexts = Callable[[Sequence[str]], Sequence[float]]
Propose = Callable[[Sequence[Prompt], int, np.random.Generator], Sequence[str]]


def align(
    first: Sequence[str],
    score: ScoreTexts,
    propose: Propose,
    *,
    generator: np.random.Generator,
    rounds: int = 3,
    variants: int = 8,
    kept: int = 2,
) -> list[Prompt]:
    """Refine prompts by what they score.

    Args:
        first: Where to begin.
        score: Texts to numbers, higher is better; each text is scored once.
        propose: New texts from the best so far (best first), how many, and a generator.
        generator: All randomness of the proposals.
        rounds: Times that variants are proposed.
        variants: Texts proposed in a round.
        kept: Best prompts that variants are made of.

    Returns:
        Everything that was tried, best first.
    """
    if not first or kept < 1:
        raise ValueError(f"expected texts to begin with and kept >= 1, got {first!r} and {kept}")
    tried: dict[str, float] = {}

    def try_out(texts: Sequence[str]) -> None:
        fresh = [text for text in dict.fromkeys(texts) if text not in tried]
        tried.update(zip(fresh, score(fresh), strict=True))

    try_out(first)
    for _ in range(rounds):
        try_out(propose(_ranked(tried)[:kept], variants, generator))
    return _ranked(tried)


def changed_words(vocabulary: Sequence[str]) -> Propose:
    """Proposals that differ from a good prompt by one word: another, one more, or one fewer."""

    def propose(best: Sequence[Prompt], count: int, generator: np.random.Generator) -> list[str]:
        return [_changed(best[i % len(best)].text, vocabulary, generator) for i in range(count)]

    return propose


def dreamed_score(
    world: World,
    *,
    horizon: int = 10,
    objective: Objective | None = None,
    denoise_steps: int = 10,
    seed: int = 0,
) -> ScoreTexts:
    """Scores a text by the mean return when the world, told it, acts in its own dream.

    Every text is dreamed from all bundled starts with the same noise.

    Raises:
        ValueError: The world reads no text.
    """
    model, starts = dreaming_model(world), world.starts
    reader = model.text
    if reader is None:
        raise ValueError(f"world {world.name!r} reads no text: there is nothing to align")
    frames = torch.from_numpy(starts.frames).to(model.device)
    actions = torch.from_numpy(starts.actions).to(model.device)
    seeds = drawn_seeds(np.random.default_rng(seed), len(frames)).to(model.device)

    def act(t: int, dreams: DreamState) -> Tensor:
        del t
        return legal_tensor(world, model.act(dreams, denoise_steps=denoise_steps).chunk)

    def one(text: str) -> float:
        told, mask = reader.encode([text] * len(frames))
        dreams = model.start(frames, actions, seeds=seeds, text=told, text_mask=mask)
        returns = dreamed_returns(
            model, dreams, act, horizon=horizon, objective=objective or Objective()
        )
        return float(returns.mean())

    return lambda texts: [one(text) for text in texts]


def _changed(text: str, vocabulary: Sequence[str], generator: np.random.Generator) -> str:
    words = text.split()
    place = int(generator.integers(len(words) + 1))
    other = [str(generator.choice(np.asarray(vocabulary)))]
    change = generator.choice(["replace", "add", "drop"])
    if change == "add" or not words:
        return " ".join(words[:place] + other + words[place:])
    place = min(place, len(words) - 1)
    return " ".join(words[:place] + (other if change == "replace" else []) + words[place + 1 :])


def _ranked(tried: dict[str, float]) -> list[Prompt]:
    return sorted((Prompt(*item) for item in tried.items()), key=lambda p: -p.dreamed)
