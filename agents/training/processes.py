"""Several processes that train one world together, as `torchrun` starts them.

Every process works on its rows of the same batch. Weights, gradients, the optimizer's moments and
the slow average are sharded between updates (FSDP2) and the weights are gathered once an update.
With one process, every function here does nothing, and what shards is not even imported.
"""

import contextlib
import copy
import datetime
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

# The first process may decode and encode a whole dataset while the others wait.
PATIENCE = datetime.timedelta(hours=12)
Module = TypeVar("Module", bound=nn.Module)
Value = TypeVar("Value")


def count() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def number() -> int:
    """This process's number, from 0; process 0 writes and speaks for all."""
    return dist.get_rank() if dist.is_initialized() else 0


@contextlib.contextmanager
def joined(device: str) -> Iterator[None]:
    """Within it, the processes that torchrun started are one group, each with its own GPU."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    backend = "gloo"
    if device.startswith("cuda"):
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group(backend, timeout=PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def first_goes_ahead() -> Iterator[None]:
    """Process 0 does what follows alone; the others do it after it, and find its files."""
    if number() > 0:
        dist.barrier()
    yield
    if number() == 0 and count() > 1:
        dist.barrier()


def my_rows(batch: int) -> slice:
    """This process's rows of a batch."""
    share, rest = divmod(batch, count())
    if rest:
        raise ValueError(
            f"a batch of {batch} cannot be shared evenly by {count()} processes: start a number "
            "of processes that divides the batch of every stage"
        )
    return slice(number() * share, (number() + 1) * share)


def said_by_first(value: Value) -> Value:
    """What process 0 says."""
    if count() > 1:
        told = [value]
        dist.broadcast_object_list(told, src=0)
        value = told[0]
    return value


def any_of(*flags: bool) -> tuple[bool, ...]:
    """For each flag, whether any process raised it."""
    if count() == 1:
        return flags
    raised = torch.tensor(flags, dtype=torch.int32)
    dist.all_reduce(raised, dist.ReduceOp.MAX)
    return tuple(bool(flag) for flag in raised)


def summed(metrics: Mapping[str, float]) -> dict[str, float]:
    """Sums over the processes."""
    if count() == 1:
        return dict(metrics)
    values = torch.tensor(list(metrics.values()), dtype=torch.float64)
    dist.all_reduce(values)
    return dict(zip(metrics, values.tolist(), strict=True))


def sharded(module: Module, verbs: Sequence[str]) -> Module:
    """A copy of the module whose weights are shared out; the module itself for one process.

    Args:
        module: What is trained.
        verbs: Its methods that compute; the weights are gathered when one of them is called.
    """
    if count() == 1:
        return module
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    clone = copy.deepcopy(module)
    device = next(clone.parameters()).device.type
    fully_shard(clone, mesh=init_device_mesh(device, (count(),)))
    for verb in verbs:
        register_fsdp_forward_method(clone, verb)
    return clone


def whole(x: Tensor) -> Tensor:
    """A tensor with the parts of all processes; to be asked for by all of them."""
    if count() == 1:
        return x
    from torch.distributed.tensor import DTensor

    return x.full_tensor() if isinstance(x, DTensor) else x


def shared_like(x: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, shared out and placed as another one is."""
    x = x.to(like.device)
    if count() == 1:
        return x
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor):
        return x
    return distribute_tensor(x, like.device_mesh, like.placements, src_data_rank=None)
