"""What an attack returns, and what it reports while it runs."""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from gradinv.attacks.evidence.labels import RecoveredLabels
from gradinv.errors import AttackError
from gradinv.files import load_tensors, save_tensors
from gradinv.memory import owned


class Outcome(Enum):
    """How an attack ended; the values are what a person reads."""

    COMPLETED = "all steps done"
    UNDER_DETERMINED = (
        "solved, where the equations leave part of the image open by the solution of least norm"
    )
    TIME_LIMIT = "stopped at the time limit"
    SOME_NON_FINITE = "all steps done; some restarts left the finite numbers and were dropped"
    NON_FINITE = "every restart left the finite numbers; the pictures are not a reconstruction"


@dataclass(frozen=True, eq=False)
class StageResult:
    """Where one stage ended.

    Attributes:
        name: what it searched: x, z, w or zw; "layers" for a closed form.
        images: of its best restart by matching cost, or the mean of those that match about as well
            where the attack averages, in [0, 1].
        cost: the whole cost at every step of every restart, on the CPU.
        steps: done.
        seconds: wall-clock time.
        objective: matching cost of ``images``.
        start: matching cost of its best restart where it began, in the units of ``objective``;
            None for a closed form, which begins nowhere.
    """

    name: str
    images: Float[Tensor, "batch channel height width"]
    cost: Float[Tensor, "steps restart"]
    steps: int
    seconds: float
    objective: float
    start: float | None = None

    @property
    def fell(self) -> bool:
        """Whether the matching cost of its pictures is less than where it began."""
        return self.start is None or self.objective < self.start


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """The pictures that an update gave away, as far as this attack could tell.

    Attributes:
        images: of the restart with the least matching cost, or the mean of those that match about
            as well where the attack averages, in [0, 1]; chosen without ground truth.
        labels: the labels that the attack used.
        objective: final matching cost of every restart of the stage that ``images`` come from.
        matching: matching cost of ``images`` themselves.
        best: index of the restart with the least matching cost.
        stages: where each stage ended.
        outcome: how the attack ended.
        seconds: wall-clock time, over all sessions.
        recovered: how the labels were found in the update, or by the search itself; None where
            they were revealed.
        kept: index of the stage that ``images`` come from, where that need not be the last one.
    """

    images: Float[Tensor, "batch channel height width"]
    labels: Int[Tensor, " batch"]
    objective: Float[Tensor, " restart"]
    matching: float
    best: int
    stages: tuple[StageResult, ...]
    outcome: Outcome
    seconds: float
    recovered: RecoveredLabels | None = None
    kept: int | None = None

    @property
    def cost_fell(self) -> bool:
        """Whether some stage brought the matching cost down; if none did, nothing was tried."""
        return any(stage.fell for stage in self.stages)

    @property
    def steps(self) -> int:
        """Steps done over all stages."""
        return sum(stage.steps for stage in self.stages)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Everything that the rest of an attack depends on.

    Attributes:
        tensors: by name.
        header: attack, seed, position, as JSON holds them.
    """

    tensors: dict[str, Tensor]
    header: dict[str, Any]

    def __post_init__(self) -> None:
        tensors = {name: owned(value) for name, value in self.tensors.items()}
        object.__setattr__(self, "tensors", tensors)

    def save(self, path: Path) -> None:
        """Saves as safetensors, whole or not at all.

        Raises:
            StorageError: the file cannot be written.
        """
        save_tensors(path, self.tensors, {"kind": "checkpoint", "schema": 1, **self.header})

    @classmethod
    def load(cls, path: Path) -> "Checkpoint":
        """Loads what :meth:`save` wrote.

        Raises:
            StorageError: missing, a pickle, truncated or foreign.
            AttackError: a file of gradinv, but no checkpoint of an attack.
        """
        mend = f"delete {path}: the attack then begins anew"
        tensors, header = load_tensors(path, what="an attack's checkpoint", mend=mend)
        if header.get("kind") != "checkpoint":
            raise AttackError(
                f"expected an attack's checkpoint at {path}, got {header.get('kind', 'no kind')!r} "
                f"in its header; {mend}"
            )
        return cls(tensors, header)


@dataclass(frozen=True, eq=False)
class Progress:
    """Handed to the callback of ``invert`` after every step.

    Attributes:
        stage: index of the present stage.
        stage_name: what it searches.
        stages: how many there are.
        step: steps done in the whole attack.
        steps: of the whole attack (a guess under a time limit).
        cost: of every restart at this step.
        seconds: spent so far.
        fraction: of the whole attack's work, 0 to 1. Steps are no measure of it: an early stage has
            more restarts, and its steps take longer.
        checkpoint: makes a :class:`Checkpoint` of this moment.
    """

    stage: int
    stage_name: str
    stages: int
    step: int
    steps: int
    cost: Float[Tensor, " restart"]
    seconds: float
    fraction: float
    checkpoint: Callable[[], Checkpoint] = field(repr=False)
