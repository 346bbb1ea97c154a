"""Rules of what only moves, joins, shifts or scales values."""

import torch
from torch import Tensor

from gradinv.engine.rules.op import PatternOp, Run, Saved, UnsupportedError, channels_last


class Identity(PatternOp):
    """Passes values on: ``nn.Identity``, dropout in eval mode, ``contiguous``."""

    def forward(self, run: Run, saved: Saved, *inputs: Tensor) -> Tensor:
        """Returns the input."""
        return inputs[0]

    def push(self, saved: Saved, *inputs: Tensor | None) -> Tensor:
        """Returns the input."""
        assert inputs[0] is not None
        return inputs[0]

    def pull(self, saved: Saved, gy: Tensor) -> tuple[Tensor, ...]:
        """Returns the adjoint."""
        return (gy,)


class Reshape(PatternOp):
    """Another shape of every sample.

    Args:
        start: first dimension that is flattened, at least 1; None where ``shape`` is given.
        end: last dimension that is flattened.
        shape: of one sample, with at most one -1.
    """

    def __init__(
        self, *, start: int | None = None, end: int = -1, shape: list[int] | None = None
    ) -> None:
        self.start, self.end, self.shape = start, end, shape

    def forward(self, run: Run, saved: Saved, *inputs: Tensor) -> Tensor:
        """Returns the input in its new shape."""
        saved.shape = inputs[0].shape
        if self.start is not None and self.start % inputs[0].dim() == 0:
            raise UnsupportedError("flatten over the batch")
        return self.push(saved, *inputs)

    def push(self, saved: Saved, *inputs: Tensor | None) -> Tensor:
        """Returns the input in its new shape."""
        (x,) = inputs
        assert x is not None
        if self.start is not None:
            return x.flatten(self.start, self.end)
        assert self.shape is not None
        return x.reshape(x.shape[0], *self.shape)

    def pull(self, saved: Saved, gy: Tensor) -> tuple[Tensor, ...]:
        """Returns the adjoint in the shape that the input had."""
        return (channels_last(gy.reshape(saved.shape)),)


class Add(PatternOp):
    """Sum of two activations of one shape; both may be the same."""

    def forward(self, run: Run, saved: Saved, *inputs: Tensor) -> Tensor:
        """Returns the sum."""
        if inputs[0].shape != inputs[1].shape:
            raise UnsupportedError("addition of activations of different shapes")
        return inputs[0] + inputs[1]

    def push(self, saved: Saved, *inputs: Tensor | None) -> Tensor:
        """Returns the sum."""
        a, b = inputs
        if a is None or b is None:
            result = b if a is None else a
            assert result is not None
            return result
        return a + b

    def pull(self, saved: Saved, gy: Tensor) -> tuple[Tensor, ...]:
        """Returns the adjoint twice."""
        return gy, gy


class Concatenate(PatternOp):
    """Joins activations along a dimension that is not the batch."""

    def __init__(self, axis: int) -> None:
        self.axis = axis

    def forward(self, run: Run, saved: Saved, *inputs: Tensor) -> Tensor:
        """Returns the inputs joined."""
        if self.axis % inputs[0].dim() == 0:
            raise UnsupportedError("concatenation along the batch")
        saved.shapes = [x.shape for x in inputs]
        saved.like = inputs[0].new_empty(0)
        return torch.cat(inputs, self.axis)

    def push(self, saved: Saved, *inputs: Tensor | None) -> Tensor:
        """Returns the inputs joined, zeros where there is none."""
        whole = [
            saved.like.new_zeros(shape) if x is None else x
            for x, shape in zip(inputs, saved.shapes, strict=True)
        ]
        return torch.cat(whole, self.axis)

    def pull(self, saved: Saved, gy: Tensor) -> tuple[Tensor, ...]:
        """Returns each input's part of the adjoint."""
        sizes = [shape[self.axis] for shape in saved.shapes]
        return tuple(channels_last(part) for part in gy.split(sizes, self.axis))


class Affine(PatternOp):
    """x scale + shift with constants: normalisation, and arithmetic with numbers or buffers."""

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        self.scale, self.shift = scale, shift

    def forward(self, run: Run, saved: Saved, *inputs: Tensor) -> Tensor:
        """Returns x scale + shift."""
        (x,) = inputs
        y = x * self.scale + self.shift
        for constant in (self.scale, self.shift):
            if constant.dim() == x.dim() and constant.shape[0] != 1:
                raise UnsupportedError("arithmetic with a constant for each image")
        if y.shape != x.shape:
            raise UnsupportedError("arithmetic with a constant that changes the shape")
        return y

    def replay(self, run: Run, saved: Saved, pattern: Saved, *inputs: Tensor) -> Tensor:
        """Returns x scale + shift; a tangent has no shift, an activation has."""
        return self.forward(run, saved, *inputs)

    def push(self, saved: Saved, *inputs: Tensor | None) -> Tensor:
        """Returns x scale."""
        assert inputs[0] is not None
        return inputs[0] * self.scale

    def pull(self, saved: Saved, gy: Tensor) -> tuple[Tensor, ...]:
        """Returns gy scale."""
        return (gy * self.scale,)
