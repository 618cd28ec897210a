"""Published networks of golden cases, built from the cases' own configuration and weights."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kairos_env.world_model.checkpoint import canonical, check_names, from_official
from kairos_env.world_model.config import (
    DeltaConfig,
    PublishedRules,
    StreamConfig,
    TransformerConfig,
)
from kairos_env.world_model.published.mixture import Lanes, PublishedMixture
from kairos_env.world_model.published.recognise import KINDS, recognise
from kairos_env.world_model.published.windows import action_attention, video_attention
from tests.golden import Case, compare


def network(
    case: Case, *, config: str = "config", weights: str = "w", **official: Any
) -> PublishedMixture:
    """The network of a case, recognised from names, shapes and the official configuration.

    Keywords replace entries of that configuration, the video network's where there are two.
    """
    given = dict(case.spec[config])
    if "video_dit" in given:
        given["video_dit"] = {**given["video_dit"], **official}
    tensors = case.group(weights)
    shapes = {canonical(name): tuple(tensor.shape) for name, tensor in tensors.items()}
    made = PublishedMixture(recognise(shapes, {**given, **official}))
    ours = from_official(tensors)
    check_names(ours, made.state_dict(), source=case.name)
    made.load_state_dict(ours)
    return made.requires_grad_(False)


def with_rules(made: PublishedMixture, **rules: Any) -> PublishedMixture:
    """The same weights under other rules."""
    published = dataclasses.replace(made.config.published, **rules)
    other = PublishedMixture(dataclasses.replace(made.config, published=published))
    other.load_state_dict(made.state_dict())
    return other.requires_grad_(False)


def module_weights(case: Case, theirs: str, ours: str, *, weights: str = "w") -> dict[str, Tensor]:
    """Weights of one module, renamed by the table; both names are those that it has in a block."""
    named = {f"blocks.0.{theirs}.{name}": t for name, t in case.group(weights).items()}
    start = f"video.blocks.0.{ours}."
    return {name.removeprefix(start): t for name, t in from_official(named).items()}


def rules_of(text: str) -> dict[str, Any]:
    """Switches in a description, like "mode=SWA history=2 restrict=False all_history=False"."""
    found = dict(re.findall(r"(\w+)=(\w+)", text))
    return {
        "kind": found.get("mode"),
        "history": int(found["history"]),
        "restrict_history": found["restrict"] == "True",
        "all_history": found["all_history"] == "True",
    }


def one_layer(
    kind: str, rules: Mapping[str, bool] | None = None, **changes: Any
) -> TransformerConfig:
    """A config whose only layer has an official kind; nothing but its windows matters."""
    return TransformerConfig(
        layers=(KINDS[kind],),
        heads=1,
        head_dim=2,
        video=StreamConfig(dim=2, ffn_dim=2, channels=1),
        action=None,
        delta=DeltaConfig(heads=1, key_dim=1, value_dim=1, decay="token"),
        published=PublishedRules(**(rules or {})),
        **changes,
    )


def seen_tokens(
    config: TransformerConfig, *, frames: int, tokens: int, actions: int, history: int
) -> Tensor:
    """The mask that the attention of a joint pass amounts to: rows are queries, videos first.

    All logits are equal and the values are one-hot, so an output names the keys that were seen.
    """
    total = frames * tokens + actions
    one_hot = torch.eye(total).view(1, total, 1, total)
    video, action = one_hot.split([frames * tokens, actions], 1)
    video, action = video.view(1, frames, tokens, 1, total), action[:, None]
    reads = video_attention(
        torch.zeros_like(video),
        torch.zeros_like(video),
        video,
        config=config,
        layer=0,
        history_frames=history,
    )
    zeros, past = torch.zeros_like(action), video[:, :history]
    tells = action_attention(
        zeros, zeros, action, history=(torch.zeros_like(past), past) if history else None
    )
    return torch.cat([reads.reshape(-1, total), tells.reshape(-1, total)]) > 0


def compare_blocks(
    case: Case,
    pattern: str,
    made: PublishedMixture,
    lanes: Lanes,
    *,
    section: str | None = None,
) -> None:
    """Run all layers, comparing the tokens after each one that the case has stored.

    The pattern holds {layer}; where there are two streams, their names follow it.
    """
    for layer in range(len(made.config.layers)):
        made.run_layer(layer, lanes, None)
        name = pattern.format(layer=layer)
        for suffix, lane in (("", lanes.video), (".video", lanes.video), (".action", lanes.action)):
            if lane is not None and name + suffix in case:
                compare(case, name + suffix, lane.x.flatten(1, 2), section=section)
