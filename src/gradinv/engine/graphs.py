"""What only a GPU needs: the whole step as one CUDA graph, and control over TF32.

A step launches thousands of small kernels, which at small batches take longer to launch than to
run. Shapes are static and nothing in a step asks the GPU for a value, so it can be recorded once
and replayed.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor

from gradinv.engine.base import Evaluated

_WARM_UPS = 3


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    """Sets TF32 for products and convolutions, and then everything back to what it was.

    PyTorch has two sets of flags since 2.9, and raises where code that reads the older ones finds
    that they disagree, so both are set. What the older ones were cannot be read where a program has
    set the newer ones: then they were the other way round.
    """
    matmul: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    flags = (matmul, cudnn.conv, cudnn.rnn) if hasattr(matmul, "fp32_precision") else ()
    newer = [flag.fp32_precision for flag in flags]
    older = [_older(flag, *newer[at : at + 1]) for at, flag in enumerate((matmul, cudnn))]
    named = _named_precision()
    try:
        matmul.allow_tf32 = cudnn.allow_tf32 = allowed
        for flag in flags:
            flag.fp32_precision = "tf32" if allowed else "ieee"
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = older
        if named == "medium":  # of which the flag for TF32 knows no more than of "high"
            torch.set_float32_matmul_precision(named)
        for flag, before in zip(flags, newer, strict=True):
            flag.fp32_precision = before


def _older(flag: Any, newer: str = "none") -> bool:
    """Returns whether the older flag allows TF32."""
    try:
        return flag.allow_tf32
    except RuntimeError:
        return newer != "tf32"


def _named_precision() -> str | None:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None


def full_precision() -> AbstractContextManager[None]:
    """Keeps a GPU from rounding products to TF32, which convolutions do unless told otherwise."""
    return _tf32(False)


def lower_precision(allowed: bool) -> AbstractContextManager[None]:
    """Lets a GPU round products to TF32, if that is allowed."""
    return _tf32(allowed)


class Captured:
    """A step that is recorded as a CUDA graph at its first call for each shape.

    Args:
        step: images -> result; without a synchronisation inside.
    """

    def __init__(self, step: Callable[[Tensor], Evaluated]) -> None:
        self._step = step
        self._graphs: dict[torch.Size, tuple[torch.cuda.CUDAGraph, Tensor, Evaluated]] = {}

    def __call__(self, images: Tensor) -> Evaluated:
        """Returns the step's result for these images."""
        if images.shape not in self._graphs:
            self._graphs[images.shape] = self._record(images)
        graph, static, result = self._graphs[images.shape]
        static.copy_(images)
        graph.replay()
        return Evaluated(result.cost.clone(), result.matching.clone(), result.gradient.clone())

    def _record(self, images: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, Evaluated]:
        static = images.clone()
        # Libraries choose their algorithms and take their workspaces before the recording.
        beside = torch.cuda.Stream(images.device)
        beside.wait_stream(torch.cuda.current_stream(images.device))
        with torch.cuda.stream(beside):
            for _ in range(_WARM_UPS):
                self._step(static)
        torch.cuda.current_stream(images.device).wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = self._step(static)
        return graph, static, result
