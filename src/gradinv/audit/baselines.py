"""What a server without the update would show: the pictures that an attack has to be better than.

The mean of other images of the label, samples of the prior, and as a *placebo* what the same
attack made of another batch's update; all are matched to the originals as reconstructions are.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from gradinv.attacks.result import Outcome
from gradinv.audit.cell import judge_cell
from gradinv.audit.plan import Cell, derive_seed
from gradinv.audit.setup import Setup
from gradinv.evaluation.controls import count_decoys
from gradinv.evaluation.evaluate import Evaluation, ImageScore
from gradinv.evaluation.memorised import REASON, SAMPLES, knows

LABEL_MEAN, PRIOR_SAMPLES, PLACEBO = "label mean", "prior samples", "placebo"


@dataclass(frozen=True)
class Baseline:
    """Pictures that know nothing of the originals, judged as reconstructions are.

    Attributes:
        name: of what they are.
        attack: whose placebo it is; None where no attack has anything to do with it.
        defense: likewise.
        batches: batch -> how near they come to its images.
    """

    name: str
    attack: str | None
    defense: str | None
    batches: Mapping[int, Evaluation]

    def row(self) -> dict[str, Any]:
        """Returns the means over the images, as ``audit.json`` holds them."""
        scores = [score for each in self.batches.values() for score in each.images]
        distances = [score.lpips for score in scores if score.lpips is not None]
        controlled = any(score.decoys for score in scores)
        return {
            "name": self.name,
            "attack": self.attack,
            "defense": self.defense,
            "n": len(scores),
            "psnr_mean": fmean(score.psnr for score in scores),
            "ssim_mean": fmean(score.ssim for score in scores),
            "lpips_mean": fmean(distances) if distances else None,
            "identified": fmean(score.identified for score in scores) if controlled else None,
        }


@dataclass(frozen=True)
class Controls:
    """All baselines of an audit.

    Attributes:
        baselines: those without an attack first.
        memorised: why the prior may know the images without any update; None where it does not.
    """

    baselines: tuple[Baseline, ...]
    memorised: str | None

    def without(self, cell: Cell, original: int) -> tuple[float | None, float | None]:
        """Returns the best SSIM and LPIPS of an image that a server without its update has."""
        found = [
            baseline.batches[cell.batch].images[original]
            for baseline in self.baselines
            if cell.batch in baseline.batches
            and (baseline.attack is None or (baseline.attack, baseline.defense) == _which(cell))
        ]
        distances = [score.lpips for score in found if score.lpips is not None]
        return max((score.ssim for score in found), default=None), min(distances, default=None)

    def completed(self, cell: Cell, row: Mapping[str, Any]) -> dict[str, Any]:
        """Returns a cell's row with what is known without its update beside each image."""
        images = []
        for image in row["images"]:
            ssim, lpips = self.without(cell, image["original"])
            score = replace(ImageScore(**image), ssim_without=ssim, lpips_without=lpips)
            images.append(score.row())
        return {**row, "images": images}


def controls_of(
    setup: Setup,
    rows: Mapping[Cell, Mapping[str, Any]],
    pictures: Callable[[Cell], Mapping[str, Tensor]],
) -> Controls:
    """Makes and judges what a server without the updates would show.

    Args:
        setup: the audit.
        rows: of its attacks' cells.
        pictures: of a cell, by name.
    """
    batches = setup.client.batches
    decoys = [setup.judge.decoys(batch, number) for number, batch in enumerate(batches)]

    def judged(number: int, images: Tensor) -> Evaluation:
        batch = batches[number]
        return judge_cell(images, batch, lpips=setup.judge.lpips, decoys=decoys[number])

    # Decoys of NaN are none; an image without any has no mean of its label.
    means = {
        number: judged(number, torch.nanmean(each, dim=1))
        for number, each in enumerate(decoys)
        if bool((count_decoys(each) > 0).all())
    }
    found = [Baseline(LABEL_MEAN, None, None, means)] if means else []
    memorised = None
    prior = setup.server.prior
    if prior is not None and any(attack.uses_prior for attack in setup.server.attacks.values()):
        drawn = {
            number: judged(number, _samples(setup, len(batch), number))
            for number, batch in enumerate(batches)
        }
        found.append(Baseline(PRIOR_SAMPLES, None, None, drawn))
        samples = _samples(setup, SAMPLES, len(batches))
        if knows(samples, [batch.images for batch in batches], decoys):
            memorised = REASON
    found += _placebos(rows, pictures, judged)
    return Controls(tuple(found), memorised)


def _placebos(
    rows: Mapping[Cell, Mapping[str, Any]],
    pictures: Callable[[Cell], Mapping[str, Tensor]],
    judged: Callable[[int, Tensor], Evaluation],
) -> list[Baseline]:
    """Returns, for each attack under each defence, its pictures of the next batch's update."""
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell, row in rows.items():
        if row.get("outcome") != Outcome.NON_FINITE.value:
            groups.setdefault(_which(cell), []).append(cell)
    return [
        Baseline(
            PLACEBO,
            attack,
            defense,
            {
                cell.batch: judged(cell.batch, _unpacked(pictures(other)["reconstruction"]))
                for cell, other in zip(cells, _next(cells), strict=True)
            },
        )
        for (attack, defense), cells in groups.items()
        if len(cells) > 1
    ]


def _next(cells: Sequence[Cell]) -> list[Cell]:
    return [*cells[1:], cells[0]]


def _which(cell: Cell) -> tuple[str, str]:
    return cell.attack, cell.defense


def _samples(setup: Setup, count: int, number: int) -> Float[Tensor, "..."]:
    prior = setup.server.prior
    assert prior is not None
    source = torch.Generator().manual_seed(derive_seed(setup.config.seed, "prior", number))
    with torch.no_grad():
        made = [prior(z) for z in prior.sample_latents(count, source).split(64)]
    return torch.cat(made).float().clamp(0, 1).cpu()


def _unpacked(
    images: UInt8[Tensor, "batch channel height width"],
) -> Float[Tensor, "batch channel height width"]:
    return images.float() / 255
