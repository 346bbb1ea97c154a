"""Rules of activations with kinks: which piece an input lies on is the pattern.

Replayed at other weights, every input stays on its recorded piece, as frozen patterns need it. At a
kink itself the slope is the one that autograd takes.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from gradinv.engine.rules.op import Op, PatternOp, Run, Saved, per_channel
from gradinv.engine.rules.pointwise import Smooth

# Slope and offset of the line that an input lies on.
Lines = Callable[[Tensor], tuple[Tensor, Tensor]]
# The piece that an input lies on: -1, 0 or 1.
Pieces = Callable[[Tensor], Tensor]
# Value, first and second derivative of an input on a given piece.
PieceJet = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


class Piecewise(PatternOp):
    """y = slope x + offset, both constant on every piece.

    Args:
        lines: slope and offset by the input.
    """

    def __init__(self, lines: Lines) -> None:
        self.lines = lines

    def forward(self, run: Run, saved: Saved, *inputs: Tensor) -> Tensor:
        """Returns the activation."""
        saved.slope, saved.offset = self.lines(inputs[0])
        return saved.slope * inputs[0] + saved.offset

    def push(self, saved: Saved, *inputs: Tensor | None) -> Tensor:
        """Returns the input times the recorded slope."""
        assert inputs[0] is not None
        return saved.slope * inputs[0]

    def pull(self, saved: Saved, gy: Tensor) -> tuple[Tensor, ...]:
        """Returns the adjoint times the recorded slope."""
        return (saved.slope * gy,)

    def replay(self, run: Run, saved: Saved, pattern: Saved, *inputs: Tensor) -> Tensor:
        """Returns the recorded lines at other inputs."""
        return pattern.slope * inputs[0] + pattern.offset


def between(low: float, high: float, slope: float, offset: float) -> Lines:
    """Returns a line inside (low, high) that is held at its ends: Hardtanh, ReLU6, Hardsigmoid."""

    def lines(x: Tensor) -> tuple[Tensor, Tensor]:
        inside = (x > low) & (x < high)
        held = x.clamp(low, high) * slope + offset
        return inside * x.new_tensor(slope), torch.where(inside, offset, held)

    return lines


def shrunk(bound: float, by: float) -> Lines:
    """Returns zero inside [-bound, bound] and x less ``by`` outside: Softshrink, Hardshrink."""

    def lines(x: Tensor) -> tuple[Tensor, Tensor]:
        outside = (x.abs() > bound).to(x)
        return outside, -by * x.sign() * outside

    return lines


def threshold(bound: float, value: float) -> Lines:
    """Returns x above the bound and a constant elsewhere."""

    def lines(x: Tensor) -> tuple[Tensor, Tensor]:
        above = (x > bound).to(x)
        return above, value * (1 - above)

    return lines


class PiecewiseSmooth(Smooth):
    """A function that is smooth on every piece.

    Args:
        pieces: where an input lies.
        jet: the function with its derivatives, by piece.
    """

    def __init__(self, pieces: Pieces, jet: PieceJet) -> None:
        super().__init__(lambda x: jet(x, pieces(x)))
        self._pieces, self._of_piece = pieces, jet

    def forward(self, run: Run, saved: Saved, *inputs: Tensor) -> Tensor:
        """Returns f(x)."""
        saved.piece = self._pieces(inputs[0])
        y, saved.first, saved.second = self._of_piece(inputs[0], saved.piece)
        return y

    def replay(self, run: Run, saved: Saved, pattern: Saved, *inputs: Tensor) -> Tensor:
        """Returns the recorded pieces' functions of other inputs."""
        y, saved.first, saved.second = self._of_piece(inputs[0], pattern.piece)
        return y


def sides(x: Tensor) -> Tensor:
    """Returns 1 where x is positive and -1 elsewhere."""
    return torch.where(x > 0, 1, -1)


def elu(alpha: float, scale: float = 1.0, decay: float = 1.0) -> PieceJet:
    """Returns scale x on the right, scale alpha (exp(x decay) - 1) on the left: ELU, SELU, CELU."""

    def jet(x: Tensor, piece: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        right = piece > 0
        grown = scale * alpha * torch.exp(x * decay)
        left = scale * alpha * torch.expm1(x * decay)
        return (
            torch.where(right, scale * x, left),
            torch.where(right, scale, grown * decay),
            torch.where(right, 0, grown * decay**2),
        )

    return jet


def thirds(x: Tensor) -> Tensor:
    """Returns where x lies: -1 below -3, 1 above 3, 0 between."""
    return (x >= 3).long() - (x <= -3).long()


def hardswish(x: Tensor, piece: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns x (x + 3) / 6 in the middle, x on the right and 0 on the left."""
    middle, right = piece == 0, piece > 0
    return (
        torch.where(middle, x * (x + 3) / 6, x * right),
        torch.where(middle, x / 3 + 0.5, right.to(x)),
        middle * x.new_tensor(1 / 3),
    )


def softsign(x: Tensor, piece: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns x / (1 + |x|) and its derivatives, |x| being the piece times x."""
    below = 1 / (1 + piece * x)
    return x * below, below**2, -2 * piece * below**3


class PReLU(Op):
    """x where positive, a learned slope times x elsewhere.

    Args:
        weight: name of the slope, one for each channel or one for all.
    """

    def __init__(self, weight: str) -> None:
        self.weight = weight
        self.parameters = (weight,)

    def _spread(self, values: Tensor, like: Tensor) -> Tensor:
        return per_channel(values, like) if values.shape[-1] > 1 else values

    def forward(self, run: Run, saved: Saved, *inputs: Tensor) -> Tensor:
        """Returns the activation."""
        return self._on(run, saved, inputs[0], inputs[0] > 0)

    def _on(self, run: Run, saved: Saved, x: Tensor, right: Tensor) -> Tensor:
        saved.right = right
        saved.left = x.masked_fill(right, 0)
        saved.slope = torch.where(right, 1, self._spread(run.weights[self.weight], x))
        return x * saved.slope

    def backward(
        self, run: Run, saved: Saved, gy: Tensor, *, wants_input: bool
    ) -> tuple[Tensor | None, ...]:
        """Adds the gradient of the slope."""
        saved.gy = gy
        if self.weight in run.wanted:
            single = run.weights[self.weight].numel() == 1
            over = [axis for axis in range(gy.dim()) if single or axis != 1]
            parts = (gy * saved.left).unflatten(0, (run.restarts, -1))
            size = run.weights[self.weight].shape
            run.add_gradient(self.weight, [part.sum(over).reshape(size) for part in parts])
        return (saved.slope * gy if wants_input else None,)

    def tangent_forward(self, run: Run, saved: Saved, *tangents: Tensor | None) -> Tensor | None:
        """Returns slope R{x} + V min(x, 0)."""
        v = run.direction(self.weight)
        y = None if tangents[0] is None else saved.slope * tangents[0]
        if v is None:
            return y
        own = self._times(saved.left, v, run)
        return own if y is None else y.add_(own)

    def tangent_backward(self, run: Run, saved: Saved, r_gy: Tensor) -> tuple[Tensor, ...]:
        """Returns slope R{gy} + V gy on the left."""
        v = run.direction(self.weight)
        r_gx = saved.slope * r_gy
        if v is not None:
            r_gx.add_(self._times(saved.gy.masked_fill(saved.right, 0), v, run))
        return (r_gx,)

    def _times(self, x: Tensor, v: list[Tensor], run: Run) -> Tensor:
        parts = x.unflatten(0, (run.restarts, -1)).unbind()
        both = zip(parts, v, strict=True)
        return torch.cat([part * self._spread(own, part) for part, own in both])

    def replay(self, run: Run, saved: Saved, pattern: Saved, *inputs: Tensor) -> Tensor:
        """Returns the activation with the recorded signs."""
        return self._on(run, saved, inputs[0], pattern.right)
