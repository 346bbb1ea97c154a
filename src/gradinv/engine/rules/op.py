"""What a rule is: one operation of the network, with its four passes.

The engine needs the Hessian-vector product grad_x (grad_theta L . v) (Pearlmutter 1994, "Fast exact
multiplication by the Hessian"). With R{.} the derivative along theta + eps v at eps = 0 and x held
still, that is R{grad_x L}, and it takes four passes over the network: activations a, adjoints
gy = dL/dy, tangents R{a}, and tangents of the adjoints R{gy}. A rule says what one operation does
in each. None stands for a tangent that is zero because no searched parameter lies upstream.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

# What one operation keeps between the passes of one run.
Saved = SimpleNamespace


class UnsupportedError(Exception):
    """No rule for an operation of the network; the message names it. Never leaves the engine."""


@dataclass(eq=False)
class Ghost:
    """What stands for dL/dW where it is not formed, and then for v = alpha dL/dW + beta g.

    Attributes:
        inner: <dL/dW, g> of every restart.
        own: |dL/dW|^2 of every restart.
        alpha: set when the distance is known.
        beta: set when the distance is known; None for 1.
    """

    inner: Tensor
    own: Tensor
    alpha: Tensor | None = None
    beta: Tensor | None = None

    def combined(self, restarts: int, on_alpha: Tensor, on_beta: Tensor) -> Tensor:
        """Returns alpha times one tensor plus beta times another; batch first, restart first."""
        return self.add_alpha(self.times_beta(on_beta, restarts), on_alpha, restarts)

    def times_beta(self, tensor: Tensor, restarts: int) -> Tensor:
        """Returns beta times the tensor, or the tensor itself where beta is 1."""
        if self.beta is None:
            return tensor
        beta = self.beta.view(restarts, *([1] * tensor.dim()))
        return (tensor.unflatten(0, (restarts, -1)) * beta).flatten(0, 1)

    def add_alpha(self, tensor: Tensor, on_alpha: Tensor, restarts: int) -> Tensor:
        """Returns the tensor plus alpha times another."""
        assert self.alpha is not None
        alpha = self.alpha.view(restarts, *([1] * tensor.dim()))
        tensor, on_alpha = (t.unflatten(0, (restarts, -1)) for t in (tensor, on_alpha))
        return torch.addcmul(tensor, on_alpha, alpha).flatten(0, 1)


@dataclass(eq=False)
class Run:
    """One evaluation: what all operations share.

    Attributes:
        restarts: R; activations have the restarts folded into the batch, restart first.
        weights: parameter name -> its value as the operation that owns it wants it.
        wanted: parameters whose gradient is matched.
        gradients: parameter name -> one gradient for each restart; filled by the backward pass,
            turned into the direction v in place before the tangent passes.
        observed: the observed gradient of those weights that may stay ghosts.
        ghosts: parameter name -> what stands for its gradient.
        low: the weights in the type of the tangent passes' products; None for their own.
    """

    restarts: int
    weights: Mapping[str, Tensor]
    wanted: frozenset[str]
    gradients: dict[str, list[Tensor]] = field(default_factory=dict)
    observed: Mapping[str, Tensor] = field(default_factory=dict)
    ghosts: dict[str, Ghost] = field(default_factory=dict)
    low: Mapping[str, Tensor] | None = None

    def add_gradient(self, name: str, parts: list[Tensor]) -> None:
        """Adds one gradient for each restart to the parameter's; it may be used more than once."""
        known = self.gradients.get(name)
        if known is None:
            self.gradients[name] = parts
        else:
            self.gradients[name] = [a + b for a, b in zip(known, parts, strict=True)]

    @property
    def low_dtype(self) -> torch.dtype | None:
        """The type of the tangent passes' products; None for that of the weights."""
        return None if self.low is None else next(iter(self.low.values())).dtype

    def tangent_weight(self, name: str) -> Tensor:
        """Returns a weight as the tangent passes take it."""
        return self.weights[name] if self.low is None else self.low[name]

    def direction(self, name: str | None) -> list[Tensor] | None:
        """Returns v of a parameter, one tensor for each restart; None where v is zero."""
        return self.gradients[name] if name is not None and name in self.wanted else None


class Op:
    """Base class of all rules; every rule is stateless between runs.

    Attributes:
        parameters: names of what it owns, in the network.
    """

    parameters: tuple[str, ...] = ()

    def forward(self, run: Run, saved: Saved, *inputs: Tensor) -> Tensor:
        """Returns y; keeps in ``saved`` what later passes need."""
        raise TypeError(f"{type(self).__name__} defines no forward")

    def backward(
        self, run: Run, saved: Saved, gy: Tensor, *, wants_input: bool
    ) -> tuple[Tensor | None, ...]:
        """Returns dL/d(input) for every input and adds the parameters' gradients to the run."""
        raise TypeError(f"{type(self).__name__} defines no backward")

    def tangent_forward(self, run: Run, saved: Saved, *tangents: Tensor | None) -> Tensor | None:
        """Returns R{y} from R{inputs}."""
        raise TypeError(f"{type(self).__name__} defines no tangent_forward")

    def tangent_backward(self, run: Run, saved: Saved, r_gy: Tensor) -> tuple[Tensor, ...]:
        """Returns R{dL/d(input)} for every input from R{dL/dy}."""
        raise TypeError(f"{type(self).__name__} defines no tangent_backward")

    def replay(self, run: Run, saved: Saved, pattern: Saved, *inputs: Tensor) -> Tensor:
        """Returns y at other weights, with the kinks where the recorded pass had them."""
        return self.forward(run, saved, *inputs)

    def replay_backward(
        self, run: Run, saved: Saved, pattern: Saved, gy: Tensor
    ) -> tuple[Tensor, ...]:
        """Returns dL/d(input) of the replayed pass."""
        results = self.backward(run, saved, gy, wants_input=True)
        return tuple(result for result in results if result is not None)


class PatternOp(Op):
    """An operation that is linear once its pattern is fixed (ReLU masks, max-pool indices).

    Its tangents go the same way as its activations: ``push`` forward and ``pull`` backward.
    """

    def push(self, saved: Saved, *inputs: Tensor | None) -> Tensor:
        """Returns the linear map of the inputs; None stands for zeros."""
        raise TypeError(f"{type(self).__name__} defines no push")

    def pull(self, saved: Saved, gy: Tensor) -> tuple[Tensor, ...]:
        """Returns the transposed map of ``gy``."""
        raise TypeError(f"{type(self).__name__} defines no pull")

    def backward(
        self, run: Run, saved: Saved, gy: Tensor, *, wants_input: bool
    ) -> tuple[Tensor | None, ...]:
        """Returns the transposed map of ``gy``."""
        return self.pull(saved, gy)

    def tangent_forward(self, run: Run, saved: Saved, *tangents: Tensor | None) -> Tensor | None:
        """Returns the linear map of the tangents."""
        if all(tangent is None for tangent in tangents):
            return None
        return self.push(saved, *tangents)

    def tangent_backward(self, run: Run, saved: Saved, r_gy: Tensor) -> tuple[Tensor, ...]:
        """Returns the transposed map of the tangent adjoint."""
        return self.pull(saved, r_gy)

    def replay(self, run: Run, saved: Saved, pattern: Saved, *inputs: Tensor) -> Tensor:
        """Returns the recorded map of the inputs."""
        return self.push(pattern, *inputs)

    def replay_backward(
        self, run: Run, saved: Saved, pattern: Saved, gy: Tensor
    ) -> tuple[Tensor, ...]:
        """Returns the recorded transposed map of ``gy``."""
        return self.pull(pattern, gy)


def per_channel(values: Tensor, like: Tensor) -> Tensor:
    """Returns (..., channel) values so that they broadcast over ``like`` (batch, channel, ...)."""
    return values.reshape(*values.shape, *([1] * (like.dim() - 2)))


def channels_last(x: Tensor) -> Tensor:
    """Returns images in the memory order (batch, height, width, channel), others as they are."""
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x.contiguous()


# Elements of a kernel from which on a copy in another memory order would be too much: the last
# block of ResNet18 has three quarters of its weights in four kernels.
_LARGE_KERNEL = 2**20


def channel_major(kernel: Tensor) -> bool:
    """Whether the rules take a kernel in its own memory order (output, input, height, width)."""
    return kernel.dim() != 4 or kernel.numel() >= _LARGE_KERNEL


def kernel_order(parameter: Tensor) -> Tensor:
    """Returns a parameter, or what has its shape, in the memory order that the rules take it in.

    Convolutions of channels-last images want channels-last kernels. Large ones stay as they are, so
    that neither the network's weights nor the observed gradient are in memory twice.
    """
    return parameter.contiguous() if channel_major(parameter) else channels_last(parameter)


def rows_of(images: Tensor) -> Tensor:
    """Returns channels-last images as a matrix (batch * height * width, channel)."""
    if images.dim() == 2:
        return images
    return images.permute(0, 2, 3, 1).reshape(-1, images.shape[1])


def images_of(rows: Tensor, shape: torch.Size) -> Tensor:
    """Returns what :func:`rows_of` took apart, with ``shape``."""
    if len(shape) == 2:
        return rows
    _, channels, height, width = shape
    return rows.view(-1, height, width, channels).permute(0, 3, 1, 2)


def pair(value: Any) -> list[int]:
    """Returns one number for each of height and width."""
    return [value, value] if isinstance(value, int) else list(value)
