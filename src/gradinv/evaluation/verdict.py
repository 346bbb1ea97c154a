"""What the scores of one attack under one defence mean for somebody who must sign off a setting.

Two questions are asked of each image. Is it *identified*: nearest to the reconstruction among
other images of its label? And is it *recognisable*: identified, with an SSIM of at least 0.4?
SSIM alone proves nothing, since two images of one label can be that alike; identification alone
tells which image it was, but need not show what is on it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from statistics import fmean

import numpy as np

from gradinv.errors import DataError
from gradinv.evaluation.evaluate import ImageScore

RECOGNISABLE_SSIM = 0.4
"""What the best attacks of Jeon et al. 2021 (Table 1: 0.39 and 0.43) reach; people recognise those
pictures."""
SIGNIFICANCE = 0.05
"""A count is beyond chance when luck alone gives at least as many less often than this."""
CAVEAT = (
    "Failure of these attacks is no proof of safety: it bounds what they found with this budget, "
    "prior and threat model"
)


class Level(Enum):
    """How bad it is, mildest first."""

    NONE_FOUND = "NONE FOUND"
    """No more images identified than chance explains, none of them recognisable."""
    PARTIAL = "PARTIAL"
    """More images identified than chance explains, or one that is recognisable."""
    SEVERE = "SEVERE"
    """More images recognisable than chance explains."""

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
    scores: Sequence[ImageScore], *, attack: str = "the attack", defense: str = "none"
) -> Verdict:
    """Judges all scores of one attack under one defence.

    Args:
        scores: of the images of all batches.
        attack: what the sentence calls the attack.
        defense: what the sentence calls the defence; ``"none"`` is not mentioned.

    Raises:
        DataError: no scores.
    """
    if not scores:
        raise DataError(
            f"expected scores of at least one image for {attack}, got none; judge finished cells"
        )
    hits = [score for score in scores if score.identified]
    clear = sum(score.ssim >= RECOGNISABLE_SSIM for score in hits)
    luck = [1 / (score.decoys + 1) for score in scores if score.decoys]
    if clear and chance_of(clear, luck) < SIGNIFICANCE:
        level = Level.SEVERE
    elif clear or (hits and chance_of(len(hits), luck) < SIGNIFICANCE):
        level = Level.PARTIAL
    else:
        level = Level.NONE_FOUND
    if not luck and max(score.ssim for score in scores) >= RECOGNISABLE_SSIM:
        level = Level.PARTIAL  # nothing to compare with is no reason to give the all-clear
    psnr, ssim = fmean(score.psnr for score in scores), fmean(score.ssim for score in scores)
    return Verdict(
        level=level,
        sentence=f"{level.value}: {_evidence(scores, luck, attack, defense)}: "
        + _advice(level, beyond_chance=bool(luck) and chance_of(len(hits), luck) < SIGNIFICANCE),
        images=len(scores),
        identified=len(hits),
        recognisable=clear,
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


def _evidence(
    scores: Sequence[ImageScore], luck: Sequence[float], attack: str, defense: str
) -> str:
    who = attack if defense == "none" else f"{attack} against {defense}"
    n = len(scores)
    quality = (
        f"mean PSNR {fmean(score.psnr for score in scores):.1f} dB, "
        f"SSIM {fmean(score.ssim for score in scores):.2f}, "
        f"best image {max(score.psnr for score in scores):.1f} dB"
    )
    if not luck:
        return f"{who} could not be controlled, without other images of the labels ({quality})"
    hits = [score for score in scores if score.identified]
    clear = sum(score.ssim >= RECOGNISABLE_SSIM for score in hits)
    sizes = sorted({score.decoys + 1 for score in scores if score.decoys})
    candidates = f"{sizes[0]} to {sizes[-1]}" if len(sizes) > 1 else f"{sizes[0]}"
    # Images without decoys cannot be hit, so they are not among those that were tried.
    return (
        f"{who} points at the right client image among {candidates} candidates of its label for "
        f"{len(hits)} of {len(luck)} images (chance: {sum(luck):.1f}) and rebuilds {clear} of {n} "
        f"recognisably ({quality})"
    )


def _advice(level: Level, *, beyond_chance: bool) -> str:
    if level is Level.SEVERE:
        return "do not ship this setting; use a stronger defence or larger batches and audit again"
    if level is Level.PARTIAL and beyond_chance:
        return (
            "updates tell which images a client holds; do not ship this setting for sensitive "
            "images, strengthen it and audit again"
        )
    if level is Level.PARTIAL:
        return "too little evidence to decide; look at the images and audit more batches"
    return f"nothing beyond chance; {CAVEAT[0].lower()}{CAVEAT[1:]}"
