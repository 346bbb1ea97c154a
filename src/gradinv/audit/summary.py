"""From rows per image to ``audit.json``: the only place where an audit's numbers are reduced."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import torch

from gradinv import __version__
from gradinv.attacks.preflight import Preflight
from gradinv.attacks.result import Outcome
from gradinv.audit.inputs import EMBEDDED
from gradinv.audit.setup import Setup
from gradinv.audit.store import SCHEMA
from gradinv.environment import machine, revision, versions
from gradinv.evaluation.evaluate import ImageScore
from gradinv.evaluation.intervals import mean_interval
from gradinv.evaluation.verdict import judge


def assemble(
    setup: Setup, rows: Sequence[dict[str, Any]], preflight: Mapping[str, Preflight]
) -> dict[str, Any]:
    """Returns the content of ``audit.json``.

    Args:
        setup: what was audited.
        rows: one for each cell, in the order of the tables.
        preflight: defence -> what was found before its attacks.
    """
    identity = setup.identity()
    images = setup.client.images
    channels, image_size, _ = images.image_shape
    return {
        "schema": SCHEMA,
        "gradinv": __version__,
        "config": {
            **identity["settings"],
            "channels": channels,
            "image_size": image_size,
            "image_shape": list(images.image_shape),
            "prior": setup.config.prior or (EMBEDDED if setup.server.prior else None),
            "labels_known": setup.reveal.labels,
            "threads_per_cell": 1,
            "revision": revision(),
            "images": {"name": images.name, "count": len(images), "classes": images.num_classes},
            "machine": {**machine(), "device": _device_name(setup)},
            "versions": versions(),
            "inputs": identity["inputs"],
            "attacks": setup.described_attacks(),
        },
        "notes": [*setup.notes(), *preflight_notes(preflight)],
        "preflight": {defense: found.describe() for defense, found in preflight.items()},
        "cells": list(rows),
        "summary": summarise(rows, preflight),
    }


def _device_name(setup: Setup) -> str:
    on_cuda = setup.device.type == "cuda"
    return torch.cuda.get_device_name(setup.device) if on_cuda else setup.device.type


def preflight_notes(preflight: Mapping[str, Preflight]) -> list[str]:
    """Returns a sentence for each thing that was found, with the defences that it was found at."""
    where: dict[str, list[str]] = {}
    for defense, found in preflight.items():
        for finding in found.findings:
            where.setdefault(f"{finding}; {finding.advice}", []).append(defense)
    return [
        f"Preflight{'' if len(at) == len(preflight) else ' of ' + ', '.join(at)}: {sentence}."
        for sentence, at in where.items()
    ]


def summarise(
    rows: Sequence[Mapping[str, Any]], preflight: Mapping[str, Preflight] | None = None
) -> list[dict[str, Any]]:
    """Returns one row for each attack under each defence, in the order of ``rows``.

    ``n`` images; ``psnr_mean``, ``ssim_mean`` and ``lpips_mean`` over them; ``psnr_best`` and
    ``ssim_best``, the best image of a batch, averaged over batches (Jeon et al. 2021 call it a
    fairer picture of the worst case); ``psnr_ci95``, Student's interval of the mean over batches,
    null with one batch; ``seconds``, the mean time of one attack on one batch; ``identified``, the
    fraction of images that the control identified, null where no image had a decoy;
    ``label_accuracy``, the fraction of the labels that was recovered, null where they were
    revealed; ``failed``, the batches on which every restart left the finite numbers, which count
    in nothing else unless there are no others; ``stuck``, those on which the matching cost never
    fell; ``level`` and ``verdict``. Where metrics were asked for, ``others``: name -> mean over the
    images on which it is finite, null where there are none.

    Args:
        rows: cells, each with its images.
        preflight: defence -> what was found before its attacks; nothing where there was no look.
    """
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["attack"], row["defense"]), []).append(row)
    return [
        _summary(attack, defense, cells, (preflight or {}).get(defense))
        for (attack, defense), cells in groups.items()
    ]


def _summary(
    attack: str,
    defense: str,
    every_cell: Sequence[Mapping[str, Any]],
    preflight: Preflight | None,
) -> dict[str, Any]:
    ended = [cell for cell in every_cell if cell.get("outcome") != Outcome.NON_FINITE.value]
    failed, cells = len(every_cell) - len(ended), ended or every_cell
    scores = [score for cell in cells for score in scores_of(cell)]
    batches = [[score.psnr for score in scores_of(cell)] for cell in cells]
    distances = [score.lpips for score in scores if score.lpips is not None]
    interval = mean_interval([fmean(batch) for batch in batches])
    # Rows of before this was asked do not say it.
    stuck = sum(cell.get("cost_fell") is False for cell in ended)
    blocking = () if preflight is None else preflight.blocking
    verdict = judge(
        scores,
        attack=attack,
        defense=defense,
        failed=failed,
        stuck=stuck,
        blocked="; ".join(map(str, blocking)) or None,
        batches=len(every_cell),
    )
    return {
        "attack": attack,
        "defense": defense,
        "n": len(scores),
        "psnr_mean": fmean(score.psnr for score in scores),
        "psnr_best": fmean(max(batch) for batch in batches),
        "psnr_ci95": None if interval is None else list(interval),
        "ssim_mean": fmean(score.ssim for score in scores),
        "ssim_best": fmean(max(score.ssim for score in scores_of(cell)) for cell in cells),
        "lpips_mean": fmean(distances) if distances else None,
        "seconds": fmean(cell["seconds"] for cell in cells),
        "identified": (
            fmean(score.identified for score in scores)
            if any(score.decoys for score in scores)
            else None
        ),
        "label_accuracy": _label_accuracy(cells),
        "failed": failed,
        "stuck": stuck,
        "level": verdict.level.value,
        "verdict": verdict.sentence,
        **_other_means(scores),
    }


def _other_means(scores: Sequence[ImageScore]) -> dict[str, dict[str, float | None]]:
    """Returns the mean of each metric that was asked for, under ``others``; nothing without any."""
    means: dict[str, float | None] = {}
    for name in scores[0].others:
        values = [value for score in scores if (value := score.others[name]) is not None]
        means[name] = fmean(values) if values else None
    return {"others": means} if means else {}


def _label_accuracy(cells: Sequence[Mapping[str, Any]]) -> float | None:
    found = [(cell.get("label_recovery") or {}).get("accuracy") for cell in cells]
    measured = [accuracy for accuracy in found if accuracy is not None]
    return fmean(measured) if measured else None


def scores_of(cell: Mapping[str, Any]) -> list[ImageScore]:
    """Returns the scores that a stored cell holds."""
    return [ImageScore(**image) for image in cell["images"]]
