"""Distances that see how long a gradient is, for updates that were clipped.

A cosine is the same in front of a clip and behind it, a difference is not. The server knows the
clip, so it puts its trial gradient through it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from gradinv.engine.distances import Distance, Target, sees_length
from gradinv.federated.defenses import Clip, Defense, Noise


@dataclass(frozen=True)
class Clipped:
    """d(clip(a), g), with the clips of a known chain of defences.

    Attributes:
        distance: d.
        defenses: all that the client did, in its order.
    """

    distance: Distance
    defenses: tuple[Defense, ...]

    def __call__(self, trial: Mapping[str, Tensor], target: Target) -> Float[Tensor, ""]:
        """Returns the distance between what a client with this gradient sends and the target."""
        return self.distance(self.clipped(trial, target), target)

    def clipped(self, trial: Mapping[str, Tensor], target: Target) -> dict[str, Tensor]:
        """Returns the gradient of the target's tensors as long as it leaves the client.

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
            if isinstance(defense, Noise):
                noise[f"noise {index}"] = like.new_full((), defense.sigma * number**0.5)
            elif isinstance(defense, Clip):
                both = defense.apply(sent | noise, None)
                sent, noise = ({name: both[name] for name in each} for each in (sent, noise))
            else:
                sent = {name: target.masked(name, value) for name, value in sent.items()}
                left = (1 - defense.fraction) ** 0.5
                noise = {name: left * value for name, value in noise.items()}
        return sent


def through_clips(distance: Distance, defenses: Sequence[Defense]) -> Distance:
    """Returns the distance for updates with these defences.

    That is the distance itself where it does not see a length, or where nothing is clipped.
    """
    if not sees_length(distance):
        return distance
    if not any(isinstance(defense, Clip) for defense in defenses):
        return distance
    return Clipped(distance, tuple(defenses))
