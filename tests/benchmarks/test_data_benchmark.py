"""The data benchmark runs and measures what it says."""

import json

import numpy as np

from kairos_env.agents.data.episode import Episode
from kairos_env.agents.data.format import Layout
from kairos_env.agents.data.staging import stage
from kairos_env.agents.data.writer import DatasetWriter, only_writer
from kairos_env.benchmarks import data


def test_every_rate_is_measured_and_written(tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (20, 16, 16, 3), np.uint8)
    episode = Episode(
        frames=frames,
        actions=np.zeros((19, 1, 2), np.float32),
        rewards=np.zeros(19, np.float32),
        terminated=np.zeros(19, bool),
        truncated=np.zeros(19, bool),
        state=np.zeros((20, 0), np.float32),
    )
    sizes = Layout(frame_size=(16, 16), actions_per_frame=1, action_size=2, state_size=0, fps=10)
    with only_writer(tmp_path / "data"):
        writer = DatasetWriter(tmp_path / "data", layout=sizes, provenance={})
        stage(tmp_path / "data", 0, episode, sizes)
        writer.write_ready(1)
    out = tmp_path / "results"
    options = ["--dataset", str(tmp_path / "data"), "--seconds", "0.05", "--length", "4"]
    assert data.main([*options, "--out", str(out)]) == 0
    document = json.loads(next(out.glob("data-*.json")).read_text())
    assert document["machine"]["cores"]
    rows = {row["name"]: row for row in document["rows"]}
    assert rows["store lossless"]["note"] == "exact"
    assert rows["store h264"]["note"].endswith("dB")
    assert {"clips of 4 frames at 16x16, cache", "clips of 4 frames at 16x16, video"} <= rows.keys()
    assert all(row["value"] > 0 for row in rows.values())
