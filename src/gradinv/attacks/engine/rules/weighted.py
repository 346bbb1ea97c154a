"""Rules of convolution and linear layers: bilinear in weights and input."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from gradinv.attacks.engine.rules.op import (
    Op,
    Run,
    Saved,
    UnsupportedError,
    channels_last,
    per_channel,
)

_convolution_backward = torch.ops.aten.convolution_backward.default


def joined(parts: list[Tensor]) -> Tensor:
    """Returns the restarts' parts as one batch, restart first."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def plus(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """Returns a + b in the memory of ``a``; None stands for zeros."""
    if a is None or b is None:
        return b if a is None else a
    return a.add_(b)


class Weighted(Op):
    """y = W * a + b, with R{y} = W * R{a} + V * a + V_b and the transposed for the adjoints.

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

    def product(self, a: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Returns W * a + b."""
        raise TypeError(f"{type(self).__name__} defines no product")

    def transposed(self, gy: Tensor, a: Tensor, weight: Tensor) -> Tensor:
        """Returns the transposed product with ``gy``; ``a`` gives the shape."""
        raise TypeError(f"{type(self).__name__} defines no transposed product")

    def weight_gradient(self, gy: Tensor, a: Tensor, weight: Tensor) -> Tensor:
        """Returns the gradient with respect to W."""
        raise TypeError(f"{type(self).__name__} defines no gradient")

    def forward(self, run: Run, saved: Saved, *inputs: Tensor) -> Tensor:
        """Returns W * a + b."""
        (a,) = inputs
        if a.dim() != self.dimensions:
            raise UnsupportedError(
                f"{type(self).__name__.lower()} of a {a.dim()}-dimensional input"
            )
        saved.a = a
        bias = None if self.bias is None else run.weights[self.bias]
        y = self.product(a, run.weights[self.weight], bias)
        saved.shape = y.shape
        return y

    def backward(
        self, run: Run, saved: Saved, gy: Tensor, *, wants_input: bool
    ) -> tuple[Tensor | None, ...]:
        """Adds dL/dW and dL/db of every restart."""
        weight = run.weights[self.weight]
        if self.weight in run.wanted:
            saved.gy = gy
            pairs = zip(gy.chunk(run.restarts), saved.a.chunk(run.restarts), strict=True)
            run.add_gradient(
                self.weight, [self.weight_gradient(own, a, weight) for own, a in pairs]
            )
        if self.bias is not None and self.bias in run.wanted:
            over = [axis for axis in range(gy.dim()) if axis != 1]
            run.add_gradient(self.bias, [own.sum(over) for own in gy.chunk(run.restarts)])
        return (self.transposed(gy, saved.a, weight) if wants_input else None,)

    def tangent_forward(self, run: Run, saved: Saved, *tangents: Tensor | None) -> Tensor | None:
        """Returns W * R{a} + V * a + V_b."""
        (r_a,) = tangents
        weight, v, v_bias = (
            run.weights[self.weight],
            run.direction(self.weight),
            run.direction(self.bias),
        )
        r_y = None if r_a is None else self.product(r_a, weight, None)
        if v is not None:
            biases = v_bias or [None] * run.restarts
            parts = zip(saved.a.chunk(run.restarts), v, biases, strict=True)
            return plus(joined([self.product(a, own, bias) for a, own, bias in parts]), r_y)
        if v_bias is None:
            return r_y
        spread = per_channel(torch.stack(v_bias)[:, None], like=saved.a)
        if r_y is None:
            r_y = spread.new_zeros(saved.shape)
        return (r_y.unflatten(0, (run.restarts, -1)) + spread).flatten(0, 1)

    def tangent_backward(self, run: Run, saved: Saved, r_gy: Tensor) -> tuple[Tensor, ...]:
        """Returns W^T * R{gy} + V^T * gy."""
        r_gx = self.transposed(r_gy, saved.a, run.weights[self.weight])
        v = run.direction(self.weight)
        if v is not None:
            triples = zip(saved.gy.chunk(run.restarts), saved.a.chunk(run.restarts), v, strict=True)
            r_gx = r_gx.add_(joined([self.transposed(gy, a, own) for gy, a, own in triples]))
        return (r_gx,)


class Convolution(Weighted):
    """Two-dimensional convolution with zero padding."""

    dimensions = 4

    def __init__(
        self,
        weight: str,
        bias: str | None,
        *,
        stride: list[int],
        padding: list[int],
        dilation: list[int],
        groups: int,
    ) -> None:
        super().__init__(weight, bias)
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups

    def product(self, a: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Returns the convolution."""
        return functional.conv2d(
            a, weight, bias, self.stride, self.padding, self.dilation, self.groups
        )

    def _backward(self, gy: Tensor, a: Tensor, weight: Tensor, mask: list[bool]) -> Any:
        return _convolution_backward(
            gy, a, weight, None, self.stride, self.padding, self.dilation, False, [0, 0],
            self.groups, mask,
        )  # fmt: skip

    def transposed(self, gy: Tensor, a: Tensor, weight: Tensor) -> Tensor:
        """Returns the transposed convolution."""
        return self._backward(gy, a, weight, [True, False, False])[0]

    def weight_gradient(self, gy: Tensor, a: Tensor, weight: Tensor) -> Tensor:
        """Returns dL/dW in the memory order of W."""
        return channels_last(self._backward(gy, a, weight, [False, True, False])[1])


class Linear(Weighted):
    """Linear layer on vectors (batch, feature)."""

    dimensions = 2

    def product(self, a: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Returns a W^T + b."""
        return functional.linear(a, weight, bias)

    def transposed(self, gy: Tensor, a: Tensor, weight: Tensor) -> Tensor:
        """Returns gy W."""
        return gy @ weight

    def weight_gradient(self, gy: Tensor, a: Tensor, weight: Tensor) -> Tensor:
        """Returns gy^T a."""
        return gy.t() @ a
