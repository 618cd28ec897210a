"""How fast episodes are recorded, stored and cut into clips, and what storing costs in pixels.

    kairos bench data                        # records a small dataset of its own
    kairos bench data --dataset data/push

Rates are given twice: by the clock, and by the processor time this process used, which other work
on the machine disturbs less. Processor time of worker processes is not counted.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from kairos_env.agents.collect import collect
from kairos_env.agents.data import ClipConfig, Clips, Dataset, DatasetRows, open_cache, open_dataset
from kairos_env.agents.data.video import CODECS, VideoReader, encode
from kairos_env.benchmarks.machine import write_results

POLICIES = ("expert:0.35", "expert@0.3:0.25", "smooth:0.25", "random:0.15")


@dataclass(frozen=True, kw_only=True)
class DataBenchmark:
    """Measure recording, storage and clip sampling."""

    dataset: Path | None = None
    """Sample from this dataset; one is recorded when not given."""
    env: str = "KairosPush-v0"
    """What to record."""
    episodes: int = 40
    """How many to record, at each number of workers."""
    workers: tuple[int, ...] = (1, 2)
    """Numbers of recording processes to compare."""
    batch: int = 32
    """Clips in a batch."""
    length: int = 16
    """Frames in a clip."""
    seconds: float = 2.0
    """How long to sample clips."""
    quick: bool = False
    """Few episodes, short sampling; writes nothing unless `out` is given."""
    out: Path | None = None
    """Folder for the results; the repository's own when not given."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measured number."""

    name: str
    value: float
    unit: str
    per_core_second: float | None = None
    """The same rate by processor time."""
    note: str = ""


def measure(options: DataBenchmark) -> list[Row]:
    """All rows of the benchmark."""
    with tempfile.TemporaryDirectory() as folder:
        rows, recorded = [], Path(folder)
        if options.dataset is None:
            rows += [_record(options, recorded / str(w), w) for w in options.workers]
        path = options.dataset or recorded / str(options.workers[0])
        dataset = open_dataset(path)
        rows += _codecs(dataset, recorded)
        rows += _sampling(dataset, options, recorded / "cache")
    return rows


def _record(options: DataBenchmark, out: Path, workers: int) -> Row:
    report = collect(
        options.env,
        episodes=options.episodes,
        out=out,
        policies=POLICIES,
        workers=workers,
        horizon=60,
    )
    return Row(
        name=f"record {options.env}, {workers} workers",
        value=report.frames_per_second,
        unit="frames/s",
        note=f"{report.new_frames} frames, start of the workers included",
    )


def _codecs(dataset: Dataset, folder: Path) -> list[Row]:
    """Bytes, error and speed of each codec on the dataset's own frames."""
    episodes = [dataset.frames(index) for index in range(min(len(dataset), 20))]
    frames = sum(map(len, episodes))
    rows = []
    for codec in CODECS:
        start = time.process_time()
        videos = [encode(pixels, fps=10, codec=codec) for pixels in episodes]
        encoding = time.process_time() - start
        shown, decoding = [], 0.0
        for number, video in enumerate(videos):
            path = folder / f"{codec}-{number}.mp4"
            path.write_bytes(video)
            start = time.process_time()
            shown.append(VideoReader(path).read(0, len(episodes[number])))
            decoding += time.process_time() - start
        error = np.mean((np.concatenate(shown).astype(float) - np.concatenate(episodes)) ** 2)
        quality = "exact" if error == 0 else f"{10 * np.log10(255**2 / error):.1f} dB"
        bytes_per_frame = sum(map(len, videos)) / frames
        rows.append(
            Row(name=f"store {codec}", value=bytes_per_frame, unit="bytes/frame", note=quality)
        )
        for name, seconds in (("encode", encoding), ("decode", decoding)):
            rate = frames / seconds
            rows.append(
                Row(name=f"{name} {codec}", value=rate, unit="frames/core-s", per_core_second=rate)
            )
    return rows


def _sampling(dataset: Dataset, options: DataBenchmark, folder: Path) -> list[Row]:
    frames = int(dataset.lengths.sum())
    start, cpu = time.perf_counter(), time.process_time()
    cache = open_cache(dataset, folder)
    clock, core = time.perf_counter() - start, time.process_time() - cpu
    made = Row(
        name="build the cache",
        value=frames / clock,
        unit="frames/s",
        per_core_second=frames / core,
        note=f"{frames} frames",
    )
    config = ClipConfig(batch=options.batch, length=options.length, split="all")
    plain = ClipConfig(batch=options.batch, length=options.length, split="all", in_motion=0)
    size = "x".join(map(str, dataset.spec.frame_size))
    clips = f"clips of {options.length} frames at {size}"
    return [
        made,
        _rate(f"{clips}, cache", Clips(cache, config), options),
        _rate(f"{clips}, video", Clips(DatasetRows(dataset), plain), options),
    ]


def _rate(name: str, clips: Clips, options: DataBenchmark) -> Row:
    drawn, clock, core = _repeat(lambda: next(clips), options.seconds)
    return Row(
        name=name,
        value=drawn * options.batch / clock,
        unit="clips/s",
        per_core_second=drawn * options.batch / core,
        note=f"batches of {options.batch}",
    )


def _repeat(act: Callable[[], object], seconds: float) -> tuple[int, float, float]:
    """Act until the time is over, once before it starts; count, clock and processor time."""
    act()
    count, start, cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - start < seconds or not count:
        act()
        count += 1
    return count, time.perf_counter() - start, max(time.process_time() - cpu, 1e-9)


def main(argv: Sequence[str]) -> int:
    """`kairos bench data`."""
    options = tyro.cli(DataBenchmark, args=list(argv), prog="kairos bench data")
    if options.quick:
        options = replace(options, episodes=6, seconds=0.2, workers=options.workers[:1])
    load_before = os.getloadavg()[0]
    rows = measure(options)
    console = Console(file=sys.stdout)
    table = Table("", "", "per core-second", "")
    for row in rows:
        core = "" if row.per_core_second is None else f"{row.per_core_second:,.0f}"
        table.add_row(row.name, f"{row.value:,.0f} {row.unit}", core, row.note)
    console.print(table)
    if not options.quick or options.out is not None:
        settings = {"batch": options.batch, "length": options.length, "env": options.env}
        results = {
            "settings": settings,
            # above 0, others used the machine as well: then only the rates per core-second count
            "load_before": round(load_before, 1),
            "rows": [asdict(row) for row in rows],
        }
        path = write_results("data", results, folder=options.out)
        console.print(f"written to {path}", soft_wrap=True)
    return 0
