"""`kairos doctor`: what this machine can do, which kernels were chosen, and what is missing."""

import dataclasses
import importlib.metadata
import importlib.util
import os
import platform
from collections.abc import Sequence

import tyro
from rich.console import Console
from rich.table import Table

from kairos_env.catalogue import bundled_worlds, default_world
from kairos_env.version import __version__

PACKAGES = ("torch", "gymnasium", "numpy", "mujoco", "safetensors", "imageio-ffmpeg", "av")
# extra: the module that tells whether it is installed
EXTRAS = {
    "sb3": "stable_baselines3",
    "robosuite": "robosuite",
    "metaworld": "metaworld",
    "gpu": "fla",
    "vlm": "transformers",
    "hub": "huggingface_hub",
    "ray": "ray",
    "study": "matplotlib",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DoctorOptions:
    """Say what this machine can do and which kernels were chosen."""


def main(argv: Sequence[str]) -> int:
    """Run `kairos doctor`; returns the exit status."""
    tyro.cli(DoctorOptions, prog="kairos doctor", args=list(argv))
    console = Console()
    for table in (versions(), devices(), kernels(), extras()):
        console.print(table)
    worlds = bundled_worlds()
    console.print(f"worlds: {', '.join(worlds) or 'none bundled'}; default: {default_world()}")
    return 0


def versions() -> Table:
    """What is installed."""
    table = Table("package", "version", title="versions", title_justify="left")
    table.add_row("kairos-env", __version__)
    table.add_row("python", platform.python_version())
    for name in PACKAGES:
        table.add_row(name, installed_version(name) or "[red]missing[/]")
    return table


def devices() -> Table:
    """Where a model can run, and whether the truth can be shown."""
    import torch

    from kairos_env.kernels.dispatch import rounds_fast

    table = Table("device", "", title="devices", title_justify="left")
    cores = os.cpu_count()
    table.add_row(
        "cpu",
        f"{platform.processor() or platform.machine()}, {cores} cores, "
        f"{torch.get_num_threads()} threads",
    )
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            table.add_row(f"cuda:{i}", torch.cuda.get_device_name(i))
    else:
        table.add_row("cuda", "not available to torch")
    rounded = "bfloat16" if rounds_fast("cpu") else "float32: this CPU is slow in bfloat16"
    table.add_row("training", rounded)
    obstacle = renderer_obstacle()
    table.add_row("renderer", obstacle or "renders without a display")
    return table


def kernels() -> Table:
    """Which version of each kernel runs, and why."""
    from kairos_env.kernels.dispatch import VARIABLE, describe

    table = Table("kernel", "device", "runs", "because", title="kernels", title_justify="left")
    for row in describe():
        table.add_row(*row)
    table.caption = f"{VARIABLE}={os.environ.get(VARIABLE, '')!r}"
    return table


def extras() -> Table:
    """Optional parts, and how to get those that are missing."""
    table = Table("extra", "", title="extras", title_justify="left")
    for extra, module in EXTRAS.items():
        there = importlib.util.find_spec(module) is not None
        table.add_row(extra, "installed" if there else f'pip install "kairos-env\\[{extra}]"')
    return table


def installed_version(package: str) -> str | None:
    """A package's version, or None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def renderer_obstacle() -> str:
    """Why no picture of the truth can be rendered here; empty when it can."""
    from kairos_env.real.render import FrameRenderer, RenderError, load_mujoco

    try:
        mujoco = load_mujoco()
        model = mujoco.MjModel.from_xml_string("<mujoco><worldbody/></mujoco>")
        FrameRenderer(model, frame_size=8).close()
    except (RenderError, ImportError) as error:
        return f"none: {error}"
    return ""
