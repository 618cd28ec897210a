"""Record episodes of a real environment: the same data however many processes record them.

Everything in an episode follows from (seed, number of the episode), never from which worker
recorded it or from what was recorded before. So one worker or eight, in one go or killed and
continued, the dataset is the same to the byte (on one machine with the same packages: MuJoCo and
x264 promise no more).

    report = collect("KairosPush-v0", episodes=200, policies=["expert:0.6", "smooth:0.4"],
    out="data/push", workers=2)
"""

import hashlib
import importlib.metadata
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from kairos_env.agents.data.episode import Episode
from kairos_env.agents.data.format import FORMAT, Layout
from kairos_env.agents.data.staging import pack_episode, stage_packed
from kairos_env.agents.data.video import Codec
from kairos_env.agents.data.writer import EPISODES_PER_FILE, DatasetWriter, only_writer
from kairos_env.agents.policies import Policy, PolicySpec, choose_policy, make_policy
from kairos_env.spaces import action_size, encode_actions

if TYPE_CHECKING:
    from kairos_env.real import RealEnv

# An episode of this many steps will not end by itself.
ENDLESS = 10_000
# Packages whose versions decide what the frames and states are.
RECORDED_PACKAGES = (
    "kairos-env",
    "gymnasium",
    "mujoco",
    "numpy",
    "av",
    "pyarrow",
    "stable-baselines3",
)


class CollectError(RuntimeError):
    """Recording stopped; what was recorded before is intact and the same call continues."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that decides what an episode contains; sent to every worker."""

    env: str
    """What `make_real` takes: an id, or a world."""
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """For `make_real`: chunk, horizon, frame_size, ... and the environment's own arguments."""
    policies: tuple[PolicySpec, ...] = (PolicySpec(name="random"),)
    seed: int = 0
    text: str | None = None
    """What the episodes show, in words; the environment's name when not given."""
    codec: Codec = "lossless"

    def make_env(self) -> "RealEnv":
        """A new environment.

        Its own time limit is counted in steps, as in a world that is made of it: the simulator is
        then built alike, and what was recorded can be restored there.
        """
        from kairos_env.real import make_real

        env = make_real(self.env, **self.env_kwargs)
        if env.horizon is None or self.env_kwargs.get("horizon") is not None:
            return env
        env.close()
        return make_real(self.env, **{**self.env_kwargs, "horizon": env.horizon})


@dataclass(frozen=True, kw_only=True)
class CollectReport:
    """What a dataset holds after a collection, and how fast this run was."""

    out: Path
    episodes: int
    frames: int
    terminated: float
    """Share of episodes that terminated (the rest ran into the horizon)."""
    success: float | None
    """Share of episodes that solved the task; None when it has no such notion."""
    mean_return: float
    by_policy: dict[str, tuple[int, float | None]]
    """Episodes and share of successes of each policy."""
    new_episodes: int
    """Recorded by this run; the others were there."""
    new_frames: int
    seconds: float

    @property
    def frames_per_second(self) -> float:
        """Rate of this run, start of the workers included."""
        return self.new_frames / self.seconds if self.seconds else 0.0


def collect(
    env: str | Path,
    *,
    episodes: int,
    out: str | Path,
    policies: Sequence[PolicySpec | str] = ("random",),
    workers: int = 1,
    cluster: str | None = None,
    seed: int = 0,
    text: str | None = None,
    codec: Codec = "lossless",
    episodes_per_file: int = EPISODES_PER_FILE,
    on_episode: Callable[[int, int], None] | None = None,
    **env_kwargs: Any,
) -> CollectReport:
    """Record episodes into a dataset, or continue one.

    Args:
        env: What `make_real` takes: "KairosPush-v0", any Gymnasium id, "metaworld/reach-v3", a
            world.
        episodes: How many the dataset shall hold. More than it has: the missing ones are recorded.
        out: The dataset's folder.
        policies: Who acts, as `PolicySpec` or text such as "expert@0.3:0.25".
        workers: Processes that record; 1 records in this process.
        cluster: A Ray cluster whose machines record instead: "auto", HOST:PORT, or "local".
        seed: Together with an episode's number, decides everything in it.
        text: What the episodes show, in words.
        codec: "lossless" (exact) or "h264" (smaller for photographs, 42 to 46 dB on our scenes).
        episodes_per_file: Episodes in each video and data file.
        on_episode: Called with (episodes done, frames recorded by this run) after each episode.
        **env_kwargs: For `make_real`: chunk, frames_per_chunk, frame_size, horizon, camera, ...

    Raises:
        CollectError: A worker failed or died. What was recorded before is intact.
        DiskFullError: No space is left. What was recorded before is intact.
        ValueError: The folder holds a dataset made in another way, or an argument makes no sense.
    """
    if episodes < 1 or workers < 1:
        raise ValueError(f"expected at least 1 episode and 1 worker, got {episodes} and {workers}")
    recipe = Recipe(
        env=str(env),
        env_kwargs=env_kwargs,
        policies=tuple(p if isinstance(p, PolicySpec) else PolicySpec.parse(p) for p in policies),
        seed=seed,
        text=text,
        codec=codec,
    )
    root = Path(out)
    recorder = Recorder(recipe)  # fails on a wrong name or policy before anything is written
    try:
        with only_writer(root):
            writer = DatasetWriter(
                root,
                layout=recorder.layout,
                provenance=recorder.provenance | {"episodes_per_file": episodes_per_file},
                episodes_per_file=episodes_per_file,
            )
            return _fill(writer, recorder, episodes, workers, cluster, on_episode)
    finally:
        recorder.close()


def _fill(
    writer: DatasetWriter,
    recorder: "Recorder",
    episodes: int,
    workers: int,
    cluster: str | None,
    on_episode: Callable[[int, int], None] | None,
) -> CollectReport:
    started, new_frames = time.perf_counter(), 0
    lengths: Iterator[int]
    todo = writer.missing(episodes)
    writer.write_ready(episodes)  # what an earlier run left staged
    workers = min(workers, max(len(todo), 1))
    if cluster is not None:
        from kairos_env.agents.scale.collectors import record_on_cluster

        recorder.close()
        lengths = record_on_cluster(recorder.recipe, writer.root, todo, workers, cluster)
    elif workers == 1:
        lengths = (recorder.stage(writer.root, index) for index in todo)
    else:
        from kairos_env.agents.workers import record_in_processes

        recorder.close()
        lengths = record_in_processes(recorder.recipe, writer.root, todo, workers)
    done = episodes - len(todo)
    for length in lengths:
        new_frames += length
        done += 1
        writer.write_ready(episodes)
        if on_episode:
            on_episode(done, new_frames)
    seconds = time.perf_counter() - started
    return _report(writer, new_episodes=len(todo), new_frames=new_frames, seconds=seconds)


class Recorder:
    """One environment and the policies of a recipe: records episodes by number.

    Args:
        recipe: What to record.
    """

    def __init__(self, recipe: Recipe) -> None:
        if not recipe.policies:
            raise ValueError("expected at least one policy, got none")
        self.recipe = recipe
        self.env = recipe.make_env()
        self._closed = False
        self._policies: dict[str, Policy] = {
            spec.label: make_policy(spec, self.env) for spec in recipe.policies
        }
        env = self.env
        height, width = env.observation_space.shape[:2]  # type: ignore[index]  # a Box of pictures
        self.layout = Layout(
            frame_size=(height, width),
            actions_per_frame=env.chunk // env.frames_per_chunk,
            action_size=action_size(env.action_space),
            state_size=env.state_size,
            fps=env.fps,
            codec=recipe.codec,
        )
        self.provenance = _provenance(recipe, env, self.layout)

    def record(self, index: int) -> Episode:
        """Episode `index`: a function of the recipe and this number."""
        seed = self.recipe.seed
        spec = choose_policy(self.recipe.policies, index, seed=seed)
        return record_episode(
            self.env,
            self._policies[spec.label],
            seed=int(np.random.default_rng([seed, 1, index]).integers(2**31)),
            generator=np.random.default_rng([seed, 2, index]),
            policy_name=spec.label,
            text=self.env.name if self.recipe.text is None else self.recipe.text,
        )

    def stage(self, root: Path, index: int) -> int:
        """Record an episode and leave it for the writer; returns its number of frames."""
        length, packed = self.packed(index)
        stage_packed(root, index, packed)
        return length

    def packed(self, index: int) -> tuple[int, bytes]:
        """Record an episode: its number of frames, and what the writer is to find."""
        try:
            episode = self.record(index)
        except Exception as error:
            raise CollectError(
                f"episode {index} failed: {type(error).__name__}: {error}. "
                "Earlier episodes are intact; the same command continues after the last of them"
            ) from error
        return len(episode), pack_episode(episode, self.layout)

    def close(self) -> None:
        """Free the environment."""
        if not self._closed:
            self._closed = True
            self.env.close()


def record_episode(
    env: "RealEnv",
    policy: Policy,
    *,
    seed: int,
    generator: np.random.Generator,
    policy_name: str = "",
    text: str = "",
) -> Episode:
    """Run one episode to its end and keep every frame, the last one included.

    Args:
        env: Where.
        policy: Who acts.
        seed: For `env.reset`.
        generator: The policy's randomness.
        policy_name: Recorded with the episode.
        text: Recorded with the episode.
    """
    frame, info = env.reset(seed=seed)
    start = _snapshot(env)
    policy.begin(env, generator)
    frames, states = [frame[None]], [info["state"][None]]
    actions, rewards, ends = [], [], []
    success = None
    terminated = truncated = False
    while not (terminated or truncated):
        step = policy.step(env, frame)
        frame, terminated, truncated, info = step.frame, step.terminated, step.truncated, step.info
        rows = _rows_of_step(env, step.chunk, info)
        frames.append(rows.frames)
        states.append(rows.states)
        actions.append(rows.actions)
        rewards.append(rows.rewards)
        last = np.arange(len(rows.rewards)) == len(rows.rewards) - 1
        ends.append(np.stack([last & terminated, last & truncated]))
        if "success" in info:
            success = bool(success) or info["success"]
        if len(rewards) >= ENDLESS:
            raise RuntimeError(f"it did not end within {ENDLESS} steps: give a horizon")
    terminations, truncations = np.concatenate(ends, axis=1)
    return Episode(
        frames=np.concatenate(frames),
        actions=np.concatenate(actions),
        rewards=np.concatenate(rewards),
        terminated=terminations,
        truncated=truncations,
        state=np.concatenate(states),
        text=text,
        seed=seed,
        policy=policy_name,
        success=success,
        start=start,
    )


@dataclass(frozen=True)
class _StepRows:
    """What one env step adds: a row for each of its F frames, fewer when it ended early."""

    frames: NDArray[np.uint8]  # (rows, H, W, 3)
    states: NDArray[np.float32]  # (rows, S)
    actions: NDArray[np.float32]  # (rows, A, D)
    rewards: NDArray[np.float32]  # (rows,)


def _rows_of_step(env: "RealEnv", chunk: NDArray[Any], info: Mapping[str, Any]) -> _StepRows:
    per_frame = env.chunk // env.frames_per_chunk
    rows = -(-info["executed"] // per_frame)
    encoded = encode_actions(env.action_space, chunk).reshape(env.frames_per_chunk, per_frame, -1)
    # Environments that tell the state at every frame do so as `states`; one frame a step needs
    # only the last.
    states = (
        info["states"][:rows] if "states" in info else np.repeat(info["state"][None], rows, axis=0)
    )
    rewards = info["rewards"].reshape(env.frames_per_chunk, per_frame).sum(axis=1, dtype=np.float32)
    return _StepRows(info["frames"][:rows], states, encoded[:rows], rewards[:rows])


def _snapshot(env: "RealEnv") -> dict[str, NDArray[Any]]:
    """The simulator's state, or nothing where it cannot be had."""
    from kairos_env.real import SnapshotError

    try:
        return env.snapshot()
    except SnapshotError:
        return {}


def _provenance(recipe: Recipe, env: "RealEnv", layout: Layout) -> dict[str, Any]:
    """Where the data come from; goes into info.json."""
    shaping = ("chunk", "frames_per_chunk", "frame_size", "horizon")
    return {
        "format": FORMAT,
        "environment": {
            "id": env.name,
            "kwargs": {k: v for k, v in recipe.env_kwargs.items() if k not in shaping},
            "chunk": env.chunk,
            "frames_per_chunk": env.frames_per_chunk,
            "frame_size": layout.frame_size[0],
            "horizon": env.horizon,
        },
        "fps": env.fps,
        "actions_per_frame": layout.actions_per_frame,
        "action_size": layout.action_size,
        "state_size": layout.state_size,
        "action_space": describe_space(env.action_space),
        "reward": "sum over the chunk, no discount",
        "policies": [_describe_policy(spec) for spec in recipe.policies],
        "seed": recipe.seed,
        "text": recipe.text,
        "codec": recipe.codec,
        "packages": _versions(),
    }


def _describe_policy(spec: PolicySpec) -> dict[str, Any]:
    described = {"name": spec.name, "weight": spec.weight, "noise": spec.noise}
    if spec.speed != 1:
        described["speed"] = spec.speed
    if spec.late:
        described["late"] = spec.late
    if Path(
        spec.name
    ).is_file():  # a checkpoint may be overwritten: the name alone does not say who acted
        described["sha256"] = hashlib.sha256(Path(spec.name).read_bytes()).hexdigest()
    return described


def describe_space(space: spaces.Space[Any]) -> dict[str, Any]:
    """A chunk space as JSON; stored actions are scaled from these bounds to [-1, 1]."""
    if isinstance(space, spaces.Box):
        low, high = (
            space.low.reshape(-1, space.shape[-1])[0],
            space.high.reshape(-1, space.shape[-1])[0],
        )
        # JSON has no infinity; an axis without bounds is stored unscaled.
        bounds = [[float(x) if np.isfinite(x) else None for x in bound] for bound in (low, high)]
        return {"type": "Box", "shape": list(space.shape), "low": bounds[0], "high": bounds[1]}
    if isinstance(space, spaces.MultiDiscrete):
        return {"type": "MultiDiscrete", "n": int(space.nvec[0]), "shape": list(space.shape)}
    raise TypeError(f"expected a chunk space, got {space}")


def _versions() -> dict[str, str]:
    versions = {}
    for package in RECORDED_PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _report(
    writer: DatasetWriter, *, new_episodes: int, new_frames: int, seconds: float
) -> CollectReport:
    rows = writer.rows
    known = [row["kairos/success"] for row in rows if row["kairos/success"] is not None]
    by_policy = {}
    for policy in sorted({row["kairos/policy"] for row in rows}):
        outcomes = [row["kairos/success"] for row in rows if row["kairos/policy"] == policy]
        share = None if None in outcomes else float(np.mean(outcomes))
        by_policy[policy] = (len(outcomes), share)
    return CollectReport(
        out=writer.root,
        episodes=writer.num_episodes,
        frames=writer.num_frames,
        terminated=float(np.mean([row["kairos/terminated"] for row in rows])),
        success=float(np.mean(known)) if known else None,
        mean_return=float(np.mean([row["kairos/return"] for row in rows])),
        by_policy=by_policy,
        new_episodes=new_episodes,
        new_frames=new_frames,
        seconds=seconds,
    )


def main(argv: Sequence[str]) -> int:
    """`kairos collect`."""
    from kairos_env.agents.collect_cli import run

    return run(argv)
