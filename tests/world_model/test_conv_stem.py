"""The convolutional head: what stands still stays, and what was covered comes back."""

import dataclasses

import pytest
import torch
from tiny_worlds import make_clips, make_world

from kairos_env.world_model.config import TransformerConfig
from kairos_env.world_model.conv_stem import ConvHead
from kairos_env.world_model.objective import gate_error
from kairos_env.world_model.presets import world_config
from kairos_env.world_model.world_model import WorldModel

B, T, P, C, SIDE = 2, 3, 3, 4, 8


def head(*, recall: bool) -> tuple[ConvHead, TransformerConfig]:
    config = world_config("tiny", action_size=2, state_size=0).transformer
    config = dataclasses.replace(config, recall=recall)
    torch.manual_seed(0)
    return ConvHead(config), config


def read(module: ConvHead, config: TransformerConfig, previous: torch.Tensor) -> torch.Tensor:
    tokens = torch.randn(B, T, (SIDE // config.patch) ** 2, config.video.dim)
    features = torch.randn(B * T, config.stem_channels, SIDE, SIDE)
    frames, gate = module(tokens, torch.randn(B, T, config.video.dim), features, previous)
    assert (gate is not None) is config.recall
    return frames


@pytest.mark.parametrize("recall", [False, True])
def test_an_untrained_head_guesses_that_nothing_moves(recall: bool) -> None:
    module, config = head(recall=recall)
    still = torch.randn(B, T, 1, C, SIDE, SIDE).expand(-1, -1, P, -1, -1, -1)
    torch.testing.assert_close(read(module, config, still), still[:, :, 0])


def test_an_open_gate_brings_back_the_first_frame_and_a_closed_one_the_last() -> None:
    module, config = head(recall=True)
    previous = torch.randn(B, T, P, C, SIDE, SIDE)
    assert module.recall is not None
    assert module.recall.bias is not None
    for bias, shown in ((50.0, 0), (-50.0, P - 1)):
        torch.nn.init.constant_(module.recall.bias, bias)
        torch.testing.assert_close(read(module, config, previous), previous[:, :, shown])


def test_the_gate_is_told_to_open_where_the_first_frame_is_to_be_seen_again() -> None:
    truth = torch.randn(B, T, C, SIDE, SIDE)
    truth[:, :, :, : SIDE // 2] = truth[:, :1, :, : SIDE // 2]  # the upper half stands still
    logits = torch.zeros(B, T, 1, SIDE, SIDE, requires_grad=True)
    gate_error(logits, truth)[:, 1:].sum().backward()
    assert logits.grad is not None
    upper, lower = logits.grad[:, 1:, :, : SIDE // 2], logits.grad[:, 1:, :, SIDE // 2 :]
    assert (upper < 0).all()  # a step of descent opens it
    assert (lower > 0).all()


def test_a_world_with_a_gate_learns_to_use_it() -> None:
    plain = make_world()
    shape = dataclasses.replace(plain.config.transformer, recall=True)
    world = WorldModel(dataclasses.replace(plain.config, transformer=shape))
    clips = make_clips(2, 6)
    loss, metrics = world.loss(clips, world.draw(clips, torch.Generator().manual_seed(0)))
    loss.backward()
    gate = world.mixture.video.head.recall
    assert metrics["gate_loss"] > 0
    assert gate.weight.grad.abs().sum() > 0


def test_recall_needs_a_first_frame_to_recall() -> None:
    config = world_config("tiny", action_size=2, state_size=0).transformer
    with pytest.raises(ValueError, match=r"recall brings back the first frame: it needs anchor"):
        dataclasses.replace(config, recall=True, anchor=False)
