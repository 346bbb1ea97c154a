"""What only a GPU needs: the whole step as one CUDA graph, and control over TF32.

A step launches thousands of small kernels, which at small batches take longer to launch than to
run. Shapes are static and nothing in a step asks the GPU for a value, so it can be recorded once
and replayed.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor

from gradinv.engine.base import Evaluated

_WARM_UPS = 3


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    if not torch.cuda.is_available():
        yield
        return
    products = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=allowed):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = products


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
