"""Lets tests import the helpers beside them, which pytest's importlib mode does not."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


def pytest_collection_modifyitems(items):
    """Skip what needs a picture of a simulator on a machine that cannot make one."""
    if not any("render" in item.keywords for item in items):
        return
    from kairos_env.real import make_real
    from kairos_env.real.render import RenderError

    try:
        env = make_real("KairosReach-v0", horizon=1)
        env.reset(seed=0)
        env.close()
    except RenderError as error:
        for item in items:
            if "render" in item.keywords:
                item.add_marker(pytest.mark.skip(reason=str(error)))
