"""The trained baseline: it learns what two frames and the actions decide, and is kept."""

import dataclasses

import numpy as np
import pytest
import torch
from made_truth import reach_truth

from kairos_env.benchmarks.fidelity import conv_predictor as conv
from kairos_env.world_model.tokenizer import Tokenizer, TokenizerConfig

SMALL = conv.ConvConfig(
    steps=120, channels=16, blocks=1, hidden=32, batch=32, rollout=3, learning_rate=5e-3, ema=0.9
)
SHAPE = (1, 8, 8), 1, 1


def sliding_squares(episodes=24, frames=12):
    """A square that the action moves one cell left or right; its column is the state."""
    random = np.random.default_rng(0)
    latents = np.zeros((episodes, frames, 1, 8, 8), np.float32)
    actions = np.zeros((episodes, frames, 1), np.float32)
    values = np.zeros((episodes, frames, 2), np.float32)
    for e in range(episodes):
        column = int(random.integers(0, 7))
        for t in range(frames):
            latents[e, t, 0, 3:5, column : column + 2] = 1.0
            way = int(random.choice([-1, 1])) if 0 < column < 6 else (1 if column == 0 else -1)
            if t + 1 < frames:
                column += way
                actions[e, t], values[e, t] = way, (way, column)
    rows = np.arange(episodes * frames)
    return conv.Rollable(
        latents=torch.from_numpy(latents).flatten(0, 1),
        actions=torch.from_numpy(actions).flatten(0, 1),
        values=torch.from_numpy(values).flatten(0, 1),
        ended=torch.zeros(len(rows), dtype=torch.bool),
        last=rows // frames * frames + frames - 1,
    )


@pytest.fixture(scope="module")
def trained():
    return conv.train(sliding_squares(), SMALL)


def test_it_learns_where_an_action_leads(trained):
    network, facts = trained
    data = sliding_squares()
    rows = data.transitions[data.transitions % 12 > 0]
    pair = torch.stack([data.latents[rows - 1], data.latents[rows]], 1)
    with torch.no_grad():
        said = network(pair, data.actions[rows])
    error = (said.latent - data.latents[rows + 1]).square().mean()
    copied = (data.latents[rows] - data.latents[rows + 1]).square().mean()
    assert error < 0.15 * copied
    reward = said.values[:, 0] * network.values_scale[0] + network.values_mean[0]
    assert (reward - data.values[rows, 0]).abs().mean() < 0.3
    assert facts["updates"] == 120
    assert facts["training_frames"] == 24 * 12


def test_it_is_trained_once_for_a_world_and_a_config(tmp_path, trained):
    made = []

    def make():
        made.append(True)
        return trained

    first, _ = conv.cached(tmp_path, "a world", SMALL, make, SHAPE)
    again, facts = conv.cached(tmp_path, "a world", SMALL, make, SHAPE)
    assert len(made) == 1
    assert facts == trained[1]
    for name, tensor in first.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor, rtol=0, atol=0)
    conv.cached(tmp_path, "another world", SMALL, make, SHAPE)
    conv.cached(tmp_path, "a world", dataclasses.replace(SMALL, seed=1), make, SHAPE)
    assert len(made) == 3


def test_a_damaged_copy_is_made_again(tmp_path, trained):
    conv.cached(tmp_path, "a world", SMALL, lambda: trained, SHAPE)
    file = next(tmp_path.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:100])
    network, _ = conv.cached(tmp_path, "a world", SMALL, lambda: trained, SHAPE)
    assert network is trained[0]
    assert len(file.read_bytes()) > 100


def test_clips_stay_in_their_episode():
    data = dataclasses.replace(sliding_squares(4, 5), ended=torch.zeros(20, dtype=torch.bool))
    data.ended[[3, 18]] = True
    config = dataclasses.replace(SMALL, at_end=0.9, batch=200)
    rows = conv._draw(data, config, np.random.default_rng(0))
    assert (rows < data.last[rows]).all()
    assert np.isin(rows, [0, 1, 2, 3, 16, 17, 18]).mean() > 0.8


def test_as_a_predictor_it_carries_two_frames_and_nothing_else():
    tokenizer = Tokenizer(TokenizerConfig(frame_size=(32, 32), channels=(8, 8)))
    network = conv.ConvPredictor(SMALL, (4, 8, 8), 2, 4)
    baseline = conv.ConvBaseline(network.eval(), tokenizer.eval(), 1)
    truth = reach_truth(3, 4)
    memory = baseline.start(truth)
    assert memory.shape == (3, 2, 4, 8, 8)
    after, guess = baseline.step(memory, truth.chunks[:, 0])
    assert guess.frames.shape == (3, 1, 32, 32, 3)
    assert guess.state.shape == (3, 1, 4)
    torch.testing.assert_close(after[:, 0], memory[:, 1])
    alone, single = baseline.step(baseline.keep(memory, np.array([2])), truth.chunks[2:, 0])
    torch.testing.assert_close(alone[0], after[2], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(single.reward[0], guess.reward[2], rtol=1e-4, atol=1e-5)
