"""Scripted policies that solve the ground-truth tasks from the true state.

An expert is a callable `expert(env, rng) -> low-level action`, made for `RealEnv.follow`. It looks
at the simulator, not at the picture, and takes its randomness (if any) from `rng`, so a collected
episode is a function of its seeds.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kairos_env.real.scenes import AGENT_RADIUS, BALL_RADIUS, BLOCK_HALF, WALL

if TYPE_CHECKING:
    import gymnasium

Vector = NDArray[np.float64]
Expert = Callable[["gymnasium.Env[Any, Any]", np.random.Generator], NDArray[np.float32]]

# An agent coasts for about 0.1 s after a push; looking that far ahead keeps it from overshooting.
COAST_SECONDS = 0.08
GAIN = 12.0
# A visitor spends this share of its time with objects, and so many actions with each.
VISITS = 0.8
VISIT_ACTIONS = (8, 48)
# A loiterer leaves its task where the two things are that near, in units, for so many visits.
NEARLY = (0.27, 0.42)
LOITERS = (3, 9)
# Lengths of the two arms of Gymnasium's Reacher, and how hard its joints are pulled and braked.
ARMS = (0.1, 0.11)
PULL, BRAKE = 0.3, 0.06


def simulated(env: "gymnasium.Env[Any, Any]") -> Any:
    """What an expert looks at: the environment itself, below chunks and wrappers."""
    return getattr(env, "low_level", env).unwrapped


class Look:
    """A state in the place of the simulator, for experts that ask an environment for it."""

    def __init__(self, state: NDArray[np.float32]) -> None:
        self.observation = state.astype(np.float64)

    @property
    def unwrapped(self) -> "Look":
        """Itself."""
        return self

    def state(self) -> NDArray[np.float64]:
        """As our own scenes tell it."""
        return self.observation


def reach_expert(env: "gymnasium.Env[Any, Any]", rng: np.random.Generator) -> NDArray[np.float32]:
    """Straight to the goal."""
    del rng  # deterministic
    state = _scene_state(env)
    return _drive(state[0:2], state[2:4], target=state[4:6])


def push_expert(env: "gymnasium.Env[Any, Any]", rng: np.random.Generator) -> NDArray[np.float32]:
    """Walk around the block to the side away from the goal, then push through its centre."""
    del rng
    state = _scene_state(env)
    agent, block, velocity, goal = state[0:2], state[2:4], state[6:8], state[11:13]
    forward = (goal - block) / max(float(np.linalg.norm(goal - block)), 1e-6)
    offset = agent - block
    along = float(offset @ forward)
    sideways = float(offset @ _left_of(forward))
    touching = BLOCK_HALF + AGENT_RADIUS
    if along < -0.6 * touching and abs(sideways) < 0.06:
        # Aim beyond the block; the term against `sideways` keeps the push on the line through its
        # centre.
        return _drive(agent, velocity, target=agent + forward - 8 * sideways * _left_of(forward))
    return _drive(agent, velocity, target=_way_around(block, offset, forward))


def occlude_expert(env: "gymnasium.Env[Any, Any]", rng: np.random.Generator) -> NDArray[np.float32]:
    """Wait where the ball will pass, its bounces included."""
    del rng
    state = _scene_state(env)
    agent, ball, velocity, ball_velocity = state[0:2], state[2:4], state[4:6], state[6:8]
    seconds = max(0.0, (agent[0] - ball[0]) / ball_velocity[0])
    crossing = _reflect(float(ball[1] + ball_velocity[1] * seconds), WALL - BALL_RADIUS)
    return _drive(agent, velocity, target=np.array([0.8, crossing]))


def reacher_expert(env: "gymnasium.Env[Any, Any]", rng: np.random.Generator) -> NDArray[np.float32]:
    """Turn both joints of Gymnasium's Reacher to where its tip is on the target."""
    del rng
    data = simulated(env).data
    joints: Vector = data.qpos[:2].copy()
    speeds, target = data.qvel[:2], data.qpos[2:4]
    joints[1] = _half_turn(joints[1])
    action: Vector = PULL * (_reaching(target, joints) - joints) - BRAKE * speeds
    return np.clip(action, -1.0, 1.0).astype(np.float32)


class Visitor:
    """Goes to see one thing after another, over it, beside it or into it, and no task at all.

    Overlaps and contacts are rare in what other policies do, and a dream fails where its data are
    rare. For the scenes that know where their objects are; a new one for every episode.
    """

    def __init__(self) -> None:
        self._left = 0

    def __call__(
        self, env: "gymnasium.Env[Any, Any]", rng: np.random.Generator
    ) -> NDArray[np.float32]:
        """On towards the present target, or the first step to the next."""
        scene, state = simulated(env), _scene_state(env)
        if self._left == 0:
            self._visit(scene, rng)
        self._left -= 1
        target = self._offset + (0.0 if self._thing is None else state[self._thing])
        at = scene.state_names.index("agent_vx")
        return np.float32(self._pace) * _drive(state[0:2], state[at : at + 2], target=target)

    def _visit(self, scene: Any, rng: np.random.Generator) -> None:
        things = [thing for thing in scene.objects if thing.name != "agent"]
        self._left = int(rng.integers(*VISIT_ACTIONS))
        self._pace = float(rng.uniform(0.4, 1.0))
        self._thing: slice | None = None
        self._offset = rng.uniform(-0.85, 0.85, 2)
        if rng.random() < VISITS:
            thing = things[int(rng.integers(len(things)))]
            self._thing = thing.state_slice
            self._offset = rng.uniform(-1.2, 1.2, 2) * thing.radius


class Loiterer(Visitor):
    """Does its task until the two things that it brings together nearly meet, then goes visiting.

    An expert ends the episode where things come together. Here they stay so for a while and are
    disturbed, and then the task is taken up again.

    Args:
        expert: Of the task.
        pair: Where the scene's state tells the places of the two things.
    """

    def __init__(self, expert: Expert, pair: tuple[slice, slice]) -> None:
        super().__init__()
        self._task, self._pair = expert, pair
        self._visits = 0
        self._near: float | None = None

    def __call__(
        self, env: "gymnasium.Env[Any, Any]", rng: np.random.Generator
    ) -> NDArray[np.float32]:
        """A step of the task, or of a visit."""
        if self._left == 0 and self._visits == 0:
            state = _scene_state(env)
            if self._near is None:
                self._near = float(rng.uniform(*NEARLY))
            one, other = (state[place] for place in self._pair)
            if np.linalg.norm(one - other) > self._near:
                return self._task(env, rng)
            self._near, self._visits = None, int(rng.integers(*LOITERS))
        self._visits -= self._left == 0
        return super().__call__(env, rng)


def visitor_for(env: "gymnasium.Env[Any, Any]") -> Visitor:
    """A visitor of an environment's objects.

    Raises:
        ValueError: The environment does not say where its objects are.
    """
    if not getattr(simulated(env), "objects", ()):
        raise ValueError(
            f"policy visitor goes from object to object, and {env} does not say where any are; "
            "it is for KairosReach-v0, KairosPush-v0 and KairosOcclude-v0. Use smooth or expert"
        )
    return Visitor()


def loiterer_for(env: "gymnasium.Env[Any, Any]") -> Loiterer:
    """A loiterer at the task of an environment.

    Raises:
        ValueError: The task does not bring a thing to a goal, or nobody says where they are.
    """
    scene = simulated(env)
    places = {thing.name: thing.state_slice for thing in getattr(scene, "objects", ())}
    name = getattr(env, "name", "")
    if "goal" not in places or name not in _EXPERTS:
        raise ValueError(
            f"policy loiterer nearly brings something to a goal, and {env} does not say where they "
            "are; it is for KairosReach-v0 and KairosPush-v0. Use smooth or expert"
        )
    return Loiterer(_EXPERTS[name], (places.get("block", places["agent"]), places["goal"]))


def _scene_state(env: "gymnasium.Env[Any, Any]") -> Vector:
    return np.asarray(simulated(env).state(), np.float64)


def _drive(agent: Vector, velocity: Vector, *, target: Vector) -> NDArray[np.float32]:
    """Full speed towards a point, easing off near it."""
    action = GAIN * (target - agent - COAST_SECONDS * velocity)
    return (action / max(1.0, float(np.abs(action).max()))).astype(np.float32)


def _way_around(block: Vector, offset: Vector, forward: Vector) -> Vector:
    """The next point on a circle about the block that leads to its far side without touching it."""
    radius = max(0.40, min(float(np.linalg.norm(offset)), 0.55))
    here = np.arctan2(offset[1], offset[0])
    there = np.arctan2(-forward[1], -forward[0])
    turn = (there - here + np.pi) % (2 * np.pi) - np.pi
    if abs(turn) < 0.35:
        radius = 0.34
    angle = here + float(np.clip(turn, -0.6, 0.6))
    limit = WALL - AGENT_RADIUS
    return np.clip(block + radius * np.array([np.cos(angle), np.sin(angle)]), -limit, limit)


def _left_of(direction: Vector) -> Vector:
    return np.array([-direction[1], direction[0]])


def _reflect(y: float, limit: float) -> float:
    """Fold a straight line into the band [-limit, limit], as elastic bounces do."""
    phase = (y + limit) % (4 * limit)
    return phase - limit if phase < 2 * limit else 3 * limit - phase


def _reaching(target: Vector, joints: Vector) -> Vector:
    """The angles, of the two pairs that put the tip on the target, that are nearer."""
    upper, fore = ARMS
    cosine = (target @ target - upper**2 - fore**2) / (2 * upper * fore)
    bend = np.arccos(np.clip(cosine, -1.0, 1.0))
    found = []
    for elbow in (bend, -bend):
        ahead = np.arctan2(fore * np.sin(elbow), upper + fore * np.cos(elbow))
        turn = _half_turn(np.arctan2(target[1], target[0]) - ahead - joints[0])
        found.append(np.array([joints[0] + turn, elbow]))
    return min(found, key=lambda angles: float(np.abs(angles - joints).max()))


def _half_turn(angle: float) -> float:
    """The same direction as an angle in [-pi, pi)."""
    return float((angle + np.pi) % (2 * np.pi) - np.pi)


_EXPERTS: dict[str, Expert] = {
    "KairosReach-v0": reach_expert,
    "KairosPush-v0": push_expert,
    "KairosOcclude-v0": occlude_expert,
    "Reacher-v5": reacher_expert,
}


def expert_for(env_id: str) -> Expert:
    """The scripted expert of a task.

    Args:
        env_id: For example "KairosPush-v0", "metaworld/reach-v3", "robosuite/Lift".

    Raises:
        KeyError: There is none for this task.
    """
    family, _, task = env_id.partition("/")
    if family == "metaworld":
        from kairos_env.real.metaworld import metaworld_expert

        return metaworld_expert(task)
    if family == "robosuite":
        from kairos_env.real.robosuite import robosuite_expert

        return robosuite_expert(task)
    if env_id in _EXPERTS:
        return _EXPERTS[env_id]
    raise KeyError(
        f"no scripted expert for {env_id!r}; there are experts for {sorted(_EXPERTS)}, "
        "'metaworld/...' and 'robosuite/Lift'"
    )
