"""The convolutional head: what stands still stays, and what was covered comes back."""

import dataclasses

import pytest
import torch

from kairos_env.world_model.config import TransformerConfig
from kairos_env.world_model.conv_stem import ConvHead
from kairos_env.world_model.presets import world_config

B, T, P, C, SIDE = 2, 3, 3, 4, 8


def head(*, recall: bool) -> tuple[ConvHead, TransformerConfig]:
    config = world_config("tiny", action_size=2, state_size=0).transformer
    config = dataclasses.replace(config, recall=recall)
    torch.manual_seed(0)
    return ConvHead(config), config


def read(module: ConvHead, config: TransformerConfig, previous: torch.Tensor) -> torch.Tensor:
    tokens = torch.randn(B, T, (SIDE // config.patch) ** 2, config.video.dim)
    features = torch.randn(B * T, config.stem_channels, SIDE, SIDE)
    return module(tokens, torch.randn(B, T, config.video.dim), features, previous)


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


def test_a_gate_learns_to_uncover_what_was_there_before() -> None:
    module, config = head(recall=True)
    previous = torch.randn(B, T, P, C, SIDE, SIDE)
    read(module, config, previous).sub(previous[:, :, 0]).square().mean().backward()
    assert module.recall is not None
    assert module.recall.bias is not None
    assert module.recall.bias.grad is not None
    assert module.recall.bias.grad.item() < 0  # a step of descent opens it


def test_recall_needs_a_first_frame_to_recall() -> None:
    config = world_config("tiny", action_size=2, state_size=0).transformer
    with pytest.raises(ValueError, match=r"recall brings back the first frame: it needs anchor"):
        dataclasses.replace(config, anchor=False)
