"""What a reader must know about how the gradient of an attack's cost is computed."""

from collections.abc import Iterable, Sequence

from torch import nn

from gradinv.attacks import AnalyticAttack, Attack
from gradinv.attacks.search.lbfgs import LBFGS
from gradinv.audit.inputs import WEIGHTS
from gradinv.engine import kinks, plain_reason
from gradinv.federated import FedAvg, Protocol

PLAIN = "Computed by plain double backward"
_SMOOTH = "L-BFGS needs a smooth network"


def way_notes(
    attacks: Iterable[Attack],
    model: nn.Module,
    image_shape: tuple[int, int, int],
    protocol: Protocol,
) -> list[str]:
    """Returns why a slower way was taken, and whether a line search meets kinks; a sentence each.

    Local training is simulated by autograd whatever the network, and so is a search over labels.

    Args:
        attacks: that are run.
        model: f_theta in the client's mode.
        image_shape: (channel, height, width).
        protocol: what the client computes.
    """
    searches = [attack for attack in attacks if not isinstance(attack, AnalyticAttack)]
    stages = [
        stage for attack in searches if attack.way == "auto" for stage in attack.stages
        if not stage.space.soft_labels
    ]  # fmt: skip
    notes = []
    if stages and not isinstance(protocol, FedAvg):
        reason = plain_reason(model, image_shape)
        if reason is not None:
            notes.append(f"{PLAIN}, which is slower: the exact engine has {reason}.")
    curved = [
        attack.name for attack in searches
        if any(isinstance(stage.optimizer, LBFGS) for stage in attack.stages)
    ]  # fmt: skip
    found = kinks(model) if curved else ()
    if found:
        notes.append(
            f"{_SMOOTH}, and this one has {', '.join(found)}: what {' and '.join(curved)} did not "
            "find here says nothing; attack with gi-x, or try a sigmoid network (--model lenet)."
        )
    return notes


def notes_of_ways(notes: Sequence[str]) -> list[str]:
    """Returns those of an audit's notes that a reader of the screen must know too.

    What :func:`way_notes` found, and what was done to make the weights fit.
    """
    return [note for note in notes if note.startswith((PLAIN, _SMOOTH, WEIGHTS))]
