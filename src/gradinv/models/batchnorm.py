"""Batch norm as seen by an auditor: which mode it is in, and the statistics that it sees."""

from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.utils.hooks import RemovableHandle

from gradinv.errors import ModelError

Mode = Literal["eval", "train"]

_NAMES_SHOWN = 3


@dataclass(frozen=True, eq=False)
class BatchStatistics:
    """Mean and variance of what enters one batch-norm layer.

    Attributes:
        mean: mean of each channel over the batch and all positions.
        var: biased variance (divided by the count, as batch norm itself does when it normalises)
            of each channel over the batch and all positions.
    """

    mean: Float[Tensor, " channel"]
    var: Float[Tensor, " channel"]


def batch_norm_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Returns every batch-norm layer of ``model`` by its full name, in the order of definition."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, _BatchNorm)}


def require_mode(model: nn.Module, mode: Mode) -> None:
    """Checks that the model and every layer that acts on the mode are in ``mode``.

    The layers that act on it are batch norm and dropout. A model whose flag says "eval" while one
    of its layers trains would give gradients of neither setting.

    Raises:
        ModelError: naming the modules in the wrong mode.
    """
    wanted = mode == "train"
    wrong = [
        name or "the model itself"
        for name, module in model.named_modules()
        if (name == "" or isinstance(module, _BatchNorm | _DropoutNd)) and module.training != wanted
    ]
    if not wrong:
        return
    got = "eval" if wanted else "train"
    names = ", ".join(wrong[:_NAMES_SHOWN])
    more = f" (+{len(wrong) - _NAMES_SHOWN} more)" if len(wrong) > _NAMES_SHOWN else ""
    raise ModelError(
        f"expected the model in {mode} mode, got {got} mode in {names}{more}; call model.{mode}()"
    )


def running_statistics(model: nn.Module) -> dict[str, BatchStatistics]:
    """Returns copies of the running mean and variance of every batch-norm layer.

    Raises:
        ModelError: naming the layers that keep no running statistics.
    """
    statistics: dict[str, BatchStatistics] = {}
    without: list[str] = []
    for name, layer in batch_norm_layers(model).items():
        mean, var = layer.running_mean, layer.running_var
        if isinstance(mean, Tensor) and isinstance(var, Tensor):
            statistics[name] = BatchStatistics(mean.detach().clone(), var.detach().clone())
        else:
            without.append(name)
    if without:
        raise ModelError(
            f"expected running statistics in every batch-norm layer, got none in "
            f"{', '.join(without)}; reveal the exact statistics or none"
        )
    return statistics


class record_batch_statistics:  # noqa: N801 -- used as ``with record_batch_statistics(model)``
    """Records what enters every batch-norm layer while the context is open.

    The statistics stay part of the autograd graph, so a cost may be built on them. Hooks sit on
    the modules, so calls through ``torch.func.functional_call`` are seen as well. A second call of
    a layer replaces what the first one left.

    Attributes:
        statistics: layer name -> statistics of its latest input; kept after the context closes.
    """

    def __init__(self, model: nn.Module) -> None:
        self.statistics: dict[str, BatchStatistics] = {}
        self._model = model
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> "record_batch_statistics":
        for name, layer in batch_norm_layers(self._model).items():
            self._handles.append(layer.register_forward_pre_hook(self._hook(name)))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _hook(self, name: str) -> Any:
        def record(_layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            entering = inputs[0]
            over = [axis for axis in range(entering.dim()) if axis != 1]
            var, mean = torch.var_mean(entering, dim=over, correction=0)
            self.statistics[name] = BatchStatistics(mean, var)

        return record
