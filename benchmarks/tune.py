"""Finds TV weights and learning rates on training images: ``python -m benchmarks.tune NAME ...``.

Every method gets a small grid of its own (:data:`GRIDS`) of TV weights, learning rates or both, at
the same number of steps, on images that no published figure is measured on. Stages that follow
another one start from its best end, so that a grid over the second stage does not repeat the first.
"""

import argparse
import itertools
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from rich.progress import track

from benchmarks.results import ROOT, write_results
from gradinv.attacks.attack import Adam, Attack, Stage
from gradinv.attacks.driver import Search
from gradinv.attacks.presets import UNTRAINED_W, W, Z
from gradinv.attacks.search.regularizers import TotalVariation
from gradinv.attacks.search.schedules import StepDecay
from gradinv.attacks.search.spaces import Pixels, Solution, Space
from gradinv.audit.plan import derive_seed
from gradinv.data import load_images
from gradinv.evaluation.evaluate import evaluate
from gradinv.federated import FedSGD, observe, parse_defense
from gradinv.models import build_model
from gradinv.priors import load_generator

# Name -> search space, the method that it starts from, signed steps, restarts, TV weights, rates.
Grid = tuple[Space, str | None, bool, int, tuple[float, ...], tuple[float, ...]]
GRIDS: dict[str, Grid] = {
    "gi-x": (Pixels(), None, True, 1, (1e-3, 3e-3, 1e-2, 3e-2, 1e-1), (0.1,)),
    "gi-z": (Z, None, False, 3, (1e-3,), (3e-2, 1e-1)),
    "gi-w": (UNTRAINED_W, None, False, 1, (1e-3, 1e-2), (3e-4, 1e-3)),
    "gi-z/x": (Pixels(), "gi-z", True, 1, (1e-3, 1e-2, 3e-2), (0.03,)),
    "gi-z/w": (W, "gi-z", False, 1, (1e-4, 1e-3, 1e-2), (3e-4, 1e-3)),
}


def settings_of(name: str) -> Iterator[tuple[float, float]]:
    """Returns every (TV weight, learning rate) of a method's grid."""
    return itertools.product(*GRIDS[name][4:])


def run_case(options: argparse.Namespace, defense: str) -> list[dict[str, Any]]:
    """Returns one row for each method, setting and batch."""
    images = load_images(Path(options.data), image_size=32, channels=options.channels)
    model = build_model(
        options.model,
        num_classes=images.num_classes,
        channels=images.image_shape[0],
        image_size=32,
        seed=options.seed,
    )
    prior = load_generator(Path(options.prior))
    rows = []
    batches = images.batches(
        batch_size=options.batch_size, count=options.batches, seed=options.seed
    )
    for number, batch in enumerate(batches):
        source = torch.Generator().manual_seed(derive_seed(options.seed, "defense", number))
        observation = observe(
            model,
            batch,
            protocol=FedSGD(),
            defenses=parse_defense(defense),
            generator=source,
        )
        ends: dict[str, tuple[float, Solution]] = {}
        work = [(name, *setting) for name in options.method for setting in settings_of(name)]
        for name, tv, lr in track(work, description=f"{defense}, batch {number}"):
            space, start, signed, restarts, *_ = GRIDS[name]
            stage = Stage(
                space,
                options.steps,
                Adam(lr, signed=signed),
                StepDecay(),
                (TotalVariation(tv),),
                keep=1,
            )
            search = Search(
                observation,
                model,
                Attack(name, (stage,), restarts=restarts),
                prior=prior,
                seed=derive_seed(options.seed, "attack", number),
                seconds=None,
            )
            if start is not None:
                search.previous = ends[start][1]
                search._open_stage()
            search.run_stage(None)
            result = search.reconstruction()
            scores = evaluate(result.images, batch).images
            objective = float(result.objective.min())
            row = {
                "defense": defense,
                "method": name,
                "tv": tv,
                "lr": lr,
                "batch": number,
                "psnr": fmean(score.psnr for score in scores),
                "ssim": fmean(score.ssim for score in scores),
                "objective": objective,
                "seconds": result.seconds,
            }
            rows.append(row)
            print(" ".join(f"{value:.4g}" if isinstance(value, float) else str(value)
                           for value in row.values()), flush=True)  # fmt: skip
            assert search.previous is not None
            if name not in ends or row["psnr"] > ends[name][0]:
                ends[name] = (row["psnr"], search.previous)
    return rows


def best_settings(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Returns, for each defence and method, the setting of the highest mean PSNR over batches."""
    figures: dict[str, float] = {}
    for defense, name in sorted({(row["defense"], row["method"]) for row in rows}):
        means = {}
        for tv, lr in settings_of(name):
            chosen = [
                row["psnr"]
                for row in rows
                if (row["defense"], row["method"], row["tv"], row["lr"]) == (defense, name, tv, lr)
            ]
            means[tv, lr] = fmean(chosen)
        tv, lr = max(means, key=lambda setting: means[setting])
        figures[f"{name} {defense} tv"] = tv
        figures[f"{name} {defense} lr"] = lr
        figures[f"{name} {defense} psnr_mean"] = means[tv, lr]
    return figures


def main(arguments: list[str] | None = None) -> int:
    """Runs the grids and writes ``results/NAME.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", help="of the results file, for example tuning-convnet-faces")
    parser.add_argument("--data", required=True, help="training images")
    parser.add_argument("--prior", required=True)
    parser.add_argument("--channels", type=int, default=None)
    parser.add_argument("--model", default="convnet")
    parser.add_argument("--defense", action="append", default=None)
    parser.add_argument("--method", action="append", choices=list(GRIDS), default=None)
    parser.add_argument("--batches", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args(arguments)
    options.method = options.method or list(GRIDS)
    options.defense = options.defense or ["sparsify:0.95", "none"]
    rows = [row for defense in options.defense for row in run_case(options, defense)]
    shown = {**vars(options), "data": "/".join(Path(options.data).parts[-2:])}
    shown["prior"] = Path(options.prior).name
    words = list(arguments or sys.argv[1:])
    path = write_results(
        options.name,
        command="python -m benchmarks.tune "
        + shlex.join(
            "/".join(Path(word).parts[-2:]) if word.startswith("/") else word for word in words
        ),
        settings=shown,
        figures=best_settings(rows),
        rows=rows,
    )
    print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
