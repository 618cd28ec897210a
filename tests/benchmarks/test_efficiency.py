"""`kairos bench efficiency`: counted figures are right, timed ones are there, peers really step."""

import json

import pytest
import torch

from kairos_env.benchmarks import cli
from kairos_env.benchmarks.efficiency.cli import QUICK
from kairos_env.benchmarks.efficiency.flops import (
    delta_operations,
    pass_operations,
    published_row,
    step_operations,
)
from kairos_env.benchmarks.efficiency.peers import RSSM, RSSMConfig, UNet, UNetConfig, wave
from kairos_env.benchmarks.efficiency.suite import EfficiencyConfig
from kairos_env.benchmarks.transformer import make_world
from kairos_env.world_model.config import DeltaConfig, StreamConfig, TransformerConfig

SMALL_UNET = UNetConfig(channels=(8, 16), blocks=1, past=2, condition=16, action_size=3)
SMALL_RSSM = RSSMConfig(recurrent=16, groups=4, categories=5, hidden=16, depth=4, action_size=3)


def test_every_section_is_written(tmp_path, capsys) -> None:
    assert cli.main(["efficiency", "--quick", "--out", str(tmp_path)]) == 0
    (file,) = tmp_path.iterdir()
    results = json.loads(file.read_text())
    assert {"machine", "commit", "command", "load"} <= set(results)
    assert [row["name"] for row in results["sizes"]] == ["tiny", "small", "medium", "world"]
    assert [row["batch"] for row in results["latency"]] == list(QUICK["batches"])
    for row in results["latency"]:
        assert set(row["step_ms"]) == {
            "world",
            "world, no picture",
            "U-Net denoiser, 3 steps",
            "RSSM",
        }
        assert row["times_ours"]["world"] == 1
    assert all(row["env_steps_per_second"] > 0 for row in results["environment"])
    assert set(results["age"]["state_bytes"].values()) == {results["age"]["state_bytes"]["2"]}
    assert len(results["published"]["networks"]) == 4
    assert "RSSM" in capsys.readouterr().out


def test_a_published_network_has_four_billion_numbers() -> None:
    row = published_row("kairos-4b")
    assert row["parameters"] == pytest.approx(4.05e9, rel=0.01)
    assert row["gigabytes_bfloat16"] == pytest.approx(2e-9 * row["parameters"])


def test_operations_of_a_pass_are_linear_in_frames_and_in_layers() -> None:
    """Windows end and the delta rule is a line: from some length on, twice the clip costs twice."""

    def network(groups: int) -> TransformerConfig:
        return TransformerConfig(
            layers=("SWA", "SWA", "DSWA", "GLA") * groups,
            heads=2,
            head_dim=16,
            video=StreamConfig(dim=32, ffn_dim=64, channels=4),
            action=None,
            delta=DeltaConfig(heads=2, key_dim=16, value_dim=16, decay="token", half_life=None),
            text_dim=8,
            semantics="flex",
        )

    one, two, three = (pass_operations(network(1), 32, 32, frames) for frames in (65, 129, 193))
    assert three - two == pytest.approx(two - one, rel=0.02)
    deeper = [pass_operations(network(n), 32, 32, 33) for n in (1, 2, 3)]
    assert deeper[2] - deeper[1] == deeper[1] - deeper[0]


def test_the_delta_rule_is_counted_by_hand() -> None:
    config = make_world("tiny", "cpu", torch.float32).config.transformer
    d = config.delta
    by_hand = 5 * (d.heads * 6 * d.key_dim * d.value_dim + 2 * 4 * 3 * d.heads * d.key_dim)
    assert delta_operations(config, 5) == by_hand
    model = make_world("tiny", "cpu", torch.float32)
    assert step_operations(model, decode=True) > step_operations(model, decode=False) > 0


def test_a_denoiser_sees_its_past_and_its_actions() -> None:
    net = UNet(SMALL_UNET)
    past = net.start(2, size=16)
    torch.manual_seed(0)
    after, frame = net.step(past, torch.zeros(2, 3))
    assert frame.shape == (2, 3, 16, 16)
    assert torch.equal(after[:, -1], frame)
    assert torch.equal(after[:, :-1], past[:, 1:])
    torch.manual_seed(0)
    assert not torch.equal(net.step(past, torch.ones(2, 3))[1], frame)
    torch.manual_seed(0)
    assert not torch.equal(net.step(past + 1, torch.zeros(2, 3))[1], frame)
    assert wave(torch.tensor([0.5]), 6).shape == (1, 6)


def test_a_recurrent_model_remembers_and_can_be_corrected() -> None:
    net = RSSM(SMALL_RSSM)
    torch.manual_seed(0)
    state, frame = net.step(net.start(2), torch.ones(2, 3))
    assert frame.shape == (2, 3, 64, 64)
    assert not torch.equal(state.recurrent, net.start(2).recurrent)
    assert (state.sampled.view(2, 4, 5).sum(-1) == 1).all()
    seen = net.observe(state, torch.zeros(2, 3, 64, 64))
    assert torch.equal(seen.recurrent, state.recurrent)
    assert seen.sampled.shape == state.sampled.shape


def test_what_cannot_be_measured_is_refused(tmp_path, capsys) -> None:
    with pytest.raises(ValueError, match="no clip 8k; there are 480p"):
        EfficiencyConfig(clips=("8k",))
    with pytest.raises(ValueError, match="at least 3 lengths"):
        EfficiencyConfig(lengths=(4, 8))
    assert cli.main(["efficiency", "--quick", "--world", str(tmp_path / "none")]) == 1
    assert "none" in capsys.readouterr().err
