"""C++ sources compiled on the user's machine, for exactly its processor, when they are first used.

Never required: without a compiler, or when it fails, `Unavailable` says why and the caller has
another way. The library lies in the user's cache folder under a name made of everything it depends
on, so that a new source, a new compiler or another machine on the same home folder compiles anew.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path

FLAGS = ("-std=c++17", "-O2", "-ftree-vectorize", "-shared", "-fPIC", "-pthread")
# -O3 is not faster here and takes three times as long to compile.
NATIVE_FLAGS = (("-march=native",), ())  # tried in order; the last runs anywhere
PATIENCE_SECONDS = 300


class Unavailable(RuntimeError):
    """The source cannot be compiled or loaded here; the message says why."""


_lock = threading.Lock()
_outcomes: dict[Path, ctypes.CDLL | Unavailable] = {}


def load(source: Path) -> ctypes.CDLL:
    """The compiled library of `source`, from the cache or fresh; asked once a process.

    Raises:
        Unavailable: there is no way to compile or load it on this machine.
    """
    with _lock:
        if source not in _outcomes:
            try:
                _outcomes[source] = ctypes.CDLL(str(_compiled(source)))
            except (OSError, Unavailable) as error:
                _outcomes[source] = Unavailable(str(error))
        outcome = _outcomes[source]
    if isinstance(outcome, Unavailable):
        raise outcome
    return outcome


def obstacle(source: Path) -> str | None:
    """Why `source` cannot be used here, or None after it has been loaded."""
    try:
        load(source)
    except Unavailable as error:
        return str(error)
    return None


def cache_folder() -> Path:
    """Where compiled libraries lie: `$XDG_CACHE_HOME/kairos`, `~/.cache/kairos` by default."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "kairos"


def _compiled(source: Path) -> Path:
    compiler = _compiler()
    library = cache_folder() / f"{source.stem}-{_fingerprint(source, compiler)}.so"
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        _compile(source, compiler, library)
    return library


def _compiler() -> str:
    wanted = os.environ.get("CXX")
    found = next(filter(None, map(shutil.which, [wanted] if wanted else ["g++", "clang++"])), None)
    if found is None:
        names = f"CXX={wanted}" if wanted else "g++ or clang++"
        raise Unavailable(f"no C++ compiler ({names} is not on the path)")
    return found


def _fingerprint(source: Path, compiler: str) -> str:
    version = subprocess.run([compiler, "--version"], capture_output=True, check=False).stdout
    parts = [_text(source), version, repr((FLAGS, NATIVE_FLAGS)).encode(), _processor()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _text(source: Path) -> bytes:
    """The source and the headers beside it."""
    files = [source, *sorted(source.parent.glob("*.h"))]
    return b"\0".join(file.read_bytes() for file in files)


def _processor() -> bytes:
    """Model and instruction sets; code for one processor may crash on another."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "|".join([platform.machine(), platform.processor()]).encode()
    first: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(":")
        first.setdefault(key.strip(), value.strip())
    return "|".join(first.get(k, "") for k in ("model name", "flags", "Features")).encode()


def _compile(source: Path, compiler: str, library: Path) -> None:
    """Written beside and renamed: processes that compile at once replace it with the same."""
    handle, name = tempfile.mkstemp(dir=library.parent, prefix=f"{library.stem}-", suffix=".tmp")
    os.close(handle)
    beside = Path(name)
    try:
        _try_flags(source, compiler, beside)
        beside.replace(library)
    finally:
        beside.unlink(missing_ok=True)


def _try_flags(source: Path, compiler: str, library: Path) -> None:
    complaint = ""
    for native in NATIVE_FLAGS:
        command = [compiler, *FLAGS, *native, "-o", str(library), str(source)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS
            )
        except subprocess.TimeoutExpired:
            raise Unavailable(f"{compiler} took more than {PATIENCE_SECONDS} s") from None
        if done.returncode == 0:
            return
        complaint = next((line for line in done.stderr.splitlines() if "error" in line), "")
    raise Unavailable(f"{compiler} failed: {complaint or 'no message'}")
