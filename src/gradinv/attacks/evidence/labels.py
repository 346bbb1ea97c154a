"""Which labels a client held, read from the gradient of the last linear layer.

With logits z = W h + b, softmax p and the mean cross entropy over B images, row c of the layer's
gradient is dW_c = (1/B) sum_j (p_jc - [y_j = c]) h_j and db_c = (1/B) sum_j (p_jc - [y_j = c]).
"""

from dataclasses import dataclass, replace
from enum import Enum

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import nnls
from torch import Tensor, nn

from gradinv.attacks.evidence.head import Head, find_head, random_images
from gradinv.attacks.evidence.proofs import proven_counts
from gradinv.engine.distances import Target
from gradinv.errors import AttackError
from gradinv.federated.defense import changes_direction, changes_length
from gradinv.federated.observation import Observation
from gradinv.federated.protocol import FedAvg
from gradinv.memory import owned

PROBES = 32
"""Random images that tell the server how large features usually are, and what p usually is."""
ROUNDS = 40
"""Alternations between counts and features; the counts stand still after about 30."""
RIDGE = 0.1
"""How strongly the features are held where they were, relative to the mean of the system."""
DROPPED = 0.005
"""Weight of a coordinate that was dropped by a known sparsification, taken as zero."""
COLUMNS = 64
"""Features that are fitted under a sparsification: those that most survived of."""
_LARGEST = 1.5  # times the usual norm of the features: a ratio of small numbers can be anything


class LabelMethod(Enum):
    """How labels were recovered; the values are what a person reads."""

    IDLG = "idlg"
    """One image: the only class whose gradient points the other way (Zhao et al. 2020)."""
    COLUMN_MINIMUM = "column-minimum"
    """Distinct labels: the B rows with the most negative entry (Yin et al. 2021, eq. 8)."""
    COUNTS = "counts"
    """Counts with repeats: solved for together with the features of each class."""
    SEARCHED = "searched with the images"
    """Soft labels that an attack searches together with the images (Zhu et al. 2019)."""


@dataclass(frozen=True, eq=False)
class RecoveredLabels:
    """Labels as the server believes they are.

    Attributes:
        labels: sorted by class; a gradient is a mean, so their order is unknown.
        counts: how many images each class has.
        method: how they were found.
        exact: whether they follow from the update with certainty; estimated otherwise.
        gap: the largest distance between a count that was solved for and the whole number taken;
            below 0.5 where the counts agree with each other, 0 where nothing was solved for.
    """

    labels: Int[Tensor, " batch"]
    counts: Int[Tensor, " class"]
    method: LabelMethod
    exact: bool
    gap: float


def recover_labels(
    observation: Observation,
    model: nn.Module,
    *,
    method: LabelMethod | None = None,
    seed: int = 0,
) -> RecoveredLabels:
    """Returns the labels that the update gives away.

    An update of FedAvg is read as one gradient of the whole batch. That is right in the limit of a
    small local learning rate where all images weigh the same in the update: not with mini-batches
    under momentum or of unequal sizes, nor with their own batch-norm statistics.

    Args:
        observation: what the server saw; its own labels are not looked at.
        model: f_theta in the protocol's mode.
        method: how; ``IDLG`` for one image and ``COUNTS`` for more when None. Not ``SEARCHED``,
            which takes an attack.
        seed: of the random images that the network is probed with.

    Raises:
        AttackError: no linear layer's output is the logits, its weight is not in the update, or
            the method does not fit the batch.
    """
    if method is None:
        method = LabelMethod.IDLG if observation.batch_size == 1 else LabelMethod.COUNTS
    if method is LabelMethod.SEARCHED:
        raise AttackError(
            "expected a method that reads labels off the last layer, got "
            f"'{method.value}'; attack with dlg, which does that, or use {LabelMethod.COUNTS.value}"
        )
    _require_readable(observation)
    source = torch.Generator().manual_seed(seed)
    parameter = next(model.parameters())
    probes = random_images(PROBES, observation.image_shape, source)
    head = find_head(model, probes.to(parameter.device, parameter.dtype))
    protocol, count = observation.protocol, observation.batch_size
    approximate = isinstance(protocol, FedAvg) and protocol.steps(count) > 1
    update = _Update.of(observation, head)
    gap, exact = 0.0, False
    if method is LabelMethod.IDLG:
        counts = _idlg(update)
        hidden = changes_direction(observation.defenses)
        moved = isinstance(protocol, FedAvg) and not protocol.stepper.keeps_signs
        exact = not (approximate or hidden or moved) and protocol.loss.proves_signs and head.alone
    elif method is LabelMethod.COLUMN_MINIMUM:
        counts = _column_minimum(update)
    else:
        solved = _solve_counts(update)
        counts = _whole(solved, update.batch, update.least)
        gap = float((solved - counts).abs().max())
    counts = counts.to(parameter.device)
    labels = torch.repeat_interleave(counts)
    return RecoveredLabels(labels, counts, method, exact, gap)


def _require_readable(observation: Observation) -> None:
    """Checks that the last layer's gradient says how many images each class has.

    Raises:
        AttackError: the loss or the optimiser leaves no such thing in it.
    """
    protocol = observation.protocol
    loss, several = protocol.loss, observation.batch_size > 1
    if loss.kind != "cross-entropy" or (loss.weights is not None and several):
        raise AttackError(
            f"expected a cross entropy that weighs all classes alike to count labels, got {loss}; "
            "reveal the labels"
        )
    if isinstance(protocol, FedAvg) and protocol.stepper.kind != "sgd":
        raise AttackError(
            f"expected SGD to read labels off an update, got {protocol.stepper}; reveal the labels"
        )


def searched_labels(soft: Float[Tensor, "batch class"]) -> RecoveredLabels:
    """Returns the labels that an attack ended at which searched them together with the images.

    The most probable class of each image; the gap is between the sums of the soft labels and the
    counts.
    """
    counts = torch.bincount(soft.argmax(dim=1), minlength=soft.shape[1])
    gap = float((soft.sum(dim=0) - counts).abs().max())
    return RecoveredLabels(
        torch.repeat_interleave(counts), counts, LabelMethod.SEARCHED, exact=False, gap=gap
    )


@dataclass(frozen=True, eq=False)
class _Update:
    """The last layer and its gradient; everything is float64 on the CPU.

    Features are in units of their usual norm. Where the update holds the bias's gradient, it is the
    last column of ``rows``: the gradient of a feature that is always 1.

    Attributes:
        batch: B.
        rows: [dW | db].
        certainty: weight of each coordinate of ``rows`` in a least-squares fit.
        fitted: the columns that take part in a fit; None for all, with every coordinate known.
        weight: W.
        bias: b, zeros for a layer without one.
        usual: h of the probes, with the 1 behind it where ``rows`` has db.
        biased: whether ``rows`` has db.
        least: of the counts, as far as the update proves them.
        clipped: whether ``rows`` may be an unknown part of the gradient's.
    """

    batch: int
    rows: Float[Tensor, "class column"]
    certainty: Float[Tensor, "class column"]
    fitted: Int[Tensor, " fit"] | None
    weight: Float[Tensor, "class feature"]
    bias: Float[Tensor, " class"]
    usual: Float[Tensor, "probe column"]
    biased: bool
    least: Float[Tensor, " class"]
    clipped: bool

    @classmethod
    def of(cls, observation: Observation, head: Head) -> "_Update":
        """Returns the part of the observation that this module looks at."""
        if head.weight_name not in observation.gradient:
            raise AttackError(
                f"expected the gradient of {head.weight_name}, the last linear layer, in the "
                "update, got none (a frozen layer); reveal the labels"
            )
        least = proven_counts(observation, head).double()
        target = Target.of(observation.as_one_gradient())
        usual = head.features.detach().double().cpu()
        factor = observation.protocol.loss.factor(observation.batch_size)
        unit = float(usual.norm(dim=1).mean().clamp_min(torch.finfo(torch.float32).tiny))
        weight = head.weight.double().cpu() * unit
        bias = weight.new_zeros(len(weight)) if head.bias is None else head.bias.double().cpu()
        columns = [target.gradient[head.weight_name].detach().double().cpu() / (unit * factor)]
        usual = usual / unit
        biased = head.bias_name in target.gradient
        if biased:
            columns.append(
                target.gradient[head.bias_name].detach().double().cpu()[:, None] / factor
            )
            usual = torch.cat([usual, usual.new_ones(len(usual), 1)], dim=1)
        rows = torch.cat(columns, dim=1)
        certainty, fitted = torch.ones_like(rows), None
        if target.mask is not None:
            # What was dropped is not zero but small: it binds the fit loosely.
            certainty[rows == 0] = DROPPED
            mass = rows.abs().sum(dim=0)
            mass[weight.shape[1] :] = torch.inf
            fitted = mass.topk(min(COLUMNS, len(mass))).indices
        return cls(
            batch=observation.batch_size,
            rows=rows,
            certainty=certainty,
            fitted=fitted,
            weight=weight,
            bias=bias,
            usual=usual,
            biased=biased,
            least=least,
            clipped=changes_length(observation.defenses),
        )

    def posterior(self, means: Float[Tensor, "class column"]) -> Float[Tensor, "class class"]:
        """Returns softmax(W h + b) of each class's mean features."""
        features = means[:, : self.weight.shape[1]]
        return (features @ self.weight.T + self.bias).softmax(dim=1)

    def feasible(self, means: Float[Tensor, "class column"]) -> Float[Tensor, "class column"]:
        """Returns the features as near as they can be: of usual sign and size, the bias's at 1."""
        features = self.weight.shape[1]
        inside = torch.nan_to_num(means[:, :features], nan=0.0, posinf=0.0, neginf=0.0)
        if bool((self.usual >= 0).all()):
            inside = inside.clamp_min(0)
        norm = inside.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        inside = inside * (_LARGEST / norm).clamp_max(1)
        return torch.cat([inside, torch.ones_like(means[:, features:])], dim=1)


def _idlg(update: _Update) -> Int[Tensor, " class"]:
    """Returns the count of one image (Zhao et al. 2020, eq. 4).

    With one image dW_c = (p_c - [y = c]) h: the label's row points against all others. They sum to
    zero, so it is also the longest row, which needs no features of one sign and no bias. Two
    classes have rows of equal length; the sign of a feature tells them apart then.
    """
    if update.batch != 1:
        raise AttackError(
            f"expected one image for the labels' method {LabelMethod.IDLG.value}, got "
            f"{update.batch}; use {LabelMethod.COUNTS.value}"
        )
    scores = update.rows.norm(dim=1)
    if update.biased:
        scores = -update.rows[:, -1]
    elif len(scores) == 2:
        scores = -update.rows @ update.usual.mean(dim=0)
    return _one_hot([int(scores.argmax())], len(scores))


def _column_minimum(update: _Update) -> Int[Tensor, " class"]:
    """Returns one image for each of the B rows with the smallest entry (Yin et al. 2021, eq. 8).

    Blind to repeats, and made for features that are not negative.
    """
    classes = len(update.rows)
    if update.batch > classes:
        raise AttackError(
            f"expected at most {classes} images for the labels' method "
            f"{LabelMethod.COLUMN_MINIMUM.value} (one of each class), got {update.batch}; use "
            f"{LabelMethod.COUNTS.value}"
        )
    weights = update.rows[:, : update.weight.shape[1]]
    return _one_hot(weights.amin(dim=1).argsort()[: update.batch].tolist(), classes)


def _one_hot(labels: list[int], classes: int) -> Int[Tensor, " class"]:
    return torch.bincount(torch.tensor(labels), minlength=classes)


def _solve_counts(update: _Update) -> Float[Tensor, " class"]:
    """Returns how many images of each class explain the update; not yet whole numbers.

    Let h_i be the mean features of class i and P_i = softmax(W h_i + b). To first order in the
    spread within a class

        B [dW | db]_c = sum_i n_i (P_ic - [i = c]) [h_i | 1],    sum_i n_i = B,    n_i >= 0,

    linear in n for known h and in h for known n. iLRG (Ma et al. 2023) takes h_c = dW_c / db_c,
    which is exact where only images of class c move row c, and solves for n once. *Deviations:*
    the two are solved for in turns, which keeps the other classes' share in row c from being taken
    for features of class c; counts are kept from being negative; features keep the sign and size
    that random images show (which is also where LLG's offset, Wainakh et al. 2022, comes from);
    without a bias the start of h_c divides by the projection of dW_c that is 1 on usual features;
    where a known clip left an unknown part of the gradient, that part is what the n that are solved
    for without their sum have of B, anew in each turn.
    """
    classes = len(update.rows)
    if update.fitted is None:
        divisor = update.rows @ _unit_direction(update)
        divisor = torch.where(divisor == 0, torch.finfo(torch.float64).tiny, divisor)
        means = update.feasible(update.rows / divisor[:, None])
    else:
        means = update.feasible(update.usual.mean(dim=0).expand_as(update.rows))
    counts, rows = None, update.rows
    for _ in range(ROUNDS):
        moves = update.posterior(means) - torch.eye(classes, dtype=torch.float64)
        if update.clipped:
            sent = replace(update, rows=rows)
            update = replace(update, rows=rows / _part_left(sent, moves, means))
        solved = _counts_of(update, moves, means)
        counts = solved if counts is None else (counts + solved) / 2
        counts = _normalised(update, counts)
        means = _means_of(update, moves, means, counts)
    assert counts is not None
    return counts


def _normalised(update: _Update, counts: Float[Tensor, " class"]) -> Float[Tensor, " class"]:
    """Returns the counts with a sum of B; what is beyond the proven ones is scaled."""
    spare = counts - update.least
    if spare.sum() <= 0:
        spare = torch.ones_like(spare)
    return update.least + spare * (update.batch - update.least.sum()) / spare.sum()


def _unit_direction(update: _Update) -> Float[Tensor, " column"]:
    """Returns u with <u, [h | 1]> near 1 for usual features: the bias alone, where there is one."""
    if update.biased:
        return torch.eye(update.rows.shape[1], dtype=torch.float64)[-1]
    usual = update.usual
    gram = usual @ usual.T
    gram += 0.01 * gram.diagonal().mean() * torch.eye(len(usual), dtype=torch.float64)
    return usual.T @ torch.linalg.solve(gram, torch.ones(len(usual), dtype=torch.float64))


def _counts_of(
    update: _Update, moves: Float[Tensor, "class class"], means: Float[Tensor, "class column"]
) -> Float[Tensor, " class"]:
    """Returns the n, of at least what is proven, that fit best for given features."""
    gram, right = _equations(update, moves, means)
    gram = gram + torch.ones_like(gram)  # the row that says sum n = B
    return update.least + _nonnegative(gram, right + update.batch - gram @ update.least)


def _part_left(
    update: _Update, moves: Float[Tensor, "class class"], means: Float[Tensor, "class column"]
) -> float:
    """Returns which part of the gradient a clip left: that of B which the counts sum to."""
    part = float(_nonnegative(*_equations(update, moves, means)).sum()) / update.batch
    return min(max(part, torch.finfo(torch.float32).tiny), 1.0)


def _equations(
    update: _Update, moves: Float[Tensor, "class class"], means: Float[Tensor, "class column"]
) -> tuple[Float[Tensor, "class class"], Float[Tensor, " class"]]:
    """Returns A and b of the normal equations A n = b of the counts for given features."""
    if update.fitted is None:
        gram = (moves @ moves.T) * (means @ means.T)
        right = torch.einsum("ic,ck,ik->i", moves, update.rows, means)
    else:
        weights = update.certainty[:, update.fitted].sqrt()
        design = (moves[:, :, None] * means[:, None, update.fitted] * weights).flatten(1)
        gram = design @ design.T
        right = design @ (update.rows[:, update.fitted] * weights).flatten()
    return gram, update.batch * right


def _nonnegative(
    gram: Float[Tensor, "class class"], right: Float[Tensor, " class"]
) -> Float[Tensor, " class"]:
    """Returns the n >= 0 that fit normal equations best."""
    values, vectors = torch.linalg.eigh(gram)
    root = values.clamp_min(float(values[-1]) * 1e-12).sqrt()
    system = root[:, None] * vectors.T
    solution, _ = nnls(system.numpy(), (vectors.T @ right / root).numpy())
    return owned(torch.from_numpy(np.asarray(solution)))


def _means_of(
    update: _Update,
    moves: Float[Tensor, "class class"],
    means: Float[Tensor, "class column"],
    counts: Float[Tensor, " class"],
) -> Float[Tensor, "class column"]:
    """Returns the features that fit best for given counts, held near where they were."""
    system = (moves * counts[:, None] / update.batch).T
    error = update.rows - system @ means
    ridge = RIDGE * system.square().mean(dim=0).sum() + 1e-12
    eye = ridge * torch.eye(len(system), dtype=torch.float64)
    if update.fitted is None:
        return update.feasible(
            means + torch.linalg.solve(system.T @ system + eye, system.T @ error)
        )
    weighted = update.certainty[:, update.fitted].T[:, :, None] * system
    right = torch.einsum("kci,ck->ki", weighted, error[:, update.fitted])
    change = torch.zeros_like(means)
    change[:, update.fitted] = torch.linalg.solve(system.T @ weighted + eye, right).T
    return update.feasible(means + change)


def _whole(
    counts: Float[Tensor, " class"], batch: int, least: Float[Tensor, " class"]
) -> Int[Tensor, " class"]:
    """Returns the nearest whole numbers that sum to B (largest remainders)."""
    whole = torch.maximum(counts.floor(), least)
    order = (counts - whole).argsort(descending=True, stable=True)
    whole[order[: batch - int(whole.sum())]] += 1
    return whole.long()
