"""Promises of the normalisation of states and actions."""

import json
from pathlib import Path

import pytest
import torch

from kairos_env.world_model.normalizers import (
    Normalizer,
    Statistics,
    read_statistics,
    write_statistics,
)


def data(rows: int = 1000) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(rows, 3, generator=generator) * torch.tensor([1.0, 5.0, 0.0])
    return values + torch.tensor([0.0, -3.0, 2.0])  # the last channel never moves


@pytest.mark.parametrize("mode", ["z-score", "min/max", "q01/q99", "-2/2"])
def test_every_mode_is_inverted_by_the_way_back(mode: str) -> None:
    values = data()
    normalizer = Normalizer.make(mode, Statistics.of(values), clip=None)
    back = normalizer.denormalize(normalizer.normalize(values))
    torch.testing.assert_close(back, values, atol=1e-5, rtol=1e-5)
    assert back.dtype == torch.float32


def test_modes_reach_what_they_are_named_after() -> None:
    values = data()[:, :2]
    statistics = Statistics.of(values)
    scored = Normalizer.make("z-score", statistics, clip=None).normalize(values)
    torch.testing.assert_close(scored.mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(scored.std(0, correction=0), torch.ones(2), atol=1e-5, rtol=0)
    spread = Normalizer.make("min/max", statistics).normalize(values)
    torch.testing.assert_close(spread.amin(0), -torch.ones(2))
    torch.testing.assert_close(spread.amax(0), torch.ones(2))
    inner = Normalizer.make("q01/q99", statistics).normalize(values)
    assert (inner.abs() <= 1 + 1e-6).float().mean() == pytest.approx(0.98, abs=0.002)
    torch.testing.assert_close(
        Normalizer.make("-2/2", statistics).normalize(values).clamp(-1, 1),
        (values / 2).clamp(-1, 1),
    )


def test_a_channel_that_never_moves_is_only_shifted() -> None:
    values = data()
    for mode in ("min/max", "q01/q99"):
        normalizer = Normalizer.make(mode, Statistics.of(values))
        torch.testing.assert_close(
            normalizer.normalize(values + 1e-3)[:, 2], torch.full((1000,), 1e-3)
        )


def test_the_way_in_is_clipped_and_the_way_back_is_not() -> None:
    normalizer = Normalizer.from_range(torch.tensor([0.0]), torch.tensor([1.0]))
    assert normalizer.normalize(torch.tensor([100.0])) == 5
    assert normalizer.denormalize(torch.tensor([100.0])) == 50.5


def test_quantiles_are_those_of_torch() -> None:
    values = data(997).double()
    expected = torch.quantile(values, torch.tensor([0.01, 0.99], dtype=torch.float64), dim=0)
    statistics = Statistics.of(values)
    torch.testing.assert_close(torch.stack([statistics.q01, statistics.q99]), expected)


def test_statistics_survive_the_file(tmp_path: Path) -> None:
    written = {"state": Statistics.of(data()), "action": Statistics.of(data()[:, :2])}
    write_statistics(tmp_path / "stats.json", written)
    read = read_statistics(tmp_path / "stats.json")
    assert list(read) == ["state", "action"]
    assert torch.equal(read["state"].q99, written["state"].q99)
    assert [path.name for path in tmp_path.iterdir()] == ["stats.json"]


def test_a_foreign_statistics_file_says_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "stats.json"
    path.write_text(json.dumps({"state": {"other": {}}}))
    with pytest.raises(ValueError, match="expected a group 'default'"):
        read_statistics(path)
    path.write_text(json.dumps({"state": {"default": {"global_min": [0.0]}}}))
    with pytest.raises(ValueError, match=r"missing .*global_max"):
        read_statistics(path)
    path.write_text("[]")
    with pytest.raises(ValueError, match="expected an object"):
        read_statistics(path)


@pytest.mark.parametrize("mode", ["zscore", "2/-2", "min/median", ""])
def test_an_unknown_mode_is_refused(mode: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        Normalizer.make(mode, Statistics.of(data()))


def test_values_that_do_not_fit_are_refused() -> None:
    normalizer = Normalizer.make("z-score", Statistics.of(data()))
    with pytest.raises(ValueError, match="3 channels"):
        normalizer.normalize(torch.zeros(5, 4))
    with pytest.raises(ValueError, match="finite"):
        Statistics.of(torch.tensor([[float("nan")]]))
