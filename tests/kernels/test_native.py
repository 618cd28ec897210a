"""Compiling on the user's machine: never required, never twice, never half written."""

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kairos_env.kernels import dispatch, native
from kairos_env.kernels.gated_delta import gated_delta_rule

needs_compiler = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler"
)


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small source, with a cache folder of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "answer.cpp"
    file.write_text('extern "C" int answer() { return 42; }\n')
    return file


@pytest.fixture
def fresh_machine(monkeypatch: pytest.MonkeyPatch):
    """Nothing was compiled or picked yet; afterwards as before."""
    monkeypatch.setattr(native, "_outcomes", {})
    monkeypatch.setattr(dispatch, "_choices", {})


@needs_compiler
def test_a_source_is_compiled_once_and_anew_when_it_changes(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = native._compiled(source)
    assert ctypes.CDLL(str(first)).answer() == 42
    with monkeypatch.context() as patch:
        patch.setattr(native, "_compile", lambda *_: pytest.fail("compiled twice"))
        assert native._compiled(source) == first
    source.with_name("answer.h").write_text("// a header changes it too\n")
    assert native._compiled(source) != first


@needs_compiler
def test_processes_may_compile_at_once(source: Path) -> None:
    code = (
        "import sys, pathlib; from kairos_env.kernels import native;"
        "assert native.load(pathlib.Path(sys.argv[1])).answer() == 42"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code, str(source)]) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert [file.suffix for file in native.cache_folder().iterdir()] == [".so"]


@needs_compiler
def test_a_source_that_fails_gives_the_compilers_reason(source: Path) -> None:
    source.write_text("int broken( {\n")
    with pytest.raises(native.Unavailable, match="error: expected"):
        native.load(source)
    assert "error: expected" in str(native.obstacle(source))
    assert list(native.cache_folder().iterdir()) == []


@needs_compiler
def test_a_cache_that_cannot_be_written_is_a_reason(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(source))  # a file, not a folder
    assert "Not a directory" in str(native.obstacle(source))


@pytest.mark.usefixtures("fresh_machine", "source")
def test_without_a_compiler_torch_takes_over_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    choices = {row[0]: row for row in dispatch.describe()}
    _, _, backend, reason = choices["gated_delta"]
    assert backend == "torch"
    assert "no C++ compiler (CXX=no-such-compiler is not on the path)" in reason
    k = torch.full((1, 3, 1, 2), 0.5)
    assert gated_delta_rule(k, k, k, torch.zeros(1, 3, 1), torch.ones(1, 3, 1))[0].isfinite().all()
    with pytest.raises(RuntimeError, match="asked for by name, but cannot run on cpu: no C"):
        gated_delta_rule(k, k, k, torch.zeros(1, 3, 1), torch.ones(1, 3, 1), backend="cpu")


def test_importing_compiles_nothing() -> None:
    code = (
        "import subprocess; subprocess.run = None;"
        "import kairos_env.kernels.gated_delta, kairos_env.kernels.native as native;"
        "assert native._outcomes == {}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
