"""The command line: `kairos COMMAND ...`.

The table names each command's home as a string and imports it when it is called, the way Gymnasium
registers environments. So `kairos --help` loads no torch, and the front door needs no import that
would run against the arrow `benchmarks -> agents -> kairos_env -> world_model -> kernels`.
"""

import difflib
import importlib
import sys
from collections.abc import Sequence

# command: (module:function that takes the remaining arguments and returns an exit status, help)
COMMANDS: dict[str, tuple[str, str]] = {
    "dream": ("kairos_env.dream:main", "roll a world out and write a video and a picture"),
    "doctor": (
        "kairos_env.doctor:main",
        "say what this machine can do and which kernels were chosen",
    ),
    "worlds": ("kairos_env.list_worlds:main", "list the bundled worlds and how good they are"),
    "collect": ("kairos_env.agents.collect:main", "record episodes of a real environment"),
    "data": ("kairos_env.agents.data.cli:main", "look at a dataset: info, show, check"),
    "train": ("kairos_env.agents.training.cli:main", "learn a world from recorded episodes"),
    "fidelity": (
        "kairos_env.benchmarks.fidelity.cli:main",
        "measure how far a world's dream drifts from the truth",
    ),
    "bench": ("kairos_env.benchmarks.cli:main", "measure kernels and worlds on this machine"),
}


def usage() -> str:
    """The list of commands, one line each."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(["usage: kairos COMMAND [options]   (kairos COMMAND --help)", "", *lines, ""])


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(usage())
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f" Did you mean 'kairos {close[0]}'?" if close else ""
        sys.stderr.write(f"kairos: no command {name!r}.{hint}\n\n{usage()}")
        return 2
    module, function = COMMANDS[name][0].split(":")
    status: int = getattr(importlib.import_module(module), function)(rest)
    return status


if __name__ == "__main__":
    raise SystemExit(main())
