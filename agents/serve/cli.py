"""`kairos serve WORLD`: the world's policy behind HTTP, until ctrl-C or a polite kill."""

import dataclasses
import os
import signal
from collections.abc import Sequence
from typing import Annotated

import torch
import tyro
from rich.console import Console

from kairos_env.agents.serve.policies import policy_of
from kairos_env.agents.serve.server import MEGABYTE, PolicyServer
from kairos_env.world_model.quantise import WeightPrecision
from kairos_env.worlds import load_world

TOKEN_VARIABLE = "KAIROS_TOKEN"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """Serve a world's policy over HTTP. A token is taken from the variable KAIROS_TOKEN."""

    world: Annotated[str, tyro.conf.Positional]
    """A world's name, folder or hub id."""
    host: str = "127.0.0.1"
    """Give 0.0.0.0 to let other machines ask; then set a token too."""
    port: int = 8000
    device: str = "cpu"
    weights: WeightPrecision | None = None
    """Round the weights of the blocks: int8, fp8 or int4."""
    batch: int = 16
    """Requests answered together."""
    largest_body: float = 16.0
    """Megabytes of a request."""
    timeout: float = 60.0
    """Seconds that an answer may take."""
    threads: int | None = None
    """CPU threads."""


def main(argv: Sequence[str]) -> int:
    """The command."""
    arguments = tyro.cli(Arguments, args=list(argv), prog="kairos serve")
    console = Console(stderr=True)
    try:
        server = open_server(arguments)
    except (ValueError, OSError, ImportError) as error:
        console.print(f"kairos serve: {error}", style="red", highlight=False)
        return 1
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: server.shutdown())
    console.print(f"serving {arguments.world} at {server.url}", highlight=False)
    server.serve_forever()
    console.print(f"closed after {server.batcher.answered} answers")
    return 0


def open_server(arguments: Arguments) -> PolicyServer:
    """Load the world and open the port."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    world = load_world(arguments.world, device=arguments.device)
    if arguments.weights:
        world = world.with_weights(arguments.weights)
    return PolicyServer(
        policy_of(world),
        host=arguments.host,
        port=arguments.port,
        token=os.environ.get(TOKEN_VARIABLE) or None,
        largest_body=int(arguments.largest_body * MEGABYTE),
        timeout=arguments.timeout,
        batch=arguments.batch,
    )
