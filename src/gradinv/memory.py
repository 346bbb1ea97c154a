"""Memory of tensors: what enters from outside gets memory of its own, aligned as torch's.

A tensor out of a file, or a slice of a larger one, begins wherever it lies there. Products and sums
take the elements before the first aligned address one by one, so that the same numbers at another
address can round differently; a convolution of what lies channels last is another one than that of
what lies row by row, which no file keeps apart; and what lies in somebody else's memory changes
with it.
"""

import copy
import operator
from collections.abc import Sequence
from itertools import accumulate
from typing import TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)

ALIGNMENT = 64
"""Bytes that torch's allocator aligns memory on the CPU to."""


def owned(tensor: Tensor) -> Tensor:
    """Returns the tensor itself where it has memory of its own, and a copy where it has not.

    Its own is what begins at an aligned address and fills all of its storage, row by row.
    """
    storage = tensor.untyped_storage()
    whole = storage.nbytes() == tensor.numel() * tensor.element_size()
    aligned = tensor.data_ptr() % ALIGNMENT == 0
    return (
        tensor if whole and aligned and tensor.stride() == _rows(tensor.shape) else copied(tensor)
    )


def copied(tensor: Tensor) -> Tensor:
    """Returns a copy in memory of its own, laid out row by row."""
    return tensor.clone(memory_format=torch.contiguous_format)


def _rows(shape: Sequence[int]) -> tuple[int, ...]:
    """Returns the strides of a tensor that lies row by row.

    ``is_contiguous`` asks for less: the stride of a dimension of size 1 may be anything there, and
    PyTorch may choose between its convolutions by it.
    """
    steps = accumulate((max(size, 1) for size in reversed(shape)), operator.mul, initial=1)
    return tuple(steps)[:-1][::-1]


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
