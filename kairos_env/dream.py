"""`kairos dream`: roll a world out beside the truth, write a video and a picture, print a table.

The truth is the simulator that the world was learned from, put into the dream's start state and
given the same actions. Where it cannot be had, the dream runs alone and says what to install.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import gymnasium
import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from kairos_env.env import DreamEnv
from kairos_env.errors import OptionError
from kairos_env.pictures import side_by_side, strip, write_picture, write_video
from kairos_env.real.errors import UnknownEnvironmentError
from kairos_env.real.real_env import RealEnv
from kairos_env.real.render import RenderError
from kairos_env.real.snapshots import SnapshotError
from kairos_env.spaces import action_size, decode_actions
from kairos_env.terminal import run_command
from kairos_env.worlds import World, load_world

PolicyName = Literal["smooth", "random", "still", "expert"]
Act = Callable[[], NDArray[Any]]

# Smooth actions: each low-level action keeps this much of the one before.
KEPT = 0.9


@dataclasses.dataclass(frozen=True, kw_only=True)
class DreamOptions:
    """Dream in a world and write a video and a picture; beside the truth where there is one."""

    world: tyro.conf.Positional[str | None] = None
    """A bundled world's name, a folder, or OWNER/NAME on the hub; the best bundled one if none."""
    steps: int = 60
    """Steps to dream; one step is one action chunk."""
    seed: int = 0
    """Decides start, noise and actions."""
    policy: PolicyName = "smooth"
    """Who acts: a smooth random walk, white noise, nobody, or the task's scripted expert, who sees
    the truth."""
    start: int | None = None
    """A bundled start; the seed draws one if left out."""
    out: Path = Path("dreams")
    """Folder for the files."""
    truth: bool = True
    """Show the truth beside the dream."""
    device: str = "cpu"
    """Where the model runs."""
    threads: int = 1
    """CPU threads; one dream of a small world is fastest on one."""
    denoise_steps: int | None = None
    """Passes per frame; the world's own number if left out."""

    def __post_init__(self) -> None:
        """Refuse what cannot be dreamed."""
        for name in ("steps", "threads"):
            if getattr(self, name) < 1:
                raise OptionError(f"--{name} must be at least 1, got {getattr(self, name)}")


@dataclasses.dataclass
class Rollout:
    """What a dream showed, and what was true; one entry per frame, the start included."""

    dream: list[NDArray[np.uint8]]
    truth: list[NDArray[np.uint8]]
    """Empty without a twin."""
    dream_rewards: list[float] = dataclasses.field(default_factory=list)
    true_rewards: list[float] = dataclasses.field(default_factory=list)
    uncertainty: list[float] = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    """Time spent in the dream alone."""
    ended: str = "goes on"
    truth_ended: str = "goes on"

    def error(self) -> NDArray[np.float64]:
        """Mean absolute difference of colours (0 to 255) of every frame: (T,)."""
        pairs = zip(self.dream, self.truth, strict=True)
        return np.array([np.abs(d.astype(float) - t).mean() for d, t in pairs])

    def standing_still(self) -> NDArray[np.float64]:
        """The same error of a dream that shows its first frame for ever: (T,)."""
        return np.array([np.abs(self.dream[0].astype(float) - t).mean() for t in self.truth])


def open_twin(world: World, **kwargs: Any) -> tuple[RealEnv | None, str]:
    """The world's truth if it can be rendered here, else None and what is missing."""
    twin = None
    try:
        twin = world.make_twin(**kwargs)
        twin.reset(seed=0)  # renders a frame, so what is missing shows now
    except (
        ImportError,
        RenderError,
        UnknownEnvironmentError,
        gymnasium.error.Error,
    ) as error:
        if twin is not None:
            twin.close()
        return None, str(error)
    return twin, ""


def begin_together(
    env: DreamEnv, twin: RealEnv | None, *, seed: int, start: int | None = None
) -> dict[str, Any]:
    """Reset the dream, and the twin into the same state; returns the dream's info."""
    options: dict[str, Any] = {} if start is None else {"start_index": start}
    snapshots = env.world.starts.snapshots
    if twin is not None and not snapshots and start is None:
        frame, info = twin.reset(seed=seed)
        options = {"frames": frame[None], "state": info["state"]}
        if np.shape(info["state"]) != (env.world.manifest.model.heads.state_size,):
            del options["state"]
    _, info = env.reset(seed=seed, options=options)
    if twin is not None and snapshots:
        twin.restore(snapshots[info["start_index"]])
    return info


def make_policy(name: PolicyName, world: World, twin: RealEnv | None, *, seed: int) -> Act:
    """Something that gives a chunk at each call."""
    e, generator = world.manifest.environment, np.random.default_rng(seed)
    space, D = e.space, action_size(e.space)
    if name == "expert":
        return _expert(e.id, twin, generator)
    kept = {"smooth": KEPT, "random": 0.0, "still": 1.0}[name]
    now = np.zeros(D)

    def act() -> NDArray[Any]:
        nonlocal now
        rows = []
        for _ in range(e.chunk):
            now = kept * now + np.sqrt(1 - kept**2) * 0.7 * generator.standard_normal(D)
            rows.append(now)
        return decode_actions(space, np.clip(rows, -1, 1))

    return act


def roll_out(
    env: DreamEnv, twin: RealEnv | None, act: Act, *, steps: Sequence[int], info: dict[str, Any]
) -> Rollout:
    """Step both with the same actions until one of them ends.

    Args:
        env: A dream that has begun.
        twin: The truth in the same state, or None.
        act: Gives chunks.
        steps: What to iterate over; a progress bar may hide in it.
        info: What the dream's reset told.
    """
    frame = info["frames"][-1]
    first = None if twin is None else twin.render()
    rollout = Rollout([frame], [] if first is None else [first])
    for _ in steps:
        chunk = act()
        before = time.perf_counter()
        _, reward, terminated, truncated, info = env.step(chunk)
        rollout.seconds += time.perf_counter() - before
        rollout.dream += list(info["frames"])
        rollout.dream_rewards.append(reward)
        rollout.uncertainty.append(info["uncertainty"])
        rollout.ended = _ending(terminated, truncated, info["time"])
        if twin is not None:
            _, reward, terminated, truncated, true_info = twin.step(chunk)
            rollout.truth += list(true_info["frames"])
            rollout.true_rewards.append(reward)
            rollout.truth_ended = _ending(terminated, truncated, info["time"])
        if {rollout.ended, rollout.truth_ended} != {"goes on"}:
            break
    return rollout


def main(argv: Sequence[str]) -> int:
    """Run `kairos dream`; returns the exit status."""
    return run_command(
        "kairos dream",
        DreamOptions,
        lambda options: run(options, Console()),
        argv,
        also=(),
        failed=2,
        interrupted="Interrupted.",
    )


def run(options: DreamOptions, console: Console) -> int:
    """Dream, write, report."""
    torch.set_num_threads(options.threads)
    world = load_world(options.world, device=options.device)
    # Long enough for both: a start may lie within an episode of the truth.
    horizon = options.steps + world.manifest.environment.horizon
    twin, missing = open_twin(world, horizon=horizon) if options.truth else (None, "")
    env = DreamEnv(world=world, horizon=horizon, denoise_steps=options.denoise_steps)
    try:
        act = make_policy(options.policy, world, twin, seed=options.seed)
        info = begin_together(env, twin, seed=options.seed, start=options.start)
        steps = track(range(options.steps), "dreaming", console=console, transient=True)
        rollout = roll_out(env, twin, act, steps=steps, info=info)  # type: ignore[arg-type]  # only iterated
    finally:
        env.close()
        if twin is not None:
            twin.close()
    rows = {"truth": np.stack(rollout.truth)} if twin is not None else {}
    rows["dream"] = np.stack(rollout.dream)
    name = f"{world.name}-{options.policy}-{options.seed}"
    video, picture = options.out / f"{name}.mp4", options.out / f"{name}.png"
    write_video(video, side_by_side(rows), fps=world.manifest.environment.fps)
    write_picture(picture, strip(rows))
    console.print(report(world, rollout))
    if missing:
        console.print(f"[yellow]No truth beside the dream:[/] {missing}", highlight=False)
    console.print(f"{video}\n{picture}", highlight=False, soft_wrap=True)
    return 0


def report(world: World, rollout: Rollout) -> Table:
    """The numbers of a rollout."""
    count = len(rollout.dream_rewards)
    e = world.manifest.environment
    table = Table(title=f"{world.title}", show_header=bool(rollout.truth), title_justify="left")
    table.add_column("")
    table.add_column("dream", justify="right")
    if rollout.truth:
        table.add_column("truth", justify="right")
    both = bool(rollout.truth)

    def row(label: str, dream: str, truth: str = "") -> None:
        table.add_row(label, dream, *([truth] if both else []))

    row("steps", f"{count} ({count * e.seconds_per_step:.1f} s simulated)")
    row("speed", f"{count / max(rollout.seconds, 1e-9):.0f} steps/s")
    row("reward", f"{sum(rollout.dream_rewards):.3f}", f"{sum(rollout.true_rewards):.3f}")
    row("episode", rollout.ended, rollout.truth_ended)
    row("uncertainty", f"{np.mean(rollout.uncertainty):.3f}")
    if both:
        error, still = rollout.error(), rollout.standing_still()
        row("colour error (of 255)", f"{error[1:].mean():.2f}")
        row("  at the last frame", f"{error[-1]:.2f}")
        row("  had nothing moved", f"{still[1:].mean():.2f}")
    return table


def _ending(terminated: bool, truncated: bool, seconds: float) -> str:
    """How an episode stands, for a person."""
    if not (terminated or truncated):
        return "goes on"
    return f"{'terminated' if terminated else 'truncated'} at {seconds:.2f} s"


def _expert(name: str, twin: RealEnv | None, generator: np.random.Generator) -> Act:
    from kairos_env.real.experts import expert_for

    if twin is None:
        raise OptionError(
            "--policy expert looks at the truth, which is not there; choose another policy"
        )
    real = twin
    try:
        expert = expert_for(name)
        real.snapshot()  # planning ahead goes back in time
    except (KeyError, SnapshotError) as error:
        raise OptionError(f"--policy expert: {error}") from error
    return lambda: real.plan(expert, generator)
