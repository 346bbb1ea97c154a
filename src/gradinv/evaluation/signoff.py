"""One verdict for one defence: shown, excluded or open, over all that was tried on it.

A leak is shown by an attack or by candidate search. Where none was, only a certificate excludes
one; all else is open, and the sentence says why and what would decide it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from gradinv.evaluation.candidates.search import CandidateScore
from gradinv.evaluation.certificates import ABOVE_LUCK, ceiling_sentence
from gradinv.evaluation.closed_form import closed_form_sentence
from gradinv.evaluation.luck import chance_of
from gradinv.evaluation.verdict import CANDIDATES, Level, Verdict, among_of, expected_count

NAME = "candidates"
"""What tables call candidate search."""


@dataclass(frozen=True)
class Bounds:
    """What certificates say of one defence, whatever was tried.

    Attributes:
        ceiling: mean over the images of the highest rate at which any server names them; None
            where it is refused.
        interval: of that, 95 %.
        refusal: why there is no ceiling.
        closed_form: the same from the clip alone, whatever the images; None where it is refused.
        closed_form_refusal: why there is none.
        epsilon: of (epsilon, delta) differential privacy, None where there is none.
        epsilon_refusal: why there is none.
        delta: the delta that belongs to it.
        rounds: updates that the client sends, at the same weights.
        sigma_needed: noise with which the ceiling would exclude naming; None where no noise would.
    """

    ceiling: float | None = None
    interval: tuple[float, float] | None = None
    refusal: str | None = None
    closed_form: float | None = None
    closed_form_refusal: str | None = None
    epsilon: float | None = None
    epsilon_refusal: str | None = None
    delta: float = 1e-5
    rounds: int = 1
    sigma_needed: float | None = None


@dataclass(frozen=True)
class CandidateVerdict:
    """What candidate search and its certificates say of one defence.

    Attributes:
        level: ``PARTIAL``, ``OPEN`` or ``EXCLUDED``.
        evidence: what was found, in words.
        certificate: what is excluded, in words; None where nothing is.
        reasons: why it is open.
        images: how many had others in their lists.
        named: how many of them were named, with the rest of the batch unknown.
        named_known: with the rest of the batch known.
        luck: how many of them luck names.
        candidates: in the longest list.
        floor: what share no server names more of, where naming is excluded; 0 where it is not.
    """

    level: Level
    evidence: str
    certificate: str | None
    reasons: tuple[str, ...]
    images: int
    named: int
    named_known: int
    luck: float
    candidates: int
    floor: float

    @property
    def sentence(self) -> str:
        """Level, evidence and certificate, in one line."""
        parts = [self.evidence, *([self.certificate] if self.certificate else self.reasons)]
        return f"{self.level.value}: {'; '.join(parts)}"


def judge_candidates(
    scores: Sequence[CandidateScore],
    bounds: Bounds,
    *,
    defense: str = "none",
    significance: float = CANDIDATES,
) -> CandidateVerdict:
    """Judges the candidate searches of all batches under one defence.

    Whether a leak was shown is decided by the server that knows the rest of the batch; that is the
    one that ceilings speak of.

    Args:
        scores: of the images of all batches.
        bounds: the certificates.
        defense: what the sentence calls the defence; ``"none"`` is not mentioned.
        significance: how often a leak may be found where there is none.
    """
    tried = [score for score in scores if score.candidates > 1]
    luck = [1 / score.candidates for score in tried]
    named, known = sum(score.named for score in tried), sum(score.named_known for score in tried)
    certificate, floor = _certificate(tried, bounds)
    # Where a certificate holds, a count up to what it allows is no leak.
    beyond = bool(tried) and chance_of(known, [max(each, floor) for each in luck]) < significance
    reasons: list[str] = []
    if beyond:
        level = Level.PARTIAL
    elif certificate is not None:
        level = Level.EXCLUDED
    else:
        level = Level.OPEN
        reasons = _why_open(tried, luck, bounds, significance)
    return CandidateVerdict(
        level=level,
        evidence=_found(tried, named, known, sum(luck, 0.0), defense),
        certificate=certificate,
        reasons=tuple(reasons),
        images=len(tried),
        named=named,
        named_known=known,
        luck=sum(luck, 0.0),
        candidates=max((score.candidates for score in tried), default=1),
        floor=floor,
    )


def _certificate(tried: Sequence[CandidateScore], bounds: Bounds) -> tuple[str | None, float]:
    """Returns what is excluded and at which share of the images; None and 0 where nothing is."""
    if not tried:
        return None, 0.0
    luck = fmean(1 / score.candidates for score in tried)
    limit = luck + ABOVE_LUCK
    most = max(score.candidates for score in tried)
    parts, floors = [], []
    if bounds.ceiling is not None and bounds.interval is not None and bounds.interval[1] <= limit:
        parts.append(
            ceiling_sentence(bounds.ceiling, bounds.interval, candidates=most, rounds=bounds.rounds)
        )
        floors.append(bounds.interval[1])
    if bounds.closed_form is not None and bounds.closed_form <= limit:
        parts.append(closed_form_sentence(bounds.closed_form, kappa=luck, rounds=bounds.rounds))
        floors.append(bounds.closed_form)
    return ("; ".join(parts), min(floors)) if parts else (None, 0.0)


def _why_open(
    tried: Sequence[CandidateScore],
    luck: Sequence[float],
    bounds: Bounds,
    significance: float,
) -> list[str]:
    if not tried:
        return ["no image had another one of its label, so there were no candidates to tell apart"]
    reasons = []
    if chance_of(len(tried), luck) >= significance:
        reasons.append("too few images or candidates to tell naming from luck")
    if bounds.refusal is not None:
        reasons.append(f"there is no certificate: {bounds.refusal}")
    elif bounds.ceiling is not None:
        reasons.append(
            f"some server could name up to {100 * bounds.ceiling:.1f} % of the images, where luck "
            f"names {100 * fmean(luck):.1f} %"
        )
    return reasons


def _found(
    tried: Sequence[CandidateScore], named: int, known: int, luck: float, defense: str
) -> str:
    who = "a server" if defense == "none" else f"against {defense} a server"
    if not tried:
        return f"{who} had no candidates to choose from"
    n = len(tried)
    controls = [score.control_known for score in tried if score.control_known is not None]
    control = (
        f"; {sum(rank == 0 for rank in controls)} of {len(controls)} with another client's update"
        if controls
        else ""
    )
    return (
        f"{who} that holds {among_of([score.candidates for score in tried])} for each image names "
        f"{known} of {n} knowing the rest of the batch and {named} of {n} without it "
        f"(chance: {expected_count(luck)}{control})"
    )


@dataclass(frozen=True)
class DefenseVerdict:
    """What an audit says of one defence, over all that was tried on it.

    Attributes:
        defense: its spec.
        level: how bad it is.
        sentence: level, evidence and what to do, in one line.
        attack: the strongest attack, or ``candidates`` where none showed as much.
        n: images that were judged.
        identified: how many of them were identified or, by ``candidates``, named.
        candidates: how many an image was chosen among.
        luck: how many of n luck identifies.
        stalled: whether some attack's search stalled.
        bounds: the certificates.
        named: by candidate search with the rest of the batch unknown.
        named_known: with it known.
    """

    defense: str
    level: Level
    sentence: str
    attack: str
    n: int
    identified: int
    candidates: int
    luck: float
    stalled: bool
    bounds: Bounds
    named: int
    named_known: int

    def row(self) -> dict[str, Any]:
        """Returns the entry of ``verdicts`` in ``audit.json``."""
        bounds = self.bounds
        return {
            "defense": self.defense,
            "level": self.level.value,
            "sentence": self.sentence,
            "attack": self.attack,
            "n": self.n,
            "identified": self.identified,
            "candidates": self.candidates,
            "luck": self.luck,
            "named": self.named,
            "named_known": self.named_known,
            "ceiling": bounds.ceiling,
            "ceiling_interval": None if bounds.interval is None else list(bounds.interval),
            "ceiling_refusal": bounds.refusal,
            "closed_form": bounds.closed_form,
            "closed_form_refusal": bounds.closed_form_refusal,
            "epsilon": bounds.epsilon,
            "epsilon_refusal": bounds.epsilon_refusal,
            "delta": bounds.delta,
            "rounds": bounds.rounds,
            "sigma_needed": bounds.sigma_needed,
            "stalled": self.stalled,
        }


def sign_off(
    attacks: Mapping[str, Verdict],
    found: CandidateVerdict,
    bounds: Bounds,
    *,
    defense: str,
    decoys: int,
    luck: float,
    stalled: bool,
) -> DefenseVerdict:
    """Puts all that was tried on one defence into one verdict.

    Args:
        attacks: name -> the verdict on it.
        found: by candidate search.
        bounds: the certificates.
        defense: its spec.
        decoys: of an image, the most.
        luck: how many images an attack identifies by luck.
        stalled: whether some attack's search stalled.
    """
    ranked = sorted(
        attacks.items(), key=lambda each: (each[1].level.severity, each[1].ssim), reverse=True
    )
    strongest, best = ranked[0]
    if best.level in {Level.SEVERE, Level.PARTIAL}:
        level, parts = best.level, [best.evidence, found.evidence]
        advice = best.advice
    elif found.level is Level.PARTIAL:
        level, parts = Level.PARTIAL, [found.evidence, best.evidence]
        advice = _NAMED
    elif found.level is Level.EXCLUDED:
        assert found.certificate is not None
        level, parts = Level.EXCLUDED, [found.certificate, found.evidence]
        advice = _EXCLUDES
    else:
        level = Level.OPEN
        # Attacks have the same reasons mostly; each is said once.
        reasons = dict.fromkeys(reason for _, each in ranked for reason in each.reasons)
        parts = [found.evidence, best.evidence, *found.reasons, *reasons]
        advice = _decides(bounds, best, reasons=bool(reasons))
    by_attack = best.level in {Level.SEVERE, Level.PARTIAL}
    return DefenseVerdict(
        defense=defense,
        level=level,
        sentence=f"{level.value}: {'; '.join(parts)}: {advice}",
        attack=strongest if by_attack else NAME,
        n=best.images if by_attack else found.images,
        identified=best.identified if by_attack else found.named_known,
        candidates=decoys + 1 if by_attack else found.candidates,
        luck=luck if by_attack else found.luck,
        stalled=stalled,
        bounds=bounds,
        named=found.named,
        named_known=found.named_known,
    )


_NAMED = (
    "updates tell which of some known images a client holds; do not ship this setting where that "
    "matters, strengthen it and audit again"
)
_EXCLUDES = (
    "this holds for these candidates, weights and rounds, and says nothing of what updates give "
    "away about the kind of image, such as its label"
)


def _decides(bounds: Bounds, best: Verdict, *, reasons: bool) -> str:
    """Returns what would decide an open question."""
    if bounds.sigma_needed is not None:
        noise = (
            f"noise with a standard deviation of {bounds.sigma_needed:.2g} added last would "
            "exclude naming; more batches would show smaller leaks"
        )
        return f"{best.advice}; {noise}" if reasons else noise
    return f"{best.advice}; noise of known width, added last, would make a certificate possible"


__all__ = [
    "NAME",
    "Bounds",
    "CandidateVerdict",
    "DefenseVerdict",
    "judge_candidates",
    "sign_off",
]
