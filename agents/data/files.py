"""Files that are either the old one or the new one, never half of each.

Everything a dataset holds is written beside its final name and renamed. A kill at any moment
leaves a stray `*.partial` file that the next run overwrites; a full disk raises and removes it.
"""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

PARTIAL = ".partial"  # suffix of a file that is still being written


class DiskFullError(OSError):
    """No space was left while a dataset was being written."""


@contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[BinaryIO]:
    """Open a file beside `path`; it takes that name only when the block ends without an error.

    Args:
        path: The name the file will have.
        durable: Also wait until the bytes are on the disk (a power cut, not only a kill).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The process id keeps two workers that write neighbours of one name apart.
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
    try:
        with partial.open("wb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free = shutil.disk_usage(path.parent).free / 2**20
        raise DiskFullError(
            error.errno,
            f"the disk is full: {path} could not be written ({free:.1f} MiB free). "
            "What was written before is intact; free some space and run the same command again",
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes, *, durable: bool = False) -> None:
    """Write a whole file atomically."""
    with replacing(path, durable=durable) as file:
        file.write(content)


def write_json(path: Path, content: Any, *, durable: bool = False) -> None:
    """Write JSON atomically, in the indented form people can read and diff."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    write_bytes(path, text.encode() + b"\n", durable=durable)


def read_json(path: Path) -> Any:
    """Read JSON; the error names the file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BrokenDataError(f"{path} is not valid JSON: {error}") from error


class BrokenDataError(ValueError):
    """A file is missing, truncated or says something impossible; the message names it."""
