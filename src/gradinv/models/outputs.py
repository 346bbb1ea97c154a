"""What a network returns: the logits, or something that holds them."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from gradinv.errors import ModelError


def logits_in(output: Any) -> Any:
    """Returns the part of a network's output that holds the logits, whatever it is.

    An attribute ``logits`` (the outputs of Hugging Face, Inception in train mode), the entry
    ``logits`` of a dict or its only one, the first of a tuple or list; else the output itself.
    """
    if hasattr(output, "logits"):
        return output.logits
    if isinstance(output, Mapping):
        if "logits" in output:
            return output["logits"]
        return next(iter(output.values())) if len(output) == 1 else output
    if isinstance(output, tuple | list) and output:
        return output[0]
    return output


def logits_of(output: Any) -> Tensor:
    """Returns the logits in a network's output, of shape (batch, class).

    Raises:
        ModelError: there are none where they are looked for, or they have another shape.
    """
    found = logits_in(output)
    if not isinstance(found, Tensor):
        inside = f" with {', '.join(map(str, output))}" if isinstance(output, Mapping) else ""
        raise ModelError(
            "expected a network that returns logits, a tuple that begins with them, or something "
            f"with 'logits' in it, got a {type(output).__name__}{inside}; return the logits"
        )
    if found.ndim != 2:
        raise ModelError(
            f"expected logits of shape (batch, class), got shape {tuple(found.shape)}; give the "
            "network one vector of logits for each image (a single one stands in a vector too)"
        )
    return found
