"""`kairos plan` and `kairos act`: a world decides, its real twin answers, from pixels alone."""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from kairos_env.terminal import result_console, run_command

if TYPE_CHECKING:
    from kairos_env.agents.policies import Policy
    from kairos_env.benchmarks.trials import Contestant, Json
    from kairos_env.real import RealEnv
    from kairos_env.worlds import World


@dataclasses.dataclass(frozen=True, kw_only=True)
class Common:
    """What both commands take."""

    world: Annotated[str, tyro.conf.Positional]
    """A bundled world's name, a folder, or OWNER/NAME on the hub."""
    episodes: int = 20
    """Held-out episodes that each policy plays; the same ones for all."""
    seed: int = 0
    """Decides the episodes and all randomness of the policies."""
    json: Path | None = None
    """Write what was measured here, after every episode. The same command goes on from it."""
    threads: int = 1
    """CPU threads. On a shared machine one is far faster than several that wait for each other."""
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        if self.episodes < 1:
            raise ValueError(f"--episodes must be at least 1, got {self.episodes}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanArguments(Common):
    """Plan in a world's dream, act in its real twin: no policy is trained.

    Every step, sequences of actions are searched for the highest dreamed return, the first step of
    the best is executed, and the true frame is remembered. Random actions and the scripted expert
    play the same episodes.
    """

    method: tuple[Literal["cem", "icem", "mppi"], ...] = ("cem",)
    """Searches to compare."""
    horizon: int = 5
    """Steps that are planned ahead."""
    candidates: int = 32
    """Sequences in a round."""
    iterations: int = 3
    """Rounds."""
    hold: int | None = None
    """Low-level actions for which a planned one is held; a whole step when not given."""
    discount: float = 0.99
    """Per step."""
    uncertainty_penalty: float = 0.0
    """What a deviation of expected error costs per step."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ActArguments(Common):
    """Let a world's own action stream act in its real twin.

    policy: chunks from memory alone. joint: with the frames they lead to. best-of-n: several, each
    dreamed on, the best taken. Random actions and the scripted expert play the same episodes.
    """

    mode: tuple[Literal["policy", "joint", "best-of-n"], ...] = ("policy", "joint", "best-of-n")
    """Ways to act, to compare."""
    denoise_steps: int = 10
    """Passes per chunk."""
    candidates: int = 32
    """best-of-n: futures that are dreamed."""
    horizon: int = 8
    """best-of-n: steps of each."""
    discount: float = 0.99
    """best-of-n: per step."""


Arguments = TypeVar("Arguments", bound=Common)
Makes = Callable[["World", Arguments], "dict[str, tuple[Policy, Json]]"]


def plan(argv: Sequence[str]) -> int:
    """`kairos plan`; returns its exit status."""
    return _command(argv, PlanArguments, planners, program="kairos plan", name="planning")


def act(argv: Sequence[str]) -> int:
    """`kairos act`; returns its exit status."""
    return _command(argv, ActArguments, actors, program="kairos act", name="acting")


def planners(world: "World", arguments: PlanArguments) -> "dict[str, tuple[Policy, Json]]":
    """A policy for each method, and its settings."""
    from kairos_env.agents.planning.following import MPCPolicy
    from kairos_env.agents.planning.planner import Planner

    made: dict[str, tuple[Policy, Json]] = {}
    for method in arguments.method:
        planner = Planner(
            world,
            method=method,
            horizon=arguments.horizon,
            candidates=arguments.candidates,
            iterations=arguments.iterations,
            hold=arguments.hold,
            discount=arguments.discount,
            uncertainty_penalty=arguments.uncertainty_penalty,
        )
        settings = {
            **dataclasses.asdict(planner.search),
            "horizon": planner.horizon,
            "hold": planner.hold,
            "discount": arguments.discount,
            "uncertainty_penalty": arguments.uncertainty_penalty,
        }
        made[method] = (MPCPolicy(planner), settings)
    return made


def actors(world: "World", arguments: ActArguments) -> "dict[str, tuple[Policy, Json]]":
    """A policy for each mode, and its settings."""
    from kairos_env.agents.act.deciders import BestOfNDecider, StreamDecider
    from kairos_env.agents.planning.following import Decider, FollowingPolicy
    from kairos_env.agents.planning.returns import Objective

    made: dict[str, tuple[Policy, Json]] = {}
    for mode in arguments.mode:
        settings: Json = {"denoise_steps": arguments.denoise_steps}
        decider: Decider
        if mode == "best-of-n":
            settings |= {"candidates": arguments.candidates, "horizon": arguments.horizon}
            objective = Objective(discount=arguments.discount)
            decider = BestOfNDecider(world, objective=objective, **settings)
            settings |= {"discount": arguments.discount}
        else:
            decider = StreamDecider(world, mode=mode, **settings)
        made[mode] = (FollowingPolicy(decider), settings)
    return made


def _command(
    argv: Sequence[str],
    kind: type[Arguments],
    makes: Makes[Arguments],
    *,
    program: str,
    name: str,
) -> int:
    def run(arguments: Arguments) -> None:
        document = _measure(arguments, makes, name)
        console = result_console()
        console.print(_table(document))
        if arguments.json is not None:
            console.print(f"wrote {arguments.json}", highlight=False)

    kept = "Interrupted. Whole episodes are kept in --json; the same command goes on."
    return run_command(program, kind, run, argv, interrupted=kept)


def _measure(arguments: Arguments, makes: Makes[Arguments], name: str) -> "Json":
    import torch

    from kairos_env.benchmarks.trials import Contestant, Trials
    from kairos_env.worlds import load_world

    torch.set_num_threads(arguments.threads)
    world = load_world(arguments.world, device=arguments.device)
    env = world.make_twin()
    try:
        contestants = _baselines(env)
        for title, (policy, settings) in makes(world, arguments).items():
            contestants[title] = Contestant(policy=policy, settings=settings)
        trials = Trials(
            world=world,
            contestants=contestants,
            episodes=arguments.episodes,
            seed=arguments.seed,
            path=arguments.json,
            name=name,
            command=" ".join(["kairos", *sys.argv[1:]]),
            device=arguments.device,
        )
        with _bar() as bar:
            task = bar.add_task(f"episodes of {world.manifest.environment.id}", total=None)
            return trials.run(env, lambda done, of: bar.update(task, completed=done, total=of))
    finally:
        env.close()


def _baselines(env: "RealEnv") -> "dict[str, Contestant]":
    """Random actions, and the scripted expert where there is one."""
    from kairos_env.agents.policies import PolicySpec, make_policy
    from kairos_env.benchmarks.trials import BEST, WORST, Contestant
    from kairos_env.real.experts import expert_for

    names = [WORST]
    try:
        expert_for(env.name)
    except KeyError:
        pass
    else:
        names.append(BEST)
    made: dict[str, Any] = {name: make_policy(PolicySpec(name=name), env) for name in names}
    return {
        name: Contestant(policy=policy, settings={}, thinks=False) for name, policy in made.items()
    }


def _bar() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True))


def _table(document: "Json") -> Table:
    world, environment = document["world"]["name"], document["environment"]
    title = (
        f"world {world!r} acts in {environment}, from pixels\n"
        "95 % intervals; share: 0 random, 1 expert; CPU time and operations of a decision"
    )
    columns = ("success", "return", "share", "steps", "CPU ms", "GFLOP")
    table = Table("", *columns, title=title)
    for name, row in document["results"].items():
        cost = document["costs"].get(name, {}).get("gflop")
        table.add_row(
            f"{name} ({row['episodes']})",
            _interval(row["success"], percent=True),
            _interval(row["return"]),
            "-" if "share" not in row else f"{row['share']:.2f}",
            f"{row['steps']['value']:.1f}",
            "-" if row["cpu_ms"] is None else f"{row['cpu_ms']:.0f}",
            "-" if cost is None else f"{cost:.3g}",
        )
    return table


def _interval(estimate: "Json", *, percent: bool = False) -> str:
    value, low, high = (estimate[key] for key in ("value", "low", "high"))
    if percent:
        return f"{100 * value:.0f} % [{100 * low:.0f}, {100 * high:.0f}]"
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"
