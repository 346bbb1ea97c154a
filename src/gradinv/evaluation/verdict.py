"""What the scores of one attack under one defence mean for somebody who must sign off a setting.

Two questions are asked of each image. Is it *identified*: nearest to the reconstruction among
other images of its label? And is it *recognisable*: identified, with an SSIM of at least 0.4?
SSIM alone proves nothing, since two images of one label can be that alike; identification alone
tells which image it was, but need not show what is on it. Luck identifies some, so counts are
compared with luck; but one image that comes back *unmistakably*, far nearer than any other of its
label, is a leak whatever became of the others. Where that cannot be asked, or the answer could not
have been yes, nothing is decided: an attack that never got going has found nothing out.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from statistics import fmean

import numpy as np

from gradinv.errors import DataError
from gradinv.evaluation.evaluate import ImageScore

RECOGNISABLE_SSIM = 0.4
"""A convention: what the best attacks of Jeon et al. 2021 reach (Table 1: 0.39 and 0.43)."""
SIGNIFICANCE = 0.05
"""A count is beyond chance when luck alone gives at least as many less often than this."""
_STUCK = (
    "the attack did not get going, which says nothing about the setting; mend what keeps it from "
    "that, and audit again"
)
_NOTHING_TRIED = (
    "nothing was tried in earnest; check the prior and the weights, or lower the attack's learning "
    "rate, and audit again"
)
CAVEAT = (
    "Failure of these attacks is no proof of safety: it bounds what they found with this budget, "
    "prior and threat model"
)


class Level(Enum):
    """How bad it is, mildest first."""

    NONE_FOUND = "NONE FOUND"
    """No more images identified than chance explains."""
    UNDECIDED = "UNDECIDED"
    """Too few images or decoys to tell a leak from luck, images that had no decoy, or an attack
    that never got going."""
    PARTIAL = "PARTIAL"
    """More images identified than chance explains, or one of them unmistakably."""
    SEVERE = "SEVERE"
    """More images recognisable than chance explains, or one of them unmistakably."""

    @property
    def severity(self) -> int:
        """0 for the mildest."""
        return list(Level).index(self)


@dataclass(frozen=True)
class Verdict:
    """A level, the numbers it rests on, and the sentence that says so.

    Args:
        level: how bad it is.
        sentence: level, evidence and what to do, in one line.
        images: how many images were judged.
        identified: how many were nearest among their candidates.
        recognisable: how many of those have an SSIM of at least :data:`RECOGNISABLE_SSIM`.
        ssim: mean over the images.
        psnr: mean over the images, decibels.
    """

    level: Level
    sentence: str
    images: int
    identified: int
    recognisable: int
    ssim: float
    psnr: float

    def __str__(self) -> str:
        return self.sentence


def judge(
    scores: Sequence[ImageScore],
    *,
    attack: str = "the attack",
    defense: str = "none",
    failed: int = 0,
    stuck: int = 0,
    blocked: str | None = None,
    batches: int = 1,
) -> Verdict:
    """Judges all scores of one attack under one defence.

    Args:
        scores: of the images of all batches on which the attack did not fail, or of all of them if
            it failed on all.
        attack: what the sentence calls the attack.
        defense: what the sentence calls the defence; ``"none"`` is not mentioned.
        failed: batches on which the attack left the finite numbers: that is no failure of the leak.
        stuck: batches on which its matching cost never fell below where it began.
        blocked: what the preflight found that keeps any attack from getting going.
        batches: all of them.

    Raises:
        DataError: no scores.
    """
    if not scores:
        raise DataError(
            f"expected scores of at least one image for {attack}, got none; judge finished cells"
        )
    found = _Counts.of(scores)
    if failed >= batches:
        level = Level.UNDECIDED
    elif found.clear_beyond_luck or found.unmistakable_and_clear:
        level = Level.SEVERE
    elif found.hits_beyond_luck or found.unmistakable:
        level = Level.PARTIAL
    elif any(
        (failed, stuck, blocked is not None, found.powerless, found.alike_without_decoys)
    ) or found.clear > sum(found.luck):
        level = Level.UNDECIDED
    else:
        level = Level.NONE_FOUND
    reasons = [f"it left the finite numbers on {failed} of {batches} batches"] if failed else []
    reasons += [f"its matching cost never fell on {stuck} of {batches} batches"] if stuck else []
    reasons += [] if blocked is None else [blocked]
    advice = _NOTHING_TRIED if failed >= batches else _advice(level)
    if level is Level.UNDECIDED and failed < batches and (stuck or blocked is not None):
        advice = _STUCK
    psnr, ssim = fmean(score.psnr for score in scores), fmean(score.ssim for score in scores)
    return Verdict(
        level=level,
        sentence=f"{level.value}: "
        + "; ".join([_evidence(scores, found, attack, defense), *reasons])
        + f": {advice}",
        images=len(scores),
        identified=found.hits,
        recognisable=found.clear,
        ssim=ssim,
        psnr=psnr,
    )


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """Returns the gravest verdict, ties broken by mean SSIM: a setting is as safe as that says.

    Raises:
        DataError: no verdicts.
    """
    ranked = sorted(verdicts, key=lambda verdict: (verdict.level.severity, verdict.ssim))
    if not ranked:
        raise DataError("expected at least one verdict, got none; run at least one attack")
    return ranked[-1]


def chance_of(hits: int, luck: Sequence[float]) -> float:
    """Returns how likely luck alone gives at least ``hits``, one probability for each image.

    The upper tail of the Poisson binomial distribution: images have different numbers of decoys.

    >>> chance_of(1, [0.5, 0.5])
    0.75
    """
    distribution = np.ones(1)
    for probability in luck:
        distribution = np.convolve(distribution, [1 - probability, probability])
    return float(distribution[hits:].sum())


@dataclass(frozen=True)
class _Counts:
    """What was found.

    Attributes:
        luck: of each image that has decoys, how likely luck alone identifies it.
        hits: images identified.
        clear: images recognisable.
        unmistakable: images identified beyond doubt.
        unmistakable_and_clear: of those the recognisable ones.
        alike_without_decoys: images that are alike enough, with nothing to compare them with.
    """

    luck: tuple[float, ...]
    hits: int
    clear: int
    unmistakable: int
    unmistakable_and_clear: int
    alike_without_decoys: int

    @classmethod
    def of(cls, scores: Sequence[ImageScore]) -> "_Counts":
        alike = [score for score in scores if score.ssim >= RECOGNISABLE_SSIM]
        return cls(
            luck=tuple(1 / (score.decoys + 1) for score in scores if score.decoys),
            hits=sum(score.identified for score in scores),
            clear=sum(score.identified for score in alike),
            unmistakable=sum(score.unmistakable for score in scores),
            unmistakable_and_clear=sum(score.unmistakable for score in alike),
            alike_without_decoys=sum(not score.decoys for score in alike),
        )

    @property
    def hits_beyond_luck(self) -> bool:
        return chance_of(self.hits, self.luck) < SIGNIFICANCE

    @property
    def clear_beyond_luck(self) -> bool:
        return chance_of(self.clear, self.luck) < SIGNIFICANCE

    @property
    def powerless(self) -> bool:
        """Whether not even all images identified would be beyond luck."""
        return chance_of(len(self.luck), self.luck) >= SIGNIFICANCE


def _evidence(scores: Sequence[ImageScore], found: _Counts, attack: str, defense: str) -> str:
    who = attack if defense == "none" else f"{attack} against {defense}"
    n, tried = len(scores), len(found.luck)
    quality = (
        f"mean PSNR {fmean(score.psnr for score in scores):.1f} dB, "
        f"SSIM {fmean(score.ssim for score in scores):.2f}, "
        f"best image {max(score.psnr for score in scores):.1f} dB"
    )
    if not tried:
        return f"{who} could not be controlled, without other images of the labels ({quality})"
    sizes = sorted({score.decoys + 1 for score in scores if score.decoys})
    candidates = f"{sizes[0]} to {sizes[-1]}" if len(sizes) > 1 else f"{sizes[0]}"
    certain = f", {found.unmistakable} of them unmistakably" if found.unmistakable else ""
    # Images without decoys cannot be hit, so they are not among those that were tried.
    without = f"; {n - tried} had no other image of their label beside them" if tried < n else ""
    return (
        f"{who} points at the right client image among {candidates} candidates of its label for "
        f"{found.hits} of {tried} images{certain} (chance: {_count(sum(found.luck))}{without}) and "
        f"rebuilds {found.clear} of {n} recognisably ({quality})"
    )


def _count(expected: float) -> str:
    """Returns a mean count with one decimal, or one digit where that would read as never."""
    return f"{expected:.1f}" if expected >= 0.1 else f"{expected:.1g}"


def _advice(level: Level) -> str:
    if level is Level.SEVERE:
        return "do not ship this setting; use a stronger defence or larger batches and audit again"
    if level is Level.PARTIAL:
        return (
            "updates tell which images a client holds; do not ship this setting for sensitive "
            "images, strengthen it and audit again"
        )
    if level is Level.UNDECIDED:
        return (
            "too little evidence to decide; look at the images, and audit more batches of a set "
            "with more images of each label"
        )
    return f"nothing beyond chance; {CAVEAT[0].lower()}{CAVEAT[1:]}"
