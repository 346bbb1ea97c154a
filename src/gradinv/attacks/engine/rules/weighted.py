"""Rules of layers that are bilinear in their weights and their input.

With y = W * a + b: R{y} = W * R{a} + V * a + V_b and R{gx} = W^T * R{gy} + V^T * gy.
"""

import torch
from torch import Tensor

from gradinv.attacks.engine.rules.op import (
    Ghost,
    Op,
    Run,
    Saved,
    UnsupportedError,
    images_of,
    per_channel,
    rows_of,
)


def joined(parts: list[Tensor]) -> Tensor:
    """Returns the restarts' parts as one batch, restart first."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class Weighted(Op):
    """Base class; a subclass says how products are computed.

    Args:
        weight: name of W.
        bias: name of b, or None.

    Where v = alpha dL/dW + beta g with the observed g, a layer may stay a ghost: dL/dW = gy^T U is
    never formed, U being the input as a matrix. With K = U U^T and Q = gy gy^T,

        |dL/dW|^2 = sum K Q,    <dL/dW, g> = <gy, g * a>,
        V * a = alpha K gy + beta g * a,    V^T * gy = alpha (Q U) + beta g^T * gy,

    where Q U is put back as a transposed product is. W and g are the same for all restarts.

    Attributes:
        dimensions: of the input that the rule holds for, the batch included.
    """

    dimensions: int

    def __init__(self, weight: str, bias: str | None) -> None:
        self.weight, self.bias = weight, bias
        self.parameters = (weight,) if bias is None else (weight, bias)

    def open(self, saved: Saved, a: Tensor, weight: Tensor) -> None:
        """Decides from the shapes how this run computes its products."""

    def prepared(self, saved: Saved, a: Tensor) -> Tensor:
        """Returns the input in the form that the other products take; batch first."""
        return a

    def product(self, saved: Saved, a: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Returns W * a + b from the prepared input."""
        raise TypeError(f"{type(self).__name__} defines no product")

    def transposed(self, saved: Saved, gy: Tensor, weight: Tensor) -> Tensor:
        """Returns W^T * gy in the shape of the input."""
        raise TypeError(f"{type(self).__name__} defines no transposed product")

    def outer(self, saved: Saved, gy: Tensor, a: Tensor, weight: Tensor) -> Tensor:
        """Returns dL/dW from the prepared input, in the memory order of W."""
        raise TypeError(f"{type(self).__name__} defines no gradient")

    def gram(self, saved: Saved, restarts: int) -> Tensor:
        """Returns K of every restart."""
        raise TypeError(f"{type(self).__name__} defines no Gram matrix")

    def through_gram(self, saved: Saved, gram: Tensor) -> Tensor:
        """Returns Q U, put back, from Q of every restart."""
        raise TypeError(f"{type(self).__name__} defines no product with a Gram matrix")

    def ghost_pays(self, saved: Saved, weight: Tensor, restarts: int) -> bool:
        """Whether the layer is faster as a ghost, by its shapes."""
        raise TypeError(f"{type(self).__name__} defines no rule for ghosts")

    def forward(self, run: Run, saved: Saved, *inputs: Tensor) -> Tensor:
        """Returns W * a + b."""
        (a,) = inputs
        if a.dim() != self.dimensions:
            kind = type(self).__name__.lower()
            raise UnsupportedError(f"{kind} of a {a.dim()}-dimensional input")
        weight = run.weights[self.weight]
        saved.in_shape = a.shape
        self.open(saved, a, weight)
        saved.ghost = self.weight in run.observed and self.ghost_pays(saved, weight, run.restarts)
        saved.a = self.prepared(saved, a)
        if saved.ghost:
            saved.input = a
        y = self.product(saved, saved.a, weight, self._bias(run))
        saved.out_shape = y.shape
        return y

    def _bias(self, run: Run) -> Tensor | None:
        return None if self.bias is None else run.weights[self.bias]

    def backward(
        self, run: Run, saved: Saved, gy: Tensor, *, wants_input: bool
    ) -> tuple[Tensor | None, ...]:
        """Adds dL/dW and dL/db of every restart."""
        weight = run.weights[self.weight]
        if saved.ghost:
            saved.gy = gy
            self._open_ghost(run, saved)
        elif self.weight in run.wanted:
            saved.gy = gy
            pairs = zip(gy.chunk(run.restarts), saved.a.chunk(run.restarts), strict=True)
            run.add_gradient(self.weight, [self.outer(saved, own, a, weight) for own, a in pairs])
        if self.bias is not None and self.bias in run.wanted:
            over = [axis for axis in range(gy.dim()) if axis != 1]
            run.add_gradient(self.bias, [own.sum(over) for own in gy.chunk(run.restarts)])
        return (self.transposed(saved, gy, weight) if wants_input else None,)

    def _open_ghost(self, run: Run, saved: Saved) -> None:
        """Adds the products with dL/dW that the distance needs."""
        saved.star = self.product(saved, saved.a, run.observed[self.weight], None)
        inner = (saved.gy * saved.star).flatten(1).sum(1).unflatten(0, (run.restarts, -1)).sum(1)
        gy = rows_of(saved.gy).unflatten(0, (run.restarts, -1))
        saved.outer_gram = gy @ gy.mT
        saved.inner_gram = self.gram(saved, run.restarts)
        own = (saved.inner_gram * saved.outer_gram).flatten(1).sum(1)
        run.ghosts[self.weight] = Ghost(inner, own)

    def _ghost_forward(self, run: Run, saved: Saved) -> Tensor:
        """Returns V * a."""
        ghost = run.ghosts[self.weight]
        gy = rows_of(saved.gy).unflatten(0, (run.restarts, -1))
        moved = saved.inner_gram @ gy
        moved = images_of(moved.flatten(0, 1), saved.out_shape)
        return ghost.combined(run.restarts, moved, saved.star)

    def _ghost_backward(self, run: Run, saved: Saved) -> Tensor:
        """Returns V^T * gy."""
        ghost = run.ghosts[self.weight]
        star = self._low_transposed(saved, saved.gy, run.observed[self.weight], run)
        moved = self.through_gram(saved, saved.outer_gram)
        return ghost.combined(run.restarts, moved, star)

    def _low_product(
        self, saved: Saved, a: Tensor, weight: Tensor, bias: Tensor | None, run: Run
    ) -> Tensor:
        """Returns a product of the tangent pass, computed in its type."""
        if run.low is None:
            return self.product(saved, a, weight, bias)
        low = run.tangent_weight(self.weight).dtype
        bias = None if bias is None else bias.to(low)
        return self.product(saved, a.to(low), weight.to(low), bias).to(a.dtype)

    def _low_transposed(self, saved: Saved, gy: Tensor, weight: Tensor, run: Run) -> Tensor:
        """Returns a transposed product of the tangent pass, computed in its type."""
        if run.low is None:
            return self.transposed(saved, gy, weight)
        low = run.tangent_weight(self.weight).dtype
        return self.transposed(saved, gy.to(low), weight.to(low)).to(gy.dtype)

    def tangent_forward(self, run: Run, saved: Saved, *tangents: Tensor | None) -> Tensor | None:
        """Returns W * R{a} + V * a + V_b."""
        (r_a,) = tangents
        r_y = None
        if r_a is not None:
            weight = run.tangent_weight(self.weight)
            r_y = self._low_product(saved, self.prepared(saved, r_a), weight, None, run)
        v_bias = run.direction(self.bias)
        if saved.ghost:
            own = self._ghost_forward(run, saved)
            r_y = own if r_y is None else own.add_(r_y)
        elif (v := run.direction(self.weight)) is not None:
            biases = v_bias or [None] * run.restarts
            parts = zip(saved.a.chunk(run.restarts), v, biases, strict=True)
            own = joined([self._low_product(saved, *part, run) for part in parts])
            return own if r_y is None else own.add_(r_y)
        if v_bias is None:
            return r_y
        if r_y is None:
            r_y = v_bias[0].new_zeros(saved.out_shape)
        spread = per_channel(torch.stack(v_bias)[:, None], like=r_y)
        return (r_y.unflatten(0, (run.restarts, -1)) + spread).flatten(0, 1)

    def tangent_backward(self, run: Run, saved: Saved, r_gy: Tensor) -> tuple[Tensor, ...]:
        """Returns W^T * R{gy} + V^T * gy."""
        r_gx = self._low_transposed(saved, r_gy, run.tangent_weight(self.weight), run)
        if saved.ghost:
            return (r_gx.add_(self._ghost_backward(run, saved)),)
        if (v := run.direction(self.weight)) is not None:
            pairs = zip(saved.gy.chunk(run.restarts), v, strict=True)
            r_gx = r_gx.add_(joined([self._low_transposed(saved, *pair, run) for pair in pairs]))
        return (r_gx,)


class Linear(Weighted):
    """Linear layer on vectors (batch, feature)."""

    dimensions = 2

    def product(self, saved: Saved, a: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Returns a W^T + b."""
        return torch.nn.functional.linear(a, weight, bias)

    def transposed(self, saved: Saved, gy: Tensor, weight: Tensor) -> Tensor:
        """Returns gy W."""
        return gy @ weight

    def outer(self, saved: Saved, gy: Tensor, a: Tensor, weight: Tensor) -> Tensor:
        """Returns gy^T a."""
        return gy.t() @ a

    def gram(self, saved: Saved, restarts: int) -> Tensor:
        """Returns a a^T of every restart."""
        a = saved.a.unflatten(0, (restarts, -1))
        return a @ a.mT

    def through_gram(self, saved: Saved, gram: Tensor) -> Tensor:
        """Returns (gy gy^T) a."""
        return (gram @ saved.a.unflatten(0, (len(gram), -1))).flatten(0, 1)

    def ghost_pays(self, saved: Saved, weight: Tensor, restarts: int) -> bool:
        """Whether the Gram matrices are less work than dL/dW."""
        return ghost_pays(saved.in_shape[0] // restarts, sum(weight.shape), weight.numel())


# Numbers of multiplications that take as long as one element on its way through memory: once for
# dL/dW, which the distance reads and the direction overwrites, and once for a Gram matrix.
_PER_WEIGHT, _PER_PAIR = 64, 80


def ghost_pays(positions: int, lengths: int, weights: int) -> bool:
    """Whether a ghost is less work, from the shapes alone.

    The choice must be the same in a run and its resumption, so nothing is measured; the constants
    were fitted to times of ResNet18's and ConvNet's layers.

    Args:
        positions: rows of U of one restart.
        lengths: of a row of what the Gram matrices are made from, both together.
        weights: elements of W.
    """
    return positions**2 * (2 * lengths + _PER_PAIR) < weights * (positions + _PER_WEIGHT)
