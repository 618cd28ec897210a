"""An imported network as the start of a world that answers to actions.

The published video stream never sees an action, so nothing in its weights can answer to one. What
they know of pictures and motion is kept: both streams' blocks go into a causal mixture in which the
video attends to the actions of its frame. What is new begins so that it changes nothing: the
previous frames beside the noisy one, and the actions in the noise-level embedding. Everything is
then trained on with `kairos train --from`.

A frame is one latent frame here, coded as a still picture; see `wan_tokenizer`.
"""

import dataclasses
from typing import cast

import torch
from torch import Tensor, nn

from kairos_env.world_model.checkpoint import check_names
from kairos_env.world_model.config import PublishedRules, StreamConfig, TransformerConfig
from kairos_env.world_model.heads import HeadsConfig
from kairos_env.world_model.published.wan_tokenizer import WanTokenizer, WanTokenizerConfig
from kairos_env.world_model.published.world import PublishedWorld
from kairos_env.world_model.world_model import WorldConfig, WorldModel

PREVIOUS_FRAMES = 2
# Width of a new action stream beside a video stream that had none, as the published ones have it.
ACTION_SHARE = 0.4
# What no causal world reads: the robot's state and the picture before the text.
DROPPED = ("action.state.", "video.image.")
# Made anew where the robot is another one.
ROBOT = ("action.embed.", "action.head.")
NEW = ("action.unknown", "action_to_time.", "video.embed.previous.")


def forward_world(
    imported: PublishedWorld,
    *,
    action_size: int,
    state_size: int,
    frame_size: tuple[int, int],
    chunk: int,
    frames_per_chunk: int,
) -> WorldModel:
    """The causal world that an imported one can become, with its weights, in float32.

    Args:
        imported: The world to begin with.
        action_size: Of the environment's actions.
        state_size: Of its state.
        frame_size: Height and width of its frames.
        chunk: K, low-level actions per step.
        frames_per_chunk: F.
    """
    old = imported.config
    assert isinstance(old.tokenizer, WanTokenizerConfig)
    tokenizer = dataclasses.replace(old.tokenizer, frame_size=frame_size)
    config = WorldConfig(
        tokenizer=tokenizer,
        transformer=causal(old.transformer, action_size, chunk // frames_per_chunk),
        heads=HeadsConfig(state_size=state_size),
        action_size=action_size,
        chunk=chunk,
        frames_per_chunk=frames_per_chunk,
        history=frames_per_chunk * -(-3 // frames_per_chunk),
    )
    world = WorldModel(config)
    weights = {k: x.float() for k, x in imported.tokenizer.autoencoder.state_dict().items()}
    cast(WanTokenizer, world.tokenizer).autoencoder.load_state_dict(weights)
    carry_over(imported.network, world.mixture)
    return world


def causal(old: TransformerConfig, action_size: int, actions_per_frame: int) -> TransformerConfig:
    """The same sizes with windows that look back only, and actions of this size."""
    width = 8 * round(ACTION_SHARE * old.video.dim / 8)
    action = old.action or StreamConfig(dim=width, ffn_dim=4 * width, channels=action_size)
    return dataclasses.replace(
        old,
        layers=tuple("SWA" if kind == "FA" else kind for kind in old.layers),
        action=dataclasses.replace(action, channels=action_size),
        state_dim=None,
        semantics="causal",
        published=PublishedRules(),
        stem="lookback",
        previous_frames=PREVIOUS_FRAMES,
        actions_per_frame=actions_per_frame,
        action_conditions_time=True,
    )


@torch.no_grad()
def carry_over(network: nn.Module, mixture: nn.Module) -> None:
    """Copy every weight that both have; what only one has must be on the lists above."""
    mine = mixture.state_dict()
    theirs = {
        name: tensor.float()
        for name, tensor in network.state_dict().items()
        if not name.startswith(DROPPED)
    }
    new = (*NEW, "action.") if not any(n.startswith("action.") for n in theirs) else NEW
    other_robot = any(
        name in mine and mine[name].shape != tensor.shape for name, tensor in theirs.items()
    )
    if other_robot:
        new = (*new, *ROBOT)
    carried = {n: x for n, x in theirs.items() if not n.startswith(new)}
    begun = {n: start_of(n, x) for n, x in mine.items() if n.startswith(new)}
    check_names(carried | begun, mine, source="the imported network")
    mixture.load_state_dict(carried | begun)


def start_of(name: str, tensor: Tensor) -> Tensor:
    """How a new weight begins: as it was made, but what actions add to the noise level at zero."""
    return torch.zeros_like(tensor) if name.startswith("action_to_time.2.") else tensor
