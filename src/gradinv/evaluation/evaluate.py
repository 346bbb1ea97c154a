"""One attack's images against the client's batch: matched, measured and controlled."""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gradinv.data import ClientBatch
from gradinv.errors import ConfigError, DataError
from gradinv.evaluation.controls import candidate_errors, count_decoys, ranks_of, two_nearest
from gradinv.evaluation.lpips import Lpips
from gradinv.evaluation.matching import match
from gradinv.evaluation.metrics import mse, psnr, ssim
from gradinv.resolve import resolve

Metric = Callable[[Tensor, Tensor], Tensor]
"""Reconstructions and originals to one number for each image."""

PSNR_CEILING = 100.0
"""PSNR of equal images in decibels: JSON has no infinity."""
NEARLY = 0.02
"""A share of the decoys: as many may be nearer to a picture that is still of this very image."""


@dataclass(frozen=True)
class ImageScore:
    """What one reconstruction gives away about one original.

    Args:
        original: index of the original in the client's batch.
        reconstruction: index of the reconstruction matched to it.
        label: the original's class number.
        mse: mean squared error of pixels in [0, 1].
        psnr: decibels, at most :data:`PSNR_CEILING`.
        ssim: structural similarity, at most 1.
        lpips: perceptual distance; ``None`` without backbone weights.
        rank: how many decoys, matched as the original was, are nearer to their reconstruction.
        decoys: how many other images of the label it was compared with; 0 without the control.
        alike: how many images of the batch have its label, itself included.
        nearest_decoy: mean squared error of the reconstruction and the decoy nearest to it, of
            those of all places; ``None`` without any.
        second_decoy: likewise of the next one; ``None`` without two.
        ssim_without: the best SSIM of a picture that knows nothing of this image
            (:mod:`gradinv.audit.baselines`); ``None`` where none was made.
        lpips_without: likewise the least LPIPS.
        others: name -> value of the metrics that were asked for beside these; ``None`` where it is
            not finite.
    """

    original: int
    reconstruction: int
    label: int
    mse: float
    psnr: float
    ssim: float
    lpips: float | None
    rank: int
    decoys: int
    alike: int = 1
    nearest_decoy: float | None = None
    second_decoy: float | None = None
    ssim_without: float | None = None
    lpips_without: float | None = None
    others: Mapping[str, float | None] = field(default_factory=dict, hash=False)

    def row(self) -> dict[str, Any]:
        """Returns the score as results hold it, without ``others`` where there are none."""
        row = asdict(self)
        return row if self.others else {key: row[key] for key in row if key != "others"}

    @property
    def identified(self) -> bool:
        """Whether the original is the nearest of all candidates; never without decoys."""
        return self.decoys > 0 and self.rank == 0

    @property
    def recognisable(self) -> bool:
        """Whether the picture is of this image, and better than any that knows nothing of it.

        At most :data:`NEARLY` of the decoys may be nearer to it. A likeness alone shows nothing:
        the mean face has an SSIM of 0.46 with a face.
        """
        if not self.decoys or self.ssim_without is None:
            return False
        better = self.ssim > self.ssim_without
        if self.lpips is not None and self.lpips_without is not None:
            better &= self.lpips < self.lpips_without
        return better and self.rank <= NEARLY * self.decoys

    @property
    def luck(self) -> float:
        """How likely luck alone identifies the image; 0 without decoys."""
        return 1 / (self.decoys + 1) if self.decoys else 0.0

    @property
    def luck_recognisable(self) -> float:
        """How likely luck alone makes it recognisable, at most."""
        return (math.floor(NEARLY * self.decoys) + 1) * self.luck


@dataclass(frozen=True)
class Evaluation:
    """Scores of one batch, in the order of the originals."""

    images: tuple[ImageScore, ...]

    @property
    def permutation(self) -> tuple[int, ...]:
        """Indices that put the reconstructions into the order of the originals."""
        return tuple(score.reconstruction for score in self.images)


def label_accuracy(recovered: Int[Tensor, " batch"], batch: ClientBatch) -> float:
    """Returns the fraction of the batch's labels, counted with repeats, that were recovered.

    sum_c min(n_c, n'_c) / B: the server cannot know which image a label belongs to.

    Raises:
        DataError: another number of labels than images.

    >>> batch = ClientBatch(torch.zeros(4, 1, 8, 8), torch.tensor([0, 0, 0, 2]), (0, 1, 2, 3))
    >>> label_accuracy(torch.tensor([0, 0, 2, 2]), batch)
    0.75
    """
    if len(recovered) != len(batch):
        raise DataError(
            f"expected {len(batch)} recovered labels, one for each image, got {len(recovered)}; "
            "judge them against their own batch"
        )
    found, true = Counter(recovered.tolist()), Counter(batch.labels.tolist())
    return (found & true).total() / len(batch)


def evaluate(
    reconstructions: Float[Tensor, "batch channel height width"],
    batch: ClientBatch,
    *,
    lpips: Callable[[Tensor, Tensor], Tensor] | None = None,
    decoys: Float[Tensor, "batch decoy channel height width"] | None = None,
    metrics: Mapping[str, Metric] | None = None,
) -> Evaluation:
    """Scores each image of the batch against the reconstruction matched to it.

    Args:
        reconstructions: images in [0, 1], in any order.
        batch: the client's images.
        lpips: an :class:`~gradinv.evaluation.lpips.Lpips`, or nothing.
        decoys: from :func:`~gradinv.evaluation.controls.decoys_for`, in the batch's order.
        metrics: name -> further metrics of the matched images (:func:`metric_of`).

    Raises:
        DataError: shapes differ, or a reconstruction is not finite.
        ConfigError: a metric that fails, or does not give one number for each image.
    """
    target = batch.images.detach().cpu()
    preds = reconstructions.detach().cpu().to(target.dtype)
    order = match(target, preds)
    preds = preds[order]
    peaks = psnr(preds, target, data_range=1.0).clamp(max=PSNR_CEILING)
    likeness = ssim(preds, target, data_range=1.0)
    errors = mse(preds, target)
    with torch.no_grad():
        distances = None if lpips is None else lpips(preds, target)
    others = measured(metrics or {}, preds, target)
    if decoys is None:
        decoys = target.new_empty(len(batch), 0, *batch.image_shape)
    among_decoys = candidate_errors(preds, target, decoys)
    ranks = ranks_of(among_decoys)
    candidates = count_decoys(decoys)
    nearest = two_nearest(preds, decoys)
    labels = Counter(batch.labels.tolist())
    return Evaluation(
        tuple(
            ImageScore(
                original=i,
                reconstruction=int(order[i]),
                label=int(batch.labels[i]),
                mse=float(errors[i]),
                psnr=float(peaks[i]),
                ssim=float(likeness[i]),
                lpips=None if distances is None else float(distances[i]),
                rank=int(ranks[i]),
                decoys=int(candidates[i]),
                alike=labels[int(batch.labels[i])],
                nearest_decoy=_finite(nearest[i, 0]),
                second_decoy=_finite(nearest[i, 1]),
                others={name: values[i] for name, values in others.items()},
            )
            for i in range(len(batch))
        )
    )


def _finite(value: Tensor) -> float | None:
    return float(value) if bool(value.isfinite()) else None


def measured(
    metrics: Mapping[str, Metric],
    preds: Float[Tensor, "batch channel height width"],
    target: Float[Tensor, "batch channel height width"],
) -> dict[str, list[float | None]]:
    """Returns name -> one number for each image, None where it is not finite.

    Raises:
        ConfigError: a metric that fails, or does not give one number for each image.
    """
    found = {}
    for name, metric in metrics.items():
        try:
            # Copies: whatever it does to them changes no other figure.
            with torch.no_grad():
                values = metric(preds.clone(), target.clone())
        except Exception as error:  # foreign code, which may raise anything
            raise ConfigError(
                f"expected the metric {name} to take reconstructions and originals of shape "
                f"{tuple(target.shape)}, got {type(error).__name__}: {error}; mend it"
            ) from error
        found[name] = _one_each(name, values, len(target))
    return found


def _one_each(name: str, values: object, count: int) -> list[float | None]:
    if isinstance(values, Tensor) and values.shape == (count,):
        numbers = [float(value) for value in values]
        # JSON has neither NaN nor infinity.
        return [number if math.isfinite(number) else None for number in numbers]
    got = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
    raise ConfigError(
        f"expected one number for each of {count} images from the metric {name}, got {got}; "
        "reduce over channels and pixels alone"
    )


@cache
def _lpips_of_the_paper() -> Lpips:
    return Lpips(convention="paper")


def lpips_paper(preds: Tensor, target: Tensor) -> Tensor:
    """Returns LPIPS of images that are left in [0, 1], as the code of Jeon et al. 2021 has it."""
    return _lpips_of_the_paper()(preds.cpu(), target.cpu())


METRICS: dict[str, Metric] = {
    "mse": mse,
    "psnr": partial(psnr, data_range=1.0),
    "ssim": partial(ssim, data_range=1.0),
    "lpips-paper": lpips_paper,
}


def metric_of(spec: str) -> Metric:
    """Returns the metric that ``psnr`` or ``package.module:function`` names.

    It is called with reconstructions and originals in [0, 1], both (batch, channel, height, width),
    and returns one number for each.

    Raises:
        ConfigError: nothing of that name, or what cannot be called.
    """
    named = resolve(spec, METRICS, kind="metric")
    value: Any = named.value
    if named.settings or not callable(value):
        got = named.settings or type(value).__name__
        raise ConfigError(
            f"expected a metric named {spec!r}, got {got!r}; name a function of reconstructions "
            "and originals alone"
        )
    return cast("Metric", value)
