"""Measures how much every defence leaves of an attack, and what it costs in accuracy.

``python -m benchmarks.publish_defences --train TRAIN-images-idx3-ubyte.gz --test TEST-...``. The
updates that are attacked are those of the default audit's images (Fashion-MNIST test images, with
the embedded prior), in train mode at the network's first weights, which is when it tells most. Each
attack knows the defence. A network of the same kind is trained with it on the training images and
tested on all test images; see :mod:`benchmarks.utility`. Writes ``results/defences.json``; a run
continues where it stopped.
"""

import argparse
import multiprocessing
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from typing import Any

import torch
from rich.progress import track

from benchmarks.results import ROOT, command_line, rows_of_audit, write_results
from benchmarks.utility import Training
from gradinv.api.progress import AuditProgress
from gradinv.audit.plan import AuditConfig
from gradinv.audit.runner import run_audit
from gradinv.evaluation.verdict import Level
from gradinv.files import read_json, write_json
from gradinv.report import write_report

DEFENSES = (
    "none",
    "noise:0.1",
    "noise:0.3",
    "noise:1",
    "noise:3",
    "sparsify:0.9",
    "sparsify:0.99",
    "sparsify:0.999",
    "clip:1+noise:0.003",
    "clip:1+noise:0.01",
    "clip:1+noise:0.03",
    "clip:1+noise:0.1",
)
ATTACKS = ("standard",)
_RUNS = ROOT / "runs" / "defences"


def main(arguments: list[str] | None = None) -> int:
    """Trains, attacks, and writes ``results/defences.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", required=True, metavar="FILE", help="IDX file of images")
    parser.add_argument("--test", required=True, metavar="FILE", help="IDX file of images")
    parser.add_argument("--defense", action="append", default=None)
    parser.add_argument("--attack", action="append", default=None)
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=Training.rounds)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    defenses = tuple(options.defense or DEFENSES)
    training = Training(rounds=options.rounds, seed=options.seed)
    accuracies = _accuracies(defenses, training, options.train, options.test, options.workers)
    config = AuditConfig(
        mode="train",
        attack=tuple(options.attack or ATTACKS),
        defense=defenses,
        batches=options.batches,
        seed=options.seed,
        workers=options.workers,
    )
    with AuditProgress().shown() as progress:
        audit = run_audit(config, _RUNS / "audit", monitor=progress)
    write_report(_RUNS / "audit")
    path = write_results(
        "defences",
        command=command_line("publish_defences", arguments or sys.argv[1:]),
        settings={
            "model": config.model,
            "mode": config.mode,
            "batch_size": config.batch_size,
            "batches": config.batches,
            "attacks": audit["config"]["attacks"],
            "training": asdict(training),
            "seed": options.seed,
            "strongest": {
                defense: {key: row[key] for key in ("attack", "level", "n", "verdict")}
                for defense, row in strongest(audit["summary"]).items()
            },
        },
        figures=figures_of(audit["summary"], accuracies),
        rows=rows_of_audit(audit, data="fashion"),
    )
    print(path.relative_to(ROOT))
    return 0


def _accuracies(
    defenses: Sequence[str], training: Training, train: str, test: str, workers: int
) -> dict[str, float]:
    """Returns the accuracy under every defence; those that are known are not measured again."""
    path = _RUNS / "accuracies.json"
    known: dict[str, Any] = read_json(path) if path.exists() else {}
    if known.get("training") != asdict(training):
        known = {"training": asdict(training), "accuracy": {}}
    missing = [defense for defense in defenses if defense not in known["accuracy"]]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        workers, context, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        waiting = {pool.submit(training.accuracy, own, train, test): own for own in missing}
        finished = as_completed(waiting)
        for done in track(finished, "networks trained", total=len(missing), disable=not missing):
            known["accuracy"][waiting[done]] = done.result()
            write_json(path, known)
    return {defense: known["accuracy"][defense] for defense in defenses}


def strongest(summary: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Returns for each defence the row with the gravest verdict, and of those the highest PSNR."""
    best: dict[str, Mapping[str, Any]] = {}
    for row in sorted(summary, key=lambda row: (Level(row["level"]).severity, row["psnr_mean"])):
        best[row["defense"]] = row
    return {row["defense"]: best[row["defense"]] for row in summary}


def figures_of(
    summary: Sequence[Mapping[str, Any]], accuracies: Mapping[str, float]
) -> dict[str, float]:
    """Returns what the strongest attack makes of every defence, and the accuracy that is left.

    ``psnr_mean DEFENCE``, ``ssim_mean DEFENCE``, ``identified DEFENCE`` (the share of the images)
    and ``level DEFENCE`` (0 for none found, 3 for severe) of that attack; ``accuracy DEFENCE``.
    """
    figures: dict[str, float] = {}
    for defense, row in strongest(summary).items():
        for name in ("psnr_mean", "ssim_mean", "identified"):
            figures[f"{name} {defense}"] = row[name]
        figures[f"level {defense}"] = Level(row["level"]).severity
        figures[f"accuracy {defense}"] = accuracies[defense]
    return figures


if __name__ == "__main__":
    raise SystemExit(main())
