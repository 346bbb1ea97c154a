"""Rule of batch norm in both modes.

With numbers for each channel, y = gamma xhat + beta and xhat = (x - mean) invstd. In eval mode mean
and invstd are constants. In train mode they depend on x, and with m1 = mean(gy),
m2 = mean(gy xhat) and q = mean(xhat R{x}):

    gx       = p (gy - m1 - xhat m2),    p = gamma invstd
    R{xhat}  = invstd (R{x} - mean R{x} - xhat q),    R{invstd} = -invstd^2 q
    R{gx}    = p (R{gy} - mean R{gy} - xhat mean(R{gy} xhat)) + R{p} (gy - m1 - xhat m2)
               - p (m2 R{xhat} + xhat mean(gy R{xhat}))

All of these are sums of whole tensors with one coefficient for each restart and channel, so that is
how they are computed; nothing is divided by gamma, which may be zero. Means go through
``Tensor.sum``, which adds pairwise: the fused kernels of PyTorch add one after the other when
channels are last in memory, and lose a digit, enough to flip the sign of a ReLU now and then.
"""

import torch
from torch import Tensor

from gradinv.engine.rules.op import (
    Op,
    Run,
    Saved,
    UnsupportedError,
    images_of,
    rows_of,
)

# Coefficient for each restart and channel, and the tensor (restart, position, channel).
Term = tuple[Tensor, Tensor]


class BatchNorm(Op):
    """Batch norm on (batch, channel) or (batch, channel, height, width).

    Args:
        layer: name of the layer.
        weight: name of gamma, or None where the layer has none.
        bias: name of beta, or None where the layer has none.
        mean: running mean for eval mode; None in train mode.
        var: running variance for eval mode; None in train mode.
        eps: added to the variance.
    """

    def __init__(
        self,
        layer: str,
        weight: str | None,
        bias: str | None,
        *,
        mean: Tensor | None,
        var: Tensor | None,
        eps: float,
    ) -> None:
        self.layer, self.weight, self.bias, self.eps = layer, weight, bias, eps
        self.parameters = tuple(name for name in (weight, bias) if name is not None)
        self.mean, self.var = mean, var
        self.training = mean is None

    def forward(self, run: Run, saved: Saved, *inputs: Tensor) -> Tensor:
        """Returns y; batch statistics are those of each restart alone.

        Keeps x less its mean in train mode, and x itself in eval mode.
        """
        if inputs[0].dim() not in {2, 4}:
            raise UnsupportedError(f"batch norm of a {inputs[0].dim()}-dimensional input")
        saved.shape = inputs[0].shape
        x = _apart(inputs[0], run)
        if self.mean is not None and self.var is not None:
            saved.x = x
            saved.invstd = (self.var + self.eps).rsqrt()[None]
        else:
            saved.batch_mean = _mean(x)
            saved.x = x - saved.batch_mean[:, None]
            saved.batch_var = _mean(saved.x.square())
            saved.invstd = (saved.batch_var + self.eps).rsqrt()
        saved.p = saved.invstd
        if self.weight is not None:
            saved.p = saved.invstd * run.weights[self.weight]
        constant = None if self.bias is None else run.weights[self.bias][None]
        constant = self._less_mean(constant, saved.p)
        return _together(_sum(constant, (saved.p, saved.x)), saved)

    def _less_mean(self, constant: Tensor | None, on_x: Tensor) -> Tensor | None:
        """Returns a constant without what ``on_x`` times the mean adds that is still in x."""
        if self.mean is None:
            return constant
        moved = on_x * self.mean
        return -moved if constant is None else constant - moved

    def _products(self, saved: Saved, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the means of a tensor and of its product with xhat."""
        mean = _mean(rows)
        with_x = _mean(rows * saved.x)
        if self.mean is not None:
            with_x = with_x - self.mean * mean
        return mean, with_x.mul_(saved.invstd)

    def backward(
        self, run: Run, saved: Saved, gy: Tensor, *, wants_input: bool
    ) -> tuple[Tensor | None, ...]:
        """Adds dL/dgamma and dL/dbeta."""
        saved.gy = _apart(gy, run)
        if self.training or any(name in run.wanted for name in self.parameters):
            saved.m1, saved.m2 = self._products(saved, saved.gy)
            count = saved.gy.shape[1]
            if self.weight is not None and self.weight in run.wanted:
                run.add_gradient(self.weight, list((saved.m2 * count).unbind()))
            if self.bias is not None and self.bias in run.wanted:
                run.add_gradient(self.bias, list((saved.m1 * count).unbind()))
        if not wants_input:
            return (None,)
        if not self.training:
            return (_together(saved.gy * saved.p[:, None], saved),)
        negative = -saved.p
        on_x = negative * saved.m2 * saved.invstd
        terms = (on_x, saved.x), (saved.p, saved.gy)
        return (_together(_sum(negative * saved.m1, *terms), saved),)

    def tangent_forward(self, run: Run, saved: Saved, *tangents: Tensor | None) -> Tensor | None:
        """Returns R{y} = gamma R{xhat} + V_gamma xhat + V_beta."""
        v_gamma, v_beta = _stack(run.direction(self.weight)), _stack(run.direction(self.bias))
        r_x = None if tangents[0] is None else _apart(tangents[0], run)
        if r_x is None and v_gamma is None and v_beta is None:
            saved.r_x = None
            return None
        # In eval mode the way back does without it.
        saved.r_x = r_x if self.training else None
        if r_x is None and v_beta is not None and v_gamma is None:
            # V_beta alone says nothing about the shape of R{y}.
            v_gamma = torch.zeros_like(v_beta)
        constant = v_beta
        terms: list[Term] = [] if r_x is None else [(saved.p, r_x)]
        on_xhat = v_gamma
        if r_x is not None and self.training:
            saved.r_mean, saved.q = self._products(saved, r_x)
            negative = -saved.p
            constant = _plus(constant, negative * saved.r_mean)
            on_xhat = _plus(on_xhat, negative * saved.q)
        if on_xhat is not None:
            on_x = on_xhat * saved.invstd
            constant = self._less_mean(constant, on_x)
            terms.append((on_x, saved.x))
        return _together(_sum(constant, *terms), saved)

    def tangent_backward(self, run: Run, saved: Saved, r_gy: Tensor) -> tuple[Tensor, ...]:
        """Returns R{gx}."""
        rows, p, invstd = _apart(r_gy, run), saved.p, saved.invstd
        v_gamma = _stack(run.direction(self.weight))
        r_p = None if v_gamma is None else v_gamma * invstd
        terms: list[Term] = [(p, rows)]
        if not self.training:
            if r_p is not None:
                terms.append((r_p, saved.gy))
            return (_together(_sum(None, *terms), saved),)
        r_m1, r_m2 = self._products(saved, rows)
        negative = -p
        constant, on_xhat = negative * r_m1, negative * r_m2
        if saved.r_x is not None:
            gy_r_x = _mean(saved.gy * saved.r_x)
            with_r_xhat = invstd * (gy_r_x - saved.r_mean * saved.m1 - saved.q * saved.m2)
            r_p = _plus(r_p, negative * invstd * saved.q)
            on_r_x = negative * saved.m2 * invstd
            terms.append((on_r_x, saved.r_x))
            constant = constant - on_r_x * saved.r_mean
            on_xhat = on_xhat - on_r_x * saved.q - p * with_r_xhat
        if r_p is not None:
            terms.append((r_p, saved.gy))
            constant = constant - r_p * saved.m1
            on_xhat = on_xhat - r_p * saved.m2
        terms.append((on_xhat * invstd, saved.x))
        return (_together(_sum(constant, *terms), saved),)


def _apart(images: Tensor, run: Run) -> Tensor:
    """Returns (restart, position, channel)."""
    return rows_of(images).unflatten(0, (run.restarts, -1))


def _together(rows: Tensor, saved: Saved) -> Tensor:
    """Returns what :func:`_apart` took apart."""
    return images_of(rows.flatten(0, 1), saved.shape)


def _mean(rows: Tensor) -> Tensor:
    """Returns the mean over positions; ``Tensor.mean`` divides, which takes longer."""
    return rows.sum(1).mul_(1 / rows.shape[1])


def _stack(parts: list[Tensor] | None) -> Tensor | None:
    return None if parts is None else torch.stack(parts)


def _plus(a: Tensor | None, b: Tensor) -> Tensor:
    return b if a is None else a + b


def _sum(constant: Tensor | None, first: Term, *more: Term) -> Tensor:
    """Returns the constant plus every coefficient times its tensor."""
    coefficient, rows = first
    if constant is None:
        out = rows * coefficient[:, None]
    else:
        out = torch.addcmul(constant[:, None], rows, coefficient[:, None])
    for coefficient, rows in more:
        out.addcmul_(rows, coefficient[:, None])
    return out
