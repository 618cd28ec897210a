"""The command line: `kairos COMMAND ...`.

The table names each command's home as a string and imports it when it is called, the way Gymnasium
registers environments. So `kairos --help` loads no torch, and the front door needs no import that
would run against the arrow `benchmarks -> agents -> kairos_env -> world_model -> kernels`.
"""

import difflib
import importlib
import sys
from collections.abc import Mapping, Sequence

# command: (module:function that takes the remaining arguments and returns an exit status, help)
COMMANDS: dict[str, tuple[str, str]] = {
    "dream": ("kairos_env.dream:main", "roll a world out and write a video and a picture"),
    "play": ("kairos_env.play:main", "drive a dream, and the truth beside it, in the browser"),
    "doctor": (
        "kairos_env.doctor:main",
        "say what this machine can do and which kernels were chosen",
    ),
    "worlds": ("kairos_env.list_worlds:main", "list the bundled worlds and how good they are"),
    "collect": ("kairos_env.agents.collect:main", "record episodes of a real environment"),
    "data": ("kairos_env.agents.data.cli:main", "look at a dataset: info, show, check"),
    "train": ("kairos_env.agents.training.cli:main", "learn a world from recorded episodes"),
    "curriculum": (
        "kairos_env.agents.training.curriculum:main",
        "learn a world in three stages: films, films with words, a robot's trajectories",
    ),
    "import-official": (
        "kairos_env.official:main_import",
        "make a world of a published checkpoint",
    ),
    "export": ("kairos_env.official:main_export", "write an imported world as its checkpoint"),
    "imagine": (
        "kairos_env.agents.imagine.cli:main",
        "train a policy in a world's dream, and examine it in reality",
    ),
    "evolve": (
        "kairos_env.agents.evolve.cli:main",
        "collect, train the world, improve the policy, deploy; round by round",
    ),
    "plan": ("kairos_env.benchmarks.acting:plan", "plan in a world's dream, act in its real twin"),
    "act": ("kairos_env.benchmarks.acting:act", "let a world's own action stream act"),
    "serve": ("kairos_env.agents.serve.cli:main", "answer robots over HTTP with a world's policy"),
    "fidelity": (
        "kairos_env.benchmarks.fidelity.cli:main",
        "measure how far a world's dream drifts from the truth",
    ),
    "study": (
        "kairos_env.benchmarks.study.cli:main",
        "do policies rank in the dream as they do in truth?",
    ),
    "bench": ("kairos_env.benchmarks.cli:main", "measure kernels and worlds on this machine"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    return run("kairos", COMMANDS, sys.argv[1:] if argv is None else argv)


def run(program: str, commands: Mapping[str, tuple[str, str]], argv: Sequence[str]) -> int:
    """Run the command of a table that the first argument names, with the arguments after it."""
    if not argv or argv[0] in ("-h", "--help"):
        sys.stdout.write(usage(program, commands))
        return 0
    name, *rest = argv
    if name not in commands:
        close = difflib.get_close_matches(name, commands, n=1)
        hint = f" Did you mean '{program} {close[0]}'?" if close else ""
        sys.stderr.write(f"{program}: no command {name!r}.{hint}\n\n{usage(program, commands)}")
        return 2
    module, function = commands[name][0].split(":")
    status: int = getattr(importlib.import_module(module), function)(rest)
    return status


def usage(program: str, commands: Mapping[str, tuple[str, str]]) -> str:
    """The commands of a table, one line each."""
    width = max(map(len, commands))
    lines = [f"  {name:<{width}}  {text}" for name, (_, text) in commands.items()]
    head = f"usage: {program} COMMAND [options]   ({program} COMMAND --help)"
    return "\n".join([head, "", *lines, ""])


if __name__ == "__main__":
    raise SystemExit(main())
