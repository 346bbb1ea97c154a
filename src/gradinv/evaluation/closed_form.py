"""The closed form (Hayes et al. 2023): what a clip and noise exclude for any images and weights.

Larger than the ceiling over given candidates, which speaks of those images at these weights alone.
"""

import math
from collections.abc import Sequence

from scipy import stats

from gradinv.errors import ConfigError
from gradinv.evaluation.certificates import check_rounds, check_sigma, percent, updates
from gradinv.federated.channel import NO_NOISE, channel_of
from gradinv.federated.defense import Defense
from gradinv.federated.defenses import Clip

NO_CLIP = "it has no clip, so nothing bounds how far one image moves the update"


def closed_form(kappa: float, *, sensitivity: float, sigma: float, rounds: int = 1) -> float:
    r"""Returns :math:`\Phi(\Phi^{-1}(\kappa) + \sqrt{T} \Delta / \sigma)` (Hayes et al. 2023).

    No server that is right about an image with a probability of at most kappa before it sees
    anything is right more often than this after T updates, whatever it knows of the other images.

    >>> round(closed_form(1 / 64, sensitivity=2.0, sigma=2.0), 3)
    0.124

    Args:
        kappa: in (0, 1]: luck among candidates, or the best picture that has no information.
        sensitivity: Delta, how far one image moves an update at most (L2).
        sigma: standard deviation of the noise of one update; above 0.
        rounds: T, how many updates the image takes part in.

    Raises:
        ConfigError: one of them has no meaning.
    """
    if not 0 < kappa <= 1:
        raise ConfigError(
            f"expected a probability in (0, 1] as luck, got {kappa}; 1/64 among 64 candidates"
        )
    if not (math.isfinite(sensitivity) and sensitivity >= 0):
        raise ConfigError(f"expected a sensitivity of 0 or more, got {sensitivity}; clip:C has 2 C")
    check_sigma(sigma)
    check_rounds(rounds)
    reach = math.sqrt(rounds) * sensitivity / sigma
    return float(stats.norm.cdf(stats.norm.ppf(kappa) + reach))


def closed_form_sentence(probability: float, *, kappa: float, rounds: int = 1) -> str:
    """Returns what a closed form says and speaks of, in one sentence without a full stop.

    >>> closed_form_sentence(0.124, kappa=1 / 64)
    'whatever the images and the weights are and whatever a server knows besides, a guess about \
one image that is right with 1.6 % before is right with at most 12.4 % after one update that is \
clipped as a whole'
    """
    clipped = "that is clipped as a whole" if rounds == 1 else "that are each clipped as a whole"
    return (
        "whatever the images and the weights are and whatever a server knows besides, a guess "
        f"about one image that is right with {percent(kappa)} % before is right with at most "
        f"{percent(probability)} % after {updates(rounds)} {clipped}"
    )


def sensitivity_of(defenses: Sequence[Defense]) -> float | None:
    """Returns how far one image of the client moves the update at most (L2), noise apart.

    That is 2 C with the smallest clip C: whatever the image is, both updates have a length of at
    most C. The package's other defences that come before the noise only shorten. ``None`` without
    a clip, or where not all is known of the chain.
    """
    channel = channel_of(defenses)
    norms = [defense.norm for defense in channel.defenses if isinstance(defense, Clip)]
    if not norms or channel.refusal not in {None, NO_NOISE}:
        return None
    return 2 * min(norms)


def refusal_closed_form(defenses: Sequence[Defense]) -> str | None:
    """Returns why there is no closed form under these defences, or ``None``.

    Dropout is no reason: a clip holds whatever was drawn before it.
    """
    reason = channel_of(defenses).refusal
    if reason is None and sensitivity_of(defenses) is None:
        return NO_CLIP
    return reason
