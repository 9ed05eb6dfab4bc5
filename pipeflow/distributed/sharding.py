"""Tensors that FSDP has spread over processes; others pass through unchanged."""

from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(tensor: Tensor) -> Tensor:
    """A tensor that `World.shard` has spread, put together again: all processes must call it. Others as they are."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """This process's share of a tensor that `World.shard` has spread, sharing its storage; others as they are."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def placed(tensor: Tensor, like: Tensor) -> Tensor:
    """A copy of a tensor that every process holds, where `like` is and spread as it is."""
    if isinstance(like, DTensor):
        copy = tensor.to(like.device, copy=True)
        return distribute_tensor(copy, like.device_mesh, like.placements, src_data_rank=None)
    return tensor.to(like.device, copy=True)
