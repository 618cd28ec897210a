"""Where a policy practises: the dream, or the real twin, behind one interface.

Shapes: B environments, K low-level actions a step, D numbers per action, S state size, T frames.
"""

from typing import Any, cast

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray

try:
    from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper
except ImportError as error:
    raise ImportError(
        'learning in a dream needs Stable-Baselines3: pip install "kairos-env[sb3]"'
    ) from error

from kairos_env.agents.data.dataset import Dataset
from kairos_env.agents.data.readers import open_dataset
from kairos_env.agents.imagine.config import ImagineConfig, Seen
from kairos_env.real import RealEnv
from kairos_env.sb3 import DreamVecEnv
from kairos_env.starts import Starts
from kairos_env.view import Observer, numpy_of, one_dream, view_of_history
from kairos_env.worlds import World, load_world

Observation = NDArray[Any]
# Renderers cost memory; more twins than this practise no faster in one process.
REAL_ENVS = 16


class RealAsDream(gymnasium.Wrapper[Observation, NDArray[Any], NDArray[np.uint8], NDArray[Any]]):
    """The real twin, observed as the dream is.

    A policy that sees pixels gets the simulator's frame. One that sees latents gets the world's
    tokenizer's code of that frame. One that sees the state gets the simulator's own: the dream
    predicts that, and does not look at it.

    Args:
        world: Whose dream is imitated.
        observation: What the policy sees.
        **options: For `make_real`.
    """

    def __init__(self, world: World, observation: Seen = "state", **options: Any) -> None:
        draw = observation != "state"
        twin: RealEnv = world.make_twin(**{"draw": draw, **options})
        super().__init__(twin)
        self._model = world.model
        frames = twin.frames_per_chunk
        self._observer = Observer(observation, self._model, frames=frames, all_frames=False)
        self.observation_space = self._observer.space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """A new episode."""
        frame, info = self.env.reset(seed=seed, options=options)
        return self._seen(frame, info), info

    def step(self, action: NDArray[Any]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Execute a chunk."""
        frame, reward, terminated, truncated, info = self.env.step(action)
        return self._seen(frame, info), float(reward), terminated, truncated, info

    def _seen(self, frame: NDArray[np.uint8], info: dict[str, Any]) -> Observation:
        frames = frame[None, None]  # (1, 1, H, W, 3)
        latents = np.zeros((1, 1, 0), np.float32)
        if self._observer.kind == "latent":
            device = self._model.device
            with torch.no_grad():
                coded = self._model.tokenizer.encode(torch.from_numpy(frames).to(device))
            latents = numpy_of(coded)
        view = view_of_history(frames, latents, info["state"][None], F=1)
        observation: Observation = one_dream(self._observer.observe(view), 0)
        return observation


class HeldAction(VecEnvWrapper):
    """One low-level action a step, repeated over the chunk: eight numbers to learn become two."""

    def __init__(self, venv: VecEnv) -> None:
        super().__init__(venv, action_space=low_level(venv.action_space))
        assert venv.action_space.shape is not None, "a chunk has a length"
        self._chunk = venv.action_space.shape[0]

    def reset(self) -> Observation:
        """New episodes."""
        return cast(Observation, self.venv.reset())

    def step_async(self, actions: NDArray[Any]) -> None:
        """Repeat and pass on."""
        self.venv.step_async(held(actions, self._chunk))

    def step_wait(self) -> Any:
        """As the inner environment's."""
        return self.venv.step_wait()


def held(actions: NDArray[Any], chunk: int) -> NDArray[Any]:
    """(B, D) to (B, K, D), or (B,) to (B, K): each action K times."""
    return np.repeat(np.asarray(actions)[:, None], chunk, axis=1)


def low_level(space: gymnasium.Space[Any]) -> spaces.Box | spaces.Discrete:
    """The space of one action of a chunk."""
    if isinstance(space, spaces.MultiDiscrete):
        return spaces.Discrete(int(space.nvec[0]), start=int(space.start[0]))
    assert isinstance(space, spaces.Box)
    return spaces.Box(space.low[0], space.high[0], dtype=space.dtype.type)


def recorded(config: ImagineConfig) -> Dataset | None:
    """The real episodes of a run; None where it names none."""
    return open_dataset(config.data) if config.data else None


def open_world(config: ImagineConfig, dataset: Dataset | None) -> World:
    """The world of a run, with starts from these episodes or its own."""
    world = load_world(config.world, device=config.device)
    return world if dataset is None else with_starts(world, dataset, config.starts, seed=0)


def dream_env(config: ImagineConfig, world: World, *, horizon: int | None = None) -> DreamVecEnv:
    """The batch of dreams that a policy practises in.

    Args:
        config: The run.
        world: From `open_world`.
        horizon: In place of the run's.
    """
    return DreamVecEnv(
        world,
        config.envs,
        observation=config.observation,
        horizon=config.horizon if horizon is None else horizon,
        decode=config.observation == "pixels",
        max_uncertainty=config.max_uncertainty,
    )


def real_env(config: ImagineConfig, world: World) -> DummyVecEnv:
    """The same algorithm's practice in reality: whole episodes, as there is no other way."""

    def make() -> RealAsDream:
        return RealAsDream(world, config.observation)

    return DummyVecEnv([make for _ in range(min(REAL_ENVS, config.envs))])


def acting_on_chunks(config: ImagineConfig, env: VecEnv) -> VecEnv:
    """The environment with the actions that the run's policy chooses."""
    return HeldAction(env) if config.hold else env


def with_starts(world: World, dataset: Dataset, count: int, *, seed: int) -> World:
    """The world with true histories out of recorded episodes, from any moment, as its starts.

    Args:
        world: Whose history length and sizes hold.
        dataset: Episodes of the same environment.
        count: How many.
        seed: Of the draw.

    Raises:
        ValueError: The dataset does not fit the world, or its episodes are too short.
    """
    model, spec = world.manifest.model, dataset.spec
    expected = (model.tokenizer.frame_size, model.actions_per_frame, model.action_size)
    found = (spec.frame_size, spec.actions_per_frame, spec.action_size)
    if found != expected or spec.state_size != model.heads.state_size:
        raise ValueError(
            f"world {world.name!r} needs episodes of (frame size, actions per frame, action size) "
            f"{expected} and state size {model.heads.state_size}, {dataset.path} has {found} and "
            f"{spec.state_size}"
        )
    T = world.starts.frames.shape[1]
    room = np.maximum(dataset.lengths - T, 0)  # the last frame is where an episode is over
    if not room.any():
        raise ValueError(f"{dataset.path} has no episode of more than {T} frames to begin from")
    random = np.random.default_rng(seed)
    chosen = np.sort(random.choice(int(room.sum()), min(count, int(room.sum())), replace=False))
    ends = np.cumsum(room)
    frames, actions, states = [], [], []
    for index in np.unique(np.searchsorted(ends, chosen, side="right")):
        episode = dataset.episode(int(index))
        first = ends[index] - room[index]
        for t in chosen[(chosen >= first) & (chosen < ends[index])] - first:
            frames.append(episode.frames[t : t + T])
            actions.append(episode.actions[t : t + T - 1])
            states.append(episode.state[t + T - 1])
    starts = Starts(np.stack(frames), np.stack(actions), np.stack(states))
    return World(world.path, world.manifest, world.model, starts)
