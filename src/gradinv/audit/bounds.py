"""The certificates of one defence, from its chain and from the candidates of all batches."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from gradinv.evaluation.accounting import epsilon_or_reason
from gradinv.evaluation.closed_form import (
    closed_form,
    refusal_closed_form,
    sensitivity_of,
)
from gradinv.evaluation.signoff import Bounds
from gradinv.federated import Defense
from gradinv.federated.channel import channel_of

DELTA = 1e-5


def bounds_of(
    defenses: Sequence[Defense], rows: Sequence[Mapping[str, Any]], *, rounds: int
) -> Bounds:
    """Returns what no server can do about these images, and what a clip says of any images.

    Args:
        defenses: all that the client does, in its order.
        rows: the cells of candidate search, one for each batch.
        rounds: updates that the client sends at the same weights.
    """
    tried = [image for row in rows for image in row["images"] if image["candidates"] > 1]
    refusal = next((row["refusal"] for row in rows if row["refusal"] is not None), None)
    ceiling = interval = None
    if refusal is None and tried:
        ceiling = fmean(image["ceiling"] for image in tried)
        low, high = (fmean(image["ceiling_interval"][end] for image in tried) for end in (0, 1))
        interval = (low, high)
    needed = [row["sigma_needed"] for row in rows]
    closed, closed_refusal = None, refusal_closed_form(defenses)
    epsilon, epsilon_refusal = None, closed_refusal
    sensitivity, sigma = sensitivity_of(defenses), channel_of(defenses).sigma
    if closed_refusal is None:
        assert sensitivity is not None
        if tried:
            kappa = fmean(1 / image["candidates"] for image in tried)
            closed = closed_form(kappa, sensitivity=sensitivity, sigma=sigma, rounds=rounds)
        epsilon, epsilon_refusal = epsilon_or_reason(
            sensitivity=sensitivity, sigma=sigma, rounds=rounds, delta=DELTA
        )
        if epsilon is not None and math.isinf(epsilon):
            epsilon, epsilon_refusal = None, "it is larger than any number that a float holds"
    return Bounds(
        ceiling=ceiling,
        interval=interval,
        refusal=refusal,
        closed_form=closed,
        closed_form_refusal=closed_refusal,
        epsilon=epsilon,
        epsilon_refusal=epsilon_refusal,
        delta=DELTA,
        rounds=rounds,
        sigma_needed=None if None in needed or not needed else max(needed),
    )
