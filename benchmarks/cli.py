"""`kairos bench NAME`: a table of what can be measured, each loaded when it is called."""

import difflib
import importlib
import sys
from collections.abc import Sequence

# name: (module:function taking the remaining arguments and returning an exit status, one line)
BENCHES: dict[str, tuple[str, str]] = {
    "kernels": (
        "kairos_env.benchmarks.kernels:main",
        "each fast kernel against its twin, full attention and the machine's peak",
    ),
    "data": (
        "kairos_env.benchmarks.data:main",
        "recording, storing and sampling of episodes",
    ),
    "tables": (
        "kairos_env.benchmarks.tables:main",
        "write the tables of README and docs from the results",
    ),
}


def usage() -> str:
    """What can be measured, one line each."""
    width = max(map(len, BENCHES))
    lines = [f"  {name:<{width}}  {text}" for name, (_, text) in BENCHES.items()]
    head = "usage: kairos bench NAME [options]   (kairos bench NAME --help)"
    return "\n".join([head, "", *lines, ""])


def main(argv: Sequence[str]) -> int:
    """Run one bench; returns its exit status."""
    if not argv or argv[0] in ("-h", "--help"):
        sys.stdout.write(usage())
        return 0
    name, *rest = argv
    if name not in BENCHES:
        close = difflib.get_close_matches(name, BENCHES, n=1)
        hint = f" Did you mean 'kairos bench {close[0]}'?" if close else ""
        sys.stderr.write(f"kairos bench: nothing called {name!r}.{hint}\n\n{usage()}")
        return 2
    module, function = BENCHES[name][0].split(":")
    status: int = getattr(importlib.import_module(module), function)(rest)
    return status
