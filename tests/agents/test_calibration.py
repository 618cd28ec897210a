"""Calibration: what a world says about its errors is what they are."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from kairos_env.agents.training import calibration
from kairos_env.world_model.config import from_json, to_json
from kairos_env.world_model.heads import HeadsConfig, calibrated


def overconfident(count: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Stated errors, and actual ones that are larger and grow faster."""
    random = np.random.default_rng(0)
    stated = random.uniform(0.1, 1.0, count)
    return stated, 2.0 * stated**1.5 * np.abs(random.normal(size=count))


def test_the_fit_makes_what_is_stated_true_on_other_dreams() -> None:
    stated, actual = overconfident()
    points = calibration.fit(stated[::2], actual[::2])
    corrected = calibration.apply(stated[1::2], points)
    before = calibration.miscalibration(stated[1::2], actual[1::2])
    after = calibration.miscalibration(corrected, actual[1::2])
    assert before > 0.25
    assert after < 0.08


def test_the_curve_rises_whatever_the_errors_do() -> None:
    stated = np.linspace(0.1, 1.0, 200)
    points = calibration.fit(stated, 1.1 - stated)  # the more is feared the less happens
    spread = torch.linspace(0.01, 3.0, 50)
    mapped = calibrated(spread, points)
    assert (mapped.diff() >= 0).all()
    assert (mapped > 0).all()


def test_between_and_beyond_the_points() -> None:
    points = ((0.1, 0.2), (0.3, 0.3))
    spread = torch.tensor([0.05, 0.1, 0.2, 0.3, 0.6])
    torch.testing.assert_close(calibrated(spread, points), torch.tensor([0.1, 0.2, 0.25, 0.3, 0.6]))
    torch.testing.assert_close(calibrated(spread, points[:1]), 2 * spread)
    assert calibrated(spread, ()) is spread


def test_the_points_are_kept_in_world_json_and_checked() -> None:
    config = dataclasses.replace(HeadsConfig(state_size=2), calibration=((0.1, 0.2), (0.3, 0.3)))
    assert from_json(HeadsConfig, json.loads(json.dumps(to_json(config)))) == config
    with pytest.raises(ValueError, match=r"HeadsConfig\.calibration must be points of .* rising"):
        HeadsConfig(state_size=2, calibration=((0.3, 0.2), (0.1, 0.3)))


def test_too_few_dreams_fit_nothing() -> None:
    assert calibration.fit(np.ones(3), np.ones(3)) == ()


def test_the_end_threshold_divides_true_ends_from_false_alarms() -> None:
    random = np.random.default_rng(0)
    ended = np.zeros((40, 20), bool)
    ended[np.arange(20), random.integers(5, 20, 20)] = True
    probability = random.uniform(0.0, 0.6, ended.shape)  # alarms up to .6 where nothing ends
    probability[ended] = random.uniform(0.8, 1.0, 20)
    assert calibration.end_threshold(probability, ended) == 0.7


def test_an_end_told_a_frame_late_counts_and_two_late_does_not() -> None:
    ended = np.zeros((10, 20), bool)
    ended[:, 8] = True
    told = np.zeros(ended.shape)
    told[:, 9], told[:, 10] = 0.3, 0.9  # at .3 and below the first crossing is one frame late
    threshold = calibration.end_threshold(told, ended)
    assert threshold is not None
    assert threshold <= 0.3


def test_few_ends_choose_no_threshold() -> None:
    ended = np.zeros((10, 20), bool)
    ended[:3, 8] = True
    assert calibration.end_threshold(ended.astype(float), ended) is None


def test_a_trained_world_says_what_its_calibration_is_worth(tmp_path: Path) -> None:
    import tiny_envs  # noqa: F401 (registers the environments)
    from test_training import STAGES

    from kairos_env.agents.collect import collect
    from kairos_env.agents.training.clips import TrainingData
    from kairos_env.agents.training.config import TrainConfig
    from kairos_env.agents.training.loop import train
    from kairos_env.agents.training.validation import held_out
    from kairos_env.worlds import load_world

    data = tmp_path / "ball"
    collect("TinyBall-v0", episodes=20, out=data, chunk=2, frame_size=16, horizon=12)
    config = TrainConfig(
        data=(data,),
        out=tmp_path / "w",
        size="tiny",
        stages=STAGES[:2],
        threads=1,
        validation_share=0.5,
        history=4,
    )
    world = load_world(train(config))
    assert world.model.heads.config.calibration
    found = world.manifest.provenance["calibration"]
    assert found["frames"] == found["episodes"] // 2 * (13 - 4)  # begun as the world's own dreams
    assert found["error_after"] < found["error_before"]
    frames = held_out(TrainingData(config), STAGES[1], frames=5)["frames"].astype(np.float64)
    copied = 20 * np.log10(255) - 10 * np.log10(np.square(frames[:, 3] - frames[:, 4]).mean())
    log = [json.loads(line) for line in (config.folder / "log.jsonl").read_text().splitlines()]
    judged = [record for record in log if "copy@1" in record]
    assert judged[-1]["copy@1"] == pytest.approx(copied, abs=1e-3)  # so do those of validation
