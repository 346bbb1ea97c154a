"""Which module, function or method has which rule."""

import inspect
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from gradinv.engine.rules import pointwise
from gradinv.engine.rules.activations import ACTIVATIONS, FUNCTIONAL
from gradinv.engine.rules.gated import Multiply
from gradinv.engine.rules.names import Names
from gradinv.engine.rules.norm import BatchNorm
from gradinv.engine.rules.op import Op, UnsupportedError, pair
from gradinv.engine.rules.piecewise import PReLU
from gradinv.engine.rules.pointwise import LeakyReLU, ReLU, Smooth
from gradinv.engine.rules.pooling import AdaptiveAvgPool, AvgPool, MaxPool, Mean
from gradinv.engine.rules.shape import Add, Affine, Concatenate, Identity, Reshape
from gradinv.engine.rules.weighted import Convolution, Linear
from gradinv.models.normalize import Normalize

# A rule, and the nodes of the graph that it takes.
Found = tuple[Op, list[Any]]


def require_arguments(function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Checks that a call in the network is one that its rule knows.

    Raises:
        UnsupportedError: an argument is missing or not known.
    """
    try:
        inspect.signature(function).bind(*args, **kwargs)
    except TypeError as error:
        raise UnsupportedError(f"the arguments of a call ({error})") from error


def is_size(node: Any) -> bool:
    """Whether the node is the size of the batch, or on the way to it."""
    if not isinstance(node, fx.Node):
        return False
    if node.op == "call_method" and node.target == "size":
        return True
    if node.target is getattr and node.args[1] == "shape":
        return True
    return node.target is operator.getitem and is_size(node.args[0])


def is_check(node: fx.Node) -> bool:
    """Whether the node asks for a number of dimensions, compares it, or asserts what it is."""
    if node.target is getattr:
        return node.args[1] == "ndim"
    if node.target is torch._assert or node.target in _COMPARISONS:
        (first, *_) = node.args
        return isinstance(first, fx.Node) and is_check(first)
    return node.op == "call_method" and node.target == "dim"


_COMPARISONS = (operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge)


def is_batch(value: Any) -> bool:
    """Whether the value is the number of images: ``x.size(0)`` or ``x.shape[0]``."""
    if not is_size(value):
        return False
    if value.target == "size":
        return value.args[1:] == (0,) or value.kwargs == {"dim": 0}
    return value.target is operator.getitem and value.args[1] == 0


def _convolution(
    weight: str,
    bias: str | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    kernel: tuple[int, ...],
) -> Convolution:
    dilation = pair(dilation)
    if padding == "valid":
        padding = 0
    elif padding == "same":
        reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        if any(length % 2 for length in reach):
            raise UnsupportedError("a convolution with more padding on one side than on the other")
        padding = [length // 2 for length in reach]
    return Convolution(
        weight,
        bias,
        stride=tuple(pair(stride)),
        padding=tuple(pair(padding)),
        dilation=tuple(dilation),
        groups=groups,
    )


def _conv2d_module(names: Names, module: nn.Conv2d, target: str) -> Op:
    if module.padding_mode != "zeros":
        raise UnsupportedError(f"Conv2d with padding_mode={module.padding_mode!r} ({target})")
    return _convolution(
        names.of(module.weight), names.bias(module.bias), module.stride, module.padding,
        module.dilation, module.groups, module.kernel_size,
    )  # fmt: skip


def _batch_norm_module(names: Names, module: nn.BatchNorm1d | nn.BatchNorm2d, target: str) -> Op:
    constant = not module.training and module.running_mean is not None
    return BatchNorm(
        target,
        names.bias(module.weight),
        names.bias(module.bias),
        mean=module.running_mean if constant else None,
        var=module.running_var if constant else None,
        eps=module.eps,
    )


def _max_pool(
    kernel: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Op:
    if return_indices:
        raise UnsupportedError("max-pooling that returns its indices")
    kernel = pair(kernel)
    stride = kernel if stride is None else pair(stride)
    return MaxPool(kernel, stride, pair(padding), pair(dilation), ceil_mode=ceil_mode)


def _avg_pool(
    kernel: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Op:
    kernel = pair(kernel)
    return AvgPool(
        kernel,
        kernel if stride is None else pair(stride),
        pair(padding),
        ceil_mode=ceil_mode,
        count_include_pad=count_include_pad,
        divisor=divisor_override,
    )


def _adaptive_avg_pool(size: Any) -> Op:
    sizes = pair(size)
    if None in sizes:
        raise UnsupportedError("adaptive pooling that keeps a size")
    return AdaptiveAvgPool(sizes)


def _leaky_relu(slope: float) -> Op:
    if slope < 0:
        raise UnsupportedError("LeakyReLU with a negative slope")
    return LeakyReLU(slope)


def _gelu(approximate: str = "none") -> Op:
    return Smooth(pointwise.gelu if approximate == "none" else pointwise.gelu_tanh)


def _dropout(training: bool, target: str = "dropout") -> Op:
    if training:
        raise UnsupportedError(f"dropout in train mode ({target})")
    return Identity()


def _normalize(names: Names, module: Normalize, target: str) -> Op:
    mean, std = names.as_activation(module.mean), names.as_activation(module.std)
    return Affine(1 / std, -mean / std)


def _activation(build: Callable[[Any], Op]) -> Callable[[Names, Any, str], Op]:
    """Returns a builder for modules that need no more than their own settings."""
    return lambda names, module, target: build(module)


# Exactly these types: a subclass may compute something else.
MODULES: Mapping[type[nn.Module], Callable[[Names, Any, str], Op]] = {
    nn.Conv2d: _conv2d_module,
    nn.Linear: lambda names, m, target: Linear(names.of(m.weight), names.bias(m.bias)),
    nn.BatchNorm1d: _batch_norm_module,
    nn.BatchNorm2d: _batch_norm_module,
    nn.ReLU: lambda names, m, target: ReLU(),
    nn.LeakyReLU: lambda names, m, target: _leaky_relu(m.negative_slope),
    nn.Sigmoid: lambda names, m, target: Smooth(pointwise.sigmoid),
    nn.Tanh: lambda names, m, target: Smooth(pointwise.tanh),
    nn.GELU: lambda names, m, target: _gelu(m.approximate),
    nn.PReLU: lambda names, m, target: PReLU(names.of(m.weight)),
    **{kind: _activation(build) for kind, build in ACTIVATIONS.items()},
    nn.MaxPool2d: lambda names, m, target: _max_pool(
        m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode, m.return_indices
    ),
    nn.AvgPool2d: lambda names, m, target: _avg_pool(
        m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad, m.divisor_override
    ),
    nn.AdaptiveAvgPool2d: lambda names, m, target: _adaptive_avg_pool(m.output_size),
    nn.Flatten: lambda names, m, target: Reshape(start=m.start_dim, end=m.end_dim),
    nn.Identity: lambda names, m, target: Identity(),
    nn.Dropout: lambda names, m, target: _dropout(m.training, target),
    nn.Dropout2d: lambda names, m, target: _dropout(m.training, target),
    Normalize: _normalize,
}


def _conv2d(
    names: Names,
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Found:
    weight, bias = names.parameter(weight), names.parameter(bias)
    kernel = tuple(weight.shape[2:])
    return _convolution(
        names.of(weight), names.bias(bias), stride, padding, dilation, groups, kernel
    ), [input]


def _batch_norm(
    names: Names,
    input: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: Any = 0.1,
    eps: float = 1e-5,
) -> Found:
    weight, bias = names.parameter(weight), names.parameter(bias)
    if weight is None:
        raise UnsupportedError("batch norm as a function without weights")
    constant = not training
    return BatchNorm(
        names.of(weight).rpartition(".")[0],
        names.of(weight),
        names.bias(bias),
        mean=names.constant(running_mean) if constant else None,
        var=names.constant(running_var) if constant else None,
        eps=eps,
    ), [input]


def _prelu(names: Names, input: Any, weight: Any) -> Found:
    return PReLU(names.of(names.parameter(weight))), [input]


def _linear(names: Names, input: Any, weight: Any, bias: Any = None) -> Found:
    weight, bias = names.parameter(weight), names.parameter(bias)
    return Linear(names.of(weight), names.bias(bias)), [input]


def _add(names: Names, input: Any, other: Any, *, alpha: float = 1) -> Found:
    if alpha != 1:
        raise UnsupportedError("addition with alpha")
    if names.is_constant(input):
        input, other = other, input
    if names.is_constant(other):
        shift = names.constant(other)
        return Affine(torch.ones_like(shift), shift), [input]
    return Add(), [input, other]


def _sub(names: Names, input: Any, other: Any) -> Found:
    if names.is_constant(input):
        shift = names.constant(input)
        return Affine(-torch.ones_like(shift), shift), [other]
    shift = -names.constant(other)
    return Affine(torch.ones_like(shift), shift), [input]


def _mul(names: Names, input: Any, other: Any) -> Found:
    if names.is_constant(input):
        input, other = other, input
    if not names.is_constant(other):
        return Multiply(), [input, other]
    return _scaled(names.constant(other), input)


def _div(names: Names, input: Any, other: Any) -> Found:
    return _scaled(1 / names.constant(other), input)


def _scaled(scale: Tensor, input: Any) -> Found:
    return Affine(scale, torch.zeros_like(scale)), [input]


def _flatten(names: Names, input: Any, start_dim: int = 0, end_dim: int = -1) -> Found:
    return Reshape(start=start_dim, end=end_dim), [input]


def _view(names: Names, input: Any, *shape: Any) -> Found:
    if len(shape) == 1 and isinstance(shape[0], tuple | list):
        shape = tuple(shape[0])
    if not shape or not is_batch(shape[0]) or not all(isinstance(n, int) for n in shape[1:]):
        raise UnsupportedError("a view whose first dimension is not that of the batch")
    return Reshape(shape=list(shape[1:])), [input]


def _cat(names: Names, tensors: Any, dim: int = 0) -> Found:
    return Concatenate(dim), list(tensors)


def _mean(names: Names, input: Any, dim: Any = None, keepdim: bool = False) -> Found:
    axes = [dim] if isinstance(dim, int) else list(dim or [])
    if not axes or 0 in axes:  # from the end, the rule itself sees it
        raise UnsupportedError("a mean over the batch")
    return Mean(axes, keepdim=keepdim), [input]


def _of(op: Callable[..., Op]) -> Callable[..., Found]:
    """Returns a builder for functions of one activation and settings."""

    def build(names: Names, input: Any, *args: Any, **kwargs: Any) -> Found:
        require_arguments(op, *args, **kwargs)
        return op(*args, **kwargs), [input]

    return build


_relu = _of(lambda inplace=False: ReLU())
_sigmoid, _tanh = _of(lambda: Smooth(pointwise.sigmoid)), _of(lambda: Smooth(pointwise.tanh))
_identity = _of(Identity)

FUNCTIONS: Mapping[Any, Callable[..., Found]] = {
    functional.conv2d: _conv2d,
    torch.conv2d: _conv2d,
    functional.linear: _linear,
    functional.batch_norm: _batch_norm,
    torch.relu: _relu,
    torch.relu_: _relu,
    functional.relu: _relu,
    functional.leaky_relu: _of(
        lambda negative_slope=0.01, inplace=False: _leaky_relu(negative_slope)
    ),
    torch.sigmoid: _sigmoid,
    functional.sigmoid: _sigmoid,
    torch.tanh: _tanh,
    functional.tanh: _tanh,
    functional.gelu: _of(_gelu),
    functional.prelu: _prelu,
    torch.prelu: _prelu,
    **{function: _of(build) for function, build in FUNCTIONAL.items()},
    functional.max_pool2d: _of(_max_pool),
    torch.max_pool2d: _of(_max_pool),
    functional.avg_pool2d: _of(_avg_pool),
    functional.adaptive_avg_pool2d: _of(_adaptive_avg_pool),
    functional.dropout: _of(lambda p=0.5, training=True, inplace=False: _dropout(training)),
    torch.flatten: _flatten,
    torch.reshape: _view,
    torch.cat: _cat,
    torch.concat: _cat,
    torch.mean: _mean,
    operator.add: _add,
    operator.iadd: _add,
    torch.add: _add,
    operator.sub: _sub,
    operator.isub: _sub,
    torch.sub: _sub,
    operator.mul: _mul,
    operator.imul: _mul,
    torch.mul: _mul,
    operator.truediv: _div,
    operator.itruediv: _div,
    torch.div: _div,
}

METHODS: Mapping[str, Callable[..., Found]] = {
    "add": _add,
    "add_": _add,
    "contiguous": _identity,
    "div": _div,
    "flatten": _flatten,
    "mean": _mean,
    "mul": _mul,
    "mul_": _mul,
    "relu": _relu,
    "relu_": _relu,
    "reshape": _view,
    "sigmoid": _sigmoid,
    "sub": _sub,
    "tanh": _tanh,
    "view": _view,
}
