"""Untrained worlds to act in; lets tests import the helpers beside them."""

import sys
from pathlib import Path

import pytest

from kairos_env.untrained import untrained_world

sys.path.insert(0, str(Path(__file__).parent))  # pytest's importlib mode does not

WORLDS = {"plain": {}, "pairs": {"frames_per_chunk": 2}, "chosen": {"discrete": 3}}


@pytest.fixture(scope="module", params=WORLDS)
def world(request):
    return untrained_world(**WORLDS[request.param])


@pytest.fixture(scope="module")
def plain():
    return untrained_world()
