"""Every other activation of ``torch.nn``, as a module and as a function."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from gradinv.engine.rules import pointwise
from gradinv.engine.rules.gated import GLU
from gradinv.engine.rules.op import Op, UnsupportedError
from gradinv.engine.rules.piecewise import (
    Piecewise,
    PiecewiseSmooth,
    between,
    elu,
    hardswish,
    shrunk,
    sides,
    softsign,
    thirds,
    threshold,
)
from gradinv.engine.rules.pointwise import LeakyReLU, Smooth

# Klambauer et al. 2017, "Self-normalizing neural networks".
_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772, 1.0507009873554805


def _hardtanh(min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Op:
    return Piecewise(between(min_val, max_val, 1.0, 0.0))


def _relu6(inplace: bool = False) -> Op:
    return _hardtanh(0.0, 6.0)


def _hardsigmoid(inplace: bool = False) -> Op:
    return Piecewise(between(-3.0, 3.0, 1 / 6, 0.5))


def _hardswish(inplace: bool = False) -> Op:
    return PiecewiseSmooth(thirds, hardswish)


def _silu(inplace: bool = False) -> Op:
    return Smooth(pointwise.silu)


def _mish(inplace: bool = False) -> Op:
    return Smooth(pointwise.mish)


def _elu(alpha: float = 1.0, inplace: bool = False) -> Op:
    return PiecewiseSmooth(sides, elu(alpha))


def _selu(inplace: bool = False) -> Op:
    return PiecewiseSmooth(sides, elu(_SELU_ALPHA, _SELU_SCALE))


def _celu(alpha: float = 1.0, inplace: bool = False) -> Op:
    return PiecewiseSmooth(sides, elu(alpha, decay=1 / alpha))


def _softplus(beta: float = 1.0, threshold: float = 20.0) -> Op:
    return Smooth(pointwise.softplus(beta, threshold))


def _softsign() -> Op:
    return PiecewiseSmooth(sides, softsign)


def _log_sigmoid() -> Op:
    return Smooth(pointwise.log_sigmoid)


def _tanhshrink() -> Op:
    return Smooth(pointwise.tanhshrink)


def _softshrink(lambd: float = 0.5) -> Op:
    return Piecewise(shrunk(lambd, lambd))


def _hardshrink(lambd: float = 0.5) -> Op:
    return Piecewise(shrunk(lambd, 0.0))


def _threshold(threshold_: float, value: float, inplace: bool = False) -> Op:
    return Piecewise(threshold(threshold_, value))


def _rrelu(
    lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, inplace: bool = False
) -> Op:
    if training:
        raise UnsupportedError("RReLU in train mode, which draws its slopes")
    return LeakyReLU((lower + upper) / 2)


ACTIVATIONS: Mapping[type[nn.Module], Callable[[Any], Op]] = {
    nn.Hardtanh: lambda m: _hardtanh(m.min_val, m.max_val),
    nn.ReLU6: lambda m: _relu6(),
    nn.Hardsigmoid: lambda m: _hardsigmoid(),
    nn.Hardswish: lambda m: _hardswish(),
    nn.SiLU: lambda m: _silu(),
    nn.Mish: lambda m: _mish(),
    nn.ELU: lambda m: _elu(m.alpha),
    nn.SELU: lambda m: _selu(),
    nn.CELU: lambda m: _celu(m.alpha),
    nn.Softplus: lambda m: _softplus(m.beta, m.threshold),
    nn.Softsign: lambda m: _softsign(),
    nn.LogSigmoid: lambda m: _log_sigmoid(),
    nn.Tanhshrink: lambda m: _tanhshrink(),
    nn.Softshrink: lambda m: _softshrink(m.lambd),
    nn.Hardshrink: lambda m: _hardshrink(m.lambd),
    nn.Threshold: lambda m: _threshold(m.threshold, m.value),
    nn.RReLU: lambda m: _rrelu(m.lower, m.upper, m.training),
    nn.GLU: lambda m: GLU(m.dim),
}

FUNCTIONAL: Mapping[Any, Callable[..., Op]] = {
    functional.hardtanh: _hardtanh,
    functional.relu6: _relu6,
    functional.hardsigmoid: _hardsigmoid,
    functional.hardswish: _hardswish,
    functional.silu: _silu,
    functional.mish: _mish,
    functional.elu: _elu,
    functional.selu: _selu,
    torch.selu: _selu,
    functional.celu: _celu,
    torch.celu: _celu,
    functional.softplus: _softplus,
    functional.softsign: _softsign,
    functional.logsigmoid: _log_sigmoid,
    functional.tanhshrink: _tanhshrink,
    functional.softshrink: _softshrink,
    functional.hardshrink: _hardshrink,
    torch.hardshrink: _hardshrink,
    functional.threshold: _threshold,
    torch.threshold: _threshold,
    functional.rrelu: _rrelu,
    torch.rrelu: _rrelu,
    functional.glu: lambda dim=-1: GLU(dim),
}
