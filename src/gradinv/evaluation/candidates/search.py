"""The search itself: one place with the rest known, and all places by swaps."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from gradinv.evaluation.candidates.fit import Fit
from gradinv.evaluation.candidates.lists import CandidateLists
from gradinv.evaluation.candidates.trials import Trials

STARTS = 2
SWEEPS = 4
CONTROL_SWEEPS = 2

Tick = Callable[[float], None]
"""Called before every trial with the fraction done; what it raises leaves the search."""


@dataclass(frozen=True)
class CandidateScore:
    """What candidate search says of one image.

    A rank is how many other candidates fit the update at least as well: 0 means named. A tie counts
    against the true image.

    Attributes:
        original: index of the image in the client's batch.
        label: its class.
        candidates: how many images were in its list; 1 is a list of itself alone.
        rank: where the rest of the batch was not known but found by swaps.
        posterior: probability of the true image then, given what was found of the rest; None
            without noise of a known likelihood.
        rank_known: where the server knew the rest of the batch.
        posterior_known: likewise.
        control: the rank by swaps on the update of another client, with other images; None where
            the set has too few.
        control_known: likewise with the rest of this batch.
        ceiling: the highest rate at which any server that knows the list and the rest of the batch
            can name the image; None where the defence has no such certificate.
        ceiling_interval: Monte-Carlo interval of that (95 %).
    """

    original: int
    label: int
    candidates: int
    rank: int
    posterior: float | None
    rank_known: int
    posterior_known: float | None
    control: int | None
    control_known: int | None
    ceiling: float | None = None
    ceiling_interval: tuple[float, float] | None = None

    def row(self) -> dict[str, Any]:
        """Returns the score as results hold it."""
        interval = self.ceiling_interval
        return {**asdict(self), "ceiling_interval": None if interval is None else list(interval)}

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "CandidateScore":
        """Returns the score that a row holds."""
        interval = row["ceiling_interval"]
        return cls(**{**row, "ceiling_interval": None if interval is None else tuple(interval)})

    @property
    def named(self) -> bool:
        """Whether the image was named by a server that does not know the rest of the batch."""
        return self.candidates > 1 and self.rank == 0

    @property
    def named_known(self) -> bool:
        """Whether the image was named by a server that knows the rest of the batch."""
        return self.candidates > 1 and self.rank_known == 0


@dataclass(frozen=True, eq=False)
class CandidateSearch:
    """What was found in one update.

    Attributes:
        ranks: by swaps.
        picks: the candidate that was found in each place, by swaps.
        posteriors: of the true images.
        known: ranks with the rest known.
        known_posteriors: likewise.
        controls: ranks by swaps on another client's update.
        controls_known: likewise with the rest of this batch.
    """

    ranks: tuple[int, ...]
    picks: tuple[int, ...]
    posteriors: tuple[float | None, ...]
    known: tuple[int, ...]
    known_posteriors: tuple[float | None, ...]
    controls: tuple[int, ...] | None
    controls_known: tuple[int, ...] | None


def search_candidates(
    lists: CandidateLists,
    trials: Trials,
    fit: Fit,
    *,
    known_trials: Trials | None = None,
    control: Fit | None = None,
    seed: int = 0,
    tick: Tick | None = None,
    seen: Callable[[int, Float[Tensor, "candidate coordinate"]], None] | None = None,
) -> CandidateSearch:
    """Names, for each place of a batch, the candidate that explains the update best.

    With the rest known every candidate is tried in its place. With the rest unknown: from a random
    candidate in each place, every candidate is tried in every place in turn and the best is kept,
    up to four times round, from two starts; the end that fits better counts. A start that explains
    an update without noise is the last one.

    Args:
        lists: the candidates.
        trials: recomputes updates, as the server would.
        fit: of the update.
        known_trials: recomputes them with everything known about the rest of the batch, the order
            of local steps included; ``trials`` when None.
        control: of another client's update.
        seed: of the starts.
        tick: called before every trial.
        seen: gets, for each place, what would have arrived of each of its candidates with the rest
            known; for the ceilings.
    """
    counts = lists.counts
    whole = sum(counts)
    work = _Work(tick, (1 + STARTS * SWEEPS + (CONTROL_SWEEPS if control else 0)) * whole)
    known, known_other = _with_rest_known(lists, known_trials or trials, fit, control, work, seen)
    generator = torch.Generator().manual_seed(seed)
    best = _swaps(trials, fit, counts, generator, sweeps=SWEEPS, work=work)
    for _ in range(1, STARTS):
        if fit.explained(best.distance):
            break
        other = _swaps(trials, fit, counts, generator, sweeps=SWEEPS, work=work)
        best = min(best, other, key=lambda found: found.distance)
    controls = None
    if control is not None:
        found = _swaps(trials, control, counts, generator, sweeps=CONTROL_SWEEPS, work=work)
        controls = _ranks(found.distances, lists.truth)
    return CandidateSearch(
        ranks=_ranks(best.distances, lists.truth),
        picks=tuple(best.picks),
        posteriors=_posteriors(fit, best.distances, lists.truth),
        known=_ranks(known, lists.truth),
        known_posteriors=_posteriors(fit, known, lists.truth),
        controls=controls,
        controls_known=None if control is None else _ranks(known_other, lists.truth),
    )


class _Work:
    """Counts trials; more than expected are none."""

    def __init__(self, tick: Tick | None, expected: int) -> None:
        self.tick, self.expected, self.done = tick, expected, 0

    def next(self) -> None:
        if self.tick is not None:
            self.tick(min(1.0, self.done / self.expected))
        self.done += 1


@dataclass(frozen=True, eq=False)
class _Found:
    """Where swaps ended: a candidate for each place, and the distances of all in each place."""

    picks: list[int]
    distance: float
    distances: list[Tensor]


def _with_rest_known(
    lists: CandidateLists,
    trials: Trials,
    fit: Fit,
    control: Fit | None,
    work: _Work,
    seen: Callable[[int, Tensor], None] | None,
) -> tuple[list[Tensor], list[Tensor]]:
    """Returns the distances of all candidates of each place, to the update and to the control's."""
    ours, theirs = [], []
    for place, count in enumerate(lists.counts):
        sent, near, far = [], [], []
        for pick in range(count):
            work.next()
            picks = [*lists.truth[:place], pick, *lists.truth[place + 1 :]]
            arrived = fit.sent(trials.update(picks))
            near.append(fit.distance(arrived))
            if control is not None:
                far.append(control.distance(arrived))
            if seen is not None:
                sent.append(arrived)
        if seen is not None:
            seen(place, torch.stack(sent))
        ours.append(torch.tensor(near, dtype=torch.float64))
        theirs.append(torch.tensor(far, dtype=torch.float64))
    return ours, theirs


def _swaps(
    trials: Trials,
    fit: Fit,
    counts: Sequence[int],
    generator: torch.Generator,
    *,
    sweeps: int,
    work: _Work,
) -> _Found:
    picks = [int(torch.randint(count, (1,), generator=generator)) for count in counts]
    distances: list[Tensor] = [torch.empty(0)] * len(counts)
    for _ in range(sweeps):
        before = list(picks)
        for place in torch.randperm(len(counts), generator=generator).tolist():
            tried = []
            for pick in range(counts[place]):
                work.next()
                update = trials.update([*picks[:place], pick, *picks[place + 1 :]])
                tried.append(fit.distance(fit.sent(update)))
            distances[place] = torch.tensor(tried, dtype=torch.float64)
            picks[place] = int(distances[place].argmin())
        if picks == before:
            break
    last = (
        float(distances[0][picks[0]])
        if len(counts) == 1
        else fit.distance(fit.sent(trials.update(picks)))
    )
    return _Found(picks, last, distances)


def _ranks(distances: Sequence[Tensor], truth: Sequence[int]) -> tuple[int, ...]:
    return tuple(
        int((values <= values[own]).sum()) - 1 for values, own in zip(distances, truth, strict=True)
    )


def _posteriors(
    fit: Fit, distances: Sequence[Tensor], truth: Sequence[int]
) -> tuple[float | None, ...]:
    posteriors = [fit.posterior(values) for values in distances]
    return tuple(
        None if values is None else float(values[own])
        for values, own in zip(posteriors, truth, strict=True)
    )
