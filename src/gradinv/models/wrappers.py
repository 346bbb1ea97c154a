"""The network inside what runs it on several devices or compiles it."""

from torch import nn
from torch.nn.parallel import DistributedDataParallel


def unwrapped_network(model: nn.Module) -> nn.Module:
    """Returns the network itself, in its own mode, under the names that it has itself.

    ``nn.DataParallel``, ``DistributedDataParallel`` and ``torch.compile`` compute what the network
    inside computes, put a prefix before its names, and cannot be differentiated twice or traced.
    """
    while True:
        # A compiled network has no public class; it keeps the one that it was made of.
        original = model.__dict__.get("_modules", {}).get("_orig_mod")
        if isinstance(model, nn.DataParallel | DistributedDataParallel):
            model = model.module
        elif original is not None:
            model = original
        else:
            return model
