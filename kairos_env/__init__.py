"""Kairos: a Gymnasium environment whose physics is a network.

Importing this package registers `Kairos-v0` and our ground-truth scenes and does nothing else;
torch, MuJoCo and the network are loaded when they are first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from kairos_env.registration import register_envs
from kairos_env.version import __version__

if TYPE_CHECKING:
    from kairos_env.env import DreamEnv
    from kairos_env.real import make_real
    from kairos_env.vector_env import DreamVectorEnv

register_envs()

_HOMES = {
    "DreamEnv": "kairos_env.env",
    "DreamVectorEnv": "kairos_env.vector_env",
    "make_real": "kairos_env.real",
}

__all__ = ["DreamEnv", "DreamVectorEnv", "__version__", "make_real", "register_envs"]


def __getattr__(name: str) -> Any:
    """Load a public name when it is first asked for (PEP 562), so that the import stays cheap."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(
        f"module 'kairos_env' has no attribute {name!r}; public names: {', '.join(__all__)}"
    )
