"""Published checkpoints as worlds, and back: `kairos import-official` and `kairos export`.

A folder of safetensors becomes a world folder: what the network is follows from names and shapes,
the tensors stay what they are bit for bit, under our names. Going back gives the same names and
tensors. A pickle is never opened: see `read_pth` for the one file that is published as one.
"""

import dataclasses
import json
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import imageio.v3 as iio
import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from kairos_env.catalogue import MODEL, TOKENIZER, find_world
from kairos_env.errors import WorldError
from kairos_env.manifest import EnvironmentSpec, Manifest
from kairos_env.starts import Starts
from kairos_env.terminal import run_command
from kairos_env.version import __version__
from kairos_env.world_model.checkpoint import (
    canonical,
    check_names,
    from_official,
    to_official,
)
from kairos_env.world_model.heads import HeadsConfig
from kairos_env.world_model.normalizers import statistics_of
from kairos_env.world_model.published.imported import ImportedConfig
from kairos_env.world_model.published.pipeline import TOKEN_PIXELS
from kairos_env.world_model.published.recognise import recognise, recognise_autoencoder
from kairos_env.world_model.published.wan_tokenizer import WanTokenizerConfig
from kairos_env.world_model.published.world import PublishedWorld
from kairos_env.world_model.tensor_files import TensorFiles, write_tensors
from kairos_env.world_model.world_model import WorldConfig
from kairos_env.worlds import read_manifest, save_world

AUTOENCODER = re.compile(r"(model_state\.)?(encoder|decoder|conv1|conv2)\.")
NETWORK_FILE, AUTOENCODER_FILE = "model.safetensors", "Wan2.1_VAE.safetensors"
STATISTICS_FILE = "statistics.json"
SHARDED_FROM = 5 * 10**9
"""Bytes from which an exported network is written as shards of this size."""
GREY = 127


@dataclasses.dataclass(frozen=True, kw_only=True)
class Import:
    """Make a world folder of a published checkpoint."""

    folder: Annotated[Path, tyro.conf.Positional]
    """Folder of the checkpoint: .safetensors, whole or in shards, with the autoencoder or
    without."""
    out: Path
    """Folder of the world to write."""
    vae: Path | None = None
    """The autoencoder, where it is not in the folder."""
    allow_pth: bool = False
    """Read an autoencoder that is a .pth, with torch's loader for weights alone, which runs no
    code."""
    given: Path | None = None
    """The official configuration as JSON, for what shapes do not tell."""
    name: str | None = None
    """Name of the world; the folder's name when not given."""
    description: str = "An imported Kairos network."
    mode: Literal["auto", "video", "joint"] = "auto"
    """What a step denoises: the video, or actions too; auto: what the network can."""
    frame_size: int = 256
    """Side of the square frame in pixels."""
    clip_frames: int = 32
    """Frames per step, a multiple of 4; one low-level action each."""
    horizon: int = 30
    """Steps of an episode."""
    fps: float = 16.0
    steps: int = 20
    """Denoising steps."""
    guidance: float = 1.0
    few_step: bool = False
    """The checkpoint is distilled: four steps."""
    statistics: Path | None = None
    """The published statistics of actions and states."""
    normalize: str = "min/max"
    """How they were used in training: min/max, q01/q99, z-score, or a range such as -2/2."""
    text_encoder: Path | None = None
    """Folder of the Qwen text encoder; it is named in the world, not copied."""
    picture_in_text: bool = True
    """Whether it is shown the picture too; LIBERO-plus was trained without."""
    picture: Path | None = None
    """What dreams begin with; a grey picture when not given."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export:
    """Write an imported world as the checkpoint that it was."""

    world: Annotated[str, tyro.conf.Positional]
    """The world's folder or name."""
    out: Path
    """Folder to write."""
    layout: Literal["official"] = "official"


def import_official(options: Import) -> Path:
    """Make the world; returns its folder.

    Raises:
        ValueError: A file is no published network or autoencoder, or options do not fit it.
        FileNotFoundError: Something is not there.
    """
    network, autoencoder = read_parts(options)
    config = config_of(options, network, autoencoder)
    with torch.device("meta"):
        model = PublishedWorld(config)
    ours = {f"network.{name}": tensor for name, tensor in from_official(network).items()}
    ours |= {
        f"tokenizer.autoencoder.{n.removeprefix(nested(autoencoder))}": t
        for n, t in autoencoder.items()
    }
    ours["tokenizer.background"] = torch.zeros(model.tokenizer.background.shape)
    check_names(ours, model.state_dict(), source=str(options.folder))
    model.load_state_dict(ours, assign=True)
    manifest = manifest_of(options, config, network, autoencoder)
    starts = Starts(
        picture_of(options)[None, None],
        np.zeros((1, 0, config.actions_per_frame, config.action_size), np.float32),
        np.zeros((1, 0), np.float32),
    )
    return save_world(options.out, model, manifest=manifest, starts=starts)


def export_official(options: Export) -> Path:
    """Write the checkpoint; returns its folder.

    Raises:
        WorldError: The world was not imported, or not left as it was.
        FileExistsError: Something stands there.
    """
    folder = find_world(options.world)
    manifest = read_manifest(folder)
    told = manifest.provenance.get("official")
    if manifest.model.imported is None or not isinstance(told, Mapping):
        raise WorldError(
            f"{folder}: only a world that came from `kairos import-official` has an official "
            "layout; one that was trained on has parts that published networks lack"
        )
    if options.out.exists():
        raise FileExistsError(f"{options.out} exists already; give another --out")
    network = official_network(TensorFiles(folder / MODEL), told["prefix"])
    autoencoder = {
        told["autoencoder_prefix"] + name.removeprefix("autoencoder."): tensor
        for name, tensor in TensorFiles(folder / TOKENIZER).items()
        if name.startswith("autoencoder.")
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{options.out.name}.", dir=options.out.parent))
    try:
        size = sum(tensor.nbytes for tensor in network.values())
        if size < SHARDED_FROM:
            write_tensors(network, beside / NETWORK_FILE)
        else:
            write_tensors(network, beside, shard_bytes=SHARDED_FROM)
        write_tensors(autoencoder, beside / AUTOENCODER_FILE)
        if manifest.model.imported.statistics:
            text = json.dumps(manifest.model.imported.statistics, indent=1) + "\n"
            (beside / STATISTICS_FILE).write_text(text, "utf-8")
        beside.chmod(0o755)
        beside.rename(options.out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return options.out


def official_network(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """A world's network under the names of the file that it came from."""
    ours = {name.removeprefix("network."): tensor for name, tensor in tensors.items()}
    official = to_official(ours)
    whole = any(name.startswith("action_dit.") for name in official)
    return {
        prefix + (name if whole else name.removeprefix("video_dit.")): tensor
        for name, tensor in official.items()
    }


def read_parts(options: Import) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
    """The tensors of the network and of the autoencoder, by their official names."""
    folder = options.folder
    files = TensorFiles(folder)
    network = {name: files[name] for name in files if not AUTOENCODER.match(name)}
    inside = {name: files[name] for name in files if AUTOENCODER.match(name)}
    if not network:
        raise ValueError(f"{folder} holds no network, only an autoencoder")
    if options.vae is not None:
        return network, read_autoencoder(options.vae, options.allow_pth)
    if inside:
        return network, inside
    beside = [*sorted(folder.glob("*.pth")), *sorted(folder.glob("*VAE*.safetensors"))]
    if not beside:
        raise FileNotFoundError(
            f"{folder} holds no autoencoder (Wan2.1_VAE.pth or .safetensors); name it with --vae"
        )
    return network, read_autoencoder(beside[-1], options.allow_pth)


def read_autoencoder(path: Path, allow_pth: bool) -> Mapping[str, Tensor]:
    """The tensors of an autoencoder's file."""
    if path.suffix in (".pth", ".pt", ".ckpt", ".bin"):
        if not allow_pth:
            raise ValueError(
                f"{path} is a pickle, which can run code when it is opened. Convert it once with "
                "safetensors.torch.save_file(torch.load(path, weights_only=True), 'vae.safetensors'"
                ") and give that with --vae; or pass --allow-pth, which reads it in that way"
            )
        return read_pth(path)
    return TensorFiles(path)


def read_pth(path: Path) -> dict[str, Tensor]:
    """A .pth read by torch's restricted loader, which makes tensors and dicts and nothing else."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # pickle, zipfile and torch raise a dozen kinds on damaged files
        raise ValueError(f"{path} holds more than weights, or is damaged ({error})") from error
    content = content.get("model_state", content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not all(isinstance(x, Tensor) for x in content.values()):
        raise ValueError(f"{path}: expected a dict of tensors")
    return content


def config_of(
    options: Import, network: Mapping[str, Tensor], autoencoder: Mapping[str, Tensor]
) -> WorldConfig:
    """What the files hold, and how the world dreams it."""
    given = json.loads(options.given.read_text("utf-8")) if options.given else None
    transformer = recognise({canonical(n): tuple(x.shape) for n, x in network.items()}, given)
    prefix = nested(autoencoder)
    vae = recognise_autoencoder(
        {name.removeprefix(prefix): tuple(x.shape) for name, x in autoencoder.items()}
    )
    if options.frame_size % TOKEN_PIXELS:
        raise ValueError(
            f"--frame-size must be a multiple of {TOKEN_PIXELS}, got {options.frame_size}"
        )
    action = transformer.action
    if options.mode == "joint" and action is None:
        raise ValueError("this network has no action stream, so it cannot dream in mode joint")
    joint = action is not None and options.mode != "video"
    side = options.frame_size
    return WorldConfig(
        tokenizer=WanTokenizerConfig(frame_size=(side, side), autoencoder=vae),
        transformer=transformer,
        heads=HeadsConfig(state_size=0),
        action_size=action.channels if action else 1,
        chunk=options.clip_frames,
        frames_per_chunk=options.clip_frames,
        history=1,
        denoise_steps=options.steps,
        imported=ImportedConfig(
            mode="joint" if joint else "video",
            guidance=options.guidance,
            few_step=options.few_step,
            normalize=options.normalize,
            statistics=checked_statistics(options.statistics) if options.statistics else None,
            text_encoder=str(options.text_encoder.resolve()) if options.text_encoder else None,
            picture_in_text=options.picture_in_text,
        ),
    )


def checked_statistics(path: Path) -> dict[str, Any]:
    """The content of a statistics file, after it has been read as one."""
    content: dict[str, Any] = json.loads(path.read_text("utf-8"))
    statistics_of(content, source=str(path))
    return content


def manifest_of(
    options: Import,
    config: WorldConfig,
    network: Mapping[str, Tensor],
    autoencoder: Mapping[str, Tensor],
) -> Manifest:
    """What world.json says."""
    size = config.action_size
    return Manifest(
        name=options.name or options.out.name,
        description=options.description,
        environment=EnvironmentSpec(
            id=f"imported/{options.folder.resolve().name}",
            chunk=config.chunk,
            frames_per_chunk=config.frames_per_chunk,
            frame_size=options.frame_size,
            horizon=options.horizon,
            fps=options.fps,
            action_space={"kind": "box", "low": [-1.0] * size, "high": [1.0] * size},
            reward="none: an imported network predicts pictures only; always 0",
            termination="none",
        ),
        model=config,
        provenance={
            "official": {
                "prefix": wrapper(network),
                "autoencoder_prefix": nested(autoencoder),
                "parameters": sum(tensor.numel() for tensor in network.values()),
                "types": sorted({str(tensor.dtype) for tensor in network.values()}),
            },
            "versions": {"kairos-env": __version__, "torch": torch.__version__},
        },
    )


def wrapper(network: Mapping[str, Tensor]) -> str:
    """What stands before the names in a file of a network.

    Raises:
        ValueError: Names are written in several ways, so that going back would not give them.
    """
    streams = any(canonical(name).startswith("action_dit.") for name in network)

    def before(name: str) -> str:
        bare = canonical(name)
        return name.removesuffix(bare if streams else bare.removeprefix("video_dit."))

    found = {before(name) for name in network}
    if len(found) != 1:
        raise ValueError(f"names of the network begin in several ways: {sorted(found)}")
    return found.pop()


def nested(autoencoder: Mapping[str, Tensor]) -> str:
    """What stands before the names in a file of an autoencoder."""
    return "model_state." if all(name.startswith("model_state.") for name in autoencoder) else ""


def picture_of(options: Import) -> NDArray[np.uint8]:
    """The frame that dreams begin with: cut to a square in the middle, then scaled."""
    side = options.frame_size
    if options.picture is None:
        return np.full((side, side, 3), GREY, np.uint8)
    picture = np.asarray(iio.imread(options.picture))[..., :3]
    if picture.ndim != 3 or picture.dtype != np.uint8:
        raise ValueError(f"{options.picture} is no colour picture of 8 bits")
    height, width = picture.shape[:2]
    edge = min(height, width)
    top, left = (height - edge) // 2, (width - edge) // 2
    square = torch.from_numpy(picture[top : top + edge, left : left + edge].copy())
    scaled = torch.nn.functional.interpolate(
        square.permute(2, 0, 1)[None].float(), (side, side), mode="bilinear", antialias=True
    )
    return scaled[0].permute(1, 2, 0).round().clamp(0, 255).byte().numpy()


def main_import(argv: Sequence[str]) -> int:
    """`kairos import-official DIR --out WORLD`."""
    return _run(Import, import_official, "import-official", argv)


def main_export(argv: Sequence[str]) -> int:
    """`kairos export WORLD --out DIR`."""
    return _run(Export, export_official, "export", argv)


def _run(kind: Any, work: Any, command: str, argv: Sequence[str]) -> int:
    def run(options: Any) -> None:
        Console(stderr=True).print(f"wrote {work(options)}")

    return run_command(f"kairos {command}", kind, run, argv, also=(), interrupted="Interrupted.")
