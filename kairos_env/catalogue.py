"""Where worlds are: bundled with the package, in a folder, or on a hub. Loads no torch."""

import difflib
import importlib
from pathlib import Path

from kairos_env.errors import WorldNotFoundError

MANIFEST, MODEL, TOKENIZER = "world.json", "model.safetensors", "tokenizer.safetensors"
STARTS, CARD = "starts.npz", "README.md"
FILES = (MANIFEST, MODEL, TOKENIZER, STARTS, CARD)

BUNDLED = Path(__file__).resolve().parent / "bundled"
# The world that opens when none is named: the first of these that is bundled.
DEFAULT_ORDER = ("push", "reach", "occlude")
# Made in code, with random weights; opens when nothing is bundled.
UNTRAINED = "untrained"


def bundled_worlds() -> tuple[str, ...]:
    """Names of the worlds that came with the package."""
    if not BUNDLED.is_dir():
        return ()
    return tuple(sorted(folder.name for folder in BUNDLED.iterdir() if is_world(folder)))


def default_world() -> str:
    """The name that `gym.make("Kairos-v0")` opens when no world is given."""
    bundled = bundled_worlds()
    return next((name for name in DEFAULT_ORDER if name in bundled), UNTRAINED)


def is_world(folder: Path) -> bool:
    """Whether a folder holds a world.json."""
    return (folder / MANIFEST).is_file()


def find_world(name: str | Path) -> Path:
    """The folder of a world.

    Args:
        name: A bundled world's name ("push"), a folder ("./runs/push"), or OWNER/NAME on the
            Hugging Face hub, which is downloaded once and kept in the hub's own cache.

    Raises:
        WorldNotFoundError: With what was looked at, and names that are close.
        ImportError: A hub id was given and the extra "hub" is not installed.
    """
    if not isinstance(name, str | Path):
        raise WorldNotFoundError(f"a world is named by a text or path, got {name!r}")
    text = str(name)
    if not text:
        raise WorldNotFoundError(f"a world's name is empty; {_known(text)}")
    if isinstance(name, str) and name in bundled_worlds():
        return BUNDLED / name
    folder = Path(name).expanduser()
    if is_world(folder):
        return folder
    if folder.exists():
        raise WorldNotFoundError(
            f"{folder} holds no {MANIFEST}, so it is not a world; a world is a folder with "
            f"{', '.join(FILES)}"
        )
    if isinstance(name, str) and _is_hub_id(name):
        return _download(name)
    raise WorldNotFoundError(f"there is no world {text!r}: {_known(text)}")


def _is_hub_id(name: str) -> bool:
    owner, slash, repository = name.partition("/")
    return (
        bool(slash and owner and repository)
        and owner not in (".", "..", "~")
        and ("/" not in repository and "\\" not in name)
    )


def _download(name: str) -> Path:
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise ImportError(
            f"{name!r} is no folder here, and to look for it on the Hugging Face hub another "
            'package is needed: pip install "kairos-env[hub]"'
        ) from error
    try:
        folder = Path(hub.snapshot_download(name, allow_patterns=list(FILES)))
    except Exception as error:  # the hub's client raises errors of three libraries
        raise WorldNotFoundError(
            f"{name!r} is no folder here and could not be fetched from the Hugging Face hub "
            f"({type(error).__name__}: {error}); {_known(name)}"
        ) from error
    if not is_world(folder):
        raise WorldNotFoundError(f"the repository {name!r} on the hub holds no {MANIFEST}")
    return folder


def _known(name: str) -> str:
    names = [*bundled_worlds(), UNTRAINED]
    close = difflib.get_close_matches(name, names, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return (
        f"give a bundled world ({', '.join(names)}), a folder with a {MANIFEST}, or OWNER/NAME of "
        f"a hub repository.{hint}"
    )
