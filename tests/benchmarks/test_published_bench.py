"""What the benches of the published networks promise, at a size for tests."""

import dataclasses
from pathlib import Path

import pytest

from kairos_env.benchmarks import published
from kairos_env.benchmarks.quantise import QuantiseBench, layout_rows, shapes_of
from kairos_env.benchmarks.tables import TABLES
from kairos_env.world_model.presets import KAIROS_4B


def test_loading_holds_no_checkpoint_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = dataclasses.replace(
        KAIROS_4B, video=dataclasses.replace(KAIROS_4B.video, ffn_dim=8192)
    )
    monkeypatch.setattr(published, "KAIROS_4B", narrow)
    told = published.memory(tmp_path, 1)
    used = told["peak_megabytes"] - told["peak_without_megabytes"]
    assert 0.9 * told["megabytes"] < used < 1.2 * told["megabytes"]


def test_the_published_layout_shrinks_as_its_precision_says() -> None:
    sizes = layout_rows(QuantiseBench())["gigabytes"]
    assert sizes["int4"] < 0.4 * sizes["bfloat16"]
    assert 0.5 < sizes["int8"] / sizes["bfloat16"] < 0.6
    assert shapes_of("kairos-4b")[(10240, 2560)] >= 32


def test_their_tables_are_known() -> None:
    assert {"serve", "quantise", "layers", "loading", "answers"} <= set(TABLES)
