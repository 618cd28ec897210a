import gc
import os
import subprocess
import sys

import gymnasium
import numpy as np
import pytest

import kairos_env  # noqa: F401  # registers the scenes
from kairos_env import make_real
from kairos_env.real.render import FrameRenderer, load_mujoco

pytestmark = pytest.mark.render


def run(code, **environment):
    """A fresh interpreter: MuJoCo reads its settings once."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("MUJOCO")}
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def scene(seed=0):
    env = gymnasium.make("KairosPush-v0", render_mode="rgb_array")
    env.reset(seed=seed)
    return env


def test_closing_one_renderer_leaves_the_others_their_picture():
    one, other = scene(1), scene(2)
    expected = one.render()
    other.render()
    other.close()
    np.testing.assert_array_equal(one.render(), expected)
    third = scene(3)
    third.render()
    np.testing.assert_array_equal(one.render(), expected)
    del third
    gc.collect()
    np.testing.assert_array_equal(one.render(), expected)
    one.close()


def test_renderers_of_other_models_and_sizes_live_side_by_side():
    envs = [
        make_real("KairosPush-v0"),
        make_real("Ant-v5"),
        make_real("KairosReach-v0", frame_size=96),
    ]
    frames = [env.reset(seed=0)[0] for env in envs]
    envs[0].close()
    for env, frame in zip(envs[1:], frames[1:], strict=True):
        assert frame.mean() > 10
        np.testing.assert_array_equal(env.render(), frame)
        env.close()


def test_rendering_changes_nothing_in_the_simulation():
    drawn, undrawn = make_real("Ant-v5"), gymnasium.make("Ant-v5")
    drawn.reset(seed=0)
    undrawn.reset(seed=0)
    drawn.action_space.seed(0)
    for _ in range(5):
        chunk = drawn.action_space.sample()
        _, _, terminated, _, info = drawn.step(chunk)
        rewards = [undrawn.step(action)[1] for action in chunk]
        np.testing.assert_array_equal(info["rewards"], np.array(rewards, np.float32))
        assert not terminated
    drawn.close()


def test_the_models_own_quality_settings_are_left_alone():
    mujoco = load_mujoco()
    model = mujoco.MjModel.from_xml_string("<mujoco><worldbody/></mujoco>")
    before = model.vis.quality.shadowsize, model.vis.quality.offsamples, model.vis.global_.offwidth
    FrameRenderer(model, frame_size=32, samples=2).close()
    after = model.vis.quality.shadowsize, model.vis.quality.offsamples, model.vis.global_.offwidth
    assert before == after


def test_cameras_are_chosen_by_name_number_or_setting():
    default = make_real("HalfCheetah-v5").reset(seed=0)[0]
    by_name = make_real("HalfCheetah-v5", camera="track").reset(seed=0)[0]
    by_number = make_real("HalfCheetah-v5", camera=0).reset(seed=0)[0]
    near = make_real("HalfCheetah-v5", camera={"distance": 1.5}).reset(seed=0)[0]
    np.testing.assert_array_equal(default, by_name)
    np.testing.assert_array_equal(by_name, by_number)
    assert not np.array_equal(default, near)


@pytest.mark.parametrize(
    ("camera", "message"),
    [("trak", "it has \\['track'\\]"), (7, "no camera 7"), ({"zoom": 2}, "zoom")],
)
def test_an_unknown_camera_is_named(camera, message):
    with pytest.raises(ValueError, match=message):
        make_real("HalfCheetah-v5", camera=camera).reset(seed=0)


MAKE_AND_RENDER = """
import kairos_env
env = kairos_env.make_real("KairosReach-v0")
frame, _ = env.reset(seed=0)
print(int(frame.mean()))
"""


def test_nothing_is_said_at_exit_with_renderers_open():
    result = run(MAKE_AND_RENDER)
    assert result.returncode == 0
    assert int(result.stdout) > 100
    assert result.stderr == ""


def test_without_a_renderer_the_physics_runs_and_the_error_says_what_to_install():
    physics = """
import gymnasium, kairos_env, numpy
env = gymnasium.make("KairosReach-v0")
env.reset(seed=0)
print(env.step(numpy.zeros(2, "float32"))[1])
"""
    result = run(physics, MUJOCO_GL="disable")
    assert float(result.stdout) < 0
    result = run(MAKE_AND_RENDER, MUJOCO_GL="disable")
    assert result.returncode != 0
    assert "apt-get install --no-install-recommends libegl1 libgl1 libgl1-mesa-dri" in result.stderr


NO_LIBEGL = """
import ctypes
load = ctypes._dlopen
def missing(name, *arguments, **options):
    if "EGL" in str(name):
        raise OSError(f"{name}: cannot open shared object file")
    return load(name, *arguments, **options)
ctypes._dlopen = missing
"""


@pytest.mark.parametrize("environment", [{}, {"MUJOCO_GL": "egl"}])
def test_a_missing_libegl_is_reported_with_what_to_install(environment):
    result = run(NO_LIBEGL + MAKE_AND_RENDER, **environment)
    assert "RenderError" in result.stderr
    assert "apt-get install" in result.stderr


def test_mujoco_imported_by_somebody_else_can_render_too():
    result = run("import mujoco\n" + MAKE_AND_RENDER)
    assert int(result.stdout) > 100, result.stderr


def test_a_broken_display_is_reported_with_what_to_install():
    result = run(MAKE_AND_RENDER, MUJOCO_GL="egl", MUJOCO_EGL_DEVICE_ID="99")
    assert "RenderError" in result.stderr
    assert "apt-get install" in result.stderr


def test_importing_kairos_env_loads_no_simulator_and_sets_nothing():
    code = """
import os, sys
before = dict(os.environ)
import kairos_env, kairos_env.spaces
import kairos_env.real, kairos_env.real.scenes, kairos_env.real.experts
heavy = {"mujoco", "torch", "metaworld", "robosuite"} & sys.modules.keys()
print(sorted(heavy), dict(os.environ) == before)
"""
    result = run(code)
    assert result.stdout.strip() == "[] True", result.stderr
