"""A policy from the dream and, at the same price in real steps, what stands against it.

The dream's real price is the data that the world was trained on. The baselines are

- real: the same algorithm in the real environment alone, for as many real steps;
- converged: the same, until its real return rises no more: the 1 of the scale, random chunks
  being the 0;
- cloning: imitation of the recorded episodes that solved the task;
- ensemble: the same algorithm inside a memoryless ensemble over the simulator's state.

Each policy is tested on real episodes that nothing before has seen.
"""

import dataclasses
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import gymnasium
import numpy as np
from stable_baselines3.common.policies import ActorCriticPolicy

from kairos_env.agents.data.dataset import Dataset
from kairos_env.agents.data.files import read_json, write_bytes, write_json
from kairos_env.agents.imagine.algorithms import Learner
from kairos_env.agents.imagine.cloning import UPDATES, chunks_of, clone, imitate, observed
from kairos_env.agents.imagine.config import ImagineConfig, StudyConfig
from kairos_env.agents.imagine.ensemble import EnsembleConfig, EnsembleVecEnv, fit_ensemble
from kairos_env.agents.imagine.envs import dream_env, open_world, real_env, recorded
from kairos_env.agents.imagine.exam import Examiner
from kairos_env.agents.imagine.guard import Guard
from kairos_env.agents.imagine.run import (
    POLICY,
    RESULT,
    Entry,
    Practice,
    converged,
    guarded,
    learn,
    read_log,
    tested,
    unguarded,
)
from kairos_env.agents.imagine.statistics import iqm_interval
from kairos_env.agents.imagine.transitions import Transitions, read_transitions
from kairos_env.remake import runs_of

RESULTS = "results.json"
BASELINES = ("real", "converged", "cloning", "ensemble")
# The real-trained policy has converged when this many examinations in a row bring nothing.
PLATEAU = 8
Json = dict[str, Any]
Report = Callable[[str, int, Entry, float], None]
"""Told of every examination: which method, which seed, the examination, the share of the budget."""


class Study:
    """What all policies of a study share: world, data, examiner.

    Args:
        config: The study.
        report: Told of every examination.
    """

    def __init__(self, config: StudyConfig, report: Report) -> None:
        run = config.run
        if run.dreamers is not None:
            from kairos_env.agents.scale.cluster import import_ray

            import_ray()  # before minutes are spent
        self.config = config
        self.report = report
        self.dataset = recorded(run)
        self.world = open_world(run, self.dataset)
        self.examiner = Examiner(run, self.world)
        random = self.examiner.random()
        self.floor = self.examiner.in_reality(random, self.examiner.seeds).returns
        self.random = tested(self.examiner.test(random))

    def dream(self, seed: int, run: ImagineConfig) -> Json:
        """A policy that has practised in the dream alone."""
        floor = float(self.floor.mean())
        judge = guarded(lambda: Guard(floor)) if run.guard else unguarded
        practice = Practice(
            config=run,
            learner=lambda: self._dreaming(run),
            judge=judge,
            steps=run.steps,
            seconds=run.seconds,
        )
        return self._learn("dream", seed, practice)

    def real(self, seed: int, run: ImagineConfig) -> Json:
        """The same algorithm in reality, for as many real steps as the world's data took."""
        budget = self._data_steps() // self.examiner.chunk
        return self._learn("real", seed, self._in_reality(run, budget))

    def converged(self, seed: int, run: ImagineConfig) -> Json:
        """The same algorithm in reality, until it rises no more."""
        practice = self._in_reality(run, self.config.longest)
        judge = converged(PLATEAU, float(self.floor.mean()))
        return self._learn("converged", seed, dataclasses.replace(practice, judge=judge))

    def ensemble(self, seed: int, run: ImagineConfig) -> Json:
        """The same algorithm in an ensemble; as many imagined steps as the dreamed run took."""
        run = dataclasses.replace(run, observation="state")
        examiner = self.examiner
        if self.config.run.observation != "state":
            examiner = Examiner(run, self.world)

        def learner() -> Learner:
            data = read_transitions(self._data(), frames_per_chunk=self._frames_per_chunk)
            imagined = EnsembleVecEnv(
                fit_ensemble(data, EnsembleConfig(), seed=seed),
                data.state,
                run.envs,
                observation_space=cast(gymnasium.spaces.Box, examiner.real.observation_space),
                action_space=self.world.manifest.environment.chunk_space,
                horizon=run.horizon,
            )
            return Learner(run, imagined)

        steps = read_json(folder_of(self.config, "dream", seed) / RESULT)["steps"]
        practice = Practice(config=run, learner=learner, judge=unguarded, dreams=False, steps=steps)
        return self._learn("ensemble", seed, practice, examiner)

    def cloning(self, seed: int, run: ImagineConfig) -> Json:
        """Imitation of what solved the task."""
        path = folder_of(self.config, "cloning", seed) / RESULT
        if path.exists():
            kept: Json = read_json(path)
            return kept
        data = self._solved(run)
        space = self.examiner.real.observation_space
        updates = run.imitate or UPDATES
        cloned = clone(data, self.world, run.observation, space, seed=seed, updates=updates)
        result = {"kept": tested(self.examiner.test(cloned.predict)), "transitions": len(data)}
        write_json(path, result)
        return result

    def close(self) -> None:
        """Free simulator and dreams."""
        self.examiner.close()

    @property
    def data_steps(self) -> int | None:
        """Low-level real actions that the world was trained on; None where nobody wrote it down.

        Of the training run that saw most: a last run may have learned on from fewer.
        """
        data = [run.get("data") or {} for run in runs_of(self.world.manifest.provenance)]
        return max(
            (int(d["environment_steps"]) for d in data if "environment_steps" in d), default=None
        )

    @property
    def _frames_per_chunk(self) -> int:
        return self.world.manifest.environment.frames_per_chunk

    def _data_steps(self) -> int:
        if self.data_steps is None:
            raise ValueError(
                f"world {self.world.name!r} does not say how many real steps its data took, so "
                "no baseline can be given as many; train it with 'kairos train'"
            )
        return self.data_steps

    def _data(self) -> Dataset:
        if self.dataset is None:
            raise ValueError(
                "the baselines cloning and ensemble learn from the world's own episodes: name them "
                "with --data"
            )
        return self.dataset

    def _solved(self, run: ImagineConfig) -> Transitions:
        """The recorded episodes that can be imitated."""
        return read_transitions(
            self._data(),
            frames_per_chunk=self._frames_per_chunk,
            solved=True,
            frames=run.observation != "state",
        )

    def _begin(self, learner: Learner, run: ImagineConfig) -> None:
        """Imitate, where the run asks for it, and expect what came of it."""
        if not run.imitate:
            return
        data, policy = self._solved(run), learner.model.policy
        assert isinstance(policy, ActorCriticPolicy), "the config refuses others"
        seen = observed(data, self.world, run.observation)
        chunks = chunks_of(data, self.world, hold=run.hold)
        values = data.to_go(run.gamma)
        imitate(policy, seen, chunks, values, updates=run.imitate, seed=run.seed)
        learner.count_as_practised()

    def _dreaming(self, run: ImagineConfig) -> Learner:
        """Who practises in the dream: here, or by dreamers on a cluster."""
        if run.dreamers is None:
            return Learner(run, dream_env(run, self.world))
        from kairos_env.agents.scale.learner import GatheringLearner

        return GatheringLearner(
            run,
            self.world,
            address=self.config.cluster,
            threads=self.config.threads,
            gpus=self.config.dreamer_gpus if run.device.startswith("cuda") else 0.0,
        )

    def _in_reality(self, run: ImagineConfig, steps: int) -> Practice:
        return Practice(
            config=run,
            learner=lambda: Learner(run, real_env(run, self.world)),
            judge=unguarded,
            dreams=False,
            steps=steps,
        )

    def _learn(
        self, method: str, seed: int, practice: Practice, examiner: Examiner | None = None
    ) -> Json:
        def tell(entry: Entry, spent: float) -> None:
            self.report(method, seed, entry, spent)

        begin = partial(self._begin, run=practice.config)
        practice = dataclasses.replace(practice, begin=begin)
        examiner = examiner or self.examiner
        return learn(practice, examiner, folder_of(self.config, method, seed), tell)


def imagine(config: StudyConfig, report: Report = lambda *_: None) -> Json:
    """Train and test everything that a study asks for; what is finished already is kept.

    Args:
        config: The study.
        report: Told of every examination.

    Returns:
        What stands in OUT/results.json.
    """
    study = Study(config, report)
    try:
        if config.baselines:
            study._data_steps(), study._data()  # before hours are spent
        methods: dict[str, list[Json]] = {}
        for method in ("dream", *BASELINES) if config.baselines else ("dream",):
            train = getattr(study, method)
            runs = config.runs(baseline=method in BASELINES)
            methods[method] = [train(seed, run) for seed, run in runs]
        results = summarised(study, methods)
    finally:
        study.close()
    deploy(config, methods["dream"])
    write_json(config.out / RESULTS, results)
    return results


def deploy(config: StudyConfig, runs: list[Json]) -> None:
    """Copy the policy with the highest examined real return beside the results."""
    seed = config.run.seed + int(np.argmax([run["kept_exam"] for run in runs]))
    write_bytes(config.out / POLICY, (folder_of(config, "dream", seed) / POLICY).read_bytes())


def folder_of(config: StudyConfig, method: str, seed: int) -> Path:
    """Where one policy's run is kept."""
    return config.out / method / f"seed-{seed}"


def summarised(study: Study, methods: dict[str, list[Json]]) -> Json:
    """All results of a study as JSON values, normalised where the scale is known."""
    floor, one = study.random["return"], None
    if "converged" in methods:
        best = float(np.mean([run["kept"]["return"] for run in methods["converged"]]))
        one = best if best > floor else None  # nothing was learned: there is no scale
    rows = {}
    for method, runs in methods.items():
        for which in ("kept", "last"):
            if which in runs[0]:
                rows[f"{method}, {which}"] = row([run[which] for run in runs], floor, one)
    return {
        "command": " ".join(["kairos", *sys.argv[1:]]),
        "world": study.world.name,
        "fingerprint": study.world.fingerprint,
        "config": study.config.run.as_json(),
        "threads": study.config.threads,
        "seeds": study.config.seeds,
        "data_steps": study.data_steps,
        "random": study.random,
        "scale": {"zero": floor, "one": one},
        "baselines": None if len(methods) == 1 else list(BASELINES),
        "methods": rows,
        "exploit_gap": None if one is None else gaps(methods["dream"], one - floor),
        "real_steps": {m: real_steps(study, m, runs) for m, runs in methods.items()},
        "converged_reached": reached(study) if "converged" in methods else None,
        "runs": methods,
    }


def row(tests: list[Json], floor: float, one: float | None) -> Json:
    """A method's returns over seeds, and their interquartile means."""
    returns = np.array([test["return"] for test in tests])
    solved = [test["success"] for test in tests if test["success"] is not None]
    scores = None if one is None else (returns - floor) / (one - floor)
    return {
        "return": iqm_interval([returns])._asdict(),
        "normalised": None if scores is None else iqm_interval([scores])._asdict(),
        "success": iqm_interval([solved])._asdict() if solved else None,
        "episodes": tests[0]["episodes"],
    }


def gaps(runs: list[Json], gain: float) -> Json:
    """By how much the dream flatters its policies, in shares of what can be gained."""
    return {
        which: iqm_interval([[run[f"gap_at_{which}"] / gain for run in runs]])._asdict()
        for which in ("kept", "last")
    }


def real_steps(study: Study, method: str, runs: list[Json]) -> Json:
    """Low-level actions of the real environment that a policy took, without its final test."""
    chunk = study.examiner.chunk
    practised = {
        "dream": study.data_steps,
        "cloning": study.data_steps,
        "ensemble": study.data_steps,
        "real": chunk * float(np.mean([run.get("steps", 0) for run in runs])),
        "converged": chunk * float(np.mean([run.get("steps", 0) for run in runs])),
    }[method]
    exams = float(np.mean([run.get("exam_steps", 0) for run in runs]))
    return {"practice": practised, "examinations": exams}


def reached(study: Study, share: float = 0.95) -> Json:
    """Low-level real actions that practice in reality needs until it has gained this share."""
    floor, steps = float(study.floor.mean()), []
    for seed, _ in study.config.runs(baseline=True):
        entries = read_log(folder_of(study.config, "converged", seed))
        real = np.array([entry.reading.real.mean() for entry in entries])
        first = int(np.argmax(real - floor >= share * (real.max() - floor)))
        steps.append(study.examiner.chunk * entries[first].reading.steps)
    return {"share": share, "actions": float(np.mean(steps)), "runs": len(steps)}
