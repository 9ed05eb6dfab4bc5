"""One module in several processes: averaged gradients (DDP), spread parameters (FSDP), equal weights to start from.

Around PyTorch's wrappers there is little to do but to give them the right group. Tensors that FSDP has spread over the
processes are DTensors, a class that no other module has to know.
"""

import warnings
from collections.abc import Iterable

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from .transport_errors import others_answer
from .world import Members, World


def average_gradients(world: World, module: nn.Module, members: Members) -> nn.Module:
    """The module with gradients averaged over all processes, or over the replicas of this process's parts.

    They must hold equal weights already. Where there is one process only, the module itself.

    Raises:
        LostError: another process did not answer.
    """
    if (world.size if members == "everyone" else len(world.peers)) == 1:
        return module
    devices = [world.device.index] if world.device.type == "cuda" else None
    with warnings.catch_warnings(), others_answer(world.pulse, "the processes did not compare their weights"):
        # Newer versions of PyTorch rename broadcast_buffers; the oldest that we support knows no other name.
        warnings.simplefilter("ignore", FutureWarning)
        return nn.parallel.DistributedDataParallel(
            module, device_ids=devices, process_group=world.group(members), broadcast_buffers=False
        )


def shard(world: World, module: nn.Module, units: Iterable[nn.Module]) -> None:
    """Spreads the module's parameters over all processes, which must hold equal ones; on one, moves it to the device.

    Args:
        world: the processes.
        module: afterwards its forward and backward passes gather what they need, unit by unit.
        units: modules in it, none inside another; what is in none of them is gathered at once.
    """
    if world.size == 1:
        module.to(world.device)
        return
    mesh = DeviceMesh.from_group(world.group("everyone"), world.device.type)
    for each in [*units, module]:
        # By default the root's own parameters stay gathered after a forward pass, and an optimizer made then would
        # hold tensors whose memory is given back.
        fully_shard(each, mesh=mesh, reshard_after_forward=True)


def equalise(world: World, module: nn.Module) -> None:
    """Gives all replicas of a module the weights and buffers of the first.

    Raises:
        LostError: another process did not answer.
    """
    if len(world.peers) == 1:
        return
    with others_answer(world.pulse, "the replicas did not start from equal weights"):
        for tensor in module.state_dict().values():
            dist.broadcast(tensor, group=world.group("replicas"), group_src=0)


def full_tensor(tensor: Tensor) -> Tensor:
    """A tensor that `shard` has spread, put together again: all processes must call it. Others as they are."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local_tensor(tensor: Tensor) -> Tensor:
    """This process's share of a tensor that `shard` has spread, sharing its storage; others as they are."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def spread_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A copy of a tensor that every process holds, on the device of `like` and spread as it is."""
    copy = tensor.to(like.device, copy=True)
    if isinstance(like, DTensor):
        return distribute_tensor(copy, like.device_mesh, like.placements, src_data_rank=None)
    return copy
