"""Distances for updates whose defences the attacker's own gradient has to go through.

A cosine is the same in front of a clip and behind it, a difference is not; in front of a rounding
no distance is what it is behind it. The server knows what the client does, so it does the same to
its trial gradient.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from gradinv.engine.distances import Distance, Target, sees_length
from gradinv.federated.defense import Defense, changes_length, rounds


@dataclass(frozen=True)
class Clipped:
    """d(sent(a), g), with a known chain of defences.

    Attributes:
        distance: d.
        defenses: all that the client did, in its order.
    """

    distance: Distance
    defenses: tuple[Any, ...]

    def __call__(self, trial: Mapping[str, Tensor], target: Target) -> Float[Tensor, ""]:
        """Returns the distance between what a client with this gradient sends and the target."""
        return self.distance(self.clipped(trial, target), target)

    def clipped(self, trial: Mapping[str, Tensor], target: Target) -> dict[str, Tensor]:
        """Returns the gradient of the target's tensors as it leaves the client, without noise.

        A clip behind a sparsification sees the surviving coordinates alone. Noise in front of a
        clip is part of the length that it sees: that is usually sigma times the root of the number
        of coordinates. Behind a sparsification it is taken to be that of any coordinates, although
        the largest survive.
        """
        sent = {name: trial[name] for name in target.gradient}
        number = sum(value.numel() for value in sent.values())
        like = next(iter(sent.values()))
        noise: dict[str, Tensor] = {}  # one number each, as long as a whole gradient of noise
        for index, defense in enumerate(self.defenses):
            match defense.keeps:
                case "direction":
                    both = defense.apply(sent | noise, None)
                    sent, noise = ({name: both[name] for name in each} for each in (sent, noise))
                case "part":
                    sent = {name: target.masked(name, value) for name, value in sent.items()}
                    left = (_survivors(target) / number) ** 0.5
                    noise = {name: left * value for name, value in noise.items()}
                case "signs" | "estimate":
                    sent = defense.expected(sent)
            if defense.sigma > 0:
                noise[f"noise {index}"] = like.new_full((), defense.sigma * number**0.5)
        return sent


def _survivors(target: Target) -> int:
    """Returns how many coordinates survived."""
    if target.mask is None:
        return sum(value.numel() for value in target.gradient.values())
    return sum(int(kept.count_nonzero()) for kept in target.mask.values())


def through_clips(distance: Distance, defenses: Sequence[Defense]) -> Distance:
    """Returns the distance for updates with these defences.

    That is the distance itself where no defence makes a difference to it: none rounds, and it does
    not see a length, or nothing is clipped.
    """
    if rounds(defenses) or (sees_length(distance) and changes_length(defenses)):
        return Clipped(distance, tuple(defenses))
    return distance
