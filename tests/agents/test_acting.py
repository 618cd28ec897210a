"""Promises of a world that acts by itself: policy mode, joint mode, best of N."""

import numpy as np
import pytest
import torch
from short_dreams import a_dream

from kairos_env.agents.act.deciders import BestOfNDecider, StreamDecider, drawn_seeds
from kairos_env.agents.planning.planner import legal
from kairos_env.agents.planning.returns import Objective
from kairos_env.spaces import decode_actions, encode_actions


def deciders(world):
    few = {"denoise_steps": 2}
    return {
        "policy": StreamDecider(world, mode="policy", **few),
        "joint": StreamDecider(world, mode="joint", **few),
        "best-of-n": BestOfNDecider(world, candidates=3, horizon=2, **few),
    }


def decided(decider, dream, seed=0, times=1):
    decider.begin(np.random.default_rng(seed))
    return [decider.decide(dream) for _ in range(times)]


@pytest.mark.parametrize("name", ["policy", "joint", "best-of-n"])
def test_every_way_to_act_gives_legal_chunks_that_follow_from_the_seed(world, name) -> None:
    decider, dream = deciders(world)[name], a_dream(world)
    before = dream.clone().tensors()
    one, later = decided(decider, dream, times=2)
    config, space = world.model.config, world.manifest.environment.space
    assert one.shape == (config.chunk, config.action_size)
    assert np.allclose(encode_actions(space, decode_actions(space, one)), one, atol=1e-6)
    assert np.array_equal(decided(decider, dream)[0], one)
    if name != "best-of-n" and world.manifest.environment.action_space["kind"] == "box":
        assert not np.array_equal(one, later)
        assert not np.array_equal(decided(decider, dream, seed=1)[0], one)
    for key, value in dream.tensors().items():
        assert torch.equal(value, before[key]), key


def test_the_best_of_n_is_the_proposal_of_the_best_future(plain) -> None:
    """Each future dreamed by hand: the stream acts, the dream answers, rewards add up."""

    def wanted(prediction):
        return prediction.latents.mean((2, 3, 4))

    N, H, dream = 5, 3, a_dream(plain)
    objective = Objective(reward=wanted, discount=0.9)
    decider = BestOfNDecider(plain, candidates=N, horizon=H, objective=objective, denoise_steps=2)
    plain.model.heads.end.bias.data.fill_(-30.0)  # it never ends
    seeds = drawn_seeds(np.random.default_rng(0), N)
    chunks, values = [], []
    for i in range(N):
        state, value = dream, 0.0
        for t in range(H):
            proposal = plain.model.act(state, seeds=seeds[i : i + 1], denoise_steps=2)
            chunk = torch.from_numpy(legal(plain, proposal.chunk.numpy()))
            state, prediction = plain.model.step(state, chunk, decode=False)
            value += 0.9**t * wanted(prediction).item()
            if t == 0:
                chunks.append(chunk[0].numpy())
        values.append(value)
    chosen = decided(decider, dream)[0]
    assert np.allclose(chosen, chunks[int(np.argmax(values))], atol=1e-4)


def test_more_candidates_promise_no_less(plain) -> None:
    """The first of many candidates are those of a few: a wider choice cannot be worse."""
    few, many = (drawn_seeds(np.random.default_rng(0), n) for n in (3, 8))
    assert torch.equal(many[:3], few)


def test_what_cannot_act_is_refused(plain) -> None:
    with pytest.raises(ValueError, match="candidates and horizon must be at least 1"):
        BestOfNDecider(plain, candidates=0)
    decider = StreamDecider(plain, mode="best")
    with pytest.raises(ValueError, match="mode policy or joint"):
        decided(decider, a_dream(plain))
