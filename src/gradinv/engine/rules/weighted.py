"""Rules of layers that are bilinear in their weights and their input.

With y = W * a + b: R{y} = W * R{a} + V * a + V_b and R{gx} = W^T * R{gy} + V^T * gy.

Where v = alpha dL/dW + beta g with the observed g, a layer may stay a ghost: dL/dW = gy^T U is
never formed, U being the input as a matrix. With K = U U^T and Q = gy gy^T,

    |dL/dW|^2 = sum K Q,    <dL/dW, g> = <gy, g * a>,
    V * a = alpha K gy + beta g * a,    V^T * gy = alpha (Q U) + beta g^T * gy.

W and g are the same for all restarts, so their products are computed for all of them at once.
"""

from typing import Any

import torch
from torch import Tensor

from gradinv.engine.rules.convolution import products_of
from gradinv.engine.rules.geometry import Geometry
from gradinv.engine.rules.op import (
    Ghost,
    Op,
    Run,
    Saved,
    UnsupportedError,
    channels_last,
    per_channel,
    rows_of,
)
from gradinv.engine.rules.products import OfVectors, Products, part


class Weighted(Op):
    """Base class; a subclass says how products are computed.

    Args:
        weight: name of W.
        bias: name of b, or None.

    Attributes:
        dimensions: of the input that the rule holds for, the batch included.
    """

    dimensions: int

    def __init__(self, weight: str, bias: str | None) -> None:
        self.weight, self.bias = weight, bias
        self.parameters = (weight,) if bias is None else (weight, bias)

    def products(self, a: Tensor, weight: Tensor) -> Products:
        """Returns the products for these shapes."""
        raise TypeError(f"{type(self).__name__} defines no products")

    def ghost_pays(self, a: Tensor, weight: Tensor, restarts: int) -> bool:
        """Whether the layer is faster as a ghost, by its shapes."""
        raise TypeError(f"{type(self).__name__} defines no rule for ghosts")

    def forward(self, run: Run, saved: Saved, *inputs: Tensor) -> Tensor:
        """Returns W * a + b."""
        (a,) = inputs
        if a.dim() != self.dimensions:
            kind = type(self).__name__.lower()
            raise UnsupportedError(f"{kind} of a {a.dim()}-dimensional input")
        weight = run.weights[self.weight]
        saved.products = self.products(a, weight)
        saved.ghost = self.weight in run.observed and self.ghost_pays(a, weight, run.restarts)
        saved.input, saved.a = a, saved.products.prepared(a)
        bias = None if self.bias is None else run.weights[self.bias]
        y = saved.products.forward(saved.a, weight, bias)
        saved.out_shape = y.shape
        return y

    def backward(
        self, run: Run, saved: Saved, gy: Tensor, *, wants_input: bool
    ) -> tuple[Tensor | None, ...]:
        """Adds dL/dW and dL/db of every restart."""
        products: Products = saved.products
        if saved.ghost:
            saved.gy = gy
            self._open_ghost(run, saved)
        elif self.weight in run.wanted:
            saved.gy = gy
            gradients = [
                products.outer(part(gy, index, run.restarts), part(saved.a, index, run.restarts))
                for index in range(run.restarts)
            ]
            run.add_gradient(self.weight, gradients)
        # The patches of a 3 x 3 kernel are nine times the input, from which they can be had again.
        saved.a = None
        if self.bias is not None and self.bias in run.wanted:
            over = [axis for axis in range(gy.dim()) if axis != 1]
            gradients = [part(gy, index, run.restarts).sum(over) for index in range(run.restarts)]
            run.add_gradient(self.bias, gradients)
        if not wants_input:
            return (None,)
        return (products.image(products.backward(gy, run.weights[self.weight])),)

    def _open_ghost(self, run: Run, saved: Saved) -> None:
        """Adds the products with dL/dW that the distance needs."""
        products: Products = saved.products
        saved.star = products.forward(saved.a, run.observed[self.weight], None)
        products_with_star = rows_of(saved.gy) * rows_of(saved.star)
        saved.rows = products.spread(saved.gy, run.restarts)
        saved.outer_gram = saved.rows @ saved.rows.mT
        saved.inner_gram = products.gram(saved.input, run.restarts)
        run.ghosts[self.weight] = Ghost(
            inner=products_with_star.view(run.restarts, -1).sum(1),
            own=(saved.inner_gram * saved.outer_gram).flatten(1).sum(1),
        )

    def tangent_forward(self, run: Run, saved: Saved, *tangents: Tensor | None) -> Tensor | None:
        """Returns W * R{a} + V * a + V_b."""
        (r_a,) = tangents
        products, restarts = saved.products, run.restarts
        y = None
        if r_a is not None:
            y = _forward(products, products.prepared(r_a), run.tangent_weight(self.weight), run)
        v_bias = run.direction(self.bias)
        if saved.ghost:
            moved = products.gathered(saved.inner_gram @ saved.rows)
            own = run.ghosts[self.weight].combined(restarts, moved, saved.star)
            y = own if y is None else y.add_(own)
            saved.star = saved.rows = saved.inner_gram = None
        elif (v := run.direction(self.weight)) is not None:
            a = products.prepared(saved.input)
            if y is None and restarts == 1:
                y = _forward(products, a, v[0], run)
            else:
                y = _zeros(saved.out_shape, a) if y is None else y
                for i, own in enumerate(v):
                    _add_forward(products, part(y, i, restarts), part(a, i, restarts), own, run)
            # The way back does without it, and activations are most of what a step holds.
            saved.input = None
        if v_bias is None:
            return y
        if y is None:
            y = _zeros(saved.out_shape, v_bias[0])
        spread = per_channel(torch.stack(v_bias)[:, None], like=y)
        y.unflatten(0, (restarts, -1)).add_(spread)
        return y

    def tangent_backward(self, run: Run, saved: Saved, r_gy: Tensor) -> tuple[Tensor, ...]:
        """Returns W^T * R{gy} + V^T * gy."""
        products, restarts = saved.products, run.restarts
        sums = _backward(products, r_gy, run.tangent_weight(self.weight), run)
        if saved.ghost:
            ghost = run.ghosts[self.weight]
            star = ghost.times_beta(saved.gy, restarts)
            _add_backward(products, sums, star, run.observed[self.weight], run)
            moved = products.through_gram(saved.outer_gram, saved.input)
            return (ghost.add_alpha(products.image(sums), moved, restarts),)
        v = run.direction(self.weight)
        for index, own in enumerate(v or []):
            gy = part(saved.gy, index, restarts)
            _add_backward(products, products.of_restart(sums, index, restarts), gy, own, run)
        return (products.image(sums),)


def _zeros(shape: torch.Size, like: Tensor) -> Tensor:
    """Returns zeros, images with channels last in memory."""
    return channels_last(like.new_zeros(1).expand(shape))


def _forward(products: Products, a: Tensor, weight: Tensor, run: Run) -> Tensor:
    """Returns a product of the tangent passes, computed in their type."""
    if run.low is None:
        return products.forward(a, weight, None)
    return products.forward(a.to(run.low_dtype), weight.to(run.low_dtype), None).to(a.dtype)


def _add_forward(products: Products, y: Tensor, a: Tensor, weight: Tensor, run: Run) -> None:
    if run.low is None:
        products.add_forward(y, a, weight)
    else:
        y.add_(_forward(products, a, weight, run))


def _backward(products: Products, gy: Tensor, weight: Tensor, run: Run) -> Tensor:
    if run.low is None:
        return products.backward(gy, weight)
    return products.backward(gy.to(run.low_dtype), weight.to(run.low_dtype)).to(gy.dtype)


def _add_backward(products: Products, sums: Tensor, gy: Tensor, weight: Tensor, run: Run) -> None:
    if run.low is None:
        products.add_backward(sums, gy, weight)
    else:
        sums.add_(_backward(products, gy, weight, run))


class Linear(Weighted):
    """Linear layer on vectors (batch, feature)."""

    dimensions = 2

    def products(self, a: Tensor, weight: Tensor) -> Products:
        """Returns products of matrices."""
        return OfVectors()

    def ghost_pays(self, a: Tensor, weight: Tensor, restarts: int) -> bool:
        """Whether the Gram matrices are less work than dL/dW."""
        return ghost_pays(a.shape[0] // restarts, sum(weight.shape), weight.numel(), restarts)


class Convolution(Weighted):
    """Two-dimensional convolution with zero padding.

    Args:
        weight: name of W.
        bias: name of b, or None.
        settings: stride, padding, dilation and groups.
    """

    dimensions = 4

    def __init__(self, weight: str, bias: str | None, **settings: Any) -> None:
        super().__init__(weight, bias)
        self._settings = settings

    def _geometry(self, a: Tensor, weight: Tensor) -> Geometry:
        rows, columns = weight.shape[2:]
        return Geometry(a.shape, (rows, columns), **self._settings)

    def products(self, a: Tensor, weight: Tensor) -> Products:
        """Returns the products that are fastest for these shapes."""
        return products_of(self._geometry(a, weight), weight)

    def ghost_pays(self, a: Tensor, weight: Tensor, restarts: int) -> bool:
        """Whether the Gram matrices are less work than dL/dW."""
        geometry = self._geometry(a, weight)
        row = a.shape[1] if geometry.centred else weight[0].numel()
        positions = geometry.positions // restarts
        pays = ghost_pays(positions, len(weight) + row, weight.numel(), restarts)
        return geometry.groups == 1 and pays


# Numbers of multiplications that take as long as: one element of dL/dW on its way through memory,
# which the distance reads and the direction overwrites; one element of a Gram matrix on its way;
# the calls that a ghost makes more. Fitted to the times of ResNet18's and ConvNet's layers.
_PER_WEIGHT, _PER_PAIR, _CALLS = 90, 80, 20_000_000


def ghost_pays(positions: int, lengths: int, weights: int, restarts: int) -> bool:
    """Whether a ghost is less work, from the shapes alone.

    The choice must be the same in a run and its resumption, so nothing is measured.

    Args:
        positions: rows of U of one restart.
        lengths: of a row of what the Gram matrices are made from, both together.
        weights: elements of W.
        restarts: R.
    """
    # Twice each length, and small products run at about half the speed of large ones.
    gram = positions**2 * (4 * lengths + _PER_PAIR)
    return restarts * gram + _CALLS < restarts * weights * (positions + _PER_WEIGHT)
