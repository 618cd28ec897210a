"""`kairos bench COMMAND`: a table of what can be measured, each loaded when it is called."""

from collections.abc import Sequence

from kairos_env.cli import run

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
    "contraction": (
        "kairos_env.benchmarks.contraction:main",
        "theorem 2 on the kernels, and the half-lives of a trained world",
    ),
    "curriculum": (
        "kairos_env.benchmarks.curriculum:main",
        "three stages against the last one alone, for the same processor time",
    ),
    "tables": (
        "kairos_env.benchmarks.tables:main",
        "write the tables of README and docs from the results",
    ),
}


def main(argv: Sequence[str]) -> int:
    """Run one bench; returns its exit status."""
    return run("kairos bench", BENCHES, argv)
