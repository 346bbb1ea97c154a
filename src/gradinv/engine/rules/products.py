"""How the products of a layer's weights with its activations are computed.

One object belongs to one layer in one run; it knows the shapes. Restarts are folded into the batch,
restart first. W * a may be summed from several weights (R{y} = W * R{a} + V * a) and so may
W^T * gy, whose terms are summed before they are put in the form of an image.
"""

from typing import Protocol, runtime_checkable

from torch import Tensor
from torch.nn import functional


@runtime_checkable
class Products(Protocol):
    """Products of a layer in one run."""

    def prepared(self, a: Tensor) -> Tensor:
        """Returns the input as the other products take it; batch first."""
        ...

    def forward(self, a: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Returns W * a + b from the prepared input."""
        ...

    def add_forward(self, y: Tensor, a: Tensor, weight: Tensor) -> None:
        """Adds W * a to ``y`` in place."""
        ...

    def backward(self, gy: Tensor, weight: Tensor) -> Tensor:
        """Returns W^T * gy before it is an image."""
        ...

    def add_backward(self, sums: Tensor, gy: Tensor, weight: Tensor) -> None:
        """Adds W^T * gy to what :meth:`backward` gave, in place."""
        ...

    def of_restart(self, sums: Tensor, index: int, restarts: int) -> Tensor:
        """Returns one restart's part of what :meth:`backward` gave."""
        ...

    def image(self, sums: Tensor) -> Tensor:
        """Returns what :meth:`backward` gave in the shape of the input."""
        ...

    def outer(self, gy: Tensor, a: Tensor) -> Tensor:
        """Returns dL/dW from the prepared input, in the memory order of W."""
        ...

    def spread(self, gy: Tensor, restarts: int) -> Tensor:
        """Returns the rows of gy (restart, position, channel) as the Gram matrices order them."""
        ...

    def gathered(self, rows: Tensor) -> Tensor:
        """Returns what :meth:`spread` took apart."""
        ...

    def gram(self, a: Tensor, restarts: int) -> Tensor:
        """Returns U U^T of every restart, U being the input as a matrix."""
        ...

    def through_gram(self, gram: Tensor, a: Tensor) -> Tensor:
        """Returns the image of gram U, for the Gram matrix of every restart's gy."""
        ...


def part(batch: Tensor, index: int, restarts: int) -> Tensor:
    """Returns one restart's part of a tensor whose first dimension is the batch."""
    if restarts == 1:
        return batch
    size = batch.shape[0] // restarts
    return batch.narrow(0, index * size, size)


class OfVectors:
    """Products of a linear layer on (batch, feature)."""

    def prepared(self, a: Tensor) -> Tensor:
        """Returns the input."""
        return a

    def forward(self, a: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Returns a W^T + b."""
        return functional.linear(a, weight, bias)

    def add_forward(self, y: Tensor, a: Tensor, weight: Tensor) -> None:
        """Adds a W^T to ``y`` in place."""
        y.addmm_(a, weight.t())

    def backward(self, gy: Tensor, weight: Tensor) -> Tensor:
        """Returns gy W."""
        return gy @ weight

    def add_backward(self, sums: Tensor, gy: Tensor, weight: Tensor) -> None:
        """Adds gy W in place."""
        sums.addmm_(gy, weight)

    def of_restart(self, sums: Tensor, index: int, restarts: int) -> Tensor:
        """Returns one restart's part."""
        return part(sums, index, restarts)

    def image(self, sums: Tensor) -> Tensor:
        """Returns the sums."""
        return sums

    def outer(self, gy: Tensor, a: Tensor) -> Tensor:
        """Returns gy^T a."""
        return gy.t() @ a

    def spread(self, gy: Tensor, restarts: int) -> Tensor:
        """Returns the rows of every restart."""
        return gy.unflatten(0, (restarts, -1))

    def gathered(self, rows: Tensor) -> Tensor:
        """Returns the rows as one batch."""
        return rows.flatten(0, 1)

    def gram(self, a: Tensor, restarts: int) -> Tensor:
        """Returns a a^T of every restart."""
        rows = a.unflatten(0, (restarts, -1))
        return rows @ rows.mT

    def through_gram(self, gram: Tensor, a: Tensor) -> Tensor:
        """Returns gram a."""
        return (gram @ a.unflatten(0, (len(gram), -1))).flatten(0, 1)
