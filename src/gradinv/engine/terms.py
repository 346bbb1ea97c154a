"""What an engine has to know of a regulariser: what it sees, and its slope.

A regulariser is a value that declares in ``sees`` what it is called with, all in normalised pixel
units and with its weight included:

- ``"images"``: one batch of images; it may have ``with_gradient`` beside, for all restarts at once;
- ``"statistics"``: those of the trial images in every batch-norm layer, and the observed ones;
- ``"latents"``: one batch of latents;
- ``"restarts"``: the images of all restarts together; it is asked from the progress ``start`` of
  its stage on, where it has one.

The first two are the engine's, the others a search's own.
"""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal, Protocol, get_args, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from gradinv.errors import ConfigError
from gradinv.models.batchnorm import BatchStatistics

Sees = Literal["images", "statistics", "latents", "restarts"]


@runtime_checkable
class Regularizer(Protocol):
    """A term beside the gradient distance, of any kind; called with what it sees."""

    sees: ClassVar[Sees]


@runtime_checkable
class ImageTerm(Protocol):
    """A term on normalised images."""

    sees: ClassVar[Sees]

    def __call__(self, images: Float[Tensor, "batch channel height width"]) -> Float[Tensor, ""]:
        """Returns the weighted penalty of one batch."""
        ...


@runtime_checkable
class StatisticsTerm(Protocol):
    """A term on what enters the batch-norm layers."""

    sees: ClassVar[Sees]

    def __call__(
        self, trial: Mapping[str, BatchStatistics], observed: Mapping[str, BatchStatistics]
    ) -> Float[Tensor, ""]:
        """Returns the weighted penalty."""
        ...


def check_terms(terms: Iterable[object]) -> None:
    """Checks that every term says what it sees, so that none is left out in silence.

    Raises:
        ConfigError: one that does not, or that cannot be called.
    """
    for term in terms:
        sees = getattr(term, "sees", None)
        if sees not in get_args(Sees) or not callable(term):
            raise ConfigError(
                f"expected a regulariser that says what it sees ({', '.join(get_args(Sees))}), got "
                f"{type(term).__name__} with sees={sees!r}; set it in the class: sees = 'images'"
            )


def seeing(terms: Iterable[Any], what: Sees) -> tuple[Any, ...]:
    """Returns the terms that are called with ``what``, in their order."""
    return tuple(term for term in terms if term.sees == what)


def with_gradient(
    term: ImageTerm, images: Float[Tensor, "restart batch channel height width"]
) -> tuple[Float[Tensor, " restart"], Float[Tensor, "restart batch channel height width"]]:
    """Returns a term on images of every restart and its gradient, in closed form where it has one.

    Args:
        term: it declares ``sees = "images"``.
        images: normalised.
    """
    closed = getattr(term, "with_gradient", None)
    if closed is not None:
        return closed(images)
    leaves = images.detach().requires_grad_()
    with torch.enable_grad():
        values = torch.stack([term(batch) for batch in leaves])
        (gradient,) = torch.autograd.grad(
            values.sum(), leaves, allow_unused=True, materialize_grads=True
        )
    return values.detach(), gradient
