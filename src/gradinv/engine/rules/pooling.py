"""Rules of pooling: linear, or linear once the indices of the maxima are fixed."""

import torch
from torch import Tensor
from torch.nn import functional

from gradinv.engine.rules.op import PatternOp, Run, Saved, UnsupportedError, channels_last


def _images(x: Tensor) -> Tensor:
    """Returns the input, which must be images."""
    if x.dim() != 4:
        raise UnsupportedError(f"pooling of a {x.dim()}-dimensional input")
    return x


class MaxPool(PatternOp):
    """Max-pooling; ties go to the element that PyTorch picks."""

    def __init__(
        self,
        kernel: list[int],
        stride: list[int],
        padding: list[int],
        dilation: list[int],
        *,
        ceil_mode: bool,
    ) -> None:
        self.settings = (kernel, stride, padding, dilation, ceil_mode)

    def forward(self, run: Run, saved: Saved, *inputs: Tensor) -> Tensor:
        """Returns the maxima and keeps where they are."""
        saved.x = _images(inputs[0])
        y, saved.indices = torch.ops.aten.max_pool2d_with_indices(inputs[0], *self.settings)
        return y

    def push(self, saved: Saved, *inputs: Tensor | None) -> Tensor:
        """Returns the elements at the recorded places."""
        assert inputs[0] is not None
        batch, channels, height, width = saved.indices.shape
        # Channels last in memory, so these are views.
        rows = inputs[0].permute(0, 2, 3, 1).reshape(batch, -1, channels)
        places = saved.indices.permute(0, 2, 3, 1).reshape(batch, -1, channels)
        return rows.gather(1, places).reshape(batch, height, width, channels).permute(0, 3, 1, 2)

    def pull(self, saved: Saved, gy: Tensor) -> tuple[Tensor, ...]:
        """Returns the adjoint at the recorded places, zero elsewhere."""
        back = torch.ops.aten.max_pool2d_with_indices_backward
        return (back(channels_last(gy), saved.x, *self.settings, saved.indices),)


class AvgPool(PatternOp):
    """Average pooling with a kernel."""

    def __init__(
        self,
        kernel: list[int],
        stride: list[int],
        padding: list[int],
        *,
        ceil_mode: bool,
        count_include_pad: bool,
        divisor: int | None,
    ) -> None:
        self.settings = (kernel, stride, padding, ceil_mode, count_include_pad, divisor)

    def forward(self, run: Run, saved: Saved, *inputs: Tensor) -> Tensor:
        """Returns the averages."""
        saved.x = _images(inputs[0])
        return self.push(saved, *inputs)

    def push(self, saved: Saved, *inputs: Tensor | None) -> Tensor:
        """Returns the averages."""
        assert inputs[0] is not None
        return functional.avg_pool2d(inputs[0], *self.settings)

    def pull(self, saved: Saved, gy: Tensor) -> tuple[Tensor, ...]:
        """Returns the adjoint spread over each window."""
        back = torch.ops.aten.avg_pool2d_backward
        return (back(channels_last(gy), saved.x, *self.settings),)


class AdaptiveAvgPool(PatternOp):
    """Average pooling to a given size."""

    def __init__(self, size: list[int]) -> None:
        self.size = size

    def forward(self, run: Run, saved: Saved, *inputs: Tensor) -> Tensor:
        """Returns the averages."""
        saved.x = _images(inputs[0])
        return self.push(saved, *inputs)

    def push(self, saved: Saved, *inputs: Tensor | None) -> Tensor:
        """Returns the averages."""
        assert inputs[0] is not None
        return torch.ops.aten.adaptive_avg_pool2d(inputs[0], self.size)

    def pull(self, saved: Saved, gy: Tensor) -> tuple[Tensor, ...]:
        """Returns the adjoint spread over each window."""
        if self.size == [1, 1]:
            spread = gy / (saved.x.shape[2] * saved.x.shape[3])
            return (channels_last(spread.expand_as(saved.x)),)
        return (torch.ops.aten._adaptive_avg_pool2d_backward(channels_last(gy), saved.x),)


class Mean(PatternOp):
    """Mean over some dimensions, never over the batch."""

    def __init__(self, over: list[int], *, keepdim: bool) -> None:
        self.over, self.keepdim = over, keepdim

    def forward(self, run: Run, saved: Saved, *inputs: Tensor) -> Tensor:
        """Returns the means."""
        if any(axis % inputs[0].dim() == 0 for axis in self.over):
            raise UnsupportedError("a mean over the batch")
        saved.shape = inputs[0].shape
        return self.push(saved, *inputs)

    def push(self, saved: Saved, *inputs: Tensor | None) -> Tensor:
        """Returns the means."""
        assert inputs[0] is not None
        return inputs[0].mean(self.over, keepdim=self.keepdim)

    def pull(self, saved: Saved, gy: Tensor) -> tuple[Tensor, ...]:
        """Returns the adjoint spread over what was averaged."""
        axes = sorted(axis % len(saved.shape) for axis in self.over)
        count = 1
        for axis in axes:
            count *= saved.shape[axis]
            gy = gy if self.keepdim else gy.unsqueeze(axis)
        return (channels_last((gy / count).expand(saved.shape)),)
