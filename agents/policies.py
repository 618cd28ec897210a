"""Who acts while data are collected: noise, scripted experts good and bad, checkpoints.

All policies speak chunks: one call gives the K low-level actions of one env step. They are
written in the encoded form that networks see (numbers in [-1, 1], or scores of discrete choices),
so one policy serves every action space.

Legend: K low-level actions per env step, D numbers per action.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from gymnasium import Env, spaces
from numpy.typing import NDArray

from kairos_env.real.experts import Look
from kairos_env.spaces import action_size, decode_actions

if TYPE_CHECKING:
    from kairos_env.real.experts import Expert

Frame = NDArray[np.uint8]
Chunk = NDArray[Any]

# A detour from the expert lasts this many env steps on average: long enough to end up somewhere
# new.
DETOUR_STEPS = 4.0
# Smooth noise forgets half of itself in about this many low-level actions.
SMOOTH_HALF_LIFE = 8.0
SMOOTH_SPREAD = 0.7  # standard deviation of smooth noise before it is clipped to [-1, 1]


@dataclass(frozen=True)
class Step:
    """One env step: the chunk taken and what the environment answered."""

    chunk: Chunk
    frame: Frame
    reward: float
    terminated: bool
    truncated: bool
    info: dict[str, Any]


class Policy(Protocol):
    """Something that acts. `begin` is called after each reset."""

    def begin(self, env: Env[Frame, Chunk], generator: np.random.Generator) -> None:
        """Forget the last episode; draw from `generator` alone from now on."""

    def step(self, env: Env[Frame, Chunk], frame: Frame) -> Step:
        """Take one env step from the frame; tells the chunk beside what `env.step` returns."""


def execute(env: Env[Frame, Chunk], chunk: Chunk) -> Step:
    """The step of a policy that knows its chunk beforehand."""
    frame, reward, terminated, truncated, info = env.step(chunk)
    return Step(chunk, frame, float(reward), terminated, truncated, info)


@dataclass(frozen=True, kw_only=True)
class PolicySpec:
    """One policy of a mixture, as `kairos collect --policy` spells it."""

    name: str
    """random, smooth, expert, visitor, loiterer, or the path of a Stable-Baselines3 checkpoint."""
    weight: float = 1.0
    """Its share of the episodes, relative to the other policies."""
    noise: float = 0.0
    """Share of the time in which smooth noise acts instead, in bursts."""
    speed: float = 1.0
    """What a scripted policy's actions are multiplied by: who comes slowly sees other things."""
    late: float = 0
    """Env steps ago, a whole number, that a scripted expert looks at: it overshoots, turns back."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise ValueError(
                f"the weight of policy {self.name!r} must be positive, got {self.weight}"
            )
        if not 0 <= self.noise <= 1:
            raise ValueError(
                f"the noise of policy {self.name!r} must be in [0, 1], got {self.noise}"
            )
        if not 0 < self.speed <= 1:
            raise ValueError(
                f"the speed of policy {self.name!r} must be in (0, 1], got {self.speed}"
            )
        if not (float(self.late).is_integer() and self.late >= 0):
            raise ValueError(
                f"policy {self.name!r} is late by whole env steps, got {self.late}; give 0, 1, ..."
            )

    @classmethod
    def parse(cls, text: str) -> "PolicySpec":
        """Read `NAME[+LATE][~SPEED][@NOISE][:WEIGHT]`: `expert+2`, `expert@0.3:0.25`, `ppo.zip`."""
        name, weight = _split_number(text, ":")
        name, noise = _split_number(name, "@")
        name, speed = _split_number(name, "~")
        name, late = _split_number(name, "+")
        given = {"weight": weight, "noise": noise, "speed": speed, "late": late}
        return cls(name=name, **{key: value for key, value in given.items() if value is not None})

    @property
    def label(self) -> str:
        """The policy without its weight, as it is recorded with every episode."""
        late = f"+{self.late:g}" if self.late else ""
        slowly = f"~{self.speed:g}" if self.speed != 1 else ""
        astray = f"@{self.noise:g}" if self.noise else ""
        return self.name + late + slowly + astray


def choose_policy(specs: Sequence[PolicySpec], episode: int, *, seed: int) -> PolicySpec:
    """The policy of an episode: a function of seed and episode number, not of who asks when.

    Multiples of the golden ratio fill [0, 1) evenly, so every beginning of a dataset has the
    shares asked for.
    """
    golden = (math.sqrt(5) - 1) / 2
    offset = float(np.random.default_rng([seed, 0]).random())
    place = (offset + episode * golden) % 1.0
    ends = np.cumsum([spec.weight for spec in specs])
    return specs[min(int(np.searchsorted(ends / ends[-1], place, side="right")), len(specs) - 1)]


def make_policy(spec: PolicySpec, env: Env[Frame, Chunk]) -> Policy:
    """Build a policy for an environment.

    Raises:
        ValueError: There is no such policy, or none for this environment.
    """
    policy = _make_plain(spec.name, env)
    if spec.speed != 1:
        if not (isinstance(policy, FollowedPolicy) and isinstance(env.action_space, spaces.Box)):
            raise ValueError(
                f"{spec.label}: only scripted policies with actions that are numbers can be made "
                f"slower, not {spec.name} in {env.action_space}"
            )
        policy.speed = spec.speed
    if spec.late:
        if not isinstance(policy, ExpertPolicy):
            raise ValueError(
                f"{spec.label}: only a scripted expert can act on what it saw, not {spec.name}"
            )
        policy.late = int(spec.late)
    return DetourPolicy(policy, spec.noise) if spec.noise else policy


def _make_plain(name: str, env: Env[Frame, Chunk]) -> Policy:
    if name == "random":
        return RandomPolicy()
    if name == "smooth":
        return SmoothPolicy()
    if name == "expert":
        return ExpertPolicy(env)
    if name == "visitor":
        return VisitorPolicy(env)
    if name == "loiterer":
        return LoitererPolicy(env)
    if Path(name).is_file():
        return CheckpointPolicy(Path(name), env)
    raise ValueError(
        f"no policy {name!r}: expected random, smooth, expert, visitor, loiterer or the path of "
        "a Stable-Baselines3 checkpoint (a .zip file)"
    )


class RandomPolicy:
    """Every low-level action drawn evenly on its own."""

    def begin(self, env: Env[Frame, Chunk], generator: np.random.Generator) -> None:
        """Take the episode's randomness."""
        self._space, self._generator = env.action_space, generator
        self._shape = _encoded_shape(env.action_space)

    def step(self, env: Env[Frame, Chunk], frame: Frame) -> Step:
        """K independent actions."""
        del frame
        encoded = self._generator.uniform(-1, 1, self._shape)
        return execute(env, decode_actions(self._space, encoded))


class SmoothPolicy:
    """Noise with memory (Ornstein-Uhlenbeck): it travels where other noise trembles on the spot.

    For discrete actions the scores wander, so a choice is held for a while.
    """

    def begin(self, env: Env[Frame, Chunk], generator: np.random.Generator) -> None:
        """Start from a random direction."""
        self._space, self._generator = env.action_space, generator
        self._steps, size = _encoded_shape(env.action_space)
        self._value = generator.normal(0, SMOOTH_SPREAD, size)

    def step(self, env: Env[Frame, Chunk], frame: Frame) -> Step:
        """K actions further along."""
        del frame
        keep = 0.5 ** (1 / SMOOTH_HALF_LIFE)
        # x' = keep x + sqrt(1 - keep^2) spread n has the same spread at every step
        kicks = self._generator.normal(0, SMOOTH_SPREAD, (self._steps, len(self._value)))
        path = []
        for kick in kicks:
            self._value = keep * self._value + math.sqrt(1 - keep**2) * kick
            path.append(self._value)
        return execute(env, decode_actions(self._space, np.stack(path)))


class FollowedPolicy:
    """Somebody scripted, who looks at the simulator after every low-level action."""

    _expert: "Expert"
    speed: float = 1.0
    """What its actions are multiplied by."""
    late: int = 0
    """Env steps ago that it looks at; it then looks once a step and holds its action."""

    def __init__(self, env: Env[Frame, Chunk]) -> None:
        from kairos_env.real import RealEnv

        if not isinstance(env, RealEnv):
            raise ValueError(f"a scripted expert acts in environments from make_real, not in {env}")
        self._env = env

    def begin(self, env: Env[Frame, Chunk], generator: np.random.Generator) -> None:
        """Take the episode's randomness."""
        del env
        self._generator = generator
        self._seen: deque[Chunk] = deque(maxlen=1 + self.late)

    def step(self, env: Env[Frame, Chunk], frame: Frame) -> Step:
        """K actions, each an answer to the state that the ones before led to."""
        del env, frame
        if self.late:
            self._seen.append(self._env.state)
        after, reward, terminated, truncated, info = self._env.follow(self._act, self._generator)
        return Step(info["actions"], after, reward, terminated, truncated, info)

    def _act(self, env: Env[Any, Any], generator: np.random.Generator) -> Any:
        looked_at: Any = Look(self._seen[0]) if self.late else env
        action = self._expert(looked_at, generator)
        return action if self.speed == 1 else self.speed * action


class ExpertPolicy(FollowedPolicy):
    """The scripted expert of the task."""

    def __init__(self, env: Env[Frame, Chunk]) -> None:
        from kairos_env.real.experts import expert_for

        super().__init__(env)
        try:
            self._expert = expert_for(self._env.name)
        except KeyError as error:
            raise ValueError(
                f"{error.args[0]}. Use another policy: random, smooth or the path of a checkpoint"
            ) from error


class VisitorPolicy(FollowedPolicy):
    """Goes from object to object."""

    def __init__(self, env: Env[Frame, Chunk]) -> None:
        super().__init__(env)
        self._forget()

    def begin(self, env: Env[Frame, Chunk], generator: np.random.Generator) -> None:
        """Forget what was visited."""
        super().begin(env, generator)
        self._forget()

    def _forget(self) -> None:
        from kairos_env.real.experts import visitor_for

        self._expert = visitor_for(self._env)


class LoitererPolicy(VisitorPolicy):
    """Stays about where the task is nearly done."""

    def _forget(self) -> None:
        from kairos_env.real.experts import loiterer_for

        self._expert = loiterer_for(self._env)


class DetourPolicy:
    """A policy that is led astray now and then, and finds back: failures and recoveries.

    Args:
        policy: Who acts otherwise.
        share: Share of the time in which smooth noise acts instead.
    """

    def __init__(self, policy: Policy, share: float) -> None:
        self._policy = policy
        self._noise = SmoothPolicy()
        self._share = share

    def begin(self, env: Env[Frame, Chunk], generator: np.random.Generator) -> None:
        """Take the episode's randomness; the first steps may be a detour already."""
        self._generator = generator
        self._policy.begin(env, generator)
        self._noise.begin(env, generator)
        self._astray = bool(generator.random() < self._share)

    def step(self, env: Env[Frame, Chunk], frame: Frame) -> Step:
        """The policy's step, or one of the detour's."""
        # Two-state chain: leaving with chance `back` and entering with `out` spends `share` of
        # the time astray.
        back = 1 / DETOUR_STEPS
        out = min(1.0, back * self._share / max(1 - self._share, 1e-9))
        turn = self._generator.random()
        was_astray = self._astray
        self._astray = turn >= back if was_astray else turn < out
        if self._share >= 1:
            self._astray = True
        if self._astray and not was_astray:
            self._noise.begin(env, self._generator)
        return (self._noise if self._astray else self._policy).step(env, frame)


class CheckpointPolicy:
    """A policy that Stable-Baselines3 trained, sampling its actions.

    Stable-Baselines3 unpickles parts of its checkpoints: open only those you trust.

    Args:
        path: The .zip file that `model.save` wrote. It sees the frame, or the simulator's state.
        env: Where it will act. Its action is a chunk, or one action that is held for a chunk.
    """

    def __init__(self, path: Path, env: Env[Frame, Chunk]) -> None:
        from kairos_env.real import RealEnv

        self._model = load_checkpoint(path)
        self._path = path
        trained, here = self._model.action_space, env.action_space
        whole = int(np.prod(here.shape or ()))
        if int(np.prod(trained.shape)) not in (whole, whole // _encoded_shape(here)[0]):
            raise ValueError(
                f"{path} was trained for actions {trained}, this environment takes {here}: "
                "the sizes differ. Was it trained with another chunk?"
            )
        seen, shown = self._model.observation_space, env.observation_space
        real = env if isinstance(env, RealEnv) else None
        self._state_of = real if real is not None and seen.shape == (real.state_size,) else None
        if self._state_of is None and sorted(seen.shape) != sorted(shown.shape or ()):
            raise ValueError(
                f"{path} was trained on observations {seen}, this environment shows {shown}"
            )

    def begin(self, env: Env[Frame, Chunk], generator: np.random.Generator) -> None:
        """Seed the network's own sampling from the episode's randomness."""
        import torch

        self._space = env.action_space
        self._sampling = torch.Generator().manual_seed(int(generator.integers(2**62))).get_state()

    def step(self, env: Env[Frame, Chunk], frame: Frame) -> Step:
        """A sampled chunk. torch draws from its global generator, which is lent our state."""
        import torch

        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self._sampling)
            seen = frame if self._state_of is None else self._state_of.state
            action, _ = self._model.predict(seen, deterministic=False)
            self._sampling = torch.get_rng_state()
        shape, chosen = self._space.shape or (), np.asarray(action)
        whole = chosen.size == np.prod(shape)
        chunk = chosen.reshape(shape) if whole else np.broadcast_to(chosen, shape)
        return execute(env, chunk.astype(self._space.dtype))


def load_checkpoint(path: Path) -> Any:
    """The model in a Stable-Baselines3 file; the algorithm follows from the settings it stored."""
    import json
    import zipfile

    try:
        import stable_baselines3 as sb3
    except ImportError as error:
        raise ImportError(
            'a checkpoint policy needs Stable-Baselines3: pip install "kairos-env[sb3]"'
        ) from error
    try:
        with zipfile.ZipFile(path) as archive:
            settings = json.loads(archive.read("data"))
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise ValueError(f"{path} is no Stable-Baselines3 checkpoint: {error}") from error
    telling = (
        ("clip_range", sb3.PPO),
        ("target_entropy", sb3.SAC),
        ("exploration_fraction", sb3.DQN),
        ("target_policy_noise", sb3.TD3),
    )
    for setting, algorithm in telling:
        if setting in settings:
            return algorithm.load(path, device="cpu")
    return sb3.A2C.load(path, device="cpu")


def _encoded_shape(space: spaces.Space[Any]) -> tuple[int, int]:
    """K and D of a chunk space."""
    return int((space.shape or (1,))[0]), action_size(space)


def _split_number(text: str, separator: str) -> tuple[str, float | None]:
    """`a:0.5` to ("a", 0.5); what follows the last separator counts only if it is a number."""
    head, found, tail = text.rpartition(separator)
    if not found or not head:
        return text, None
    try:
        return head, float(tail)
    except ValueError:
        return text, None
