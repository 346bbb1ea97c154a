"""Rule of batch norm in both modes.

With per-channel numbers, y = gamma xhat + beta, xhat = (x - mean) invstd. In eval mode mean and
invstd are constants. In train mode they depend on x, and with N values in a channel, m1 = mean(gy),
m2 = mean(gy xhat) and q = mean(xhat R{x}):

    gx       = gamma invstd (gy - m1 - xhat m2)
    R{xhat}  = invstd (R{x} - mean R{x} - xhat q),    R{invstd} = -invstd^2 q
    R{gx}    = p (R{gy} - mean R{gy} - xhat mean(R{gy} xhat)) + R{p} (gy - m1 - xhat m2)
               - p (m2 R{xhat} + xhat mean(gy R{xhat})),    p = gamma invstd

Both are sums of whole tensors with one coefficient for each channel (and restart), so that is how
they are computed; nothing is divided by gamma, which may be zero.
"""

from typing import Any

import torch
from torch import Tensor

from gradinv.attacks.engine.rules.op import Op, Run, Saved, UnsupportedError, per_channel

_forward = torch.ops.aten.native_batch_norm.default
_backward = torch.ops.aten.native_batch_norm_backward.default


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

    def _gamma(self, run: Run) -> Tensor | None:
        return None if self.weight is None else run.weights[self.weight]

    def _beta(self, run: Run) -> Tensor | None:
        return None if self.bias is None else run.weights[self.bias]

    def forward(self, run: Run, saved: Saved, *inputs: Tensor) -> Tensor:
        """Returns y; batch statistics are those of each restart alone."""
        (x,) = inputs
        if x.dim() not in {2, 4}:
            raise UnsupportedError(f"batch norm of a {x.dim()}-dimensional input")
        saved.x = x
        gamma, beta = self._gamma(run), self._beta(run)
        if not self.training:
            assert self.mean is not None
            assert self.var is not None
            saved.mean = self.mean[None]
            saved.invstd = (self.var + self.eps).rsqrt()[None]
            return _forward(x, gamma, beta, self.mean, self.var, False, 0.0, self.eps)[0]
        results = [
            _forward(own, gamma, beta, None, None, True, 0.0, self.eps)
            for own in x.chunk(run.restarts)
        ]
        saved.mean = torch.stack([mean for _, mean, _ in results])
        saved.invstd = torch.stack([invstd for _, _, invstd in results])
        return results[0][0] if len(results) == 1 else torch.cat([y for y, _, _ in results])

    def _sums(self, saved: Saved, gy: Tensor, restarts: int) -> tuple[Tensor, Tensor]:
        """Returns sum(gy) and sum(gy xhat) of every restart and channel."""
        return _stacked(
            gy.chunk(restarts),
            saved.x.chunk(restarts),
            saved.mean.expand(restarts, -1),
            saved.invstd.expand(restarts, -1),
        )

    def backward(
        self, run: Run, saved: Saved, gy: Tensor, *, wants_input: bool
    ) -> tuple[Tensor | None, ...]:
        """Adds dL/dgamma and dL/dbeta; gx sums gy, x and 1 with a number for each channel."""
        wants_own = any(name in run.wanted for name in self.parameters)
        if wants_own or self.training:
            total, with_xhat = self._sums(saved, gy, run.restarts)
            saved.total, saved.with_xhat = total, with_xhat
            if self.weight is not None and self.weight in run.wanted:
                run.add_gradient(self.weight, list(with_xhat.clone().unbind()))
            if self.bias is not None and self.bias in run.wanted:
                run.add_gradient(self.bias, list(total.clone().unbind()))
        saved.gy = gy
        if not wants_input:
            return (None,)
        p = self._p(run, saved)
        if not self.training:
            return (_combined(run.restarts, None, (p, gy)),)
        count = gy.numel() // gy.shape[1] // run.restarts
        on_x = -p * saved.with_xhat / count * saved.invstd
        constant = -p * saved.total / count - on_x * saved.mean
        return (_combined(run.restarts, constant, (on_x, saved.x), (p, gy)),)

    def _p(self, run: Run, saved: Saved) -> Tensor:
        gamma = self._gamma(run)
        return saved.invstd if gamma is None else saved.invstd * gamma

    def tangent_forward(self, run: Run, saved: Saved, *tangents: Tensor | None) -> Tensor | None:
        """Returns R{y} = gamma R{xhat} + V_gamma xhat + V_beta."""
        (r_x,) = tangents
        v_gamma, v_beta = _stack(run.direction(self.weight)), _stack(run.direction(self.bias))
        if r_x is None and v_gamma is None and v_beta is None:
            return None
        zero = torch.zeros_like(saved.mean)
        on_x = zero if v_gamma is None else v_gamma * saved.invstd
        constant = zero if v_beta is None else v_beta
        terms = []
        saved.r_x = r_x
        if r_x is not None:
            p = self._p(run, saved)
            terms.append((p, r_x))
            if self.training:
                saved.r_total, saved.r_with_xhat = self._sums(saved, r_x, run.restarts)
                count = r_x.numel() // r_x.shape[1] // run.restarts
                on_x = on_x - p * saved.r_with_xhat / count * saved.invstd
                constant = constant - p * saved.r_total / count
        constant = constant - on_x * saved.mean
        return _combined(run.restarts, constant, (on_x, saved.x), *terms)

    def tangent_backward(self, run: Run, saved: Saved, r_gy: Tensor) -> tuple[Tensor, ...]:
        """Returns R{gx}."""
        p, v_gamma = self._p(run, saved), _stack(run.direction(self.weight))
        r_p = None if v_gamma is None else v_gamma * saved.invstd
        terms = [(p, r_gy)]
        if not self.training:
            if r_p is not None:
                terms.append((r_p, saved.gy))
            return (_combined(run.restarts, None, *terms),)
        restarts = run.restarts
        count = r_gy.numel() // r_gy.shape[1] // restarts
        invstd = saved.invstd
        r_total, r_with_xhat = self._sums(saved, r_gy, restarts)
        on_xhat, constant = -p * r_with_xhat / count, -p * r_total / count
        if saved.r_x is not None:
            m1, m2 = saved.total / count, saved.with_xhat / count
            r_mean, q = saved.r_total / count, saved.r_with_xhat / count
            none, one = torch.zeros_like(invstd), torch.ones_like(invstd)
            _, gy_r_x = _stacked(saved.r_x.chunk(restarts), saved.gy.chunk(restarts), none, one)
            with_r_xhat = invstd * (gy_r_x / count - r_mean * m1 - q * m2)
            r_p = -p * invstd * q if r_p is None else r_p - p * invstd * q
            on_r_x = -p * m2 * invstd
            terms.append((on_r_x, saved.r_x))
            on_xhat = on_xhat - on_r_x * q - p * with_r_xhat
            constant = constant - on_r_x * r_mean
        if r_p is not None:
            terms.append((r_p, saved.gy))
            on_xhat = on_xhat - r_p * saved.with_xhat / count
            constant = constant - r_p * saved.total / count
        on_x = on_xhat * invstd
        constant = constant - on_x * saved.mean
        return (_combined(restarts, constant, (on_x, saved.x), *terms),)


def _stack(parts: list[Tensor] | None) -> Tensor | None:
    return None if parts is None else torch.stack(parts)


def _stacked(left: Any, right: Any, mean: Tensor, invstd: Tensor) -> tuple[Tensor, Tensor]:
    """Returns sum(left) and sum(left (right - mean) invstd), in one pass over both."""
    with_right, total = [], []
    for a, b, own_mean, own_invstd in zip(left, right, mean, invstd, strict=True):
        _, one, two = _backward(
            a, b, None, None, None, own_mean, own_invstd, True, 0.0, [False, True, True]
        )
        with_right.append(one)
        total.append(two)
    return torch.stack(total), torch.stack(with_right)


def _combined(
    restarts: int, constant: Tensor | None, first: tuple[Tensor, Tensor], *more: Any
) -> Tensor:
    """Returns constant + sum of coefficient times tensor; coefficients are (restart, channel)."""

    def apart(tensor: Tensor) -> Tensor:
        return tensor.unflatten(0, (restarts, -1))

    def spread(coefficient: Tensor) -> Tensor:
        return per_channel(coefficient[:, None], first[1])

    coefficient, tensor = first
    if constant is None:
        out = apart(tensor) * spread(coefficient)
    else:
        out = torch.addcmul(spread(constant), apart(tensor), spread(coefficient))
    for coefficient, tensor in more:
        out.addcmul_(apart(tensor), spread(coefficient))
    return out.flatten(0, 1)
