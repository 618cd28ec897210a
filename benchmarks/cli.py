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
    "memory": (
        "kairos_env.benchmarks.memory.cli:main",
        "theorem 1: what windows forget, by closed form, in trained stacks and in worlds",
    ),
    "ablation": (
        "kairos_env.benchmarks.ablation:main",
        "windows, dilated windows and the delta rule, trained alike and compared with the truth",
    ),
    "efficiency": (
        "kairos_env.benchmarks.efficiency.cli:main",
        "size, operations and speed of our worlds, beside a U-Net denoiser and an RSSM",
    ),
    "contraction": (
        "kairos_env.benchmarks.contraction:main",
        "theorem 2 on the kernels, and the half-lives of a trained world",
    ),
    "curriculum": (
        "kairos_env.benchmarks.curriculum:main",
        "three stages against the last one alone, for the same processor time",
    ),
    "agents": (
        "kairos_env.benchmarks.agents:main",
        "keep a run of 'kairos imagine' or 'kairos evolve' among the results",
    ),
    "serve": (
        "kairos_env.benchmarks.serve:main",
        "the policy service under load, under attack, and killed",
    ),
    "quantise": (
        "kairos_env.benchmarks.quantise:main",
        "weights in 8 and 4 bits: size, speed and what they cost a dream",
    ),
    "published": (
        "kairos_env.benchmarks.published:main",
        "memory to load a checkpoint, and whether an imported network learns to answer",
    ),
    "env": (
        "kairos_env.benchmarks.environment:main",
        "steps a second, cold start, snapshots and forks; --long: a hundred thousand steps",
    ),
    "dial": (
        "kairos_env.benchmarks.dial:main",
        "what each setting of a dream wins in speed and costs in fidelity",
    ),
    "tables": (
        "kairos_env.benchmarks.tables:main",
        "write the tables of README and docs from the results",
    ),
}


def main(argv: Sequence[str]) -> int:
    """Run one bench; returns its exit status."""
    return run("kairos bench", BENCHES, argv)
