"""Published networks beyond the golden numbers: modes agree, fast windows equal dense masks."""

import dataclasses

import pytest
import torch

from kairos_env.kernels.clip_attention import torch as blocked
from kairos_env.world_model.config import (
    HYBRID,
    DeltaConfig,
    PublishedRules,
    StreamConfig,
    TransformerConfig,
)
from kairos_env.world_model.published import mixture
from kairos_env.world_model.published.mixture import Clip, PublishedMixture

FLASH = TransformerConfig(
    layers=(*HYBRID, "FA"),
    heads=2,
    head_dim=8,
    video=StreamConfig(dim=16, ffn_dim=24, channels=4),
    action=None,
    delta=DeltaConfig(heads=2, key_dim=4, value_dim=6, decay="token", half_life=None),
    window=2,
    dilation=3,
    freq_dim=8,
    text_dim=12,
    semantics="flash",
)
JOINT = dataclasses.replace(
    FLASH, action=StreamConfig(dim=10, ffn_dim=14, channels=3), state_dim=5, semantics="flex"
)
FRAMES, HISTORY = 7, 2


def drawn(config: TransformerConfig) -> PublishedMixture:
    network = PublishedMixture(config).double()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.3, generator=generator)
    return network


def clip_of(batch: int = 2, *, history: int = HISTORY, actions: bool = True) -> Clip:
    generator = torch.Generator().manual_seed(4)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    clip = Clip(
        latents=noise(batch, FRAMES, 4, 4, 6),
        timestep=torch.linspace(300, 800, batch, dtype=torch.float64),
        history_frames=history,
        text=noise(batch, 4, 12),
        text_mask=torch.tensor([[True, True, True, False]]).expand(batch, -1),
    )
    if not actions:
        return clip
    return dataclasses.replace(
        clip,
        actions=noise(batch, 5, 3),
        action_timestep=torch.linspace(900, 100, batch, dtype=torch.float64),
        robot_state=noise(batch, 5),
    )


def cut(clip: Clip, item: slice) -> Clip:
    fields = {
        field.name: value[item] if isinstance(value, torch.Tensor) else value
        for field in dataclasses.fields(clip)
        for value in [getattr(clip, field.name)]
    }
    return Clip(**fields)


def close(one: torch.Tensor | None, other: torch.Tensor | None) -> None:
    assert one is not None
    assert other is not None
    torch.testing.assert_close(one, other, atol=1e-11, rtol=1e-11)


@torch.no_grad()
def test_joint_equals_video_alone_and_actions_from_memory() -> None:
    network, clip = drawn(JOINT), clip_of()
    joint = network(clip)
    close(joint.video, network(dataclasses.replace(clip, actions=None)).video)
    assert clip.latents is not None
    history = network.remember(dataclasses.replace(clip, latents=clip.latents[:, :HISTORY]))
    close(joint.action, network(dataclasses.replace(clip, latents=None), history=history).action)


@torch.no_grad()
def test_actions_without_history_see_no_video() -> None:
    network, clip = drawn(JOINT), clip_of(history=0)
    close(network(clip).action, network(dataclasses.replace(clip, latents=None)).action)


@pytest.mark.parametrize(
    "config",
    [
        FLASH,
        dataclasses.replace(FLASH, published=PublishedRules(dilations=(1, 2, 3, 1, 1))),
        JOINT,
        dataclasses.replace(JOINT, published=PublishedRules(restrict_history=False)),
        dataclasses.replace(JOINT, published=PublishedRules(all_history=True)),
    ],
    ids=["flash", "dilations", "flex", "unrestricted", "all-history"],
)
@torch.no_grad()
def test_fast_windows_equal_dense_masks(
    monkeypatch: pytest.MonkeyPatch, config: TransformerConfig
) -> None:
    network, clip = drawn(config), clip_of(actions=config.action is not None)
    monkeypatch.setenv("KAIROS_KERNELS", "reference")
    slow = network(clip)
    monkeypatch.setenv("KAIROS_KERNELS", "")
    monkeypatch.setattr(blocked, "BLOCK", 16)
    monkeypatch.setattr(mixture, "DELTA_TOKENS", 13)
    fast = network(clip)
    close(fast.video, slow.video)
    if config.action is not None:
        close(fast.action, slow.action)


@torch.no_grad()
def test_a_clip_does_not_depend_on_its_batch() -> None:
    network, clip = drawn(JOINT), clip_of(batch=3)
    together = network(clip)
    alone = network(cut(clip, slice(1, 2)))
    assert together.video is not None
    assert together.action is not None
    close(together.video[1:2], alone.video)
    close(together.action[1:2], alone.action)


@torch.no_grad()
def test_an_unknown_robot_state_is_not_read() -> None:
    network, clip = drawn(JOINT), clip_of()
    assert clip.robot_state is not None
    hidden = dataclasses.replace(clip, robot_state_mask=torch.zeros_like(clip.robot_state))
    close(network(hidden).video, network(dataclasses.replace(clip, robot_state=None)).video)


@torch.no_grad()
def test_history_frames_are_told_timestep_zero_unless_the_rules_share_one() -> None:
    clip = clip_of(actions=False)
    lanes = drawn(FLASH).enter(clip)
    still = drawn(FLASH).enter(dataclasses.replace(clip, timestep=torch.zeros(2).double()))
    assert lanes.video is not None
    assert still.video is not None
    close(lanes.video.t[:, :HISTORY], still.video.t[:, :HISTORY])
    assert not torch.equal(lanes.video.t[:, HISTORY], still.video.t[:, HISTORY])
    shared = dataclasses.replace(FLASH, published=PublishedRules(separate_timestep=False))
    lanes = drawn(shared).enter(clip)
    assert lanes.video is not None
    close(lanes.video.t[:, :-1], lanes.video.t[:, 1:])


def test_every_parameter_learns() -> None:
    network, clip = drawn(JOINT), clip_of()
    output = network(clip)
    assert output.video is not None
    assert output.action is not None
    (output.video.square().mean() + output.action.square().mean()).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


@torch.no_grad()
def test_half_precision_runs_throughout() -> None:
    network, clip = drawn(JOINT).bfloat16(), clip_of()
    half = {
        field.name: value.bfloat16()
        for field in dataclasses.fields(clip)
        if isinstance(value := getattr(clip, field.name), torch.Tensor)
        and value.is_floating_point()
    }
    output, exact = network(dataclasses.replace(clip, **half)), drawn(JOINT)(clip)
    assert output.video is not None
    assert output.video.dtype == torch.bfloat16
    error = (output.video.double() - exact.video).norm() / exact.video.norm()
    assert error < 0.05


def test_bad_input_is_refused() -> None:
    network, clip = drawn(JOINT), clip_of()
    change = dataclasses.replace
    with pytest.raises(ValueError, match=r"pass Clip\.text"):
        network(change(clip, text=None))
    with pytest.raises(ValueError, match="latents needs their timestep"):
        network(change(clip, timestep=None))
    with pytest.raises(ValueError, match="actions needs their timestep"):
        network(change(clip, action_timestep=None))
    with pytest.raises(ValueError, match=r"must be \(batch, frames, 4, height, width\)"):
        network(change(clip, latents=clip.latents[:, :, :3]))
    with pytest.raises(ValueError, match=r"\(4, 5\) cannot be cut into patches of 2"):
        network(change(clip, latents=clip.latents[..., :5]))
    with pytest.raises(ValueError, match=r"has no use for Clip.image"):
        network(change(clip, image=clip.latents[:, 0]))
    with pytest.raises(ValueError, match="not both"):
        network(clip, history=network.remember(clip))
    with pytest.raises(ValueError, match="has no action stream"):
        drawn(FLASH)(change(clip, robot_state=None))
    with pytest.raises(ValueError, match="'flex' only"):
        drawn(change(JOINT, semantics="flash"))(clip)
    with pytest.raises(ValueError, match="our own worlds are a Mixture"):
        PublishedMixture(change(FLASH, layers=HYBRID, semantics="causal"))
    with pytest.raises(ValueError, match="decay='token'"):
        PublishedMixture(change(FLASH, delta=change(FLASH.delta, decay="frame")))
    with pytest.raises(ValueError, match="names 2 layers, the network has 5"):
        change(FLASH, published=PublishedRules(dilations=(1, 2)))
