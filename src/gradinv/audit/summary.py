"""From rows per image to ``audit.json``: the only place where an audit's numbers are reduced."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from gradinv import __version__
from gradinv.attacks.preflight import Preflight
from gradinv.attacks.result import Outcome
from gradinv.audit.baselines import controls_of
from gradinv.audit.bounds import bounds_of
from gradinv.audit.inputs import EMBEDDED
from gradinv.audit.plan import CANDIDATES, Cell
from gradinv.audit.setup import Setup
from gradinv.audit.store import SCHEMA
from gradinv.environment import machine, revision, versions
from gradinv.evaluation.candidates import CandidateScore
from gradinv.evaluation.evaluate import ImageScore
from gradinv.evaluation.intervals import mean_interval
from gradinv.evaluation.signoff import (
    Bounds,
    CandidateVerdict,
    DefenseVerdict,
    judge_candidates,
    sign_off,
)
from gradinv.evaluation.verdict import ATTACKS, Tried, Verdict, judge
from gradinv.federated import Defense


def assemble(
    setup: Setup,
    rows: Mapping[Cell, Mapping[str, Any]],
    preflight: Mapping[str, Preflight],
    pictures: Callable[[Cell], Mapping[str, Tensor]],
) -> dict[str, Any]:
    """Returns the content of ``audit.json``.

    Args:
        setup: what was audited.
        rows: of each cell, in the order of the tables.
        preflight: defence -> what was found before its attacks.
        pictures: of a finished cell, by name.
    """
    identity = setup.identity()
    images = setup.client.images
    channels, image_size, _ = images.image_shape
    attacked = {cell: row for cell, row in rows.items() if not cell.is_candidates}
    controls = controls_of(setup, attacked, pictures)
    cells = [controls.completed(cell, row) for cell, row in attacked.items()]
    candidates = [dict(row) for cell, row in rows.items() if cell.is_candidates]
    memorised = controls.memorised
    summary, verdicts = signed_off(
        cells,
        candidates,
        defenses=setup.client.defenses,
        budgets=setup.server.budget,
        rounds=setup.config.rounds,
        preflight=preflight,
        memorised={
            name: memorised
            for name, attack in setup.server.attacks.items()
            if memorised is not None and attack.uses_prior
        },
    )
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
            "date": datetime.now(UTC).date().isoformat(),
            "revision": revision(),
            "images": {"name": images.name, "count": len(images), "classes": images.num_classes},
            "machine": {**machine(), "device": _device_name(setup)},
            "versions": versions(),
            "inputs": identity["inputs"],
            "attacks": setup.described_attacks(),
        },
        "verdicts": verdicts,
        "notes": [*setup.notes(), *preflight_notes(preflight)],
        "preflight": {defense: found.describe() for defense, found in preflight.items()},
        "cells": cells,
        "candidates": candidates,
        "baselines": [baseline.row() for baseline in controls.baselines],
        "summary": summary,
    }


def signed_off(
    cells: Sequence[Mapping[str, Any]],
    candidates: Sequence[Mapping[str, Any]],
    *,
    defenses: Mapping[str, Sequence[Defense]],
    budgets: Mapping[str, float],
    rounds: int = 1,
    preflight: Mapping[str, Preflight] | None = None,
    memorised: Mapping[str, str] | None = None,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Returns the rows of the summary, and a verdict for each defence, the worst first.

    Args:
        cells: of the attacks.
        candidates: cells of candidate search.
        defenses: spec -> all that the client does.
        budgets: attack -> the part of its preset's steps that it did.
        rounds: updates that the client sends at the same weights.
        preflight: defence -> what was found before its attacks; nothing where there was no look.
        memorised: attack -> why its prior may know the images without any update.
    """
    summary, verdicts = [], []
    for defense, chain in defenses.items():
        held = [row for row in candidates if row["defense"] == defense]
        bounds = bounds_of(chain, held, rounds=rounds)
        named = judge_candidates(
            [CandidateScore.of(image) for row in held for image in row["images"]],
            bounds,
            defense=defense,
        )
        attacks: dict[str, Verdict] = {}
        tried_on = len({row["attack"] for row in cells if row["defense"] == defense})
        for name, budget in budgets.items():
            mine = [row for row in cells if (row["attack"], row["defense"]) == (name, defense)]
            if not mine:  # the undefended update beside the others has the first attack alone
                continue
            tried = _tried(
                mine,
                (preflight or {}).get(defense),
                budget=budget,
                memorised=(memorised or {}).get(name),
            )
            attacks[name] = judge(
                [score for row in ended(mine) for score in scores_of(row)],
                attack=name,
                defense=defense,
                tried=tried,
                significance=ATTACKS / tried_on,
                ceiling=named.floor,
            )
            summary.append(summary_row(mine, tried, attacks[name]))
        if held:
            summary.append(_candidates_row(defense, held, named))
        verdicts.append(_verdict(defense, cells, attacks, named, bounds))
    verdicts.sort(key=lambda verdict: verdict.level.severity, reverse=True)
    return summary, [verdict.row() for verdict in verdicts]


def _verdict(
    defense: str,
    cells: Sequence[Mapping[str, Any]],
    attacks: Mapping[str, Verdict],
    named: CandidateVerdict,
    bounds: Bounds,
) -> DefenseVerdict:
    mine = [row for row in cells if row["defense"] == defense]
    by_attack = [
        [score for row in mine if row["attack"] == name for score in scores_of(row)]
        for name in attacks
    ]
    return sign_off(
        attacks,
        named,
        bounds,
        defense=defense,
        decoys=max(score.decoys for scores in by_attack for score in scores),
        luck=sum(score.luck for score in by_attack[0]),
        stalled=any(_state(row) == "stalled" for row in mine),
    )


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


def summary_row(
    every_cell: Sequence[Mapping[str, Any]], tried: Tried, verdict: Verdict
) -> dict[str, Any]:
    """Returns the row of one attack under one defence.

    ``n`` images; ``psnr_mean``, ``ssim_mean`` and ``lpips_mean`` over them; ``psnr_best`` and
    ``ssim_best``, the best image of a batch, averaged over batches (Jeon et al. 2021 call it a
    fairer picture of the worst case); ``psnr_ci95``, Student's interval of the mean over batches,
    null with one batch; ``seconds``, the mean time of one attack on one batch; ``identified``, the
    fraction of images that the control identified, null where no image had a decoy;
    ``recognisable``, the fraction that is better than anything that knows nothing of it;
    ``label_accuracy``, the fraction of the labels that was recovered, null where they were
    revealed; ``failed``, the batches on which every restart left the finite numbers, which count
    in nothing else unless there are no others; ``stuck``, those on which the matching cost never
    fell; ``stalled``, ``reached`` and ``passed``, those on which the search ended before, at and
    beyond the cost of the true images, and ``truth``, the mean of that cost; ``level`` and
    ``verdict``. Where metrics were asked for, ``others``: name -> mean over the images on which it
    is finite, null where there are none.

    Args:
        every_cell: of the attack under the defence.
        tried: how it was run.
        verdict: on it.
    """
    cells = ended(every_cell)
    scores = [score for cell in cells for score in scores_of(cell)]
    batches = [[score.psnr for score in scores_of(cell)] for cell in cells]
    distances = [score.lpips for score in scores if score.lpips is not None]
    interval = mean_interval([fmean(batch) for batch in batches])
    controlled = any(score.decoys for score in scores)
    truths = [cell["truth"]["cost"] for cell in cells if _state(cell) is not None]
    states = Counter(_state(cell) for cell in cells)
    return {
        "attack": every_cell[0]["attack"],
        "defense": every_cell[0]["defense"],
        "n": len(scores),
        "psnr_mean": fmean(score.psnr for score in scores),
        "psnr_best": fmean(max(batch) for batch in batches),
        "psnr_ci95": None if interval is None else list(interval),
        "ssim_mean": fmean(score.ssim for score in scores),
        "ssim_best": fmean(max(score.ssim for score in scores_of(cell)) for cell in cells),
        "lpips_mean": fmean(distances) if distances else None,
        "seconds": fmean(cell["seconds"] for cell in cells),
        "identified": fmean(score.identified for score in scores) if controlled else None,
        "recognisable": fmean(score.recognisable for score in scores) if controlled else None,
        "label_accuracy": _label_accuracy(cells),
        "failed": tried.failed,
        "stuck": tried.stuck,
        "truth": fmean(truths) if truths else None,
        **{state: states[state] for state in ("stalled", "reached", "passed")},
        "level": verdict.level.value,
        "verdict": verdict.sentence,
        **_other_means(scores),
    }


def _candidates_row(
    defense: str, held: Sequence[Mapping[str, Any]], named: CandidateVerdict
) -> dict[str, Any]:
    """Returns the row of candidate search: no pictures, so no PSNR."""
    return {
        "attack": CANDIDATES,
        "defense": defense,
        "n": named.images,
        "psnr_mean": None,
        "psnr_best": None,
        "psnr_ci95": None,
        "ssim_mean": None,
        "lpips_mean": None,
        "seconds": fmean(row["seconds"] for row in held),
        "identified": named.named_known / named.images if named.images else None,
        "level": named.level.value,
        "verdict": named.sentence,
    }


def _tried(
    cells: Sequence[Mapping[str, Any]],
    preflight: Preflight | None,
    *,
    budget: float,
    memorised: str | None,
) -> Tried:
    finished = [cell for cell in cells if not _failed(cell)]
    blocking = () if preflight is None else preflight.blocking
    return Tried(
        batches=len(cells),
        failed=len(cells) - len(finished),
        # Rows of before this was asked do not say it.
        stuck=sum(cell.get("cost_fell") is False for cell in finished),
        stalled=sum(_state(cell) == "stalled" for cell in finished),
        blocked="; ".join(map(str, blocking)) or None,
        budget=budget,
        memorised=memorised,
    )


def _state(cell: Mapping[str, Any]) -> str | None:
    return (cell.get("truth") or {}).get("state")


def _failed(cell: Mapping[str, Any]) -> bool:
    return cell.get("outcome") == Outcome.NON_FINITE.value


def ended(cells: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """Returns the cells whose attack did not leave the finite numbers; all where each did."""
    return [cell for cell in cells if not _failed(cell)] or cells


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
