"""Agreement with the published implementation, case by case; see golden.py for how a folder of
cases is read.

One test function per kind of case, parametrised over what the folder holds: sizes, variants and
tolerances come from its JSON files, so KAIROS_GOLDEN=DIR runs the same tests on any other folder of
the format.
"""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from kairos_env.kernels.gated_delta.op import gated_delta_rule
from kairos_env.world_model import flow
from kairos_env.world_model.attention import (
    Attention,
    grid_rotation,
    line_rotation,
)
from kairos_env.world_model.conditioning import grid_table, sinusoid
from kairos_env.world_model.config import DeltaConfig
from kairos_env.world_model.delta_net import GatedDeltaNet, unit_length
from kairos_env.world_model.flow import Schedule
from kairos_env.world_model.normalizers import Normalizer, Statistics
from kairos_env.world_model.published.mixture import Clip, PublishedMixture, Velocities
from kairos_env.world_model.published.pipeline import Denoised, Sampler, denoise
from kairos_env.world_model.published.tiling import Tiling
from kairos_env.world_model.published.wan_vae import WanVae, WanVaeConfig
from kairos_env.world_model.published.windows import video_attention
from kairos_env.world_model.teacache import TeaCache, TeaCacheState
from tests.golden import Case, cases, compare, compare_with, compared, load_case
from tests.golden_networks import (
    compare_blocks,
    module_weights,
    network,
    one_layer,
    rules_of,
    seen_tokens,
    with_rules,
)

# The published scheduler is constructed with these unless its row says otherwise.
SCHEDULER_DEFAULTS = {
    "sigma_min": 0.003 / 1.002,
    "sigma_max": 1.0,
    "shift": 3.0,
    "extra_one_step": False,
}


def schedule_of(row: dict[str, Any]) -> flow.Schedule:
    """Translate one row, published constructor and call arguments, to our schedule."""
    made, call = {**SCHEDULER_DEFAULTS, **row["ctor"]}, row["call"]
    shift: float | flow.ShapeShift = float(call.get("shift", made["shift"]))
    if made.get("exponential_shift"):
        shift = flow.ShapeShift(tokens=call["dynamic_shift_len"], frames=call["num_frames"])
    order = "falling"
    if made.get("reverse_sigmas"):
        order = "mirrored"
    elif made.get("inverse_timesteps"):
        order = "rising"
    return flow.Schedule(
        steps=call.get("num_inference_steps", 1),
        times=tuple(call.get("selected_sampling_time", ())),
        shift=shift,
        lowest=made["sigma_min"],
        highest=made["sigma_max"],
        strength=call.get("denoising_strength", 1.0),
        extra_step=made["extra_one_step"],
        terminal=made.get("shift_terminal"),
        order=order,
    )


@pytest.mark.parametrize("name", cases("schedulers"))
def test_schedulers(name: str) -> None:
    case = load_case(name)
    for row in case.spec["rows"]:
        index, schedule = row["index"], schedule_of(row)
        assert schedule.factor == pytest.approx(row["shift_used"], rel=1e-12)
        compare(case, f"sigmas.{index}", schedule.sigmas, section="sigmas")
        compare(case, f"timesteps.{index}", schedule.timesteps, section="timesteps")
        compare(
            case,
            f"timesteps_bf16.{index}",
            schedule.timesteps.bfloat16().float(),
            section="timesteps",
        )
        if f"step_in.{index}" not in case:
            continue
        z, v, eps = case[f"step_in.{index}"]
        middle = len(schedule.sigmas) // 2
        s, s_next = schedule.path[middle : middle + 2]
        compare(
            case, f"step_out.{index}", flow.euler_step(z, v, s, s_next), section="step_and_noise"
        )
        nearest = schedule.nearest(float(schedule.timesteps[middle]))
        noised = flow.noise(z, eps, schedule.sigmas[nearest])
        compare(case, f"add_noise_out.{index}", noised, section="step_and_noise")


@pytest.mark.parametrize("name", cases("normalizers"))
def test_normalizers(name: str) -> None:
    case = load_case(name)
    statistics = {
        vector: Statistics(
            **{
                key.removeprefix("global_"): value.double()
                for key, value in case.group(f"stats.{vector}").items()
            }
        )
        for vector in case.variants(r"stats\.(\w+)\..*")
    }
    for mode in case.variants(r"out\.(.+)\.state"):
        # a slash cannot stand in a tensor's name; the RoboTwin client calls its only mode "zscore"
        ours = mode.replace("_", "/").replace("zscore", "z-score")
        state = Normalizer.make(ours, statistics["state"])
        action = Normalizer.make(ours, statistics["action"])
        compare(case, f"out.{mode}.state", state.normalize(case["in.state"]))
        compare(case, f"out.{mode}.action", action.denormalize(case["in.action"]))
        if f"out.{mode}.state_scale" in case:
            compare(case, f"out.{mode}.state_scale", state.scale)
            compare(case, f"out.{mode}.state_offset", state.offset)


@pytest.mark.parametrize("name", cases("teacache"))
def test_teacache(name: str) -> None:
    case = load_case(name)
    for model in case.config["model_ids"]:
        cache = TeaCache.published(
            model, steps=case.config["steps"], threshold=case.config["rel_l1_thresh"]
        )
        state, states, outputs = TeaCacheState(), [], []
        for m, x, y in zip(case["in.t_mod"], case["in.x"], case["in.y"], strict=True):
            output, state = cache.run(state, m, x, lambda _, y=y: y)
            states.append(state)
            outputs.append(output)
        compare(case, f"out.{model}.skip", torch.tensor([s.skipped for s in states]))
        compare(case, f"out.{model}.accumulated", torch.tensor([s.accumulated for s in states]))
        compare(case, f"out.{model}.y", torch.stack(outputs))


@pytest.mark.parametrize("name", cases("wan_vae"))
@torch.no_grad()
def test_wan_vae(name: str) -> None:
    case = load_case(name)
    sizes = ("dim", "z_dim", "dim_mult", "num_res_blocks", "temporal_downsample")
    vae = WanVae(
        WanVaeConfig(
            **{
                key: tuple(value) if isinstance(value := case.config[key], list) else value
                for key in sizes
                if key in case.config
            }
        )
    )
    vae.load_state_dict(case.group("w"))
    video, size = case["in.video"], tuple(case.config["tile_size"])
    compare(case, "out.latent", vae.encode(video))
    for frames in case.variants(r"out\.latent\.T(\d+)"):
        compare(case, f"out.latent.T{frames}", vae.encode(video[:, :, : int(frames)]))
    compare(case, "out.video", vae.decode(case["out.latent"]))
    compare(case, "out.video_unclamped", vae.decode(case["out.latent"], clamp=False))
    compare(case, "out.video2_unclamped", vae.decode(case["in.latent2"], clamp=False))

    overlap = tuple(s - t for s, t in zip(size, case.config["tile_stride"], strict=True))
    tiled = vae.encode(video, tiling=Tiling(size=size, overlap=overlap))
    compare(case, "out.latent_tiled", tiled)
    # the published decoder ignores the stride it is given
    overlap = tuple(min(4, s - 1) for s in size)
    tiled = vae.decode(case["in.latent2"], tiling=Tiling(size=size, overlap=overlap))
    compare(case, "out.video2_tiled", tiled)

    first, state = vae.encoder(video[:, :, :1], None)
    compare(case, "mid.encoder_chunk0", first)
    compare(case, "mid.encoder_chunk1", vae.encoder(video[:, :, 1:5], state)[0])


@pytest.mark.parametrize("name", cases("embeddings"))
def test_embeddings(name: str) -> None:
    case = load_case(name)
    t, config = case["in.t"], case.config
    for width in config["freq_dims"]:
        compare(case, f"out.sin.{width}", sinusoid(t, width))
        compare(case, f"out.sin_bf16.{width}", sinusoid(t.bfloat16(), width).float())
    F, rows, columns = config["grid"]
    place = torch.arange(rows * columns)
    for size in config["head_dims"]:
        grid = grid_rotation(torch.arange(F)[None], place // columns, place % columns, size)
        compare(case, f"out.rope3d.{size}", torch.view_as_real(grid[0, :, :, 0].flatten(0, 1)))
    for size in config["action_head_dims"]:
        positions = torch.arange(len(case[f"out.rope1d.{size}"]))
        compare(
            case, f"out.rope1d.{size}", torch.view_as_real(line_rotation(positions, size)[:, 0])
        )
    dim, rows, columns = config["pos2d"]
    compare(case, "out.pos2d", grid_table(rows, columns, dim)[None])


@pytest.mark.parametrize("name", cases("mot_masks"))
def test_mot_masks(name: str) -> None:
    case = load_case(name)
    for row in case.spec["rows"]:
        rules = {"restrict_history": row["restrict"], "all_history": row["allh"]}
        config = one_layer(row["mode"], rules, window=row["w"], dilation=row["d"], semantics="flex")
        mask = seen_tokens(
            config, frames=row["F"], tokens=row["L"], actions=row["A"], history=row["hist"]
        )
        video, index = row["F"] * row["L"], row["index"]
        compare(case, f"mask.{index}.video_action_mixed", mask)
        compare(case, f"mask.{index}.video_only", mask[:video, :video])
        compare(case, f"mask.{index}.action_only", mask[video:, video:])
        compare(case, f"mask.{index}.action_with_video_cache", mask[video:])


@pytest.mark.parametrize("name", cases("self_attention"))
def test_self_attention(name: str) -> None:
    case = load_case(name)
    config = case.config
    heads, L = config["num_heads"], config["tokens_per_frame"]
    size = config["attn_hidden_dim"] // heads
    attention = Attention(config["dim"], heads, size, config["eps"])
    attention.load_state_dict(module_weights(case, "self_attn", "attention"))

    F, _, columns = config["grid"]
    place = torch.arange(L)
    rotation = grid_rotation(torch.arange(F)[None], place // columns, place % columns, size)
    compare(case, "in.rope", torch.view_as_real(rotation[0, :, :, 0].flatten(0, 1)))
    x = case["in.x"].unflatten(1, (F, L))
    q, k, v = attention.project(x, rotation)
    for heads_name, tensor in (("mid.q", q), ("mid.k", k), ("mid.v", v)):
        compare(case, heads_name, tensor.flatten(3).flatten(1, 2))

    sizes = {"window": config["window_size"], "dilation": config["dilation"]}
    for output in case.names(r"out\..*"):
        kind, semantics, history, rules = attention_variant(case, output)
        T = case[output].shape[1] // L
        read = video_attention(
            q[:, :T],
            k[:, :T],
            v[:, :T],
            config=one_layer(kind, rules, semantics=semantics, **sizes),
            layer=0,
            history_frames=history,
        )
        compare(case, output, attention.combine(read).flatten(1, 2))


def attention_variant(case: Case, output: str) -> tuple[str, str, int, dict[str, bool]]:
    """Kind of layer, semantics, history frames and rules that an output's name and text tell."""
    if output == "out.full":
        return "FA", "flash", 0, {}
    kind, *_, semantics = output.split(".")[1].split("_")
    if semantics == "flash":
        return kind.upper(), semantics, 0, {}
    rules = rules_of(case.spec["tensors"][output]["what"])
    assert rules["kind"] == kind.upper()
    switches = {key: rules[key] for key in ("restrict_history", "all_history")}
    return kind.upper(), semantics, rules["history"], switches


@pytest.mark.parametrize("name", cases("cross_attention"))
def test_cross_attention(name: str) -> None:
    case = load_case(name)
    config = case.config
    heads, width = config["num_heads"], config["attn_hidden_dim"]
    cross = Attention(config["dim"], heads, width // heads, config["eps"])
    cross.load_state_dict(module_weights(case, "cross_attn", "cross"))
    x, text = case["in.x"], case["in.context"]
    compare(case, "out.masked", cross.read(x, text, case["in.mask"]))
    compare(case, "out.unmasked", cross.read(x, text))


@pytest.mark.parametrize("name", cases("gated_deltanet"))
def test_gated_deltanet(name: str) -> None:
    case = load_case(name)
    delta, x = delta_layer(case, case.config, "w"), case["in.x"]
    start = delta.empty_state(len(x))
    q, k, v, _ = delta._convolve(delta._conv_inputs(x), start.tail)
    g, beta = delta._gates(x)
    # the case stores queries and keys before they are made unit length
    for heads, tensor in (("mid.q", q), ("mid.k", k)):
        compare_with(case, heads, tensor, unit_length(case[heads]))
    compare(case, "mid.v", v)
    compare(case, "mid.g", g)
    compare(case, "mid.beta", beta)
    o, _ = gated_delta_rule(q, k, v, g, beta, state=start.memory)
    compare(case, "mid.o", o)
    compare(case, "out.y", delta(x, start)[0])

    outputs, states = [], [start]
    for piece in x.split(case.config["chunks"], 1):
        y, state = delta(piece, states[-1])
        outputs.append(y)
        states.append(state)
    compare(case, "out.y_chunked", torch.cat(outputs, 1))
    compare(case, "out.state1.recurrent", states[1].memory)
    compare(case, "out.state_last.recurrent", states[-1].memory)
    # the case keeps as many inputs as the convolution has taps; the oldest is never read again
    stored = {f"out.state1.conv_{part}": case[f"out.state1.conv_{part}"] for part in "qkv"}
    tails = states[1].tail.transpose(1, 2).split([t.shape[1] for t in stored.values()], 1)
    for (part, inputs), tail in zip(stored.items(), tails, strict=True):
        compare_with(case, part, tail, inputs[..., 1:])

    default = delta_layer(case, case.config["default"], "w_default")
    x = case["in.x_default"]
    compare(case, "out.y_default", default(x, default.empty_state(len(x)))[0])


def delta_layer(case: Case, sizes: dict[str, Any], weights: str) -> GatedDeltaNet:
    config = DeltaConfig(
        heads=sizes["num_heads"],
        key_dim=sizes["head_k_dim"],
        value_dim=sizes["head_v_dim"],
        conv=case.config["conv"],
        decay="token",
        half_life=None,
    )
    delta = GatedDeltaNet(sizes["hidden"], config, 1, case.config["eps"])
    delta.load_state_dict(module_weights(case, "gated_delta", "delta", weights=weights))
    return delta.requires_grad_(False)


@pytest.mark.parametrize("name", cases("video_dit_v2"))
def test_video_dit_v2(name: str) -> None:
    case = load_case(name)
    latents = case["in.latents"].transpose(1, 2)
    alone = Clip(latents=latents, timestep=case["in.timestep"], text=case["in.context"])
    clip = dataclasses.replace(
        alone, history_frames=case.spec["num_history_frames"], text_mask=case["in.context_mask"]
    )
    for semantics in case.variants(r"out\.(flash|flex)"):
        made = network(case, attn_method=semantics)
        lanes = made.enter(clip)
        assert lanes.video is not None
        assert lanes.video.text is not None
        L = lanes.video.x.shape[2]
        compare(case, "mid.tokens0", lanes.video.x.flatten(1, 2))
        compare(case, "mid.t", lanes.video.t.repeat_interleave(L, 1))
        compare(case, "mid.context", lanes.video.text)
        compare_blocks(case, f"mid.{semantics}.block{{layer}}", made, lanes)
        compare_video(case, f"out.{semantics}", made.read(lanes))
        compare_video(case, f"out.{semantics}_t2v", made(alone))


@pytest.mark.parametrize("name", cases("mot_joint"))
def test_mot_joint(name: str) -> None:
    case = load_case(name)
    made = network(case)
    latents = case["in.latents"].transpose(1, 2)
    history = case.spec["num_history_frames"]
    clip = Clip(
        latents=latents,
        timestep=case["in.timestep_video"],
        history_frames=history,
        actions=case["in.action"],
        action_timestep=case["in.timestep_action"],
        text=case["in.text"],
        text_mask=case["in.text_mask"],
        robot_state=case["in.robot_state"],
    )
    features, mask = made._features(clip)
    assert mask is not None
    compare(case, "mid.context", features)
    compare(case, "mid.context_mask", mask)
    lanes = made.enter(clip)
    compare_blocks(case, "mid.joint.block{layer}", made, lanes)
    compare_video(case, "out.joint.video", made.read(lanes))
    compare_action(case, "out.joint.action", made.read(lanes))

    for variant in case.variants(r"out\.(joint_.+)\.video"):
        rules = rules_of(case.spec["tensors"][f"out.{variant}.video"]["what"])
        switches = {key: rules[key] for key in ("restrict_history", "all_history")}
        output = with_rules(made, **switches)(
            dataclasses.replace(clip, history_frames=rules["history"])
        )
        compare_video(case, f"out.{variant}.video", output)
        compare_action(case, f"out.{variant}.action", output)

    compare_video(case, "out.video_only", made(dataclasses.replace(clip, actions=None)))
    remembered = made.remember(dataclasses.replace(clip, latents=latents[:, :history]))
    for layer in case.variants(r"mid\.cache\.block(\d+)\.k"):
        shared = remembered[int(layer)]
        assert shared is not None
        for letter, tensor in zip("kv", shared, strict=True):
            compare(case, f"mid.cache.block{layer}.{letter}", tensor.flatten(3).flatten(1, 2))
    output = made(dataclasses.replace(clip, latents=None), history=remembered)
    compare_action(case, "out.action_cached", output)


@pytest.mark.parametrize("name", cases("video_dit_v1"))
def test_video_dit_v1(name: str) -> None:
    case = load_case(name)
    latents = case["in.latents"].transpose(1, 2)
    alone = Clip(latents=latents, timestep=case["in.timestep"], text=case["in.context"])
    clip = dataclasses.replace(
        alone,
        history_frames=case.spec.get("num_history_frames", 1),
        text_mask=case["in.context_mask"],
    )
    made = network(case)
    exact, rounded = "intended_rope64_and_first_frame_cond", "rope16_and_head_as_is"
    lanes = made.enter(clip)
    compare_blocks(case, "mid.intended_rope64.block{layer}", made, lanes, section=exact)
    compare_video(case, "out.intended_rope64", made.read(lanes), section=exact)
    compare_video(case, "out.intended_rope64_t2v", made(alone), section=exact)
    rope16 = with_rules(made, half_rotation=True)
    compare_video(case, "out.intended_rope16", rope16(clip), section=rounded)
    as_is = with_rules(made, half_rotation=True, skip_undilated=True)
    compare_video(case, "out.head_as_is", as_is(clip), section=rounded)
    pictured = network(case, config="config_first_frame_cond", weights="w_ff")
    output = pictured(dataclasses.replace(clip, image=latents[:, 0]))
    compare_video(case, "out.first_frame_cond", output, section=exact)


def compare_video(case: Case, name: str, output: Velocities, *, section: str | None = None) -> None:
    assert output.video is not None
    compare(case, name, output.video.transpose(1, 2), section=section)


def compare_action(case: Case, name: str, output: Velocities) -> None:
    assert output.action is not None
    compare(case, name, output.action)


@pytest.mark.parametrize("name", cases("denoise_wam"))
def test_denoise_wam(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = load_case(name)
    steps: list[tuple[Tensor, Tensor]] = []
    euler_step = flow.euler_step

    def watched(z: Tensor, v: Tensor, s: Tensor, s_next: Tensor) -> Tensor:
        steps.append((v, euler_step(z, v, s, s_next)))
        return steps[-1][1]

    monkeypatch.setattr(flow, "euler_step", watched)
    config, made = case.config, network(load_case(case.spec["weights_from"]))
    noise = case["in.noise_video"].transpose(1, 2)
    video = video_schedule(made, noise, config["steps"])
    action = Schedule.for_actions(config["steps"], shift=config["sigma_shift"])
    sampler = Sampler(video=video, action=action, guidance=config["cfg_scale"])
    section = same_levels(case, video=video, action=action)
    first = case["in.first_frame_latent"].transpose(1, 2)
    negative = case["in.context_negative"]
    alone = Clip(latents=noise, text=case["in.context_positive"])
    both = dataclasses.replace(
        alone, actions=case["in.noise_action"], robot_state=case["in.robot_state"]
    )

    joint = denoise(made, both, sampler=sampler, first=first, negative=negative)
    compare_latents(case, "out.joint.latents", joint, section)
    compare_actions(case, "out.joint.action", joint, section)
    for i, (seen, acting) in enumerate(zip(steps[::2], steps[1::2], strict=True)):
        velocity = seen[0].transpose(1, 2)
        compare(case, f"mid.joint.step{i}.video_velocity", velocity, section=section)
        compare(case, f"mid.joint.step{i}.action_velocity", acting[0], section=section)
        compare(case, f"mid.joint.step{i}.action", acting[1], section=section)
    pictured = denoise(made, alone, sampler=sampler, first=first, negative=negative)
    compare_latents(case, "out.video.latents", pictured, section)
    told = denoise(made, alone, sampler=sampler, negative=negative)
    compare_latents(case, "out.video_t2v.latents", told, section)
    acted = denoise(made, dataclasses.replace(both, latents=None), sampler=sampler, first=first)
    compare_actions(case, "out.action.action", acted, section)


@pytest.mark.parametrize("name", cases("denoise_v1"))
def test_denoise_v1(name: str) -> None:
    case = load_case(name)
    config, made = case.config, network(load_case(case.spec["weights_from"]))
    first = case["in.first_frame_latent"].transpose(1, 2)
    clip = Clip(latents=case["in.noise"].transpose(1, 2), text=case["in.context_positive"])
    samplers = {
        "euler": Sampler(
            video=video_schedule(made, clip.latents, config["steps"]),
            guidance=config["cfg_scale"],
        ),
        "dmd": Sampler(video=Schedule.few_step(tuple(config["dmd_times"])), few_step=True),
    }
    for method, sampler in samplers.items():
        section = same_levels(case, **{method: sampler.video})
        for variant, given in (("ti2v", first), ("t2v", None)):
            result = denoise(
                made, clip, sampler=sampler, first=given, negative=case["in.context_negative"]
            )
            compare_latents(case, f"out.{method}_{variant}.latents", result, section)


def video_schedule(made: PublishedMixture, noise: Tensor | None, steps: int) -> Schedule:
    assert noise is not None
    _, T, _, height, width = noise.shape
    return Schedule.for_video(steps, tokens=height * width // made.config.patch**2, frames=T)


def same_levels(case: Case, **schedules: Schedule | None) -> str:
    """Tolerance section of a loop: the tight one where the stored levels are ours to the bit."""
    same = []
    for stream, schedule in schedules.items():
        assert schedule is not None
        stored = case[f"sched.{stream}.sigmas"]
        torch.testing.assert_close(schedule.sigmas, stored, atol=1e-6, rtol=1e-6)
        same.append(torch.equal(schedule.sigmas, stored))
    return "with_stored_sigmas" if all(same) else "with_recomputed_sigmas"


def compare_latents(case: Case, name: str, result: Denoised, section: str) -> None:
    assert result.latents is not None
    compare(case, name, result.latents.transpose(1, 2), section=section)


def compare_actions(case: Case, name: str, result: Denoised, section: str) -> None:
    assert result.actions is not None
    compare(case, name, result.actions, section=section)


def test_no_result_was_left_out() -> None:
    """Of every case that this run has opened; stands last so that it sees the others."""
    for name, seen in compared.items():
        stored = set(load_case(name).tensors)
        given = set(load_case(name).names(r"(in|w|w_\w+|stats|sched|step_in)\..*"))
        unseen = sorted(stored - given - seen)
        assert not unseen, f"no test compares these results of {name}: {unseen}"
