"""Skips what needs a picture on a machine that cannot make one; lets tests import helpers."""

import sys
from pathlib import Path

import pytest

from kairos_env.real.render import FrameRenderer, RenderError, load_mujoco

sys.path.insert(0, str(Path(__file__).parent))  # pytest's importlib mode does not


def _why_not() -> str:
    mujoco = load_mujoco()
    model = mujoco.MjModel.from_xml_string("<mujoco><worldbody/></mujoco>")
    try:
        FrameRenderer(model, frame_size=8).close()
    except RenderError as error:
        return str(error)
    return ""


_REASON = _why_not()


def pytest_collection_modifyitems(items):
    for item in items:
        if _REASON and "render" in item.keywords:
            item.add_marker(pytest.mark.skip(reason=_REASON))
