"""What a look at an update and its network can find before any attack, and what to do about it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class Severity(Enum):
    """What a finding means for the pictures and for a verdict."""

    BLOCKS = "blocks"
    """The attack cannot get going: that it finds nothing says nothing about the update."""
    DOUBT = "doubt"
    """The update is likely not what it is said to be, so that what it is matched with is wrong."""
    NOTE = "note"
    """Worth knowing; nothing is wrong."""


class Kind(Enum):
    """What was found; the values are what a person reads."""

    NOT_FINITE = "the derivative of the cost with respect to the image is not finite"
    NO_DERIVATIVE = (
        "the update changes with the image, but has no derivative with respect to it: the network "
        "rounds, casts or detaches what it gets"
    )
    NO_DEPENDENCE = "the update is the same for every image that was tried"
    PART_WITHOUT_DERIVATIVE = (
        "the update changes with a part of the image that it has no derivative with respect to: "
        "the network rounds, casts or detaches that part"
    )
    PART_UNSEEN = "the network does not look at a part of the image"
    COST_STANDS_STILL = "the matching cost does not fall along its own derivative"
    ZERO = "the update is zero everywhere"
    WRONG_SIGN = "the update points the wrong way: its difference was likely taken the other way"
    OTHER_LABELS = (
        "the last layer's bias moves as no cross entropy of images with these labels does: other "
        "labels or another loss are likely"
    )
    OTHER_LOSS = (
        "the last layer's gradient does not sum to zero over the classes, as that of a softmax "
        "with cross entropy does: another loss is likely"
    )
    SMOOTHED = "the image's label was smoothed, as the last layer's gradient has it"
    TOO_LONG = (
        "the update is longer than one gradient of the mean loss can be: several local steps, "
        "momentum, a sum over the batch or a division by another learning rate are likely"
    )
    WEIGHT_DECAY = "the update holds a part of the weights themselves: weight decay is likely"
    ADAPTIVE = (
        "nearly all entries of the update have one magnitude: Adam, or another optimiser that "
        "divides by the gradient's size, is likely"
    )
    OTHER_WEIGHTS = (
        "the update breaks what every gradient of this network obeys: it was likely made with "
        "other weights, or by several local steps"
    )
    SPARSE = "many entries of the update are zero, and no sparsification is known"
    COARSE = "the update's numbers are coarse: it was rounded to a shorter type on its way"
    INPUT_RANGE = (
        "the first layer's gradient is not that of images in [0, 1]: images that the client "
        "normalised outside the network are likely"
    )


_BLOCKS, _DOUBT, _NOTE = Severity.BLOCKS, Severity.DOUBT, Severity.NOTE

_MEANING: dict[Kind, tuple[Severity, str]] = {
    Kind.NOT_FINITE: (_BLOCKS, "look at the network's operations, or compute in float64"),
    Kind.NO_DERIVATIVE: (
        _BLOCKS,
        "take that operation out of the network that is given: the gradients stay nearly the same, "
        "and the attack sees through it",
    ),
    Kind.NO_DEPENDENCE: (
        _BLOCKS,
        "check that the network reads its input and that its weights are not dead",
    ),
    Kind.PART_WITHOUT_DERIVATIVE: (_BLOCKS, "take that operation out of the network that is given"),
    Kind.PART_UNSEEN: (_NOTE, "no attack can rebuild that part, and no update gives it away"),
    Kind.COST_STANDS_STILL: (
        _BLOCKS,
        "look for operations whose derivative is not that of what they compute",
    ),
    Kind.ZERO: (_BLOCKS, "make the update again: nothing can be read from zeros"),
    Kind.WRONG_SIGN: (
        _DOUBT,
        "give (theta_0 - theta_T) / lr, the weights before less those after: the negative of this",
    ),
    Kind.OTHER_LABELS: (
        _DOUBT,
        "check the labels and their order of classes, or leave them out (--hide-labels), see to it "
        "that the difference is the weights before less those after, and name a loss with label "
        "smoothing (--loss cross-entropy:smoothing=...)",
    ),
    Kind.OTHER_LOSS: (_DOUBT, "name the client's loss (--loss)"),
    Kind.SMOOTHED: (_DOUBT, "name the client's loss (--loss cross-entropy:smoothing=...)"),
    Kind.TOO_LONG: (
        _DOUBT,
        "give the client's protocol: --protocol fedavg with --local-epochs, --local-batch-size, "
        "--local-lr and --local-momentum, or its loss with a sum over the batch (--loss)",
    ),
    Kind.WEIGHT_DECAY: (_DOUBT, "give it (--optimizer sgd:weight-decay=...)"),
    Kind.ADAPTIVE: (_DOUBT, "name the client's optimiser (--optimizer)"),
    Kind.OTHER_WEIGHTS: (
        _DOUBT,
        "give the weights that the client started from (--weights), or its local steps",
    ),
    Kind.SPARSE: (_DOUBT, "give the client's defence, such as --defense sparsify:0.95"),
    Kind.COARSE: (_NOTE, "expect a matching cost that does not quite reach zero"),
    Kind.INPUT_RANGE: (_DOUBT, "give the mean and std that the client used (--mean, --std)"),
}


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Attributes:
        kind: what.
        detail: its numbers in words, such as "35 % of its pixels"; may be empty.
        numbers: the same for a program.
    """

    kind: Kind
    detail: str = ""
    numbers: Mapping[str, float] = field(default_factory=dict)

    @property
    def severity(self) -> Severity:
        """What it means."""
        return _MEANING[self.kind][0]

    @property
    def advice(self) -> str:
        """What to do about it."""
        return _MEANING[self.kind][1]

    def __str__(self) -> str:
        """The finding in one sentence, without what to do."""
        return f"{self.kind.value} ({self.detail})" if self.detail else self.kind.value

    def describe(self) -> dict[str, Any]:
        """Returns the finding as JSON holds it."""
        return {
            "kind": self.kind.name.lower().replace("_", "-"),
            "severity": self.severity.value,
            "sentence": str(self),
            "advice": self.advice,
            "numbers": dict(self.numbers),
        }


@dataclass(frozen=True)
class Preflight:
    """All that was found, the gravest first."""

    findings: tuple[Finding, ...]

    @property
    def can_carry(self) -> bool:
        """Whether an attack that finds nothing here says anything about the update."""
        return not self.blocking

    @property
    def blocking(self) -> tuple[Finding, ...]:
        """What keeps the attack from getting going."""
        return tuple(found for found in self.findings if found.severity is Severity.BLOCKS)

    def lines(self) -> list[str]:
        """Returns one line for each finding: how grave it is, what it is, what to do."""
        return [
            f"preflight, {found.severity.value}: {found}; {found.advice}" for found in self.findings
        ]

    def describe(self) -> list[dict[str, Any]]:
        """Returns the findings as JSON holds them."""
        return [found.describe() for found in self.findings]
