"""Tables in the documents are those of the results."""

import functools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from kairos_env.benchmarks.machine import ROOT
from kairos_env.benchmarks.tables import TABLES, apart, documents, filled, guard_remarks
from kairos_env.catalogue import bundled_worlds
from kairos_env.worlds import load_world


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.name)
def test_no_document_is_behind_its_results(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert filled(text) == text, "run 'kairos bench tables'"


def test_a_table_holds_the_measured_numbers_and_their_origin(tmp_path: Path) -> None:
    folder = tmp_path / "benchmarks" / "results"
    folder.mkdir(parents=True)
    result = {
        "command": "kairos bench data",
        "commit": "0123456789abcdef",
        "machine": {"processor": "P", "threads": 2, "torch": "2"},
        "rows": [{"name": "clips", "value": 57891.2, "unit": "clips/s", "note": "cached"}],
    }
    (folder / "data-p.json").write_text(json.dumps(result))
    text = "before\n<!-- table: data -->\nold\n<!-- end of table -->\nafter\n"
    made = filled(text, tmp_path)
    assert "| clips | 57,891 | clips/s | cached |" in made
    assert "commit 0123456789: `kairos bench data`" in made
    assert "old" not in made
    assert made.startswith("before\n")
    assert made.endswith("after\n")
    assert filled(made, tmp_path) == made


def test_an_unknown_table_is_named() -> None:
    with pytest.raises(ValueError, match="no table is called 'nothing'"):
        filled("<!-- table: nothing -->\n<!-- end of table -->")
    assert TABLES


def test_what_the_guard_saved_is_told_in_its_words_or_counted() -> None:
    def run(kept: float, last: float, stopped: str | None) -> dict:
        return {"kept": {"return": kept}, "last": {"return": last}, "stopped": stopped}

    runs = [run(-10.0, -12.0, "stopped"), run(-15.0, -14.0, "stopped"), run(-5.0, -5.0, None)]
    study = {"runs": {"dream": runs}, "random": {"return": -20.0}}
    (told,) = guard_remarks(study)
    assert told.startswith("The guard ended 2 of 3 practices.")
    assert "by -7 %, 0 %, 20 % of these" in told
    assert told.endswith("that is -20 %, 0 %, 20 %.")
    one = {**study, "runs": {"dream": [run(-10.0, -12.0, "stopped at step 5: it fell")]}}
    assert guard_remarks(one) == ["The guard stopped at step 5: it fell."]
    left = {**study, "runs": {"dream": [run(-10.0, -12.0, None)] * 3}}
    assert guard_remarks(left) == []


def test_worlds_are_called_by_what_their_paths_differ_in() -> None:
    assert apart(["/a/run/round-0/world", "/a/run/control/world"]) == ["round-0", "control"]
    assert apart(["/a/x/1/world", "/a/y/world"]) == ["x/1", "y"]
    assert apart(["push", "/a/push-2"]) == ["push", "/a/push-2"]


def measured_worlds(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """(name, fingerprint) of every world that a result names."""
    if isinstance(value, Mapping):
        if isinstance(value.get("fingerprint"), str):
            yield value.get("name") or value.get("world") or key, value["fingerprint"]
        for name, item in value.items():
            yield from measured_worlds(item, name)
    elif isinstance(value, list):
        for item in value:
            yield from measured_worlds(item, key)


@functools.cache
def fingerprints() -> Mapping[str, str]:
    """Of the bundled worlds."""
    return {name: load_world(name).fingerprint for name in bundled_worlds()}


@pytest.mark.parametrize(
    "path", sorted((ROOT / "benchmarks" / "results").glob("*.json")), ids=lambda path: path.stem
)
def test_what_was_measured_of_a_bundled_world_is_of_the_one_that_is_bundled(path: Path) -> None:
    bundled = fingerprints()
    result = json.loads(path.read_text(encoding="utf-8"))
    for name, fingerprint in measured_worlds(result):
        assert bundled.get(name, fingerprint) == fingerprint, f"{name} has changed: measure again"
