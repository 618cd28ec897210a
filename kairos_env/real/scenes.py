"""Our own ground-truth scenes: big, distinctly coloured objects seen from straight above.

Each is an ordinary Gymnasium environment with 25 actions a second, the true state as its
observation and a cheap picture. Everything that varies inside an episode (also the goal and the
roof) is part of MuJoCo's own state, and every random number comes from `self.np_random`.

Lengths are in units: the picture shows the square from -1 to 1, so a unit is half a picture (32 px
    of 64).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import gymnasium
import numpy as np
from numpy.typing import NDArray

from kairos_env.real.render import FrameRenderer, load_mujoco

if TYPE_CHECKING:
    import mujoco

Vector = NDArray[np.float64]

# Read off the MJCF files, where the bodies are drawn.
AGENT_RADIUS = 0.11
BALL_RADIUS = 0.125
BLOCK_HALF = 0.156
GOAL_RADIUS = 0.203
WALL = 0.9375
ROOF_RIGHT = 0.5
ROOF_SLAB = 0.36

PHYSICS_STEPS = 4  # of 10 ms: 25 actions a second
SECONDS_PER_ACTION = 0.04
# Rewards of four actions, the usual chunk, then add up to something between -1 and 1.
STEP_WEIGHT = 0.25
SUCCESS_REWARD = 1.0

# Occlusion, in frames of four actions: drawn evenly from here, after at least so many in sight.
HIDDEN_FRAMES = (3.0, 28.0)
LEAD_FRAMES = 5.0


@dataclass(frozen=True, kw_only=True)
class SceneObject:
    """How to find an object in a picture, and where it truly is.

    Attributes:
        name: The body's name in the MJCF file.
        rgb: Its colour in a rendered frame, exactly.
        radius: Radius of a disc, half the side of a square, in units.
        shape: What it looks like from above.
        state_slice: Where its (x, y) stands in the state vector.
        covered_by: What may lie above it in a picture and hide it, in part or whole.
        gone_behind: What may hide it whole for many frames; empty for an object that is always in
            sight.
    """

    name: str
    rgb: tuple[int, int, int]
    radius: float
    shape: Literal["disc", "square"]
    state_slice: slice
    covered_by: tuple[str, ...] = ()
    gone_behind: tuple[str, ...] = ()

    def pixel(self, state: NDArray[np.floating[Any]], frame_size: int = 64) -> Vector:
        """Its centre as (column, row), pixel middles at whole numbers; (..., S) to (..., 2)."""
        x_y = np.asarray(state, np.float64)[..., self.state_slice]
        centre: Vector = (x_y * np.array([1.0, -1.0]) + 1.0) * (frame_size / 2) - 0.5
        return centre

    def radius_px(self, frame_size: int = 64) -> float:
        """Its radius in pixels."""
        return self.radius * frame_size / 2

    def area_px(self, frame_size: int = 64) -> float:
        """How many pixels it fills when nothing covers it."""
        area = np.pi if self.shape == "disc" else 4.0
        return float(area * self.radius_px(frame_size) ** 2)


AGENT = SceneObject(
    name="agent", rgb=(26, 77, 230), radius=AGENT_RADIUS, shape="disc", state_slice=slice(0, 2)
)


class Scene(gymnasium.Env[NDArray[np.float32], NDArray[np.float32]]):
    """What the three scenes share: stepping, drawing, checking the action.

    Args:
        render_mode: None or "rgb_array".
        frame_size: Side of the rendered picture in pixels.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 25}  # noqa: RUF012 (Gymnasium's own form)
    objects: ClassVar[tuple[SceneObject, ...]]
    state_names: ClassVar[tuple[str, ...]]
    xml: ClassVar[str]
    # Smooth edges show motion below a pixel; on these few geoms they cost 0.25 ms a frame.
    view: ClassVar[dict[str, Any]] = {"camera": "top", "samples": 4}

    def __init__(self, *, render_mode: str | None = None, frame_size: int = 64) -> None:
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode must be None or 'rgb_array', got {render_mode!r}")
        self.render_mode = render_mode
        self.frame_size = frame_size
        self._mujoco = load_mujoco()
        self.model: mujoco.MjModel = self._mujoco.MjModel.from_xml_path(
            str(Path(__file__).with_name(self.xml))
        )
        self.data: mujoco.MjData = self._mujoco.MjData(self.model)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
        # Positions stay in the arena; 10 units/s is more than any contact gives (an agent drives at
        # 0.5).
        self.observation_space = gymnasium.spaces.Box(
            -10.0, 10.0, (len(self.state_names),), np.float32
        )
        self._renderer: FrameRenderer | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Draw a new layout from `self.np_random`; there are no options."""
        super().reset(seed=seed)
        self._mujoco.mj_resetData(self.model, self.data)
        self._lay_out(self.np_random)
        self._mujoco.mj_forward(self.model, self.data)
        return self.state(), self._info(success=False)

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Drive the agent for 40 ms; actions outside [-1, 1] count as their nearest bound."""
        self.data.ctrl[:] = self._checked(action)
        self._mujoco.mj_step(self.model, self.data, PHYSICS_STEPS)
        self._after_physics()
        # Refresh the poses that pictures show; mj_step leaves them one physics step behind the
        # state.
        self._mujoco.mj_kinematics(self.model, self.data)
        reward, terminated, success = self._judge()
        return self.state(), reward, terminated, False, self._info(success=success)

    def render(self) -> NDArray[np.uint8] | None:
        """The picture (H, W, 3), or None when made without a render mode."""
        if self.render_mode is None:
            return None
        if self._renderer is None:
            self._renderer = FrameRenderer(self.model, frame_size=self.frame_size, **self.view)
        return self._renderer.render(self.data)

    def close(self) -> None:
        """Free the renderer."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def state(self) -> NDArray[np.float32]:
        """The true state, entries named by `state_names`."""
        raise NotImplementedError

    def _lay_out(self, random: np.random.Generator) -> None:
        """Place everything for a new episode."""
        raise NotImplementedError

    def _judge(self) -> tuple[float, bool, bool]:
        """Reward, terminated, success of the state as it stands."""
        raise NotImplementedError

    def _after_physics(self) -> None:
        """Motion that MuJoCo does not do itself."""

    def _info(self, *, success: bool) -> dict[str, Any]:
        return {"success": success}

    def _checked(self, action: NDArray[np.float32]) -> Vector:
        values = np.asarray(action, np.float64)
        if values.shape != (2,) or not np.isfinite(values).all():
            raise ValueError(f"expected an action of 2 finite numbers in [-1, 1], got {action!r}")
        return np.clip(values, -1.0, 1.0)

    def _place(self, name: str, x_y: Vector) -> None:
        """Put a mocap body, or a body on x and y slides, somewhere."""
        body = self.model.body(name)
        if body.mocapid[0] >= 0:
            self.data.mocap_pos[body.mocapid[0], :2] = x_y
        else:
            start = self.model.joint(f"{name}_x").qposadr[0]
            self.data.qpos[start : start + 2] = x_y

    def _goal(self) -> Vector:
        goal: Vector = self.data.mocap_pos[0, :2]
        return goal


def _joined(*parts: Vector) -> NDArray[np.float32]:
    state: NDArray[np.float32] = np.concatenate(parts).astype(np.float32)
    return state


class KairosReachEnv(Scene):
    """Drive the blue agent into the green goal.

    Reward of an action: `-0.25 * distance / 2`, where distance runs from the agent's to the goal's
    centre in units, and `+1` with the action that ends the episode. Terminates (success) when
    the agent's centre is inside the disc.
    """

    xml = "reach.xml"
    state_names = ("agent_x", "agent_y", "agent_vx", "agent_vy", "goal_x", "goal_y")
    objects = (
        AGENT,
        SceneObject(
            name="goal",
            rgb=(64, 191, 102),
            radius=GOAL_RADIUS,
            shape="disc",
            state_slice=slice(4, 6),
            covered_by=("agent",),
        ),
    )

    def state(self) -> NDArray[np.float32]:
        """Agent position and velocity, goal."""
        return _joined(self.data.qpos, self.data.qvel, self._goal())

    def _lay_out(self, random: np.random.Generator) -> None:
        goal = random.uniform(-0.7, 0.7, 2)
        agent = random.uniform(-0.8, 0.8, 2)
        while np.linalg.norm(agent - goal) < 0.5:
            agent = random.uniform(-0.8, 0.8, 2)
        self._place("goal", goal)
        self._place("agent", agent)

    def _judge(self) -> tuple[float, bool, bool]:
        distance = float(np.linalg.norm(self.data.qpos[:2] - self._goal()))
        reached = distance < GOAL_RADIUS
        return -STEP_WEIGHT * distance / 2 + SUCCESS_REWARD * reached, reached, reached


class KairosPushEnv(Scene):
    """Push the red block into the green goal with the blue agent.

    Reward of an action: `-0.25 * (0.6 * d1 + 0.4 * d2) / 2`, d1 from the block's centre to the
    goal's, d2 from the agent's centre to the point behind the block from which it would be
    pushed straight at the goal, both in units; `+1` with the action that ends the episode.
    Terminates (success) when the block's centre is inside the disc.
    """

    xml = "push.xml"
    state_names = (
        *("agent_x", "agent_y", "block_x", "block_y", "block_cos", "block_sin"),
        *("agent_vx", "agent_vy", "block_vx", "block_vy", "block_spin", "goal_x", "goal_y"),
    )
    objects = (
        AGENT,
        SceneObject(
            name="block",
            rgb=(224, 51, 38),
            radius=BLOCK_HALF,
            shape="square",
            state_slice=slice(2, 4),
        ),
        SceneObject(
            name="goal",
            rgb=(64, 191, 102),
            radius=GOAL_RADIUS,
            shape="disc",
            state_slice=slice(11, 13),
            covered_by=("agent", "block"),
        ),
    )

    def state(self) -> NDArray[np.float32]:
        """Agent and block positions, the block's direction, velocities, goal."""
        q = self.data.qpos
        direction = np.array([np.cos(q[4]), np.sin(q[4])])
        return _joined(q[:4], direction, self.data.qvel, self._goal())

    def _lay_out(self, random: np.random.Generator) -> None:
        goal = random.uniform(-0.6, 0.6, 2)
        block = random.uniform(-0.55, 0.55, 2)
        while np.linalg.norm(block - goal) < 0.45:
            block = random.uniform(-0.55, 0.55, 2)
        agent = random.uniform(-0.8, 0.8, 2)
        while np.linalg.norm(agent - block) < 0.4:
            agent = random.uniform(-0.8, 0.8, 2)
        self._place("goal", goal)
        self._place("block", block)
        self._place("agent", agent)
        self.data.joint("block_yaw").qpos[0] = random.uniform(-np.pi / 4, np.pi / 4)

    def _judge(self) -> tuple[float, bool, bool]:
        agent, block, goal = self.data.qpos[:2], self.data.qpos[2:4], self._goal()
        distance = float(np.linalg.norm(block - goal))
        inside = distance < GOAL_RADIUS
        away = (block - goal) / max(distance, 1e-6)
        behind = block + away * (BLOCK_HALF + AGENT_RADIUS)
        cost = 0.6 * distance + 0.4 * float(np.linalg.norm(agent - behind))
        return -STEP_WEIGHT * cost / 2 + SUCCESS_REWARD * inside, inside, inside


class KairosOccludeEnv(Scene):
    """Catch the orange ball after it has run under a roof.

    The ball coasts at one speed an episode and bounces off the upper and lower wall, also out of
    sight. Speed, direction and roof length are drawn anew, so that it is wholly hidden for 3 to
    28 frames (of four actions), evenly. The agent, slower than elsewhere, slides along the right
    wall: who waits for the ball to come out before moving is often late.

    Reward of an action: `-0.25 * distance / 2` from the agent's to the ball's centre, seen or not;
    `+1` with the action that catches the ball (success), `-1` with the one in which it reaches
    the right wall. Both terminate. `info["hidden"]` says whether the roof covers the ball
    wholly.
    """

    xml = "occlude.xml"
    state_names = (
        *("agent_x", "agent_y", "ball_x", "ball_y"),
        *("agent_vx", "agent_vy", "ball_vx", "ball_vy", "roof_left"),
    )
    objects = (
        AGENT,
        SceneObject(
            name="ball",
            rgb=(250, 153, 26),
            radius=BALL_RADIUS,
            shape="disc",
            state_slice=slice(2, 4),
            covered_by=("roof",),
            gone_behind=("roof",),
        ),
    )

    def state(self) -> NDArray[np.float32]:
        """Agent and ball positions and velocities, and where the roof begins."""
        return _joined(self.data.qpos, self.data.qvel, np.array([self._roof_left()]))

    def _lay_out(self, random: np.random.Generator) -> None:
        # Frames of four actions. The longer the ball hides, the slower it must be: before it goes
        # under it is in sight for LEAD_FRAMES or more, and roof and lead must fit in the arena.
        hidden = random.uniform(*HIDDEN_FRAMES)
        first_start = -WALL + BALL_RADIUS + 0.005
        room = ROOF_RIGHT - 3 * BALL_RADIUS - first_start
        slowest, fastest = max(0.025, 0.11 / hidden), min(0.09, room / (hidden + LEAD_FRAMES))
        speed = random.uniform(slowest, fastest)  # units a frame
        roof_left = ROOF_RIGHT - 2 * BALL_RADIUS - hidden * speed
        self._place_roof(roof_left)
        start = random.uniform(first_start, roof_left - BALL_RADIUS - LEAD_FRAMES * speed)
        self._place("ball", np.array([start, random.uniform(-0.8, 0.8)]))
        along = speed / (4 * SECONDS_PER_ACTION)
        self.data.qvel[2:4] = along, along * random.uniform(-1.6, 1.6)
        self._place("agent", np.array([random.uniform(0.78, 0.82), random.uniform(-0.8, 0.8)]))

    def _place_roof(self, left: float) -> None:
        """Three overlapping slabs from `left` to the roof's fixed right edge."""
        for i in range(3):
            centre = max(ROOF_RIGHT - ROOF_SLAB * (i + 0.5), left + ROOF_SLAB / 2)
            self.data.mocap_pos[i] = centre, 0.0, 0.3

    def _roof_left(self) -> float:
        return float(self.data.mocap_pos[2, 0]) - ROOF_SLAB / 2

    def _after_physics(self) -> None:
        """Reflect the ball off the upper and lower wall without loss."""
        limit = WALL - BALL_RADIUS
        y = float(self.data.qpos[3])
        if abs(y) > limit:
            self.data.qpos[3] = np.sign(y) * 2 * limit - y
            self.data.qvel[3] *= -1

    def _judge(self) -> tuple[float, bool, bool]:
        agent, ball = self.data.qpos[:2], self.data.qpos[2:4]
        distance = float(np.linalg.norm(agent - ball))
        caught = distance < AGENT_RADIUS + BALL_RADIUS
        missed = not caught and bool(ball[0] > WALL - BALL_RADIUS)
        outcome = SUCCESS_REWARD * (float(caught) - float(missed))
        return -STEP_WEIGHT * distance / 2 + outcome, caught or missed, caught

    def _info(self, *, success: bool) -> dict[str, Any]:
        x = float(self.data.qpos[2])
        hidden = self._roof_left() + BALL_RADIUS <= x <= ROOF_RIGHT - BALL_RADIUS
        return {"success": success, "hidden": hidden}
