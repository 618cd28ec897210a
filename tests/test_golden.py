"""Agreement with the published implementation, case by case; see golden.py for how a folder of
cases is read.

One test function per kind of case, parametrised over what the folder holds: sizes, variants and
tolerances come from its JSON files, so KAIROS_GOLDEN=DIR runs the same tests on any other folder of
the format.
"""

from typing import Any

import pytest
import torch

from kairos_env.world_model import flow
from kairos_env.world_model.normalizers import Normalizer, Statistics
from kairos_env.world_model.published.tiling import Tiling
from kairos_env.world_model.published.wan_vae import WanVae, WanVaeConfig
from kairos_env.world_model.teacache import TeaCache, TeaCacheState
from tests.golden import cases, compare, load_case

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
        # tighter than the tolerance asks: one ulp of t is visible in the timestep embedding
        assert torch.equal(schedule.sigmas, case[f"sigmas.{index}"])
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
