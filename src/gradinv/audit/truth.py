"""What the true images cost: did the search fail, or is nothing left to find?

Computed by the judge, after the attack has ended.
"""

from dataclasses import replace
from typing import Any, Literal

from torch import nn

from gradinv.attacks import AnalyticAttack, Attack, Reconstruction
from gradinv.attacks.recursion.peeling import peel
from gradinv.attacks.stages import matching_of
from gradinv.audit.rows import finite
from gradinv.data import ClientBatch
from gradinv.federated import Observation
from gradinv.priors import Generator

State = Literal["stalled", "reached", "passed"]
MARGIN = 0.02
"""Of the way from where a search began to the truth: what is nearer than that is as good."""

ADVICE: dict[State, str] = {
    "stalled": "the true images match better than what was found: run it longer",
    "reached": "the search came as far as the true images: this is all there is for it",
    "passed": "what was found matches better than the true images: a longer search finds no more",
}


def state_of(start: float, end: float, truth: float) -> State:
    """Returns where a search ended, by the matching cost of its start, its end and the truth.

    >>> state_of(1.0, 0.5, 0.0), state_of(1.0, 0.01, 0.0), state_of(1.0, 0.9, 0.97)
    ('stalled', 'reached', 'passed')
    """
    reach = MARGIN * max(start - truth, 0.0)
    if end > truth + reach:
        return "stalled"
    return "passed" if end < truth - reach else "reached"


def truth_row(
    observation: Observation,
    model: nn.Module,
    attack: Attack,
    batch: ClientBatch,
    found: Reconstruction,
    *,
    prior: Generator | None,
    seed: int,
) -> dict[str, Any] | None:
    """Returns the truth's matching cost and where the search ended, as a cell holds them.

    None for what is solved in closed form and then not searched: it has no cost.

    Args:
        observation: what the server saw.
        model: the network that it sent.
        attack: as it was run.
        batch: what the client held.
        found: what the attack returned.
        prior: the server's generator.
        seed: of the attack.
    """
    if not attack.stages:
        return None
    told = replace(observation, labels=batch.labels.to(_device(observation)))
    peeled = None
    if isinstance(attack, AnalyticAttack):
        peeled = peel(told, model, name=attack.name)
    attack = attack.resolved(told, model, prior)
    cost = matching_of(
        told,
        model,
        attack,
        batch.images,
        prior=prior,
        seed=seed,
        kept=found.kept,
        peeled=peeled,
    )
    start = _start(attack, found)
    if start is None or finite(cost) is None or finite(found.matching) is None:
        return {"cost": finite(cost), "state": None}
    return {"cost": cost, "state": state_of(start, found.matching, cost)}


def _start(attack: Attack, found: Reconstruction) -> float | None:
    """Returns the cost that the search began with, of the first stage with the last one's cost."""
    searched = found.stages[-len(attack.stages) :]
    kept = attack.stages[-1 if found.kept is None else found.kept]
    alike = zip(attack.stages, searched, strict=True)
    return next(result.start for stage, result in alike if stage.features == kept.features)


def _device(observation: Observation) -> Any:
    return next(iter(observation.gradient.values())).device
