"""Rules of products of two activations: squeeze-and-excite, gated linear units."""

import torch
from torch import Tensor

from gradinv.engine.rules.op import Op, Run, Saved, UnsupportedError
from gradinv.engine.rules.pointwise import sigmoid


class Multiply(Op):
    """a b, where an axis of length one is spread over the other's."""

    def forward(self, run: Run, saved: Saved, *inputs: Tensor) -> Tensor:
        """Returns the product."""
        a, b = inputs
        if a.dim() != b.dim():
            raise UnsupportedError(f"a product of {a.dim()} and {b.dim()} dimensions")
        saved.a, saved.b = a, b
        return a * b

    def backward(
        self, run: Run, saved: Saved, gy: Tensor, *, wants_input: bool
    ) -> tuple[Tensor | None, ...]:
        """Returns gy b and gy a."""
        saved.gy = gy
        if not wants_input:
            return None, None
        return _like(gy * saved.b, saved.a), _like(gy * saved.a, saved.b)

    def tangent_forward(self, run: Run, saved: Saved, *tangents: Tensor | None) -> Tensor | None:
        """Returns R{a} b + a R{b}."""
        saved.r_a, saved.r_b = tangents
        return _plus(_times(saved.r_a, saved.b), _times(saved.r_b, saved.a))

    def tangent_backward(self, run: Run, saved: Saved, r_gy: Tensor) -> tuple[Tensor, ...]:
        """Returns R{gy} b + gy R{b} and R{gy} a + gy R{a}."""
        on_a = _plus(r_gy * saved.b, _times(saved.r_b, saved.gy))
        on_b = _plus(r_gy * saved.a, _times(saved.r_a, saved.gy))
        assert on_a is not None
        assert on_b is not None
        return _like(on_a, saved.a), _like(on_b, saved.b)


class GLU(Op):
    """a sigmoid(b), a and b being the halves of the input along one axis.

    Args:
        axis: that is halved.
    """

    def __init__(self, axis: int) -> None:
        self.axis = axis

    def forward(self, run: Run, saved: Saved, *inputs: Tensor) -> Tensor:
        """Returns a sigmoid(b)."""
        if self.axis % inputs[0].dim() == 0:
            raise UnsupportedError("a gated linear unit over the batch")
        saved.a, b = inputs[0].chunk(2, self.axis)
        saved.s, saved.first, saved.second = sigmoid(b)
        return saved.a * saved.s

    def backward(
        self, run: Run, saved: Saved, gy: Tensor, *, wants_input: bool
    ) -> tuple[Tensor | None, ...]:
        """Returns s gy and a s' gy."""
        saved.gy = gy
        return (torch.cat([saved.s * gy, saved.a * saved.first * gy], self.axis),)

    def tangent_forward(self, run: Run, saved: Saved, *tangents: Tensor | None) -> Tensor | None:
        """Returns s R{a} + a s' R{b}."""
        saved.r = tangents[0]
        if saved.r is None:
            return None
        r_a, r_b = saved.r.chunk(2, self.axis)
        return saved.s * r_a + saved.a * saved.first * r_b

    def tangent_backward(self, run: Run, saved: Saved, r_gy: Tensor) -> tuple[Tensor, ...]:
        """Returns the tangents of both halves' adjoints."""
        on_a, on_b = saved.s * r_gy, saved.a * saved.first * r_gy
        if saved.r is not None:
            r_a, r_b = saved.r.chunk(2, self.axis)
            on_a = on_a + saved.first * r_b * saved.gy
            on_b = on_b + (r_a * saved.first + saved.a * saved.second * r_b) * saved.gy
        return (torch.cat([on_a, on_b], self.axis),)


def _like(x: Tensor, other: Tensor) -> Tensor:
    """Returns the sum over what was spread."""
    return x.sum_to_size(other.shape)


def _times(a: Tensor | None, b: Tensor) -> Tensor | None:
    return None if a is None else a * b


def _plus(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return b if a is None else a
    return a + b
