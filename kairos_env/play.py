"""`kairos play`: drive a dream, and the truth beside it, in a browser page on this machine.

`Session` is what can be done; `play_server.py` puts it behind HTTP; `play.html` is the page.
"""

import base64
import dataclasses
import io
import webbrowser
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import tyro
from gymnasium.spaces import Box
from numpy.typing import NDArray
from rich.console import Console

from kairos_env.dream import begin_together, open_twin
from kairos_env.env import DreamEnv
from kairos_env.errors import ActionError, OptionError
from kairos_env.real.real_env import RealEnv
from kairos_env.real.snapshots import Snapshot, SnapshotError
from kairos_env.snapshot import DreamSnapshot
from kairos_env.spaces import action_size, decode_actions
from kairos_env.terminal import run_command
from kairos_env.vector_env import DreamVectorEnv
from kairos_env.worlds import World, load_world

# Futures with other noise that "fork" shows beside the dream.
FORKS = 3
LONG = 1_000_000


class Session:
    """A dream, its twin where there is one, a snapshot to return to, and forks.

    Every method returns the page's view of the present as JSON values.

    Args:
        world: What is dreamed.
        truth: Show the twin.
        seed: For the first reset; each further one counts up.
    """

    def __init__(self, world: World, *, truth: bool = True, seed: int = 0) -> None:
        self.world = world
        self.env = DreamEnv(world=world, horizon=LONG, render_mode="rgb_array")
        self.twin: RealEnv | None = None
        self.missing = ""
        if truth:
            self.twin, self.missing = open_twin(world, horizon=LONG)
        self._seed = seed
        self._kept: tuple[DreamSnapshot, Snapshot | None, Score, Score] | None = None
        self._forks: DreamVectorEnv | None = None
        self._dream, self._truth = Score(), Score()
        self._info: dict[str, Any] = {}
        self.reset()

    def describe(self) -> dict[str, Any]:
        """What the page must know once."""
        e = self.world.manifest.environment
        return {
            "name": self.world.name,
            "description": self.world.manifest.description,
            "trained": self.world.manifest.trained,
            "learned_from": e.id,
            "reward": e.reward,
            "actions": "numbers" if isinstance(e.space, Box) else "choices",
            "size": action_size(e.space),
            "seconds_per_step": e.seconds_per_step,
            "missing": self.missing,
        }

    def reset(self, seed: int | None = None) -> dict[str, Any]:
        """A new episode of both, from the same state."""
        self._seed = self._seed + 1 if seed is None else seed
        self._forks = None
        self._dream, self._truth = Score(), Score()
        self._info = begin_together(self.env, self.twin, seed=self._seed)
        return self.view()

    def step(self, action: Any) -> dict[str, Any]:
        """One step of everything that goes on.

        Args:
            action: D numbers in [-1, 1], or the number of a choice; held for the whole chunk.
        """
        chunk = self._chunk(action)
        if not self._dream.ended:
            _, reward, terminated, _, self._info = self.env.step(chunk)
            self._dream = self._dream.after(reward, ended=terminated)
        if self.twin is not None and not self._truth.ended:
            _, reward, terminated, truncated, _ = self.twin.step(chunk)
            self._truth = self._truth.after(reward, ended=terminated or truncated)
        if self._forks is not None and not self._forks.over.any():
            self._forks.step(np.stack([chunk] * FORKS))
        return self.view()

    def keep(self) -> dict[str, Any]:
        """Remember the present of dream and twin."""
        self._kept = self.env.snapshot(), self._twin_snapshot(), self._dream, self._truth
        return self.view()

    def go_back(self) -> dict[str, Any]:
        """Continue from what was remembered."""
        if self._kept is None:
            raise OptionError("nothing was kept yet: press 'keep' first")
        dream, truth, self._dream, self._truth = self._kept
        _, self._info = self.env.restore(dream)
        if self.twin is not None and truth is not None:
            self.twin.restore(truth)
        self._forks = None
        return self.view()

    def fork(self) -> dict[str, Any]:
        """Futures from here that take the same actions and meet other chance; again: stop them."""
        if self._forks is not None:
            self._forks = None
        else:
            self._forks = self.env.fork(FORKS)
            options = {"snapshot": self.env.snapshot()}
            self._forks.reset(seed=self._seed + 1, options=options)
        return self.view()

    def view(self) -> dict[str, Any]:
        """What there is to see."""
        truth = None if self.twin is None else self.twin.render()
        forks = () if self._forks is None else self._forks.render() or ()
        return {
            "dream": [png(frame) for frame in self._info["frames"]],
            "truth": None if truth is None else png(truth),
            "forks": [png(frame) for frame in forks],
            "score": dataclasses.asdict(self._dream),
            "true_score": None if truth is None else dataclasses.asdict(self._truth),
            "uncertainty": self._info["uncertainty"],
            "end_probability": self._info["end_probability"],
            "time": self._info["time"],
            "seed": self._seed,
            "kept": self._kept is not None,
        }

    def close(self) -> None:
        """Free both."""
        self.env.close()
        if self.twin is not None:
            self.twin.close()

    def _chunk(self, action: Any) -> NDArray[Any]:
        """One low-level action from the page, held for K actions."""
        e = self.world.manifest.environment
        D = action_size(e.space)
        try:
            if isinstance(e.space, Box):
                encoded = np.asarray(action, np.float64)
            else:
                encoded = np.eye(D)[int(action)]
        except (TypeError, ValueError, IndexError) as error:
            raise ActionError(f"expected an action, got {action!r}: {error}") from error
        if encoded.shape != (D,) or not np.isfinite(encoded).all():
            raise ActionError(f"expected {D} finite numbers from -1 to 1, got {action!r}")
        return decode_actions(e.space, np.clip(np.tile(encoded, (e.chunk, 1)), -1, 1))

    def _twin_snapshot(self) -> Snapshot | None:
        try:
            return None if self.twin is None else self.twin.snapshot()
        except SnapshotError:  # some simulators cannot; the dream alone goes back
            return None


@dataclasses.dataclass(frozen=True)
class Score:
    """How an episode goes."""

    reward: float = 0.0
    """Of the last step."""
    total: float = 0.0
    steps: int = 0
    ended: bool = False

    def after(self, reward: float, *, ended: bool) -> "Score":
        """One step later."""
        return Score(reward, self.total + reward, self.steps + 1, ended)


def png(frame: NDArray[np.uint8]) -> str:
    """A frame as text that a page can show."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, format="PNG", compress_level=1)
    return base64.b64encode(buffer.getvalue()).decode()


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlayOptions:
    """Drive a dream, and the truth beside it, in a browser page on this machine."""

    world: tyro.conf.Positional[str | None] = None
    """A bundled world's name, a folder, or OWNER/NAME on the hub; the best bundled one if none."""
    port: int = 8610
    """Where the page is served, on this machine only; 0 takes any free port."""
    seed: int = 0
    """Of the first episode; each further one counts up."""
    truth: bool = True
    """Show the truth beside the dream."""
    browser: bool = True
    """Open the page."""
    device: str = "cpu"
    """Where the model runs."""
    threads: int = 1
    """CPU threads; one dream of a small world is fastest on one."""


def main(argv: Sequence[str]) -> int:
    """Run `kairos play` until it is interrupted; returns the exit status."""
    return run_command(
        "kairos play", PlayOptions, run, argv, also=(), failed=2, interrupted="Interrupted."
    )


def run(options: PlayOptions) -> None:
    """Serve the page until ctrl-C."""
    from kairos_env.play_server import PlayServer

    torch.set_num_threads(max(1, options.threads))
    world = load_world(options.world, device=options.device)
    server = PlayServer(
        lambda: Session(world, truth=options.truth, seed=options.seed), port=options.port
    )
    console = Console()
    console.print(f"{world.title}\nplay at {server.url} (ctrl-C ends)", highlight=False)
    if options.browser:
        webbrowser.open(server.url)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        console.print("goodbye")
    finally:
        server.close()
