"""Promises of configs: they survive JSON, and what cannot be built is refused by name."""

import dataclasses
import json
from typing import Any

import pytest
import torch

from kairos_env.world_model.config import (
    DeltaConfig,
    StreamConfig,
    TransformerConfig,
    from_json,
    settings,
    to_json,
)
from kairos_env.world_model.flow import NoiseLevels, ShapeShift
from kairos_env.world_model.heads import HeadsConfig
from kairos_env.world_model.objective import LossConfig
from kairos_env.world_model.presets import PUBLISHED, SIZES, world_config
from kairos_env.world_model.tokenizer import TokenizerConfig
from kairos_env.world_model.world_model import WorldConfig, WorldModel

TINY = world_config("tiny", action_size=2, state_size=3)


def through_text(config: Any) -> Any:
    return from_json(type(config), json.loads(json.dumps(to_json(config))))


def tiny_json(path: str, value: Any) -> dict[str, Any]:
    """The tiny world's JSON with one value, named by a dotted path, replaced."""
    data = json.loads(json.dumps(to_json(TINY)))
    *parents, name = path.split(".")
    place = data
    for parent in parents:
        place = place[parent]
    place[name] = value
    return data


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("pixels", [64, 128, 256])
def test_a_world_survives_json(size: str, pixels: int) -> None:
    config = world_config(
        size, action_size=4, state_size=0, frame_size=(pixels, pixels), chunk=4, frames_per_chunk=2
    )
    assert through_text(config) == config


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_network_survives_json(name: str) -> None:
    assert through_text(PUBLISHED[name]) == PUBLISHED[name]


def test_nested_choices_survive_json() -> None:
    shifted = NoiseLevels(shift=ShapeShift(tokens=16, frames=2), kind="logit_normal")
    config = dataclasses.replace(
        TINY,
        loss=dataclasses.replace(TINY.loss, video_levels=shifted),
        transformer=dataclasses.replace(TINY.transformer, action=None),
        history_noise=0.1,
    )
    assert through_text(config) == config


def test_a_left_out_field_takes_its_default() -> None:
    data = to_json(TINY)
    del data["denoise_steps"]
    assert from_json(WorldConfig, data) == TINY


def test_an_unknown_field_is_named_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"StreamConfig has no field width; it has dim, ffn_dim"):
        from_json(WorldConfig, tiny_json("transformer.video.width", 1))


def test_a_missing_field_is_named() -> None:
    data = to_json(TINY)
    del data["chunk"], data["action_size"]
    del data["transformer"]["layers"]
    with pytest.raises(ValueError, match="WorldConfig needs action_size, which"):
        from_json(WorldConfig, data)
    with pytest.raises(ValueError, match="TransformerConfig needs layers, which"):
        from_json(WorldConfig, data | {"action_size": 2})


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("chunk", "4", "WorldConfig.chunk must be a whole number, got '4'"),
        ("chunk", 4.0, "WorldConfig.chunk must be a whole number, got 4.0"),
        ("chunk", True, "WorldConfig.chunk must be a whole number, got True"),
        ("chunk", 0, "WorldConfig.chunk must be a positive whole number, got 0"),
        ("history_noise", "low", "WorldConfig.history_noise must be a number"),
        ("tokenizer", 3, "tokenizer must be the fields of TokenizerConfig or the fields of Wan"),
        ("heads", None, "WorldConfig.heads must be the fields of HeadsConfig, got None"),
        ("transformer.action", 7, "action must be the fields of StreamConfig or null, got 7"),
        ("transformer.stem", "vit", "TransformerConfig.stem must be one of 'patch', 'conv'"),
        ("transformer.layers", "SWA", "TransformerConfig.layers must be a list, got 'SWA'"),
        ("transformer.layers", ["SWA", "RNN"], r"layers\[1\] must be one of 'SWA', 'DSWA'"),
        ("transformer.action_conditions_time", 1, "must be true or false, got 1"),
        ("tokenizer.frame_size", [64], r"frame_size must be a list of 2, got \[64\]"),
        ("tokenizer.frame_size", [64, None], r"frame_size\[1\] must be a whole number, got None"),
        ("loss.video_levels.shift", [], "must be a number or the fields of ShapeShift, got"),
        ("transformer.delta.half_life", [2.0], "half_life must be a list of 2 or null"),
    ],
)
def test_a_value_of_the_wrong_kind_is_named(path: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_json(WorldConfig, tiny_json(path, value))


def test_numbers_may_be_written_without_a_point() -> None:
    assert from_json(WorldConfig, tiny_json("transformer.delta.half_life", [2, 500])) == TINY


STREAM = StreamConfig(dim=32, ffn_dim=64, channels=4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": ()}, "layers is empty"),
        ({"layers": ("SWA", "RNN")}, r"holds \['RNN'\]; known: SWA, DSWA, GLA, FA"),
        ({"layers": ("SWA", "FA")}, "FA, whose cost grows with every frame"),
        ({"head_dim": 7}, "head_dim must be even for the rotation, got 7"),
        ({"window": 0}, "TransformerConfig.window must be a positive whole number, got 0"),
        ({"stem_channels": 12}, "stem_channels must be divisible by 8"),
    ],
)
def test_a_transformer_that_cannot_be_built_is_refused(
    change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY.transformer, **change)


def test_dilations_count_the_layers() -> None:
    published = dataclasses.replace(TINY.transformer.published, dilations=(1, 2))
    with pytest.raises(ValueError, match="names 2 layers, the network has 4"):
        dataclasses.replace(TINY.transformer, published=published)


def test_delta_heads_that_cannot_be_built_are_refused() -> None:
    with pytest.raises(ValueError, match=r"DeltaConfig\.conv must be a positive whole number"):
        DeltaConfig(heads=1, key_dim=2, value_dim=2, conv=0)
    with pytest.raises(ValueError, match="0 < shortest <= longest"):
        DeltaConfig(heads=1, key_dim=2, value_dim=2, half_life=(5.0, 2.0))


def test_stream_sizes_are_positive() -> None:
    with pytest.raises(ValueError, match=r"StreamConfig\.channels must be a positive whole number"):
        StreamConfig(dim=32, ffn_dim=64, channels=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames_per_chunk": 3}, "4 actions cannot be shared evenly by 3 frames"),
        (
            {"frames_per_chunk": 2},
            "takes 4 actions of 2 numbers per latent frame, the world gives 2 of 2",
        ),
        (
            {"action_size": 3},
            "takes 4 actions of 2 numbers per latent frame, the world gives 4 of 3",
        ),
        ({"denoise_steps": 0}, "WorldConfig.denoise_steps must be a positive whole number"),
        (
            {"tokenizer": TokenizerConfig(channels=(8, 8, 16), latent_channels=6)},
            "the tokenizer gives 6 channels, the transformer takes 4",
        ),
        (
            {"tokenizer": TokenizerConfig(frame_size=(8, 8), channels=(8, 8, 16))},
            r"latents of \(1, 1\) cannot be cut into patches of 2",
        ),
        (
            {"tokenizer": TokenizerConfig(channels=(8, 8, 16), temporal=2)},
            "the tokenizer codes 2 frames together; frames_per_chunk must be a multiple",
        ),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **change)


def test_heads_that_cannot_be_built_are_refused() -> None:
    with pytest.raises(ValueError, match="state_size must not be negative, got -1"):
        HeadsConfig(state_size=-1)
    with pytest.raises(ValueError, match=r"end_threshold must lie in \(0, 1\), got 1.0"):
        HeadsConfig(state_size=0, end_threshold=1.0)
    with pytest.raises(ValueError, match=r"HeadsConfig\.hidden must be a positive whole number"):
        HeadsConfig(state_size=0, hidden=0)


@pytest.mark.parametrize(
    ("name", "value"), [("action_weight", -0.1), ("robust", 0.0), ("unknown_actions", 1.5)]
)
def test_a_loss_that_would_teach_nonsense_is_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"LossConfig\.{name} must .*, got {value}"):
        dataclasses.replace(TINY.loss, **{name: value})


def test_an_unknown_size_is_answered_with_the_known_ones() -> None:
    with pytest.raises(
        ValueError, match="no size 'huge'; there are tiny, compact, wide, small, medium"
    ):
        world_config("huge", action_size=2, state_size=0)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("pixels", [64, 128, 256])
def test_every_size_can_be_built(size: str, pixels: int) -> None:
    config = world_config(size, action_size=2, state_size=3, frame_size=(pixels, pixels))
    assert config.latent_shape == (4, 8, 8)
    assert config.frame_tokens == (8 // config.transformer.patch) ** 2
    with torch.device("meta"):
        WorldModel(config)


def test_reach_counts_the_windows_only() -> None:
    # two SWA layers see 2 frames back each, one DSWA layer 2 * 4, the GLA layer has no window
    assert isinstance(TINY.transformer, TransformerConfig)
    assert TINY.transformer.reach == 2 + 2 + 8


def test_settings_leave_out_what_is_at_its_default() -> None:
    assert settings(LossConfig()) == {}
    assert settings(LossConfig(robust=0.25)) == {"robust": 0.25}
    changed = dataclasses.replace(TINY, denoise_steps=3)
    assert {name for name in settings(changed) if name not in settings(TINY)} == {"denoise_steps"}
    assert from_json(type(changed), settings(changed)) == changed
