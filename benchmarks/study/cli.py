"""`kairos study WORLD` and `kairos study compare A B`."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from kairos_env.benchmarks.progress import teller
from kairos_env.benchmarks.study.config import StudyConfig
from kairos_env.terminal import result_console, run_command

if TYPE_CHECKING:
    from kairos_env.benchmarks.study.drift import Drift
    from kairos_env.benchmarks.study.shards import Plan, Stage

Side = Literal["dream", "replay", "state"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyArguments:
    """Does a world rank policies as the simulator does that it was learned from?

    Policies of graded quality act in truth and in the dream, from the same start states. Writes
    report.html, results.json and the plots. Stopped or killed, the same command goes on and ends
    with the same numbers. `kairos study compare A B` puts two studies side by side.
    """

    world: Annotated[str, tyro.conf.Positional]
    """A bundled world's name, a folder, or OWNER/NAME on the hub."""
    out: Path
    """Folder of the study."""
    config: Annotated[StudyConfig, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=StudyConfig
    )
    sides: tuple[Side, ...] = ("dream", "replay", "state")
    """dream: policies see what the dream shows. replay: the true actions again. state: policies see
    what the world's state head says (of scenes that can be seen only)."""
    checkpoints: Path | None = None
    """A folder of Stable-Baselines3 policies (.zip) that take part. They are unpickled: open only
    those you trust."""
    drift: bool = True
    """Also measure errors by horizon."""
    workers: int = 1
    """Processes."""
    threads: int = 1
    """CPU threads of each. On a shared machine one is far faster than several that wait."""
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        for name in ("workers", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1, got {getattr(self, name)}")
        if "dream" not in self.sides:
            raise ValueError(f"--sides needs 'dream', which the report is about: {self.sides}")
        if self.workers > 1 and self.device != "cpu":
            raise ValueError("--workers is for the CPU: a GPU dreams in larger batches (--batch)")


def main(argv: Sequence[str]) -> int:
    """The command; returns its exit status."""
    if argv and argv[0] == "compare":
        from kairos_env.benchmarks.study.compare import main as compare

        return compare(argv[1:])
    return run_command("kairos study", StudyArguments, run, argv)


def run(arguments: StudyArguments) -> None:
    """Run what is missing, then write the report."""
    import torch

    from kairos_env.agents.runs import keep_config
    from kairos_env.benchmarks.study.shards import PLAN, Plan, Stage
    from kairos_env.worlds import load_world

    torch.set_num_threads(arguments.threads)
    world = load_world(arguments.world, device=arguments.device)
    config = arguments.config
    grades = _grades(world.manifest.environment.id, config.policies, arguments.checkpoints)
    plan = Plan(world, config, grades)
    keep_config(arguments.out / PLAN, plan.document())
    stage = Stage(plan, arguments.out)
    try:
        sides, measured = _measure(stage, arguments)
        _write(stage, sides, measured)
    finally:
        stage.close()


def _grades(env_id: str, count: int, folder: Path | None) -> Any:
    """The policies: scripted ones, and the checkpoints of a folder."""
    from kairos_env.benchmarks.study.grades import ladder
    from kairos_env.real.experts import expert_for

    checkpoints = [] if folder is None else sorted(str(path) for path in folder.glob("*.zip"))
    if folder is not None and not checkpoints:
        raise ValueError(f"--checkpoints: there are no .zip files in {folder}")
    try:
        expert_for(env_id)
    except KeyError:
        return tuple(ladder(count, expert=False, checkpoints=checkpoints))
    return tuple(ladder(count, expert=True, checkpoints=checkpoints))


def _measure(stage: "Stage", arguments: StudyArguments) -> "tuple[list[str], Drift | None]":
    """Everything that takes time; also the sides that were run."""
    from kairos_env.benchmarks.study.drift import drift
    from kairos_env.benchmarks.study.shards import SHARDS, missing, run_all, tasks
    from kairos_env.benchmarks.study.sides import STATE, TRUTH

    with _bar() as bar:
        line = bar.add_task("start states", total=None)
        sides = [TRUTH, *(s for s in arguments.sides if s != STATE or stage.eyes is not None)]
        wanted = tasks(stage.plan, sides)
        done = len(wanted) - len(missing(stage.folder, wanted))
        bar.update(line, description="policies and sides", total=len(wanted), completed=done)
        for index, side in run_all(stage, wanted, workers=arguments.workers):
            bar.update(line, advance=1, description=f"{side}: {stage.plan.grades[index].label}")
        bar.update(line, description="policies and sides")
        if not arguments.drift:
            return sides, None
        shards = stage.folder / SHARDS
        tell = teller(bar, before="drift: ")
        return sides, drift(stage.plan.world, stage.plan.config, shards, on_progress=tell)


def _write(stage: "Stage", sides: Sequence[str], measured: "Drift | None") -> None:
    """The document, the plots, the page; a table on the screen."""
    from kairos_env.agents.data.files import write_bytes, write_json
    from kairos_env.benchmarks.study.figures import figures
    from kairos_env.benchmarks.study.films import replays
    from kairos_env.benchmarks.study.report import write_page
    from kairos_env.benchmarks.study.summary import document

    plan, folder = stage.plan, stage.folder
    told = {} if measured is None else measured.document
    content = document(plan, folder, sides, drift=told)
    plots = figures(content)
    for plot in plots:
        write_bytes(folder / f"{plot.name}.png", plot.png())
    fps, films = plan.world.manifest.environment.fps, plan.config.films
    write_page(
        folder / "report.html",
        content,
        plots,
        acted=_acted(stage, content),
        replays=[] if measured is None else replays(measured, fps, films),
    )
    write_json(folder / "results.json", content)
    console = result_console()
    console.print(screen_table(content, plan))
    console.print(f"{folder / 'report.html'}\n{folder / 'results.json'}", highlight=False)


def _acted(stage: "Stage", content: dict[str, Any]) -> Any:
    """Films of policies from best to worst."""
    from kairos_env.benchmarks.study.films import acted

    rows, films = content["policies"], stage.plan.config.films
    step = (len(rows) - 1) / max(films - 1, 1)
    chosen = [rows[round(i * step)] for i in range(min(films, len(rows)))]
    return acted(stage, [row["place"] for row in chosen], [row["label"] for row in chosen])


def screen_table(content: dict[str, Any], plan: "Plan") -> Table:
    """The figures of every side and score."""
    from kairos_env.benchmarks.study.figures import FIGURE_NAMES, SCORE_NAMES
    from kairos_env.benchmarks.study.summary import figure_cell

    found = Table("", *FIGURE_NAMES.values(), title=plan.world.title, title_justify="left")
    for side, by_score in content["agreement"].items():
        for score, figures in by_score.items():
            cells = [figure_cell(figures[name]["estimate"]) for name in FIGURE_NAMES]
            found.add_row(f"{side}, {SCORE_NAMES[score]}", *cells)
    return found


def _bar() -> Progress:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    return Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True))
