"""Rounds of self-evolution, stoppable at any moment.

    for each round:
        collect                 the present policy acts in reality
        train the world         warm, on all data so far
        improve the policy      warm, in that world's dream
        evaluate                the policy in reality, the dream on episodes nobody trained on

Each phase writes to a folder of its own and goes on where it was stopped; one that is complete is
not done again. All randomness follows from the run's seed and the number of the round. So a run
that was killed ends, given updates instead of minutes, with the same figures.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from kairos_env.agents.collect import collect
from kairos_env.agents.data.files import read_json, replacing, write_json
from kairos_env.agents.data.readers import open_dataset
from kairos_env.agents.evolve.config import EvolveConfig
from kairos_env.agents.imagine.algorithms import round_seed
from kairos_env.agents.imagine.config import ImagineConfig, StudyConfig
from kairos_env.agents.imagine.report import Live
from kairos_env.agents.imagine.run import BEST, HANDED_ON, POLICY, Entry, read_log
from kairos_env.agents.imagine.study import RESULTS, folder_of, imagine
from kairos_env.agents.imagine.transitions import read_transitions
from kairos_env.agents.policies import PolicySpec, load_checkpoint
from kairos_env.agents.runs import keep_config
from kairos_env.agents.training.cli import Arguments, run_config
from kairos_env.agents.training.clips import TrainingData, fingerprint
from kairos_env.agents.training.config import TrainConfig
from kairos_env.agents.training.loop import train
from kairos_env.agents.training.validation import dream
from kairos_env.catalogue import MANIFEST
from kairos_env.worlds import load_world

CONFIG, EVOLVE = "config.json", "evolve.json"
Json = dict[str, Any]
# Of the seeds that are drawn beside those of the rounds.
HELD_OUT, DEPLOYED = 1_000_000, 1_000_001
# Episodes of a round's own policy.
DEPLOYED_DATA = "deployed"
# Every episode of a dataset is held out; a share of 1 is not a split.
ALL = 1 - 1e-12


@dataclasses.dataclass(frozen=True, kw_only=True)
class Round:
    """One turn of the loop, or the control."""

    config: EvolveConfig
    name: str
    seed: int
    before: tuple["Round", ...] = ()
    """The rounds that it builds on."""
    turns: int = 1
    """How many rounds' worth of training it is given."""

    @property
    def folder(self) -> Path:
        """Where everything of the round is kept."""
        return self.config.out / self.name

    @property
    def data(self) -> Path:
        """The episodes it collects."""
        return self.folder / "data"

    @property
    def world(self) -> Path:
        """The world it learns."""
        return self.folder / "world"

    @property
    def policy(self) -> Path:
        """The policy's run."""
        return self.folder / "policy"

    @property
    def all_data(self) -> tuple[Path, ...]:
        """The episodes that its world learns from: everybody's so far."""
        return (*self.config.data, *(turn.data for turn in (*self.before, self)))

    @property
    def collectors(self) -> tuple[PolicySpec, ...]:
        """Who acts: the policy of the round before, or those that the first round begins with."""
        if not self.before:
            return tuple(PolicySpec.parse(text) for text in self.config.policy)
        deployed = self.before[-1].policy / POLICY
        return (PolicySpec(name=str(deployed), noise=self.config.explore),)


def evolve(config: EvolveConfig) -> Json:
    """Run all rounds, and the control where it is asked for; returns what is in OUT/evolve.json."""
    torch.set_num_threads(config.threads)
    keep_config(config.out / CONFIG, config.as_json())
    collect_held_out(config)
    rounds: tuple[Round, ...] = ()
    results: Json = {
        "command": " ".join(["kairos", *sys.argv[1:]]),
        "config": config.as_json(),
        "threads": config.threads,
        "rounds": [],
        "control": None,
    }
    for number in range(config.rounds):
        seed = round_seed(config.seed, number)
        turn = Round(config=config, name=f"round-{number}", seed=seed, before=rounds)
        collect_episodes(turn, config.episodes)
        results["rounds"].append(learned(turn))
        write_json(config.out / EVOLVE, results)
        rounds += (turn,)
    if config.control:
        results["control"] = play_control(rounds)
        write_json(config.out / EVOLVE, results)
    compare_on_last(rounds, results)
    write_json(config.out / EVOLVE, results)
    return results


def compare_on_last(rounds: tuple[Round, ...], results: Json) -> None:
    """How true each world is where the last policy goes: the same episodes for all of them."""
    last = rounds[-1].folder / DEPLOYED_DATA
    told = [*zip(rounds, results["rounds"], strict=True)]
    if results["control"]:
        told.append((control_of(rounds), results["control"]))
    for turn, told_of in told:
        told_of["fidelity"]["last"] = fidelity(turn, last, picture="last")


def play_control(rounds: tuple[Round, ...]) -> Json:
    """As many real steps and as much training as all rounds had, without any feedback.

    Its first episodes are those of the first round.
    """
    control = control_of(rounds)
    collect_steps(control, sum(real_steps(turn.data) for turn in rounds))
    return learned(control)


def control_of(rounds: tuple[Round, ...]) -> Round:
    """The control of so many rounds."""
    turns = len(rounds)
    return dataclasses.replace(rounds[0], name=f"control-{turns}", turns=turns)


def learned(turn: Round) -> Json:
    """World, policy and evaluation of a round whose data are there."""
    path = turn.folder / "evaluation.json"
    if not path.exists():
        if turn.config.imitate:  # refuses where nothing was solved, before a world is trained
            read_transitions(open_dataset(turn.all_data), solved=True)
        train_world(turn)
        improve_policy(turn)
        write_json(path, evaluate(turn))
    kept: Json = read_json(path)
    return kept


def collect_episodes(turn: Round, episodes: int) -> None:
    """Record so many episodes of a round's collectors."""
    record(turn.config, turn.data, turn.collectors, episodes, turn.seed)


def collect_steps(turn: Round, steps: int) -> None:
    """Record the fewest episodes that hold so many real steps.

    It approaches that number from below, so a stopped collection ends with the same episodes.
    """
    episodes, held = 0, 0
    while held < steps:
        episodes += max((steps - held) // longest(turn), 1) if held else 1
        collect_episodes(turn, episodes)
        held = real_steps(turn.data)


def collect_held_out(config: EvolveConfig) -> None:
    """Episodes of the first collectors that every world is compared with, and none learns from."""
    collectors = tuple(PolicySpec.parse(text) for text in config.policy)
    seed = round_seed(config.seed, HELD_OUT)
    record(config, config.out / "held-out", collectors, config.fidelity_episodes, seed)


def record(
    config: EvolveConfig, out: Path, policies: tuple[PolicySpec, ...], episodes: int, seed: int
) -> None:
    """Collect into a folder, with a bar."""
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task(str(out.relative_to(config.out)), total=episodes)
        collect(
            config.env,
            episodes=episodes,
            out=out,
            policies=policies,
            seed=seed,
            on_episode=lambda done, _: bar.update(task, completed=done),
            **config.real_arguments,
        )


def train_world(turn: Round) -> None:
    """Learn the world of a round, from the weights of the one before."""
    if (turn.world / MANIFEST).is_file():
        return
    config = turn.config
    asked = Arguments(
        data=turn.all_data,
        out=turn.world,
        minutes=config.minutes * turn.turns,
        start=str(turn.before[-1].world) if turn.before else config.start,
        stages=config.further if turn.before else config.first_stages,
        steps=config.further_updates if turn.before else config.updates_of(turn.turns),
        size=config.size,
        seed=turn.seed,
        threads=config.threads,
        device=config.device,
    )
    train(run_config(asked))


def improve_policy(turn: Round) -> None:
    """Practise in the round's dream, from the policy of the round before."""
    if (turn.policy / RESULTS).is_file():
        return
    study = study_of(turn)
    if turn.before:
        hand_on(study_of(turn.before[-1]), study)
    with Live() as live:
        imagine(study, live)


def study_of(turn: Round) -> StudyConfig:
    """The run of a round's policy."""
    config = turn.config
    run = ImagineConfig(
        world=str(turn.world),
        algo=config.algo,
        imitate=config.imitate,
        learning_rate=config.learning_rate,
        guard=config.guard,
        steps=config.steps * turn.turns,
        envs=config.envs,
        horizon=config.horizon,
        data=turn.all_data,
        rollout=config.rollout,
        gamma=config.gamma,
        round_steps=config.round_steps,
        exam_episodes=config.exam_episodes,
        test_episodes=config.test_episodes,
        seed=turn.seed,
        device=config.device,
    )
    return StudyConfig(run=run, out=turn.policy, threads=config.threads)


def hand_on(old: StudyConfig, new: StudyConfig) -> None:
    """Begin a policy's run with the policy that the one before kept.

    It counts as having practised once, for no steps: so it is examined before it imitates and
    practises on, and is kept if that makes it no better.
    """
    source, target = (folder_of(study, "dream", study.run.seed) for study in (old, new))
    if (target / HANDED_ON).exists():
        return
    kept = torch.load(source / BEST, map_location="cpu", weights_only=True)
    with replacing(target / HANDED_ON) as file:
        torch.save({**kept, "rounds": 1, "steps": 0}, file)


def evaluate(turn: Round) -> Json:
    """What a round cost, what its policy is worth in reality, and how true its dream is."""
    config, policy = turn.config, read_json(turn.policy / RESULTS)
    run = policy["runs"]["dream"][0]
    record(
        config,
        turn.folder / DEPLOYED_DATA,
        (PolicySpec(name=str(turn.policy / POLICY)),),
        config.fidelity_episodes,
        round_seed(turn.seed, DEPLOYED),
    )
    world = load_world(turn.world)
    before = turn.before[-1] if turn.before else None
    return {
        "name": turn.name,
        "data": [described_data(other) for other in (*turn.before, turn)],
        "world": {
            "start": before.name if before else config.start,
            "weights": fingerprint(world.model),
            "stages": [
                {"stage": stage["stage"], "updates": stage["updates"]}
                for stage in world.manifest.provenance["stages"]
            ],
        },
        "policy": {
            "start": before and before.name,
            "weights": fingerprint(load_checkpoint(turn.policy / POLICY).policy),
            "budget": policy["config"]["steps"],
            "dreamed_steps": run["steps"],
            "kept_step": run["kept_step"],
            "stopped": run["stopped"],
            "examined": examinations(turn),
        },
        "real_steps": {
            "data": sum(real_steps(path) for path in turn.all_data),
            "examinations": run["exam_steps"] + examined_before(turn),
        },
        "real": run["kept"],
        "random": policy["random"],
        "fidelity": {
            "held-out": fidelity(turn, config.out / "held-out"),
            "deployed": fidelity(turn, turn.folder / DEPLOYED_DATA),
        },
    }


def examinations(turn: Round) -> list[Json]:
    """What the policy was worth after each round of practice, in reality and as it was dreamed."""
    study = study_of(turn)
    log = read_log(folder_of(study, "dream", study.run.seed))
    names = ("steps", "real", "dreamed", "success")
    return [{name: line[name] for name in names} for line in map(Entry.to_json, log)]


def described_data(turn: Round) -> Json:
    """Who collected a round's episodes, and how many."""
    names = [spec.label.removeprefix(f"{turn.config.out}/") for spec in turn.collectors]
    return {
        "folder": f"{turn.name}/data",
        "collectors": names,
        "seed": turn.seed,
        "episodes": len(open_dataset(turn.data)),
        "real_steps": real_steps(turn.data),
    }


def examined_before(turn: Round) -> int:
    """Real steps of the examinations of all rounds before."""
    if not turn.before:
        return 0
    last = read_json(turn.before[-1].folder / "evaluation.json")
    return int(last["real_steps"]["examinations"])


def real_steps(data: Path) -> int:
    """Low-level actions of recorded episodes, counted as worlds count them."""
    dataset = open_dataset(data)
    return int(dataset.lengths.sum()) * dataset.spec.actions_per_frame


def longest(turn: Round) -> int:
    """Real steps that an episode can have at most."""
    spec = open_dataset(turn.data).spec
    per_step = spec.provenance["environment"]["frames_per_chunk"]
    return int(turn.config.episode_steps * per_step + 1) * spec.actions_per_frame


def fidelity(turn: Round, data: Path, picture: str | None = None) -> dict[str, float]:
    """PSNR of frames dreamed from the first of recorded episodes, beside repeating the last one."""
    config = TrainConfig(data=(data,), out=turn.world, validation_share=ALL)
    world = load_world(turn.world, device=turn.config.device).model
    path = turn.folder / f"{picture or data.name}.png"
    with torch.no_grad():
        return dream(world, TrainingData(config), config.stages[0], path)
