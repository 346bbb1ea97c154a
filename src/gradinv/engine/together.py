"""Several updates that were made with one network, evaluated as one batch.

The tasks of meta-learning, or the clients of one round: networks and weights are the same, labels
and observed gradients are not. The passes over the network are those of as many restarts.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from gradinv.engine.base import Engine, Evaluated
from gradinv.engine.exact import ExactROperator
from gradinv.engine.graphs import full_precision
from gradinv.engine.rules.op import Run
from gradinv.engine.traced import first_order


def evaluate_together(
    engines: Sequence[Engine], images: Float[Tensor, "update batch channel height width"]
) -> list[Evaluated]:
    """Returns cost, matching cost and dc/dx of one batch of images for each update.

    Engines that cannot be computed together (of different networks or terms, with terms on
    batch-norm statistics, of another way than the exact one) are asked one after the other.

    Args:
        engines: one for each update.
        images: trial images of each update; all updates are of batches of one size.
    """
    exact = [engine for engine in engines if isinstance(engine, ExactROperator)]
    if len(exact) < len(engines) or not all(_alike(exact[0], other) for other in exact):
        return [engine.evaluate(batch[None]) for engine, batch in zip(engines, images, strict=True)]
    at_once = exact[0].fitting(images)
    results: list[Evaluated] = []
    for start in range(0, len(exact), at_once):
        part = slice(start, start + at_once)
        results += _step(exact[part], images[part].detach())
    return results


def _alike(first: ExactROperator, other: ExactROperator) -> bool:
    """Whether two engines differ in labels and observed gradient alone."""
    return (
        first.problem.model is other.problem.model
        and first.wanted == other.wanted
        and first.problem.image_terms == other.problem.image_terms
        and first.tangent_dtype == other.tangent_dtype
        and not first.problem.statistics_terms
        and not other.problem.statistics_terms
    )


@torch.no_grad()
def _step(engines: Sequence[ExactROperator], images: Tensor) -> list[Evaluated]:
    first = engines[0]
    labels = [engine.problem.labels for engine in engines]
    # Each layer's gradient is compared with one of its own for each update: there are no ghosts.
    run = Run(len(engines), first.weights, first.wanted, low=first.low)
    with full_precision():
        tape, probabilities, _ = first_order(
            first.program, run, images, torch.cat([own for own in labels if own is not None])
        )
        found = []
        for index, engine in enumerate(engines):
            own = Run(1, first.weights, first.wanted)
            own.gradients = {name: [parts[index]] for name, parts in run.gradients.items()}
            found.append(engine.matcher.direct(own))
            for name, (direction,) in own.gradients.items():
                run.gradients[name][index] = direction
        matching, factor = (torch.cat(values) for values in zip(*found, strict=True))
        all_of_them = first.tangents(run, tape, probabilities, images, matching, factor)
    return [
        Evaluated(cost[None], own[None], gradient[None])
        for cost, own, gradient in zip(
            all_of_them.cost, all_of_them.matching, all_of_them.gradient, strict=True
        )
    ]
