"""What a known chain of defences makes of a gradient: a fixed part, and the noise added last.

An update u = D'(g) + sigma n with Gaussian n of known sigma is all that a certificate can speak
of. Where a chain is anything else, it says why, in words that a person reads.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradinv.errors import ConfigError
from gradinv.federated.defense import Defense
from gradinv.federated.defenses import Clip, Noise, Sparsify, format_defenses

NO_NOISE = "it adds no noise, so two different updates are told apart exactly"
NOT_LAST = "its noise is not added last, so what leaves the client is not Gaussian"

_KNOWN = (Noise, Sparsify, Clip)


@dataclass(frozen=True)
class Channel:
    """What stands between a client's gradient and what it sends.

    Attributes:
        defenses: all that the client does, in its order.
        sigma: standard deviation of the noise behind which nothing follows, in the units of the
            update; 0 for none.
        refusal: why no Gaussian of known sigma, added last, describes what is sent; ``None`` where
            one does.
    """

    defenses: tuple[Defense, ...]
    sigma: float
    refusal: str | None

    def means(self, gradient: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns D'(g), what would be sent without the noise: the Gaussian's mean.

        Also for chains that add no noise.

        Args:
            gradient: parameter name -> tensor of any shape, of any floating type.

        Raises:
            ConfigError: noise stands in front of something else, or not all is known of the chain,
                so what is sent has another mean.
        """
        if self.refusal not in {None, NO_NOISE}:
            raise ConfigError(
                f"expected defences of the package with their noise last, got "
                f"{format_defenses(self.defenses)!r}: {self.refusal}; use expected() for a guess"
            )
        return self.expected(gradient)

    def expected(self, gradient: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns about what is sent: all defences in their order, with noise left out.

        Noise in front of a clip is part of the length that it sees: that is usually sigma times the
        root of the number of coordinates. Behind a sparsification it is taken to be that of any
        coordinates, although the largest survive. No chance is drawn: an entry is left out where
        the defence's ``survivors`` says so of the trial gradient, and what rounds does so on
        average. With noise in no place but the last, this is :meth:`means`.
        """
        sent = dict(gradient)
        number = sum(value.numel() for value in sent.values())
        noise: dict[Any, Tensor] = {}  # one number each, as long as a whole gradient of noise
        defense: Any
        for index, defense in enumerate(self.defenses):
            match defense.keeps:
                case "direction":
                    both = defense.apply(sent | noise, None)
                    sent, noise = ({name: both[name] for name in each} for each in (sent, noise))
                case "part":
                    masks = {name: defense.survivors(value) for name, value in sent.items()}
                    sent = {
                        name: torch.where(masks[name], value, torch.zeros_like(value))
                        for name, value in sent.items()
                    }
                    left = sum(int(mask.count_nonzero()) for mask in masks.values()) / number
                    noise = {name: left**0.5 * value for name, value in noise.items()}
                case "signs" | "estimate":
                    sent = defense.expected(sent)
            if defense.sigma > 0:
                like = next(iter(sent.values()))
                noise[f"noise {index}"] = like.new_full((), defense.sigma * number**0.5)
        return sent


def channel_of(defenses: Sequence[Defense]) -> Channel:
    """Returns the channel of a client that does this to its update.

    Only the package's own defences are taken at their word. Noise of 0 is none, and several at the
    end are one. A clip or a sparsification behind the noise cannot tell a server more than it knew,
    but what is sent is not Gaussian then, so it is refused rather than bounded.

    >>> from gradinv.federated import parse_defense
    >>> channel_of(parse_defense("clip:1+noise:0.3+noise:0.4")).sigma
    0.5
    >>> channel_of(parse_defense("noise:0.1+sparsify:0.9")).refusal
    'its noise is not added last, so what leaves the client is not Gaussian'
    """
    chain = tuple(defenses)
    does = [defense for defense in chain if not _is_nothing(defense)]
    sigmas: list[float] = []
    while does and type(does[-1]) is Noise:
        sigmas.append(does.pop().sigma)
    sigma = math.hypot(*sigmas)
    refusal = doubtful(chain)
    if refusal is None and any(defense.sigma > 0 for defense in does):
        refusal = NOT_LAST
    if refusal is None and sigma == 0:
        refusal = NO_NOISE
    return Channel(chain, sigma, refusal)


def doubtful(defenses: Sequence[Defense]) -> str | None:
    """Returns why a chain is not known well enough to prove anything of it, or ``None``.

    That a class from outside the package has a ``sigma`` is no proof that it adds Gaussian noise,
    and one without may still draw chance of its own. A subclass may do anything as well.
    """
    for defense in defenses:
        if type(defense) not in _KNOWN:
            what = "its noise" if defense.sigma > 0 else "what it leaves to chance"
            return (
                f"{type(defense).__name__} is no defence of the package, so {what} is claimed, "
                "not known"
            )
    return None


def _is_nothing(defense: Defense) -> bool:
    return type(defense) is Noise and defense.sigma == 0
