"""`kairos bench kernels`: it writes what it promises, and nothing when a kernel is wrong."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kairos_env.benchmarks import cli, kernels
from kairos_env.benchmarks.machine import commit, write_results
from kairos_env.benchmarks.timing import Clock, crossover, matmul_peak


def test_it_writes_every_figure_with_machine_commit_and_command(tmp_path: Path) -> None:
    assert cli.main(["kernels", "--quick", "--out", str(tmp_path)]) == 0
    (file,) = tmp_path.iterdir()
    results = json.loads(file.read_text())
    assert {"machine", "commit", "command", "measured_at"} <= set(results)
    assert results["machine"]["processor"]
    assert results["matmul_peak_gflops"] > 0
    for name in ("gated_delta", "window_attention"):
        for row in results[name]["rows"]:
            assert {"fast", "twin", "full"} <= set(row["forward_ms"])
            assert {"fast", "twin", "full"} <= set(row["forward_backward_ms"])
            assert 0 < row["fraction_of_peak"] < 2
        assert "forward" in results[name]["faster_than_full_attention_from_tokens"]
    for row in results["streaming"].values():
        assert row["ratio_to_first"]["10"] == 1


def test_a_wrong_kernel_is_not_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    honest: Callable[..., torch.Tensor] = kernels.window_attention

    def wrong(*inputs: torch.Tensor, **how: object) -> torch.Tensor:
        output = honest(*inputs, **how)
        return output if how["backend"] == "reference" else output * 1.001

    monkeypatch.setattr(kernels, "window_attention", wrong)
    assert cli.main(["kernels", "--quick", "--out", str(tmp_path)]) == 1
    assert "window_attention differs from its twin" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_kernel_that_gives_nan_is_not_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = kernels._delta
    monkeypatch.setattr(
        kernels,
        "_delta",
        lambda *x, backend=None: honest(*x, backend=backend) * (1 if backend else torch.nan),
    )
    with pytest.raises(kernels.DisagreementError, match="gated_delta differs"):
        kernels.measure(kernels.quicker(kernels.KernelBench()))


def test_an_unknown_bench_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["kernel"]) == 2
    assert "Did you mean 'kairos bench kernels'?" in capsys.readouterr().err
    assert cli.main([]) == 0
    assert "kernels" in capsys.readouterr().out


def test_the_crossing_is_found_between_two_sizes() -> None:
    sizes = [100, 200, 400]
    assert crossover(sizes, [1, 2, 4], [0.5, 2, 8]) == 200
    assert crossover(sizes, [1, 2, 4], [2, 4, 8]) == 100
    assert crossover(sizes, [1, 2, 4], [0.5, 1, 2]) is None
    assert crossover(sizes, [4, 4, None], [2, 8, 9]) == 141
    assert crossover([], [], []) is None


def test_turns_are_taken_and_the_slow_one_only_once() -> None:
    calls: list[str] = []
    clock = Clock(rounds=3, seconds=0.0)
    clock.medians({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")})
    assert calls == ["a", "b"]
    calls.clear()
    Clock(rounds=2, seconds=9).medians(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    )
    assert calls == ["a", "b"] * 3
    assert matmul_peak(clock, torch.float32, size=64) > 0


def test_results_are_whole_or_absent(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_results("x", {"speed": float("nan")}, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []
    path = write_results("x", {"speed": 1.0}, folder=tmp_path)
    assert list(tmp_path.iterdir()) == [path]
    assert json.loads(path.read_text())["commit"] == commit()
