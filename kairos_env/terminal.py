"""What commands share: running with an exit status, a console for results, shares in percent."""

import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

import tyro
from rich.console import Console

INTERRUPTED = 130
"""Exit status after ctrl-C, as shells report it."""
PIPE_WIDTH = 110

Options = TypeVar("Options")


def run_command(
    program: str,
    options: type[Options],
    run: Callable[[Options], int | None],
    argv: Sequence[str],
    *,
    also: tuple[type[Exception], ...] = (RuntimeError,),
    failed: int = 1,
    interrupted: str = "Interrupted. What is done is kept; the same command goes on.",
) -> int:
    """Read a command's options and run it; returns its exit status, 0 where `run` gives none.

    Args:
        program: What the user typed, such as `kairos study`.
        options: What `argv` is read into.
        run: The command.
        argv: The arguments after the program's name.
        also: Errors to tell in a line, beside bad values, missing extras and files. Any other is a
            fault of ours and keeps its traceback.
        failed: Exit status after an error that is told.
        interrupted: Said after ctrl-C; empty where the command says it itself.
    """
    errors = Console(stderr=True, soft_wrap=True, highlight=False)
    expected: tuple[type[Exception], ...] = (ValueError, ImportError, OSError, *also)
    try:
        return run(tyro.cli(options, args=list(argv), prog=program)) or 0
    except KeyboardInterrupt:
        if interrupted:
            errors.print(interrupted)
        return INTERRUPTED
    except expected as error:
        for note in getattr(error, "__notes__", ()):  # such as where in a worker it happened
            errors.print(note, markup=False, style="dim")
        errors.print(f"{program}: {error}", markup=False, style="red")
        return failed


def result_console() -> Console:
    """For tables on stdout; a file or a pipe has no width of its own."""
    return Console() if sys.stdout.isatty() else Console(width=PIPE_WIDTH)


def percent(share: float | None, digits: int = 0) -> str:
    """A share for a person, or a hyphen where there is none."""
    return "-" if share is None else f"{100 * share:.{digits}f} %"
