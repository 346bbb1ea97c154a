"""Memory of tensors: what enters from outside gets memory of its own, aligned as torch's.

A tensor out of a file, or a slice of a larger one, begins wherever it lies there. Products and sums
take the elements before the first aligned address one by one, so that the same numbers at another
address can round differently; and what lies in somebody else's memory changes with it.
"""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)

ALIGNMENT = 64
"""Bytes that torch's allocator aligns memory on the CPU to."""


def owned(tensor: Tensor) -> Tensor:
    """Returns the tensor itself where it has memory of its own, and a copy where it has not.

    Its own is what begins at an aligned address and fills all of its storage. Dense layouts other
    than row by row (channels last) are kept; what overlaps or has gaps is laid out row by row.
    """
    storage = tensor.untyped_storage()
    whole = storage.nbytes() == tensor.numel() * tensor.element_size()
    if whole and tensor.data_ptr() % ALIGNMENT == 0 and dense(tensor):
        return tensor
    return copied(tensor)


def copied(tensor: Tensor) -> Tensor:
    """Returns a copy in memory of its own, with the tensor's layout where that has no gaps."""
    kept = torch.preserve_format if dense(tensor) else torch.contiguous_format
    return tensor.clone(memory_format=kept)


def dense(tensor: Tensor) -> bool:
    """Returns whether every element of the tensor's stretch of memory is one of its own, once."""
    if tensor.numel() == 0:
        return True
    expected = 1
    sizes = zip(tensor.stride(), tensor.shape, strict=True)
    for stride, size in sorted(pair for pair in sizes if pair[1] != 1):
        if stride != expected:
            return False
        expected *= size
    return True


def own_network(network: Network) -> Network:
    """Returns the network itself where its tensors have memory of their own, or else a copy.

    A copy, because whoever made the tensors views of one block may count on that. Parameters that
    are one object stay one. Networks off the CPU are returned as they are: recurrent layers lie in
    one block there on purpose, and its parts are aligned.
    """
    if all(owned(value) is value for value in _on_cpu(network)):
        return network
    moved = copy.deepcopy(network)
    for value in _on_cpu(moved):
        value.data = owned(value.detach())
    return moved


def _on_cpu(network: nn.Module) -> list[Tensor]:
    tensors = (*network.parameters(), *network.buffers())
    return [value for value in tensors if value.device.type == "cpu"]
