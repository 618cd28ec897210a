"""Theorem 1: closed forms against exact filters, readers against closed forms, cells that last."""

import json

import imageio.v3 as iio
import pytest
import torch

from kairos_env.benchmarks import cli
from kairos_env.benchmarks.memory import suite
from kairos_env.benchmarks.memory.readers import READERS, Reader, gap_loss
from kairos_env.benchmarks.memory.suite import SuiteConfig, compared
from kairos_env.benchmarks.memory.tasks import TASKS, BinaryCue, GaussianCue, HiddenWalk

GAPS = (1, 4, 8, 12, 20)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_the_floor_is_what_the_best_prediction_errs(task) -> None:
    batch = task.draw(40_000, generator())
    risk = (batch.target - batch.best).square().mean(0)
    for gap in GAPS:
        assert risk[task.seen - 1 + gap] == pytest.approx(task.floor(gap), rel=0.03)


@pytest.mark.parametrize("window", [3, 9, 13])
def test_the_excess_of_a_hidden_walk_is_that_of_an_exact_filter(window) -> None:
    task = HiddenWalk()
    batch = task.draw(20_000, generator())
    blind = (task.filtered(batch.frames[..., 0], window) - batch.best).square().mean(0)
    for gap in GAPS:
        assert blind[task.seen - 1 + gap] == pytest.approx(
            task.excess(gap, window), rel=0.05, abs=1e-4
        )


@pytest.mark.parametrize("task", [BinaryCue(), GaussianCue()], ids=lambda task: task.name)
def test_the_excess_of_a_cue_is_the_variance_of_what_it_tells(task) -> None:
    best = task.draw(100_000, generator()).best[:, -1]
    assert task.excess(4, window=4) == pytest.approx(best.var().item(), rel=0.02)
    assert task.excess(4, window=5) == 0.0
    assert BinaryCue().excess(9, 9) == pytest.approx(1.89)


@pytest.mark.parametrize("kind", ["window", "dilated"])
def test_a_reader_sees_as_far_as_is_printed_and_no_further(kind) -> None:
    task = GaussianCue()
    reader = Reader(READERS[kind], task.length)
    frames = task.draw(1, generator()).frames.requires_grad_()
    (gradient,) = torch.autograd.grad(reader(frames)[0, -1], frames)
    seen = gradient[0].abs().sum(-1) > 0
    assert int(seen.sum()) == reader.window
    assert seen[-reader.window :].all()


@pytest.mark.parametrize("kind", ["hybrid", "full"])
def test_the_others_see_everything(kind) -> None:
    task = GaussianCue()
    reader = Reader(READERS[kind], task.length)
    frames = task.draw(1, generator()).frames.requires_grad_()
    (gradient,) = torch.autograd.grad(reader(frames)[0, -1], frames)
    assert reader.window is None
    assert (gradient[0].abs().sum(-1) > 0).all()


def test_readers_are_of_equal_size_and_learn() -> None:
    task = GaussianCue()
    sizes = [Reader(config, task.length).size for config in READERS.values()]
    assert max(sizes) < 1.05 * min(sizes)
    reader = Reader(READERS["full"], task.length)
    optimizer = torch.optim.Adam(reader.parameters(), 1e-2)
    losses = []
    for step in range(40):
        loss = gap_loss(reader, task, task.draw(32, generator(step)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])


def test_what_agrees_and_what_would_disprove_the_theorem() -> None:
    assert compared(9, floor=0.2, closed=0.8, excess=0.85, error=0.001)["agrees"]
    assert not compared(9, floor=0.2, closed=0.8, excess=0.95, error=0.001)["agrees"]
    assert compared(9, floor=0.2, closed=0.8, excess=0.95, error=0.1)["agrees"]
    assert compared(9, floor=0.2, closed=0.8, excess=0.1, error=0.01)["below_bound"]
    assert not compared(4, floor=0.2, closed=0.0, excess=0.01, error=0.01)["below_bound"]


def test_a_stopped_suite_goes_on_to_the_same_numbers(tmp_path, monkeypatch, capsys) -> None:
    command = ["memory", "--quick", "--out", str(tmp_path / "out"), "--gaps", "2", "9"]

    def cells(folder):
        assert cli.main([*command, "--cells", str(folder)]) == 0
        (file,) = (tmp_path / "out").iterdir()
        return json.loads(file.read_text())

    whole = cells(tmp_path / "one")
    measure, done = suite.measure, []

    def stop_after_three(*arguments):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(1)
        return measure(*arguments)

    monkeypatch.setattr(suite, "measure", stop_after_three)
    assert cli.main([*command, "--cells", str(tmp_path / "two")]) == 130
    assert "the same command goes on" in capsys.readouterr().err
    monkeypatch.setattr(suite, "measure", measure)
    assert cells(tmp_path / "two")["cells"] == whole["cells"]
    assert whole["verdict"]["rows"] == 24
    monkeypatch.setattr(suite, "measure", stop_after_three)  # a part is read from the same cells
    command += ["--tasks", "Gaussian cue"]
    assert cells(tmp_path / "two")["cells"] == whole["cells"][4:8]
    picture = tmp_path / "memory.png"
    assert cli.main([*command, "--cells", str(tmp_path / "two"), "--plot", str(picture)]) == 0
    assert iio.imread(picture).shape[1] > 500
    assert {"machine", "commit", "command"} <= set(whole)


def test_gaps_and_tasks_that_are_not_there_are_refused(capsys) -> None:
    assert cli.main(["memory", "--quick", "--tasks", "cue"]) == 1
    assert "no task cue; there are binary cue" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"gaps must lie in 1 \.\. 24, got \(30,\)"):
        SuiteConfig(gaps=(30,))
