"""`DreamVectorEnv`: B dreams of one world in one batch, behind Gymnasium's vector interface.

One step takes one action chunk per dream and makes one batched model call. The environment holds
the episodes (who began where, who has ended, whose random stream is whose); `Dreams` holds the
physics. `DreamEnv` is this with B = 1.

Shapes: B dreams, K low-level actions a step, D numbers per action, F frames a step.
"""

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.error import ClosedEnvironmentError, ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from kairos_env.actions import checked_chunk, filler
from kairos_env.beginnings import (
    Beginning,
    Told,
    bundled,
    check_options,
    checked_index,
    checked_mask,
    checked_text,
    choices,
    from_frames,
    from_twin,
    is_twin_state,
)
from kairos_env.card import DEAF
from kairos_env.dreams import Dreams, Precision
from kairos_env.errors import DeafWorldWarning, OptionError
from kairos_env.real.snapshots import ForeignSnapshotError
from kairos_env.settings import Settings, autoreset_mode_of, is_positive
from kairos_env.snapshot import DreamSnapshot
from kairos_env.spaces import chunk_space, encode_actions
from kairos_env.streams import Fresh, Streams
from kairos_env.view import Observation, ObservationKind, Observer, masked, one_dream
from kairos_env.world_model.quantise import WEIGHTS
from kairos_env.worlds import World, load_world

Infos = dict[str, Any]
Indices = NDArray[np.int64]


class DreamVectorEnv(VectorEnv[Any, NDArray[Any], NDArray[Any]]):
    """B dreams of one world.

    Args:
        num_envs: B.
        world: A bundled world's name, a folder, OWNER/NAME on the hub, or a `World`; None opens the
            best bundled one.
        device: Where the model runs, for example "cpu" or "cuda".
        denoise_steps: Passes per predicted frame; None takes the world's own number.
        observation: "pixels" uint8 (H, W, 3); "state" and "latent" float32 vectors; "dict" of all.
        horizon: Steps after which an episode is truncated; None takes the world's own.
        start: The bundled start, or the list of them, that resets begin from; None for any.
        frames_per_chunk: F, a multiple of the world's own; the action chunk grows with it.
        max_uncertainty: Truncate an episode when its uncertainty is above this.
        window: Frames that a windowed layer looks back over; None takes the world's own.
        precision: "float32"; "bfloat16" for the large products; or "int8", "fp8", "int4" for the
            weights of the blocks, which saves memory.
        compile: Use `torch.compile`; the first steps at each batch size take a minute or more.
        all_frames: Observe all F frames of a step (a new first axis) instead of the last.
        decode: False leaves `frames` out of the infos of observations that need none: faster.
        render_mode: None, "rgb_array" (the last frame) or "rgb_array_list" (every predicted frame
            since the last call or reset).
        autoreset_mode: What happens to a dream whose episode has ended.
        max_episode_steps: As Gymnasium passes it; the smaller of it and the horizon holds.

    Raises:
        WorldError: The world cannot be opened.
        OptionError: An argument has a value that this world cannot serve.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 (Gymnasium's own form)
        "render_modes": ["rgb_array", "rgb_array_list"],
        "render_fps": 25,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    def __init__(
        self,
        num_envs: int = 1,
        *,
        world: str | Path | World | None = None,
        device: str = "cpu",
        denoise_steps: int | None = None,
        observation: ObservationKind = "pixels",
        horizon: int | None = None,
        start: int | Sequence[int] | None = None,
        frames_per_chunk: int | None = None,
        max_uncertainty: float | None = None,
        window: int | None = None,
        precision: Precision = "float32",
        compile: bool = False,
        all_frames: bool = False,
        decode: bool = True,
        render_mode: str | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        max_episode_steps: int | None = None,
    ) -> None:
        if not is_positive(num_envs):
            raise OptionError(f"num_envs must be a positive whole number, got {num_envs!r}")
        self.num_envs = num_envs
        self.autoreset_mode = autoreset_mode_of(autoreset_mode)
        self.settings = Settings(
            observation=observation,
            denoise_steps=denoise_steps,
            horizon=horizon,
            start=start,
            frames_per_chunk=frames_per_chunk,
            max_uncertainty=max_uncertainty,
            window=window,
            precision=precision,
            compile=compile,
            all_frames=all_frames,
            decode=decode,
            render_mode=render_mode,
        )
        self.world = load_world(world, device=device)
        if window is not None and window != self.world.manifest.model.transformer.window:
            self.world = self.world.with_window(window)
        if precision in WEIGHTS:
            self.world = self.world.with_weights(precision)
        self.settings.check_state(self.world.manifest)
        if not self.world.manifest.answers:
            warnings.warn(f"world {self.world.name!r}: {DEAF}", DeafWorldWarning, stacklevel=2)
        self._open(max_episode_steps)
        self._streams = Streams(num_envs, choices(self.world, start))
        self._elapsed = np.zeros(num_envs, np.int64)
        self._over = np.zeros(num_envs, np.bool_)
        self._start_index = np.zeros(num_envs, np.int64)
        self._unseen: list[list[NDArray[np.uint8]]] = [[] for _ in range(num_envs)]
        self._twin: Any = None

    def _open(self, max_episode_steps: int | None) -> None:
        """Spaces, time and slots: what follows from world and settings together."""
        e, settings = self.world.manifest.environment, self.settings
        chunks = settings.chunks_per_step(self.world.manifest)
        F = chunks * e.frames_per_chunk
        self._observer = Observer(
            settings.observation, self.world.dreamer, frames=F, all_frames=settings.all_frames
        )
        self.single_observation_space = self._observer.space
        self.chunk_space = chunk_space(e.space, chunks * e.chunk)
        self.single_action_space = self.chunk_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        decode = settings.decode or self._observer.needs_frames or bool(settings.render_mode)
        self._dreams = Dreams(
            self.world,
            self.num_envs,
            denoise_steps=settings.denoise_steps,
            chunks=chunks,
            decode=decode,
            precision=settings.precision,
            compile=settings.compile,
        )
        self.render_mode = settings.render_mode
        self.seconds_per_step = F / e.fps
        self.horizon = settings.limit(-(-e.horizon // chunks), max_episode_steps)
        frames_shown = F if settings.render_mode == "rgb_array_list" else 1
        self.metadata = {
            **self.metadata,
            "render_fps": frames_shown / self.seconds_per_step,
            "autoreset_mode": self.autoreset_mode,
            "world": self.world.name,
            "trained": self.world.manifest.trained,
        }

    # ------------------------------------------------------------------------------- Gymnasium

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Observation, Infos]:
        """Begin new episodes.

        Args:
            seed: One number (dream i gets seed + i) or one per dream; decides the start and the
                dream's own random stream. None goes on with the generators as they are.
            options: "start_index": a bundled start. "frames" (T, H, W, 3) uint8, optionally with
                "actions" (T - 1, A, D), the low-level actions between them, and "state" (S,): the
                caller's own history. "state": what a real twin's `snapshot()` gave. "snapshot": a
                `DreamSnapshot` to continue. "text": words, for a world that reads
                them; or features of shape (tokens, width) of the encoder it was trained with.
                "reset_mask": bool (B,), the dreams to reset. Arrays with an additional first axis
                of B give each dream its own.

        Returns:
            Observations and infos; after a partial reset, the infos' masks say which are new.

        Raises:
            OptionError: An option cannot be used. Nothing was reset.
            ForeignSnapshotError: A snapshot is of something else. Nothing was reset.
        """
        self._require_open()
        chosen = check_options(options)
        where = self._which(chosen.pop("reset_mask", None))
        fresh = self._streams.fresh(seed)
        if "snapshot" in chosen:
            snapshot = self._checked_snapshot(chosen["snapshot"], where)
            self._continue(where, snapshot, fresh)
        else:
            beginning = self._given(chosen, where)
            told = checked_text(self.world, chosen.get("text"), self.num_envs, where)
            for dream in where:
                self._streams.take(dream, fresh)
            self._begin(where, beginning, told)
        return self._observer.observe(self._dreams.view), self._infos(where)

    def step(
        self, actions: NDArray[Any]
    ) -> tuple[Observation, NDArray[Any], NDArray[Any], NDArray[Any], Infos]:
        """Advance every dream by one action chunk.

        Args:
            actions: (B, K, D), or (B, K) for choices. That of a dream which is being reset in this
                step is ignored.

        Returns:
            Observations, rewards float64 (B,), terminated, truncated, infos.

        Raises:
            ActionError: Wrong shape or type, out of bounds, NaN. Nothing was stepped.
            ResetNeeded: Before the first reset; or a dream has ended and autoreset is disabled.
        """
        self._require_running()
        ended = self._over.copy()
        if ended.any() and self.autoreset_mode is AutoresetMode.DISABLED:
            raise ResetNeeded(
                f"the episodes of dreams {np.flatnonzero(ended).tolist()} are over: call reset, "
                'for some of them with options={"reset_mask": mask}'
            )
        terminated = self._dreams.advance(self._encoded(actions, ignored=ended))
        self._elapsed += 1
        truncated = self._elapsed >= self.horizon
        if self.settings.max_uncertainty is not None:
            truncated |= self._dreams.view.uncertainty > self.settings.max_uncertainty
        rewards = self._dreams.view.rewards.sum(1, dtype=np.float64)
        for dream in np.flatnonzero(~ended):
            self._collect(dream)
        # Next-step mode: a dream that had ended begins anew, what it was told to do counts nothing.
        rewards[ended], terminated[ended], truncated[ended] = 0.0, False, False
        self._over = terminated | truncated
        infos: Infos = {}
        again = np.flatnonzero(ended)
        if self.autoreset_mode is AutoresetMode.SAME_STEP:
            again = np.flatnonzero(self._over)
            infos = self._final(again)
        if len(again):
            self._begin(again, None, checked_text(self.world, None, self.num_envs, again))
        infos |= self._infos(np.arange(self.num_envs))
        observations = self._observer.observe(self._dreams.view)
        return observations, rewards, terminated, truncated, infos

    def render(self) -> tuple[Any, ...] | None:
        """What `render_mode` asks for, one entry per dream; None without a render mode."""
        if self.render_mode is None:
            return None
        self._require_running()
        if self.render_mode == "rgb_array":
            assert self._dreams.view.frames is not None
            return tuple(frames[-1].copy() for frames in self._dreams.view.frames)
        seen, self._unseen = self._unseen, [[] for _ in range(self.num_envs)]
        return tuple(seen)

    def close_extras(self, **kwargs: Any) -> None:
        """Free the dreams, and the twin if one was made."""
        if self._twin is not None:
            self._twin.close()
            self._twin = None
        self._dreams.clear()

    @property  # type: ignore[misc]  # read only
    def np_random(self) -> tuple[np.random.Generator, ...]:  # type: ignore[override]  # one a dream
        """Each dream's generator of starts and seeds."""
        return tuple(self._streams[dream] for dream in range(self.num_envs))

    @property
    def np_random_seed(self) -> tuple[int | None, ...]:  # type: ignore[override]  # one a dream
        """What each generator was seeded with."""
        return tuple(self._streams.seeds)

    @property
    def over(self) -> NDArray[np.bool_]:
        """(B,) whose episodes have ended and not begun anew."""
        return self._over.copy()

    def __repr__(self) -> str:
        """Says which world, and whether it was trained."""
        return f"{type(self).__name__}({self.world.title}, num_envs={self.num_envs})"

    # ------------------------------------------------------------------------------- snapshots

    def snapshot(self, dreams: Sequence[int] | None = None) -> DreamSnapshot:
        """Memory, randomness and bookkeeping of some dreams (all by default); no weights."""
        self._require_running()
        rows = self._rows(dreams)
        return DreamSnapshot(
            world=self.world.fingerprint,
            memory=self._dreams.memory.index(torch.from_numpy(rows)).clone(),
            shown=self._dreams.view.index(rows),
            elapsed=self._elapsed[rows],
            over=self._over[rows],
            start_index=self._start_index[rows],
            random=tuple(self._streams.to_text(row) for row in rows),
        )

    def restore(
        self, snapshot: DreamSnapshot | str | Path, dreams: Sequence[int] | None = None
    ) -> tuple[Observation, Infos]:
        """Put dreams back, or into other slots, or one dream into many.

        Args:
            snapshot: Of as many dreams as are named, or of one, which all of them continue; or the
                path of a saved one.
            dreams: Which to overwrite; all by default.

        Returns:
            Observations and infos, as `reset` gives them.

        Raises:
            ForeignSnapshotError: It is of another world, or of other settings.
        """
        self._require_open()
        where = self._rows(dreams)
        self._require_all_at_first(where)
        self._continue(where, self._checked_snapshot(snapshot, where), {})
        return self._observer.observe(self._dreams.view), self._infos(where)

    def fork(self, n: int, dream: int = 0) -> "DreamVectorEnv":
        """A new environment of n dreams that all continue this one; it shares the weights.

        They have the same randomness too: the same actions give the same future. For futures that
        differ by chance, reset it with `seed` and `options={"snapshot": self.snapshot([dream])}`.
        """
        snapshot = self.snapshot([dream])
        forks = DreamVectorEnv(
            n,
            world=self.world,
            autoreset_mode=self.autoreset_mode,
            max_episode_steps=self.horizon,
            **dataclasses.asdict(self.settings),
        )
        forks.restore(snapshot)
        return forks

    # ------------------------------------------------------------------------------- episodes

    def _given(self, options: Infos, where: Indices) -> Beginning | None:
        """The histories that the options ask for; None where the generators decide."""
        B, beginning = self.num_envs, None
        if "start_index" in options:
            index = checked_index(self.world, options["start_index"], B, where)
            beginning = bundled(self.world, index)
        elif "frames" in options:
            beginning = from_frames(self.world, options, B, where)
        elif is_twin_state(options.get("state")):
            beginning = from_twin(self.world, self._truth(), options["state"], B, where)
        unknown = beginning is not None and bool(np.isnan(beginning.state).any())
        if unknown and self._observer.needs_state:
            raise OptionError(
                f"observation={self.settings.observation!r} shows the state: give the option "
                "'state', the true state at the last of the frames"
            )
        return beginning

    def _begin(self, where: Indices, beginning: Beginning | None, told: Told | None) -> None:
        """Start new episodes in some slots.

        Every beginning draws a start and a seed from its dream's generator, needed or not, so that
        what comes later does not depend on options.
        """
        draws = [self._streams.draw(dream) for dream in where]
        index, seeds = (np.array(numbers, np.int64) for numbers in zip(*draws, strict=True))
        if beginning is None:
            beginning = bundled(self.world, index)
        self._dreams.begin(where, beginning, seeds, told)
        self._elapsed[where] = 0
        self._over[where] = False
        self._start_index[where] = beginning.start_index
        self._show_first(where)

    def _continue(self, where: Indices, snapshot: DreamSnapshot, fresh: Fresh) -> None:
        """Put a snapshot into slots; a dream with a new generator gets a new future from it."""
        seeds = snapshot.memory.seed.clone()
        for row, dream in enumerate(where):
            self._streams.from_text(dream, snapshot.random[row])
            if dream in fresh:
                self._streams.take(dream, fresh)
                seeds[row] = self._streams.draw(dream)[1]
        memory = dataclasses.replace(snapshot.memory.clone(), seed=seeds)
        self._dreams.put(where, memory, snapshot.shown)
        self._elapsed[where] = snapshot.elapsed
        self._over[where] = snapshot.over
        self._start_index[where] = snapshot.start_index
        self._show_first(where)

    def _checked_snapshot(self, snapshot: Any, where: Indices) -> DreamSnapshot:
        """A snapshot of as many dreams as there are slots to fill, of this world and settings."""
        if isinstance(snapshot, str | Path):
            snapshot = DreamSnapshot.load(snapshot)
        if not isinstance(snapshot, DreamSnapshot):
            raise OptionError(
                f"expected what snapshot() returned or a file of it, got {type(snapshot).__name__}"
            )
        if snapshot.world != self.world.fingerprint:
            raise ForeignSnapshotError(
                f"this is {self.world.title} ({self.world.fingerprint}), the snapshot is of a "
                f"world with other weights ({snapshot.world})"
            )
        decoded = snapshot.shown.frames is not None
        if snapshot.shown.rewards.shape[1] != self._dreams.frames or decoded != self._dreams.decode:
            raise ForeignSnapshotError(
                "the snapshot was taken with other arguments frames_per_chunk or decode; make this "
                "environment with the same"
            )
        if len(snapshot) not in (1, len(where)):
            raise OptionError(f"{len(where)} dreams to fill, the snapshot holds {len(snapshot)}")
        return snapshot.index([0] * len(where)) if len(snapshot) == 1 else snapshot

    def _truth(self) -> Any:
        """The real twin, made when it is first needed."""
        if self._twin is None:
            self._twin = self.world.make_twin(frames_per_chunk=self._dreams.frames)
        return self._twin

    # ------------------------------------------------------------------------------- in and out

    def _encoded(self, actions: Any, *, ignored: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Chunks as the network sees them; what ignored dreams were told is not looked at."""
        space = self.chunk_space
        if ignored.any() and np.shape(actions) == self.action_space.shape:
            actions = np.array(actions)
            actions[ignored] = filler(space)
        return encode_actions(space, checked_chunk(space, actions, self.num_envs))

    def _infos(self, where: Indices) -> Infos:
        """What is to be told of the present, with Gymnasium's masks of whom it is news of."""
        told = {
            **self._dreams.view.infos(),
            "time": self._elapsed * self.seconds_per_step,
            "start_index": self._start_index.copy(),
        }
        if not self.world.manifest.answers:
            told["answers_to_actions"] = np.zeros(self.num_envs, np.bool_)
        return masked(told, where)

    def _final(self, where: Indices) -> Infos:
        """The last observations and infos of episodes that have just ended."""
        if len(where) == 0:
            return {}
        shown = self._observer.observe(self._dreams.view)
        observations = np.full(self.num_envs, None, object)
        for dream in where:
            observations[dream] = one_dream(shown, dream)
        return masked({"final_obs": observations, "final_info": self._infos(where)}, where)

    def _show_first(self, where: Indices) -> None:
        """After a beginning, only the frame that the dream begins with is unseen."""
        for dream in where:
            self._unseen[dream] = []
            self._collect(dream, only_last=True)

    def _collect(self, dream: int, *, only_last: bool = False) -> None:
        """Remember frames until `render` is called."""
        if self.render_mode == "rgb_array_list":
            assert self._dreams.view.frames is not None
            frames = self._dreams.view.frames[dream]
            self._unseen[dream] += [frame.copy() for frame in frames[-1 if only_last else 0 :]]

    # ------------------------------------------------------------------------------- checks

    def _which(self, mask: Any) -> Indices:
        """The dreams to reset."""
        where = np.arange(self.num_envs) if mask is None else checked_mask(mask, self.num_envs)
        self._require_all_at_first(where)
        return where

    def _rows(self, dreams: Sequence[int] | None) -> Indices:
        """Checked indices of different dreams."""
        rows = np.arange(self.num_envs) if dreams is None else np.asarray(dreams)
        if rows.ndim != 1 or rows.dtype.kind not in "iu" or len(set(rows.tolist())) != len(rows):
            raise OptionError(f"expected a list of different dreams, got {dreams!r}")
        if len(rows) == 0 or rows.min() < 0 or rows.max() >= self.num_envs:
            raise OptionError(f"there are dreams 0 to {self.num_envs - 1}, got {dreams!r}")
        return rows.astype(np.int64)

    def _require_all_at_first(self, where: Indices) -> None:
        if not self._dreams.begun and len(where) < self.num_envs:
            raise OptionError("the first reset must be of all dreams: nothing has begun yet")

    def _require_open(self) -> None:
        if self.closed:
            raise ClosedEnvironmentError("this environment is closed; make a new one")

    def _require_running(self) -> None:
        self._require_open()
        if not self._dreams.begun:
            raise ResetNeeded("call reset first: no dream has begun")
