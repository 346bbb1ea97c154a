"""What the scores of one attack under one defence show, and what they leave open.

Two questions are asked of each image. Is it *identified*: nearest to the reconstruction among
other images of its label? And is it *recognisable*: better than any picture that knows nothing of
it? Luck identifies some, so counts are compared with luck; but one image that comes back far
nearer than luck brings any is a leak whatever became of the others. That an attack found nothing
is no level of its own: it leaves the question open, and the sentence says what would decide it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from statistics import fmean

from gradinv.errors import DataError
from gradinv.evaluation.evaluate import ImageScore
from gradinv.evaluation.luck import chance_of, chances_so_near

SIGNIFICANCE = 0.05
"""How often all that is asked of one defence may find a leak where there is none."""
ATTACKS, CANDIDATES = 0.03, 0.02
"""The parts of that for all attacks together, and for candidate search."""


class Level(Enum):
    """How bad it is, mildest first."""

    EXCLUDED = "EXCLUDED"
    """A certificate: no server names more of these images than luck and a little."""
    OPEN = "OPEN"
    """No leak was shown, and none is excluded."""
    PARTIAL = "PARTIAL"
    """More images identified, or named among candidates, than luck explains."""
    SEVERE = "SEVERE"
    """Images come back recognisably, more than luck explains or one of them beyond doubt."""

    @property
    def severity(self) -> int:
        """0 for the mildest."""
        return list(Level).index(self)


@dataclass(frozen=True)
class Tried:
    """How an attack was run, as far as its failure may say nothing about the setting.

    Attributes:
        batches: all of them.
        failed: those on which it left the finite numbers.
        stuck: those on which its matching cost never fell below where it began.
        stalled: those on which the true images match clearly better than what it ended with.
        blocked: what the preflight found that keeps any attack from getting going.
        budget: its steps, as a part of its preset's.
        memorised: why its prior, not the update, may know the images.
    """

    batches: int = 1
    failed: int = 0
    stuck: int = 0
    stalled: int = 0
    blocked: str | None = None
    budget: float = 1.0
    memorised: str | None = None

    def reasons(self) -> list[str]:
        """Returns why finding nothing says little, a phrase each."""
        found = []
        if self.failed:
            found.append(f"it left the finite numbers on {self.failed} of {self.batches} batches")
        if self.stuck:
            found.append(f"its matching cost never fell on {self.stuck} of {self.batches} batches")
        if self.blocked is not None:
            found.append(self.blocked)
        if self.stalled:
            found.append(
                f"it stalled on {self.stalled} of {self.batches} batches, where the true images "
                "match clearly better than what it found"
            )
        if self.budget < 1:
            found.append(f"it did {100 * self.budget:.3g} % of its preset's steps, a first look")
        return found


@dataclass(frozen=True)
class Verdict:
    """A level, the numbers it rests on, and the sentence that says so.

    Args:
        level: ``SEVERE``, ``PARTIAL`` or ``OPEN``.
        evidence: what was found, without level and advice.
        reasons: why it is open, a phrase each; none where a leak was shown.
        advice: what to do.
        images: how many images were judged.
        identified: how many were nearest among their candidates.
        recognisable: how many of those are better than what knows nothing of them.
        ssim: mean over the images.
        psnr: mean over the images, decibels.
    """

    level: Level
    evidence: str
    reasons: tuple[str, ...]
    advice: str
    images: int
    identified: int
    recognisable: int
    ssim: float
    psnr: float

    @property
    def sentence(self) -> str:
        """Level, evidence and what to do, in one line."""
        return f"{self.level.value}: {'; '.join((self.evidence, *self.reasons))}: {self.advice}"

    def __str__(self) -> str:
        return self.sentence


def judge(
    scores: Sequence[ImageScore],
    *,
    attack: str = "the attack",
    defense: str = "none",
    tried: Tried = Tried(),
    significance: float = ATTACKS,
    ceiling: float = 0.0,
) -> Verdict:
    """Judges all scores of one attack under one defence.

    Half of the significance goes to the count of identified images, half to the one that came
    nearest. Only where one of them shows a leak is it asked whether images are recognisable, so
    that this costs no error of its own.

    Args:
        scores: of the images of all batches on which the attack did not fail, or of all of them if
            it failed on all.
        attack: what the sentence calls the attack.
        defense: what the sentence calls the defence; ``"none"`` is not mentioned.
        tried: how the attack was run.
        significance: how often it may find a leak where there is none.
        ceiling: what share of the images no server can identify more of, where there is a
            certificate; no count up to that is a leak.

    Raises:
        DataError: no scores.
    """
    if not scores:
        raise DataError(
            f"expected scores of at least one image for {attack}, got none; judge finished cells"
        )
    found = _Counts.of(scores, ceiling)
    usable = tried.failed < tried.batches and tried.memorised is None
    shown = usable and (found.counted(significance / 2) or found.near(significance / 2))
    if not shown:
        level = Level.OPEN
    elif found.shown_recognisably(significance / 2):
        level = Level.SEVERE
    else:
        level = Level.PARTIAL
    reasons = tried.reasons()
    if level is Level.OPEN:
        if tried.memorised is not None:
            reasons.insert(0, tried.memorised)
        if found.powerless(significance / 2):
            reasons.append("too few images, or others of their labels, to tell a leak from luck")
    return Verdict(
        level=level,
        evidence=_evidence(scores, found, attack, defense),
        reasons=tuple(reasons),
        advice=_advice(level, tried, powerless=found.powerless(significance / 2)),
        images=len(scores),
        identified=found.hits,
        recognisable=found.clear,
        ssim=fmean(score.ssim for score in scores),
        psnr=fmean(score.psnr for score in scores),
    )


@dataclass(frozen=True)
class _Counts:
    """What was found.

    Attributes:
        luck: of each image that has decoys, how likely luck alone identifies it.
        expected: how many luck identifies, without any ceiling.
        luck_clear: how likely luck makes it recognisable.
        hits: images identified.
        clear: images recognisable.
        nearest: the chance of the image that came nearest, and whether it is recognisable.
    """

    luck: tuple[float, ...]
    expected: float
    luck_clear: tuple[float, ...]
    hits: int
    clear: int
    nearest: tuple[tuple[float, bool], ...]

    @classmethod
    def of(cls, scores: Sequence[ImageScore], ceiling: float) -> "_Counts":
        tried = [score for score in scores if score.decoys]
        near = zip(chances_so_near(scores), scores, strict=True)
        return cls(
            luck=tuple(max(score.luck, ceiling) for score in tried),
            expected=sum((score.luck for score in tried), 0.0),
            luck_clear=tuple(max(score.luck_recognisable, ceiling) for score in tried),
            hits=sum(score.identified for score in tried),
            clear=sum(score.recognisable for score in tried),
            # Behind a certificate one image that is near proves nothing: it says how often one is.
            nearest=tuple((chance, score.recognisable) for chance, score in near if not ceiling),
        )

    def counted(self, level: float) -> bool:
        """Whether more images were identified than luck explains."""
        return chance_of(self.hits, self.luck) < level

    def near(self, level: float) -> bool:
        """Whether one image came nearer than luck brings any."""
        return any(chance < level for chance, _ in self.nearest)

    def shown_recognisably(self, level: float) -> bool:
        """Whether recognisable images are more than luck, or one that came so near is."""
        counted = self.counted(level) and chance_of(self.clear, self.luck_clear) < level
        return counted or any(chance < level and clear for chance, clear in self.nearest)

    def powerless(self, level: float) -> bool:
        """Whether not even all images identified would be beyond luck."""
        return chance_of(len(self.luck), self.luck) >= level


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
    among = among_of([score.decoys + 1 for score in scores if score.decoys])
    # Images without decoys cannot be hit, so they are not among those that were tried.
    without = f"; {n - tried} had no other image of their label beside them" if tried < n else ""
    return (
        f"{who} points at the right client image among {among} of its label for "
        f"{found.hits} of {tried} images (chance: {expected_count(found.expected)}{without}) and "
        f"rebuilds {found.clear} of {n} recognisably ({quality})"
    )


def among_of(sizes: Sequence[int]) -> str:
    """Returns how many candidates there were.

    >>> among_of([64, 64]), among_of([9, 64])
    ('64 candidates', '9 to 64 candidates')
    """
    least, most = min(sizes), max(sizes)
    return f"{least} to {most} candidates" if least < most else f"{most} candidates"


def expected_count(expected: float) -> str:
    """Returns a mean count with one decimal, or one digit where that would read as never.

    >>> expected_count(0.125), expected_count(0.03)
    ('0.1', '0.03')
    """
    return f"{expected:.1f}" if expected >= 0.1 else f"{expected:.1g}"


def _advice(level: Level, tried: Tried, *, powerless: bool) -> str:
    if level is Level.SEVERE:
        return "do not ship this setting; use a stronger defence or larger batches and audit again"
    if level is Level.PARTIAL:
        return (
            "updates tell which images a client holds; do not ship this setting for sensitive "
            "images, strengthen it and audit again"
        )
    if tried.failed >= tried.batches:
        return (
            "nothing was tried in earnest; check the prior and the weights, or lower the attack's "
            "learning rate, and audit again"
        )
    if tried.stuck or tried.blocked is not None:
        return (
            "the attack did not get going, which says nothing about the setting; mend what keeps "
            "it from that, and audit again"
        )
    if tried.memorised is not None:
        return "audit with a prior that was not trained on these images"
    if powerless:
        return "audit more batches of a set with more images of each label"
    if tried.stalled:
        return "run it longer (--restarts, --steps-scale)"
    if tried.budget < 1:
        return "run all of its steps"
    return "this attack found nothing beyond luck, which excludes nothing"
