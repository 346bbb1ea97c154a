"""All that candidate search says of one update: ranks, posteriors, control and ceilings."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from gradinv.attacks.search.chance import dropping
from gradinv.evaluation.candidates.fit import Fit
from gradinv.evaluation.candidates.lists import CandidateLists
from gradinv.evaluation.candidates.search import CandidateScore, Tick, search_candidates
from gradinv.evaluation.candidates.trials import trials_for
from gradinv.evaluation.certificates import (
    Ceiling,
    bayes_ceiling_of_gram,
    excluding_sigma,
    gram_of,
    refusal,
)
from gradinv.federated.channel import NO_NOISE
from gradinv.federated.observation import Observation
from gradinv.federated.protocol import Order
from gradinv.room import GIB

MEMORY = GIB
"""Bytes that the updates of one place's candidates may take."""


@dataclass(frozen=True)
class CandidateResult:
    """What candidate search found in one update.

    Attributes:
        images: a score for each image of the batch.
        picks: the candidate that was named in each place, the rest of the batch unknown.
        refusal: why there is no ceiling; None where there is one.
        sigma_needed: the least standard deviation of noise added last with which the ceiling comes
            near enough to luck to exclude naming; None where no noise would make a certificate.
    """

    images: tuple[CandidateScore, ...]
    picks: tuple[int, ...]
    refusal: str | None
    sigma_needed: float | None

    def row(self) -> dict[str, Any]:
        """Returns the result as results hold it."""
        return {
            "refusal": self.refusal,
            "sigma_needed": self.sigma_needed,
            "images": [score.row() for score in self.images],
        }


def candidate_result(
    observation: Observation,
    model: nn.Module,
    lists: CandidateLists,
    *,
    control: Observation | None = None,
    known_order: Order | None = None,
    rounds: int = 1,
    seed: int = 0,
    tick: Tick | None = None,
) -> CandidateResult:
    """Searches the candidates of one update, and says what no server could find among them.

    Args:
        observation: what the server saw.
        model: the network that it sent, in the client's mode.
        lists: the candidates.
        control: the update of another client, with ``lists.others``.
        known_order: of the client's local steps, for the server that knows the rest of the batch.
        rounds: updates on the same images at these weights, for the ceilings.
        seed: of the starts and of the ceilings' draws.
        tick: called before every trial with the fraction done; what it raises leaves the search.
    """
    fit = Fit(observation)
    trials = trials_for(model, lists, observation.protocol, order=observation.order, seed=seed)
    known = trials
    if known_order is not None and known_order != observation.order:
        known = trials_for(model, lists, observation.protocol, order=known_order, seed=seed)
    drops = bool(dropping(model))
    reason = refusal(observation.defenses, dropout=drops)
    # Without noise there is no ceiling, but what noise would make one can be said.
    certain = reason in {None, NO_NOISE} and not drops
    grams: list[Tensor] = []

    def keep(place: int, sent: Tensor) -> None:
        del place
        grams.append(gram_of([{"": row} for row in sent]))

    found = search_candidates(
        lists,
        trials,
        fit,
        known_trials=known,
        control=None if control is None else Fit(control),
        seed=seed,
        tick=tick,
        seen=keep if certain else None,
    )
    ceilings: list[Ceiling | None] = [None] * len(lists.counts)
    if reason is None:
        ceilings = [
            bayes_ceiling_of_gram(gram, fit.channel.sigma, rounds=rounds, seed=seed)
            for gram in grams
        ]
    several = [gram for gram in grams if len(gram) > 1]
    return CandidateResult(
        images=tuple(
            CandidateScore(
                original=place,
                label=int(lists.labels[place]),
                candidates=count,
                rank=found.ranks[place],
                posterior=found.posteriors[place],
                rank_known=found.known[place],
                posterior_known=found.known_posteriors[place],
                control=None if found.controls is None else found.controls[place],
                control_known=None if found.controls_known is None else found.controls_known[place],
                ceiling=None if ceiling is None else ceiling.rate,
                ceiling_interval=None if ceiling is None else ceiling.interval,
            )
            for place, (count, ceiling) in enumerate(zip(lists.counts, ceilings, strict=True))
        ),
        picks=found.picks,
        refusal=reason,
        sigma_needed=excluding_sigma(several, rounds=rounds, seed=seed) if several else None,
    )


def search_bytes(model: nn.Module, image_shape: tuple[int, int, int], counts: Sequence[int]) -> int:
    """Returns the bytes that a candidate search holds at least.

    All candidates' images; the updates of one place's, which are stacked for its ceiling; and the
    Gram matrices of all places, with the three of one ceiling.

    Args:
        model: the network.
        image_shape: (channel, height, width).
        counts: candidates of each place.
    """
    images = 4 * math.prod(image_shape) * sum(counts)
    most = max(counts)
    size = sum(value.numel() * value.element_size() for value in model.parameters())
    return images + 2 * most * size + 8 * (sum(count**2 for count in counts) + 3 * most**2)


def affordable(model: nn.Module, asked: int) -> int:
    """Returns how many candidates of one place fit into memory, at most as many as asked, 2 least.

    The updates of all of them are held at once, for the ceilings.
    """
    size = sum(value.numel() * value.element_size() for value in model.parameters())
    return max(2, min(asked, MEMORY // max(1, size)))


def affordable_note(asked: int, used: int, model: nn.Module) -> str | None:
    """Returns that fewer candidates are used than asked for, and why; None where they are not."""
    if used >= asked:
        return None
    size = sum(value.numel() * value.element_size() for value in model.parameters())
    return (
        f"Candidates: {used} of {asked} a place, since one update takes {size / GIB:.2g} GiB and "
        f"those of a place are held at once (at most {MEMORY / GIB:.2g} GiB)."
    )
