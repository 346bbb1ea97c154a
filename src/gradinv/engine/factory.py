"""Chooses how the cost and its gradient are computed."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from gradinv.engine.base import Engine, Problem
from gradinv.engine.distances import Distance, Target
from gradinv.engine.exact import ExactROperator
from gradinv.engine.frozen import FrozenPattern
from gradinv.engine.graphs import full_precision
from gradinv.engine.plain import PlainDoubleBackward
from gradinv.engine.program import Program
from gradinv.engine.rules.op import Run, UnsupportedError
from gradinv.engine.simulated import SimulatedTraining
from gradinv.engine.terms import Regularizer
from gradinv.engine.traced import first_order, weights_of
from gradinv.engine.tracing import trace
from gradinv.errors import AttackError, ConfigError, did_you_mean
from gradinv.federated.client import logits, trainable
from gradinv.federated.loss import Loss
from gradinv.federated.observation import Observation
from gradinv.federated.protocol import FedAvg

WAYS = ("auto", "exact", "frozen-pattern", "plain")


def engine_for(
    model: nn.Module,
    observation: Observation,
    *,
    distance: Distance,
    regularizers: Sequence[Regularizer] = (),
    target: Target | None = None,
    way: str = "auto",
    soft_labels: bool = False,
    tangent_dtype: torch.dtype | None = None,
    tangent_tf32: bool = False,
) -> Engine:
    """Returns the fastest exact engine that knows every operation of the network.

    An update of FedAvg is simulated, by autograd, whatever the network.

    Args:
        model: f_theta in the observation's mode.
        observation: g and what is known beside it; labels must be known.
        distance: d.
        regularizers: those on images and on batch-norm statistics are used here.
        target: what to compare with; the observation's gradient when None.
        way: "plain" is double backward by autograd, for any network; "exact" is the R-operator;
            "auto" is the R-operator where every operation has a rule, and plain otherwise: the
            engine's ``reason`` then names the operation that had none. "frozen-pattern" is an
            approximation by finite differences, within about one percent.
        tangent_dtype: for the exact way: type of the products in the tangent passes, such as
            ``torch.bfloat16``, which makes it an approximation within about one percent.
        tangent_tf32: for the exact way: lets a GPU round those products to TF32.
        soft_labels: labels are searched and come with every call; only plain differentiates them.

    Raises:
        AttackError: labels or statistics were not revealed, or a way is asked for that does not
            know an operation of the network, or local training.
        ConfigError: there is no such way.
    """
    if way not in WAYS:
        raise ConfigError(
            f"expected a way to compute the gradient, got {way!r}; {did_you_mean(way, WAYS)}"
        )
    settings = {"distance": distance, "regularizers": regularizers, "target": target}
    if isinstance(observation.protocol, FedAvg):
        if way not in {"auto", "plain"}:
            raise AttackError(
                f"expected an update of FedSGD for the way {way!r}, got one of FedAvg; use "
                "way='auto', or approximate it by one gradient (observation.as_one_gradient())"
            )
        return SimulatedTraining(model, observation, **settings, soft_labels=soft_labels)
    if soft_labels and way not in {"auto", "plain"}:
        raise AttackError(
            f"expected known labels for the way {way!r}, which does not differentiate them, "
            "got a search over labels; use way='auto' or 'plain'"
        )
    if way == "plain" or soft_labels:
        return PlainDoubleBackward(
            model,
            observation,
            **settings,
            reason="labels are searched" if soft_labels else None,
            soft_labels=soft_labels,
        )
    problem = Problem.of(model, observation, **settings)
    try:
        if problem.loss != Loss():
            raise UnsupportedError(f"the loss {problem.loss}")
        assert problem.labels is not None
        shape = (observation.batch_size, *observation.image_shape)
        program = _checked(model, frozenset(problem.target.gradient), problem.labels, shape)
        if problem.statistics_terms and program.norms_beside:
            raise UnsupportedError(
                "statistics of a layer that the logits do not need "
                f"({', '.join(program.norms_beside)})"
            )
    except UnsupportedError as missing:
        if way != "auto":
            raise AttackError(
                f"expected a rule for every operation of the network, got none for {missing}; "
                "use way='auto' or 'plain'"
            ) from missing
        return PlainDoubleBackward(model, observation, **settings, reason=_reason(missing))
    if way == "frozen-pattern":
        return FrozenPattern(problem, program)
    return ExactROperator(problem, program, tangent_dtype=tangent_dtype, tangent_tf32=tangent_tf32)


def plain_reason(model: nn.Module, image_shape: tuple[int, int, int]) -> str | None:
    """Returns why updates of a network are attacked by plain double backward, or None.

    The random numbers of the process stay as they were.

    Args:
        model: f_theta in the client's mode.
        image_shape: (channel, height, width).
    """
    like = next(model.parameters())
    labels = torch.zeros(_TRIED, dtype=torch.long, device=like.device)
    names = frozenset(trainable(model))
    with torch.random.fork_rng([like.device] if like.device.type == "cuda" else []):
        try:
            _checked(model, names, labels, (_TRIED, *image_shape))
        except UnsupportedError as missing:
            return _reason(missing)
    return None


def _reason(missing: UnsupportedError) -> str:
    return f"no rule for {missing}"


_TRIED = 2  # images; batch norm in train mode needs more than one
_BUCKETS = 2**12  # numbers that a tensor is compared by


def _checked(
    model: nn.Module, names: frozenset[str], labels: Tensor, shape: tuple[int, ...]
) -> Program:
    """Returns the traced network, whose gradient is its own on one random batch.

    A trace does not see everything: not what hooks do, not ``no_grad`` or ``detach`` inside a
    module, and it looks through a custom autograd function into its forward.

    Args:
        model: f_theta.
        names: of the parameters that are compared.
        labels: of the batch.
        shape: of the images, (batch, channel, height, width).

    Raises:
        UnsupportedError: an operation has no rule, the gradients differ, or the network has an
            autograd function of its own.
    """
    program = trace(model, names)
    source = torch.Generator().manual_seed(0)
    parameters = {name: value for name, value in model.named_parameters() if name in names}
    images = torch.rand(shape, generator=source).to(next(iter(parameters.values())).detach())
    with torch.enable_grad():
        loss = functional.cross_entropy(logits(model, images), labels)
    _refuse_custom_functions(loss)
    own = torch.autograd.grad(
        loss, list(parameters.values()), allow_unused=True, materialize_grads=True
    )
    expected = {name: _sketch(value) for name, value in zip(parameters, own, strict=True)}
    del own, loss
    run = _SketchedRun(1, weights_of(model), names)
    with torch.no_grad(), full_precision():
        first_order(program, run, images[None], labels)
    total = torch.stack([sketch.norm() for sketch in expected.values()]).norm()
    for name, sketch in expected.items():
        # Wide enough for a ReLU whose sign float32 gets wrong, far too narrow for a wrong rule.
        allowed = 0.05 * sketch.norm() + 1e-3 * total
        if not (run.gradients[name][0] - sketch).norm() <= allowed:
            raise UnsupportedError(
                f"what the network does beside its traced operations (gradient of {name})"
            )
    return program


class _SketchedRun(Run):
    """A run that keeps a sketch of every gradient; sketches add up as gradients do."""

    def add_gradient(self, name: str, parts: list[Tensor]) -> None:
        """Adds the sketches of one gradient for each restart."""
        super().add_gradient(name, [_sketch(part) for part in parts])


def _sketch(gradient: Tensor) -> Tensor:
    """Returns at most twice ``_BUCKETS`` numbers that have about the tensor's norm.

    Whole gradients are too much memory. Elements that share a bucket are added with random
    signs (count sketch, Charikar et al. 2002), so that every element counts and the squared norm of
    a difference is kept in expectation; of a tensor that fits into the buckets it is kept exactly.
    """
    flat = gradient.reshape(-1)
    rows = flat.numel() // _BUCKETS
    signs = torch.randint(0, 2, (rows,), generator=torch.Generator().manual_seed(0)) * 2 - 1
    folded, rest = flat[: rows * _BUCKETS].view(rows, _BUCKETS), flat[rows * _BUCKETS :]
    if rows == 0:
        return rest
    return torch.cat([signs.to(flat) @ folded, rest])


def _refuse_custom_functions(loss: Tensor) -> None:
    """Raises for an autograd function that is not PyTorch's own."""
    seen, waiting = set(), [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            raise UnsupportedError(f"the autograd function {type(node).__name__}")
        waiting += [following for following, _ in node.next_functions]
