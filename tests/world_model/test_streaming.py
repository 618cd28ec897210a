"""Stepping chunk by chunk gives the numbers of one pass over the whole sequence."""

import dataclasses

import pytest
import torch
from torch import Tensor

from kairos_env.world_model.config import (
    HYBRID,
    DeltaConfig,
    LayerKind,
    StreamConfig,
    TransformerConfig,
)
from kairos_env.world_model.history import with_previous
from kairos_env.world_model.mixture import FORWARD, INVERSE, JOINT, POLICY, Inputs, Mixture, Mode

T, H, W = 12, 4, 4
STACKS: dict[str, tuple[LayerKind, ...]] = {
    "SWA": ("SWA", "SWA"),
    "DSWA": ("DSWA", "DSWA"),
    "GLA": ("GLA", "GLA"),
    "mixed": (*HYBRID, "SWA"),  # every kind behind every kind that it follows in a taller stack
}
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-11}
# Frames per chunk, and frames per call: one by one, ragged, a chunk of several, calls of several.
CHUNKINGS = ((1, [1] * 12), (1, [5, 1, 6]), (2, [2, 4, 6]), (3, [3, 9]))


def make(
    layers: tuple[LayerKind, ...], dtype: torch.dtype = torch.float64, *, actions: bool = True
) -> Mixture:
    """A small mixture in which nothing is zero, as it is at initialisation."""
    config = TransformerConfig(
        layers=layers,
        heads=2,
        head_dim=12,
        video=StreamConfig(dim=24, ffn_dim=32, channels=4),
        action=StreamConfig(dim=16, ffn_dim=24, channels=2) if actions else None,
        delta=DeltaConfig(heads=2, key_dim=8, value_dim=6, half_life=(2.0, 50.0)),
        window=3,
        dilation=2,
        freq_dim=16,
        stem="conv",
        stem_channels=8,
        head_blocks=1,
        actions_per_frame=2,
        action_conditions_time=actions,
    )
    generator = torch.Generator().manual_seed(0)
    mixture = Mixture(config, frame_tokens=4).to(dtype)
    with torch.no_grad():
        for parameter in mixture.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=dtype)
            parameter.add_(0.1 * noise)
    return mixture


def random_inputs(batch: int, dtype: torch.dtype, seed: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=dtype)

    latents = normal(batch, T, 4, H, W)
    return {
        "latents": latents,
        "previous": with_previous(latents, 2),
        "video_noise": normal(batch, T).abs().clamp_max(1.0),
        "actions": normal(batch, T, 2, 2),
        "action_noise": normal(batch, T).abs().clamp_max(1.0),
        "actions_known": normal(batch, T) > -1.0,
    }


def part(inputs: dict[str, Tensor], start: int, stop: int) -> Inputs:
    batch = len(inputs["latents"])
    first = torch.full((batch,), start)
    return Inputs(first_frame=first, **{n: x[:, start:stop] for n, x in inputs.items()})


def stream(
    mixture: Mixture, inputs: dict[str, Tensor], mode: Mode, chunk: int, calls: list[int]
) -> tuple[Tensor, Tensor | None]:
    memory = mixture.empty_memory(len(inputs["latents"]))
    video, action, at = [], [], 0
    for frames in calls:
        out = mixture(
            part(inputs, at, at + frames), mode, chunk_frames=chunk, memory=memory, commit=True
        )
        memory, at = out.memory, at + frames
        video.append(out.video)
        action.append(out.action)
    joined = None if action[0] is None else torch.cat(action, dim=1)
    return torch.cat(video, dim=1), joined


@pytest.mark.parametrize(
    ("batch", "dtype"), [(1, torch.float64), (7, torch.float32)], ids=["1-float64", "7-float32"]
)
@pytest.mark.parametrize("stack", STACKS)
@torch.no_grad()
def test_streaming_equals_parallel(stack: str, batch: int, dtype: torch.dtype) -> None:
    mixture = make(STACKS[stack], dtype)
    inputs = random_inputs(batch, dtype)
    for chunk, calls in CHUNKINGS:
        whole = mixture(part(inputs, 0, T), FORWARD, chunk_frames=chunk)
        video, action = stream(mixture, inputs, FORWARD, chunk, calls)
        assert (video - whole.video).abs().max() <= TOLERANCE[dtype]
        assert action is not None
        assert (action - whole.action).abs().max() <= TOLERANCE[dtype]


@torch.no_grad()
def test_streaming_equals_parallel_without_actions() -> None:
    mixture = make(STACKS["mixed"], actions=False)
    inputs = random_inputs(3, torch.float64)
    whole = mixture(part(inputs, 0, T), FORWARD, chunk_frames=2)
    video, action = stream(mixture, inputs, FORWARD, 2, [2] * 6)
    assert action is None
    assert (video - whole.video).abs().max() <= 1e-11


@pytest.mark.parametrize("mode", [FORWARD, JOINT, INVERSE])
@torch.no_grad()
def test_the_noisy_half_of_training_sees_what_streaming_sees(mode: Mode) -> None:
    """Clean memory and a noisy present, chunk by chunk, against one clean and one noisy run."""
    mixture, chunk = make(STACKS["mixed"]), 2
    clean = random_inputs(2, torch.float64)
    noisy = clean | {
        "latents": random_inputs(2, torch.float64, seed=5)["latents"],
        "actions": random_inputs(2, torch.float64, seed=6)["actions"],
    }
    recorded = mixture(part(clean, 0, T), FORWARD, chunk_frames=chunk, record=True)
    together = mixture(part(noisy, 0, T), mode, chunk_frames=chunk, trace=recorded.trace)
    memory = mixture.empty_memory(2)
    for at in range(0, T, chunk):
        frames = slice(at, at + chunk)
        alone = mixture(part(noisy, at, at + chunk), mode, chunk_frames=chunk, memory=memory)
        assert (alone.video - together.video[:, frames]).abs().max() <= 1e-11
        assert (alone.action - together.action[:, frames]).abs().max() <= 1e-11
        committed = mixture(
            part(clean, at, at + chunk), FORWARD, chunk_frames=chunk, memory=memory, commit=True
        )
        memory = committed.memory


@torch.no_grad()
def test_policy_mode_needs_no_frame_and_equals_its_training_run() -> None:
    mixture, chunk = make(STACKS["mixed"]), 2
    clean = random_inputs(2, torch.float64)
    noisy = clean | {"actions": random_inputs(2, torch.float64, seed=6)["actions"]}
    recorded = mixture(part(clean, 0, T), FORWARD, chunk_frames=chunk, record=True)
    together = mixture(part(noisy, 0, T), POLICY, chunk_frames=chunk, trace=recorded.trace)
    assert together.video is None
    memory = mixture.empty_memory(2)
    past = mixture(part(clean, 0, 6), FORWARD, chunk_frames=chunk, memory=memory, commit=True)
    now = dataclasses.replace(part(noisy, 6, 8), latents=None, previous=None, video_noise=None)
    alone = mixture(now, POLICY, chunk_frames=chunk, memory=past.memory)
    assert (alone.action - together.action[:, 6:8]).abs().max() <= 1e-11


@pytest.mark.parametrize("stack", STACKS)
@torch.no_grad()
def test_a_changed_future_never_changes_the_past(stack: str) -> None:
    mixture, chunk, at = make(STACKS[stack]), 2, 6
    inputs = random_inputs(2, torch.float64)
    changed = {name: x.clone() for name, x in inputs.items()}
    other = random_inputs(2, torch.float64, seed=9)
    for name in ("latents", "previous", "actions", "video_noise"):
        changed[name][:, at:] = other[name][:, at:]
    before = mixture(part(inputs, 0, T), FORWARD, chunk_frames=chunk)
    after = mixture(part(changed, 0, T), FORWARD, chunk_frames=chunk)
    assert torch.equal(before.video[:, :at], after.video[:, :at])
    assert torch.equal(before.action[:, :at], after.action[:, :at])
    assert not torch.allclose(before.video[:, at:], after.video[:, at:])


@torch.no_grad()
def test_inside_a_chunk_frames_see_each_other() -> None:
    mixture = make(STACKS["SWA"])
    inputs = random_inputs(1, torch.float64)
    changed = {name: x.clone() for name, x in inputs.items()}
    changed["latents"][:, 1] += 1.0
    before = mixture(part(inputs, 0, 2), FORWARD, chunk_frames=2).video
    after = mixture(part(changed, 0, 2), FORWARD, chunk_frames=2).video
    assert not torch.allclose(before[:, 0], after[:, 0])


@torch.no_grad()
def test_an_action_changes_its_own_frame_and_none_before() -> None:
    mixture = make(STACKS["mixed"])
    inputs = random_inputs(1, torch.float64)
    inputs["actions_known"][:] = True
    changed = {name: x.clone() for name, x in inputs.items()}
    changed["actions"][:, 5] += 1.0
    before = mixture(part(inputs, 0, T), FORWARD, chunk_frames=1).video
    after = mixture(part(changed, 0, T), FORWARD, chunk_frames=1).video
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5], after[:, 5])


@torch.no_grad()
def test_beyond_the_reach_of_its_windows_only_the_delta_rule_remembers() -> None:
    windows = make(("SWA", "SWA"))
    hybrid = make(("SWA", "GLA"))
    assert windows.config.reach == 4
    for mixture, remembers in ((windows, False), (hybrid, True)):
        inputs = random_inputs(1, torch.float64)
        changed = {name: x.clone() for name, x in inputs.items()}
        changed["latents"][:, 0] += 1.0
        inputs["previous"] = changed["previous"]  # the stem looks back by itself; not asked here
        before = mixture(part(inputs, 0, T), FORWARD, chunk_frames=1).video
        after = mixture(part(changed, 0, T), FORWARD, chunk_frames=1).video
        assert torch.equal(before[:, -1], after[:, -1]) is not remembers
