"""The network inside what runs it on several devices or compiles it, in a type to compute with."""

import copy

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

_OTHERS = (torch.float16, torch.bfloat16, torch.float64)


def unwrapped_network(model: nn.Module) -> nn.Module:
    """Returns the network itself, in its own mode, under the names that it has itself.

    ``nn.DataParallel``, ``DistributedDataParallel`` and ``torch.compile`` compute what the network
    inside computes, put a prefix before its names, and cannot be differentiated twice or traced.

    A network in float16 or bfloat16 is copied to float32: the same weights, and so the same
    fingerprint. Client and attack then compute in float32, as mixed precision keeps its weights;
    images in float32 would not fit the network otherwise, and costs of a search would drown in
    rounding. So is one in float64, whose weights are rounded.
    """
    model = _inside(model)
    if any(value.dtype in _OTHERS for value in (*model.parameters(), *model.buffers())):
        return copy.deepcopy(model).float()
    return model


def _inside(model: nn.Module) -> nn.Module:
    while True:
        # A compiled network has no public class; it keeps the one that it was made of.
        original = model.__dict__.get("_modules", {}).get("_orig_mod")
        if isinstance(model, nn.DataParallel | DistributedDataParallel):
            model = model.module
        elif original is not None:
            model = original
        else:
            return model
