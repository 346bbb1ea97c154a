"""Rules of activations: piecewise linear ones by their mask, smooth ones by two derivatives."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from gradinv.engine.rules.op import Op, PatternOp, Run, Saved


class ReLU(PatternOp):
    """max(x, 0); the slope at 0 is 0, as autograd has it."""

    def forward(self, run: Run, saved: Saved, *inputs: Tensor) -> Tensor:
        """Returns max(x, 0)."""
        saved.y = torch.relu(inputs[0])
        return saved.y

    def push(self, saved: Saved, *inputs: Tensor | None) -> Tensor:
        """Returns the input where the activation was positive."""
        assert inputs[0] is not None
        return torch.ops.aten.threshold_backward(inputs[0], saved.y, 0)

    def pull(self, saved: Saved, gy: Tensor) -> tuple[Tensor, ...]:
        """Returns the adjoint where the activation was positive."""
        return (torch.ops.aten.threshold_backward(gy, saved.y, 0),)


class LeakyReLU(PatternOp):
    """x where positive, slope times x elsewhere."""

    def __init__(self, slope: float) -> None:
        self.slope = slope

    def forward(self, run: Run, saved: Saved, *inputs: Tensor) -> Tensor:
        """Returns the activation."""
        saved.x = inputs[0]
        return torch.nn.functional.leaky_relu(inputs[0], self.slope)

    def push(self, saved: Saved, *inputs: Tensor | None) -> Tensor:
        """Returns the input times the recorded slope."""
        assert inputs[0] is not None
        return torch.ops.aten.leaky_relu_backward(inputs[0], saved.x, self.slope, False)

    def pull(self, saved: Saved, gy: Tensor) -> tuple[Tensor, ...]:
        """Returns the adjoint times the recorded slope."""
        return (torch.ops.aten.leaky_relu_backward(gy, saved.x, self.slope, False),)


# A smooth function: x -> value, first and second derivative.
Jet = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]


def sigmoid(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns s, s' = s (1 - s) and s'' = s' (1 - 2 s)."""
    s = torch.sigmoid(x)
    first = s * (1 - s)
    return s, first, first * (1 - 2 * s)


def tanh(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns t, t' = 1 - t^2 and t'' = -2 t t'."""
    t = torch.tanh(x)
    first = 1 - t * t
    return t, first, -2 * t * first


def gelu(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns x Phi(x), Phi + x phi and (2 - x^2) phi, phi being the normal density."""
    below = 0.5 * (1 + torch.erf(x * math.sqrt(0.5)))
    density = torch.exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi))
    return x * below, below + x * density, (2 - x * x) * density


def gelu_tanh(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns x (1 + tanh u) / 2 with u = sqrt(2 / pi) (x + 0.044715 x^3), and its derivatives."""
    scale, cubic = math.sqrt(2 / math.pi), 0.044715
    t = torch.tanh(scale * (x + cubic * x**3))
    inner, bend = scale * (1 + 3 * cubic * x * x), 6 * scale * cubic * x
    slope = 1 - t * t
    first = 0.5 * (1 + t) + 0.5 * x * slope * inner
    second = slope * inner + 0.5 * x * slope * (bend - 2 * t * inner * inner)
    return 0.5 * x * (1 + t), first, second


def silu(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns x s, s + x s' and 2 s' + x s'', s being the sigmoid."""
    s, first, second = sigmoid(x)
    return x * s, s + x * first, 2 * first + x * second


def softplus(beta: float = 1.0, threshold: float = 20.0) -> Jet:
    """Returns log(1 + exp(beta x)) / beta, which PyTorch takes as x beyond the threshold."""

    def jet(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        s, first, _ = sigmoid(beta * x)
        straight = beta * x > threshold
        value = torch.nn.functional.softplus(x, beta, threshold)
        return value, s.masked_fill(straight, 1), (beta * first).masked_fill(straight, 0)

    return jet


def log_sigmoid(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns log s(x), s(-x) and -s'."""
    s, first, _ = sigmoid(-x)
    return torch.nn.functional.logsigmoid(x), s, -first


def tanhshrink(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns x - t, t^2 and 2 t t', t being tanh x."""
    t, first, second = tanh(x)
    return x - t, 1 - first, -second


def mish(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns x t, t being tanh of the softplus p; t' = t1 p' and t'' = t2 p'^2 + t1 p''."""
    value, slope, bend = softplus()(x)
    t, t1, t2 = tanh(value)
    first = t1 * slope
    second = t2 * slope * slope + t1 * bend
    return x * t, t + x * first, 2 * first + x * second


class Smooth(Op):
    """y = f(x): R{y} = f' R{x} and R{gx} = f' R{gy} + f'' R{x} gy.

    Args:
        jet: f with its derivatives.
    """

    def __init__(self, jet: Jet) -> None:
        self.jet = jet

    def forward(self, run: Run, saved: Saved, *inputs: Tensor) -> Tensor:
        """Returns f(x)."""
        y, saved.first, saved.second = self.jet(inputs[0])
        return y

    def backward(
        self, run: Run, saved: Saved, gy: Tensor, *, wants_input: bool
    ) -> tuple[Tensor | None, ...]:
        """Returns f' gy."""
        saved.gy = gy
        return (saved.first * gy if wants_input else None,)

    def tangent_forward(self, run: Run, saved: Saved, *tangents: Tensor | None) -> Tensor | None:
        """Returns f' R{x}."""
        (saved.r_x,) = tangents
        return None if tangents[0] is None else saved.first * tangents[0]

    def tangent_backward(self, run: Run, saved: Saved, r_gy: Tensor) -> tuple[Tensor, ...]:
        """Returns f' R{gy} + f'' R{x} gy."""
        r_gx = saved.first * r_gy
        if saved.r_x is not None:
            r_gx.addcmul_(saved.second * saved.r_x, saved.gy)
        return (r_gx,)
