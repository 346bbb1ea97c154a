"""What no attack can do: upper bounds on how often a server can say which image it was.

Gaussian noise of known sigma, added last, u = m + sigma n, and any server, whatever its prior, time
or cleverness: the *ceiling* is the best that can be done among given candidates at given weights.
The *closed form* (:mod:`gradinv.evaluation.closed_form`) holds for any images and any weights, and
needs a clip. Bounds from the Jacobian of the update (Fisher information, van Trees) are not here:
on ReLU networks an update moves many times more than its Jacobian says.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from gradinv.errors import ConfigError, DataError
from gradinv.federated.channel import channel_of
from gradinv.federated.defense import Defense

DROPOUT = "dropout draws anew in every update, so no candidate's update is known exactly"

ABOVE_LUCK = 0.1
"""A convention: naming is excluded when no server is right more often than luck and this."""

_BLOCK = 1 << 22
"""Numbers of float64 that are held at once: 32 MiB."""


@dataclass(frozen=True)
class Ceiling:
    """The highest identification rate of any server that is told candidates and all but the image.

    Attributes:
        rate: expected largest posterior over the candidates, in [1 / candidates, 1].
        interval: 95 % interval of the rate; drawing the noise is all that is uncertain of it.
        candidates: how many there are, the true image among them.
        rounds: of how many updates on the same image, at the same weights.
        sigma: standard deviation of the noise of one update.
    """

    rate: float
    interval: tuple[float, float]
    candidates: int
    rounds: int
    sigma: float

    def sentence(self) -> str:
        """Returns what the ceiling says, in one sentence without a full stop."""
        return ceiling_sentence(
            self.rate, self.interval, candidates=self.candidates, rounds=self.rounds
        )


def ceiling_sentence(
    rate: float, interval: tuple[float, float], *, candidates: int, rounds: int = 1
) -> str:
    """Returns what a ceiling, or the mean of several with as many candidates, says.

    >>> ceiling_sentence(0.07, (0.068, 0.072), candidates=64)
    'no server that knows these 64 candidates and the rest of the batch names more than 7 % of the \
images from one update at these weights (interval 6.8 to 7.2 %); luck names 1.6 %'
    """
    low, high = map(percent, interval)
    return (
        f"no server that knows these {candidates} candidates and the rest of the batch names more "
        f"than {percent(rate)} % of the images from {updates(rounds)} at these weights "
        f"(interval {low} to {high} %); luck names {percent(1 / candidates)} %"
    )


def bayes_ceiling(
    means: Float[Tensor, "candidate coordinate"],
    sigma: float,
    *,
    rounds: int = 1,
    draws: int = 20_000,
    seed: int = 0,
) -> Ceiling:
    """Returns the ceiling for candidates whose updates, noise apart, are the rows of ``means``.

    Args:
        means: m_i, what the client would have sent for candidate i, without the noise.
        sigma: standard deviation of the noise, in the units of ``means``; above 0.
        rounds: updates on the same image at the same weights: distances add up, so that T of them
            are one with sigma / sqrt(T).
        draws: of the noise, at least; every candidate is the true one equally often.
        seed: of the noise.

    Raises:
        ConfigError: sigma, rounds or draws have no meaning.
        DataError: no candidates, or means that are not finite.
    """
    gram = gram_of([{"": row} for row in means])
    return bayes_ceiling_of_gram(gram, sigma, rounds=rounds, draws=draws, seed=seed)


def gram_of(means: Sequence[Mapping[str, Tensor]]) -> Float[Tensor, "candidate candidate"]:
    """Returns <m_i - m, m_j - m> in float64, where m is the mean of all candidates' m_i.

    What all candidates share (the rest of the batch) is far longer than what tells them apart, so
    differences are taken first, and in float64. Equal candidates have equal rows, bit by bit.

    Args:
        means: for each candidate, parameter name -> tensor, the same names and shapes for all.

    Raises:
        DataError: no candidates, tensors that do not fit together, or numbers that are not finite.
    """
    if not means:
        raise DataError("expected at least one candidate, got none; give the true image's update")
    shapes = [{name: value.shape for name, value in each.items()} for each in means]
    if any(each != shapes[0] for each in shapes):
        raise DataError(
            "expected the same tensors of all candidates, got updates that differ in names or "
            "shapes; compute all with one network"
        )
    count = len(means)
    gram = torch.zeros(count, count, dtype=torch.float64)
    width = max(1, _BLOCK // count)
    for name in shapes[0]:
        flat = [each[name].detach().flatten() for each in means]
        for start in range(0, flat[0].numel(), width):
            rows = torch.stack([row[start : start + width] for row in flat]).double()
            away = rows - rows.mean(dim=0)
            gram += (away @ away.T).cpu()
    if not gram.isfinite().all():
        raise DataError(
            "expected finite updates of all candidates, got infinite numbers or NaN; "
            "check the network and the images"
        )
    first = _first_equal(means, gram)
    return gram[first][:, first]


def _first_equal(
    means: Sequence[Mapping[str, Tensor]], gram: Float[Tensor, "candidate candidate"]
) -> Int[Tensor, " candidate"]:
    """Returns for each candidate the first one that is equal, exactly, usually itself.

    It decides who shares a posterior, which no distance out of a Gram matrix can.
    """
    own = gram.diagonal()
    near = own[:, None] + own - 2 * gram <= 1e-9 * own.max()
    first: list[int] = []
    for index, each in enumerate(means):
        alike = (
            other
            for other in sorted(set(first))
            if near[index, other]
            and all(torch.equal(value, means[other][name]) for name, value in each.items())
        )
        first.append(next(alike, index))
    return torch.tensor(first)


def bayes_ceiling_of_gram(
    gram: Float[Tensor, "candidate candidate"],
    sigma: float,
    *,
    rounds: int = 1,
    draws: int = 20_000,
    seed: int = 0,
) -> Ceiling:
    r"""Returns the ceiling for candidates that are given by their :func:`gram_of`.

    The server's posterior is :math:`p_j \propto \exp(-|u - m_j|^2 / 2 \sigma^2)` under a uniform
    prior; the expectation of the largest is the rate of a server that names the likeliest
    candidate, and no other rule is right more often. The logarithms of its ratios are Gaussian with
    a covariance that the Gram matrix gives, so noise is drawn in as many dimensions as there are
    candidates. The interval is Maurer and Pontil's (2009, theorem 11, an empirical Bernstein bound
    of both sides): it holds for any number of draws, also where nearly all of them are alike.

    Args:
        gram: of differences from the candidates' mean, float64.
        sigma: as in :func:`bayes_ceiling`, as are the others.
        rounds: see there.
        draws: see there.
        seed: see there.

    Raises:
        ConfigError: sigma, rounds or draws have no meaning.
        DataError: a matrix that is no finite Gram matrix in float64.
    """
    check_sigma(sigma)
    check_rounds(rounds)
    if draws < 2:
        raise ConfigError(
            f"expected at least 2 draws of the noise, got {draws}; 20000 are done in seconds"
        )
    _check_gram(gram)
    count = len(gram)
    luck = 1 / count
    gram = gram.cpu()
    _, group, members = torch.unique(gram, dim=0, return_inverse=True, return_counts=True)
    if len(members) == 1 or math.isinf(sigma):  # all the same to the server
        return Ceiling(luck, (luck, luck), count, rounds, sigma)
    # Held below what overflows: whatever float64 can tell apart is told apart long before.
    scale = min(rounds / sigma / sigma, 1e30 / gram.abs().max().item())
    found = _largest_posteriors(gram * scale, group, members, -(-draws // count), seed)
    number = len(found)
    rate = found.mean().item()
    log = math.log(2 / (0.05 / 2))  # half of the error on each side
    reach = math.sqrt(2 * found.var().item() * log / number)
    reach += (1 - luck) * 7 * log / (3 * (number - 1))
    interval = (max(luck, rate - reach), min(1.0, rate + reach))
    return Ceiling(min(1.0, max(luck, rate)), interval, count, rounds, sigma)


def _largest_posteriors(
    gram: Float[Tensor, "candidate candidate"],
    group: Int[Tensor, " candidate"],
    members: Int[Tensor, " group"],
    times: int,
    seed: int,
) -> Float[Tensor, " draw"]:
    """Returns the largest posterior of any candidate, draw by draw, each the true one ``times``.

    With L L' = gram (in units of the noise) and xi of standard normal numbers, the logarithm of
    p_j is -|m_j|^2 / 2 + <m_i, m_j> + (L xi)_j where i is the true one, up to a constant. Equal
    candidates (a group) share their posterior.
    """
    values, vectors = torch.linalg.eigh(gram)
    order = torch.arange(len(group) - 1, -1, -1)
    one = torch.zeros(len(members), dtype=torch.long).scatter_(0, group[order], order)
    root = (vectors * values.clamp(min=0).sqrt())[one]
    shift = (gram - gram.diagonal() / 2)[:, one]
    generator = Generator().manual_seed(seed)
    true = torch.arange(len(group)).repeat(times)
    found = []
    for chosen in true.split(max(1, _BLOCK // len(group))):
        noise = torch.randn(len(chosen), len(group), generator=generator, dtype=torch.float64)
        logits = (noise @ root.T).add_(shift[chosen])
        logits -= logits.amax(dim=1, keepdim=True)
        found.append(1 / (logits.exp() @ members.double()))
    return torch.cat(found)


def mean_ceiling(ceilings: Sequence[Ceiling]) -> tuple[float, tuple[float, float]]:
    """Returns the mean rate over images and its interval, the mean of both ends.

    Wider than that of independent ceilings, since those of one seed err together.

    Raises:
        DataError: there are none.
    """
    if not ceilings:
        raise DataError("expected at least one ceiling, got none; leave out settings without one")
    low = fmean(each.interval[0] for each in ceilings)
    high = fmean(each.interval[1] for each in ceilings)
    return fmean(each.rate for each in ceilings), (low, high)


def excluding_sigma(
    grams: Sequence[Tensor],
    *,
    rounds: int = 1,
    above: float = ABOVE_LUCK,
    draws: int = 5_000,
    seed: int = 0,
) -> float:
    """Returns the least noise, to 5 %, at which the mean ceiling is no more than luck and a bit.

    Args:
        grams: (candidate, candidate) of each image (:func:`gram_of`), whatever noise there is now.
        rounds: updates on the same images at the same weights.
        above: what the upper end of the mean ceiling's interval may be above luck.
        draws: of the noise for each ceiling; few of them make the interval wider, and the answer
            larger.
        seed: of the noise.

    Returns:
        A standard deviation, in the units of the update; 0 where the candidates cannot be told
        apart without any noise.

    Raises:
        DataError: there are no candidates, or some that are no finite Gram matrix.
    """
    if not grams:
        raise DataError("expected candidates of at least one image, got none; give their Gram")
    limit = fmean(1 / len(gram) for gram in grams) + above

    def excluded(sigma: float) -> bool:
        found = [
            bayes_ceiling_of_gram(gram, sigma, rounds=rounds, draws=draws, seed=seed)
            for gram in grams
        ]
        return mean_ceiling(found)[1][1] <= limit

    widest = max(float(gram.diagonal().max()) for gram in grams)
    if widest <= 0:
        return 0.0
    high = math.sqrt(rounds * widest)  # the longest of all means is one deviation away
    while not excluded(high):
        high *= 2
    low = high
    while excluded(low):
        high, low = low, low / 2
    while high / low > 1.05:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if excluded(middle) else (middle, high)
    return high


def refusal(defenses: Sequence[Defense], *, dropout: bool = False) -> str | None:
    """Returns why there is no ceiling under these defences, or ``None``.

    Args:
        defenses: all that the client does, in its order.
        dropout: whether its network draws dropout while it trains.
    """
    return channel_of(defenses).refusal or (DROPOUT if dropout else None)


def check_sigma(sigma: float) -> None:
    """Checks that there is noise.

    Raises:
        ConfigError: there is none.
    """
    if not sigma > 0:
        raise ConfigError(
            f"expected noise with a sigma above 0, got {sigma}; without any, two different updates "
            "are told apart exactly"
        )


def check_rounds(rounds: int) -> None:
    """Checks that there is an update.

    Raises:
        ConfigError: there is none.
    """
    if rounds < 1:
        raise ConfigError(f"expected 1 round or more, got {rounds}; give the number of updates")


def _check_gram(gram: Tensor) -> None:
    if not (len(gram) and gram.dtype == torch.float64 and gram.isfinite().all()):
        raise DataError(
            f"expected a finite Gram matrix of float64, got {gram.dtype} of shape "
            f"{tuple(gram.shape)}; make it with gram_of, which takes differences first"
        )


def percent(share: float) -> str:
    """Returns a share in percent with one decimal, none where that is 0.

    >>> percent(0.07), percent(0.0725)
    ('7', '7.2')
    """
    return f"{100 * share:.1f}".removesuffix(".0")


def updates(rounds: int) -> str:
    """Returns how many updates, in words.

    >>> updates(1), updates(3)
    ('one update', '3 updates')
    """
    return "one update" if rounds == 1 else f"{rounds} updates"
