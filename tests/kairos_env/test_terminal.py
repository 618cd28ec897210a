"""Promises of what all commands share."""

import dataclasses

import pytest

from kairos_env.terminal import INTERRUPTED, percent, run_command


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Nothing to choose."""


def raising(error):
    def run(options):
        raise error

    return run


def test_the_status_is_the_commands_own_or_0() -> None:
    assert run_command("kairos test", Options, lambda options: None, []) == 0
    assert run_command("kairos test", Options, lambda options: 3, []) == 3


def test_expected_errors_are_told_in_a_line(capsys) -> None:
    error = ValueError("[red] must be blue")
    error.add_note("in worker 2")
    assert run_command("kairos test", Options, raising(error), []) == 1
    printed = capsys.readouterr()
    assert printed.err == "in worker 2\nkairos test: [red] must be blue\n"
    assert not printed.out


def test_a_fault_of_ours_keeps_its_traceback() -> None:
    with pytest.raises(RuntimeError):
        run_command("kairos test", Options, raising(RuntimeError()), [], also=())
    assert run_command("kairos test", Options, raising(RuntimeError()), []) == 1
    with pytest.raises(KeyError):
        run_command("kairos test", Options, raising(KeyError()), [])


def test_ctrl_c_is_told(capsys) -> None:
    ctrl_c = raising(KeyboardInterrupt)
    assert run_command("kairos test", Options, ctrl_c, []) == INTERRUPTED
    assert "the same command goes on" in capsys.readouterr().err
    assert run_command("kairos test", Options, ctrl_c, [], interrupted="") == INTERRUPTED
    assert not capsys.readouterr().err


def test_shares_are_percent_or_a_hyphen() -> None:
    assert [percent(0.256), percent(0.256, 1), percent(None)] == ["26 %", "25.6 %", "-"]
