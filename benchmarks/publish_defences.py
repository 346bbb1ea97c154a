"""Measures how much every defence leaves of an attack, and what it costs in accuracy.

``python -m benchmarks.publish_defences --train TRAIN --test TEST --trained-on NAME``. The
updates that are attacked are those of the default audit's images (Fashion-MNIST test images, with
the embedded prior), in train mode at the network's first weights, which is when it tells most. Each
attack knows the defence. A network of the same kind is trained with it on the training images and
tested on all test images, from several seeds; see :mod:`benchmarks.utility`. The least noise with
which the ceiling over the candidates excludes naming is one more defence. Without ``--train`` the
accuracies are those of the last ``results/defences.json``, with the number of trainings behind
them. Writes ``results/defences.json``; a run continues where it stopped.
"""

import argparse
import math
import multiprocessing
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, replace
from statistics import fmean
from typing import Any

import torch
from rich.progress import track

from benchmarks.results import RESULTS, ROOT, command_line, rows_of_audit, write_results
from benchmarks.utility import Training
from gradinv.api.progress import AuditProgress
from gradinv.audit.plan import CANDIDATES, AuditConfig
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
    parser.add_argument("--train", default=None, metavar="PATH", help="images to train on")
    parser.add_argument("--test", default=None, metavar="PATH", help="images to test on")
    parser.add_argument(
        "--trained-on", default="Fashion-MNIST", help="what these images are called"
    )
    parser.add_argument("--trainings", type=int, default=3, help="networks for each defence")
    parser.add_argument("--defense", action="append", default=None)
    parser.add_argument("--attack", action="append", default=None)
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=Training.rounds)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    defenses = tuple(options.defense or DEFENSES)
    config = AuditConfig(
        mode="train",
        attack=tuple(options.attack or ATTACKS),
        defense=defenses,
        batches=options.batches,
        seed=options.seed,
        workers=options.workers,
    )
    audit = _audited(config, "audit")
    least = _least_noise(audit["verdicts"])
    excluding = _audited(replace(config, defense=(least,)), "excluding")
    for part in ("summary", "verdicts", "cells", "candidates"):
        audit[part] += excluding[part]
    training = Training(rounds=options.rounds, seed=options.seed)
    accuracies = (
        _known_accuracies()
        if options.train is None
        else _accuracies((*defenses, least), training, options)
    )
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
            "trained_on": options.trained_on,
            "trainings": {defense: len(found) for defense, found in accuracies.items()},
            "accuracies": accuracies,
            "seed": options.seed,
            "excluding": least,
            "strongest": {
                defense: {key: row[key] for key in ("attack", "level", "n", "verdict")}
                for defense, row in strongest(audit["summary"]).items()
            },
            "verdicts": audit["verdicts"],
        },
        figures=figures_of(audit["summary"], audit["verdicts"], accuracies),
        rows=rows_of_audit(audit, data="fashion"),
    )
    print(path.relative_to(ROOT))
    return 0


def _audited(config: AuditConfig, name: str) -> dict[str, Any]:
    with AuditProgress().shown() as progress:
        audit = run_audit(config, _RUNS / name, monitor=progress)
    write_report(_RUNS / name)
    return audit


def _least_noise(verdicts: Sequence[Mapping[str, Any]]) -> str:
    """Returns the least noise, to two digits, that the undefended update's candidates ask for."""
    (plain,) = [verdict for verdict in verdicts if verdict["defense"] == "none"]
    needed = plain["sigma_needed"]
    digits = 10 ** (1 - math.floor(math.log10(needed)))
    return f"noise:{math.ceil(needed * digits) / digits:g}"


def _known_accuracies() -> dict[str, list[float]]:
    """Returns those of the last results; one each in those of before there were more."""
    last = read_json(RESULTS / "defences.json")
    if "accuracies" in last["settings"]:
        return last["settings"]["accuracies"]
    return {
        name.removeprefix("accuracy "): [value]
        for name, value in last["figures"].items()
        if name.startswith("accuracy ")
    }


def _accuracies(
    defenses: Sequence[str], training: Training, options: argparse.Namespace
) -> dict[str, list[float]]:
    """Returns the accuracies under every defence; those that are known are not measured again."""
    path = _RUNS / "accuracies.json"
    known: dict[str, Any] = read_json(path) if path.exists() else {}
    if known.get("training") != asdict(training):
        known = {"training": asdict(training), "accuracy": {}}
    plan = [(own, training.seed + more) for own in defenses for more in range(options.trainings)]
    missing = [(own, seed) for own, seed in plan if f"{own} {seed}" not in known["accuracy"]]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        options.workers, context, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        waiting = {
            pool.submit(
                replace(training, seed=seed).accuracy, own, options.train, options.test
            ): f"{own} {seed}"
            for own, seed in missing
        }
        finished = as_completed(waiting)
        for done in track(finished, "networks trained", total=len(missing), disable=not missing):
            known["accuracy"][waiting[done]] = done.result()
            write_json(path, known)
    return {
        own: [known["accuracy"][f"{own} {seed}"] for other, seed in plan if other == own]
        for own in defenses
    }


def strongest(summary: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Returns for each defence the attack with the gravest level, and of those the highest PSNR.

    Candidate search makes no pictures, so it is none of them.
    """
    best: dict[str, Mapping[str, Any]] = {}
    attacks = [row for row in summary if row["attack"] != CANDIDATES]
    for row in sorted(attacks, key=lambda row: (Level(row["level"]).severity, row["psnr_mean"])):
        best[row["defense"]] = row
    return {row["defense"]: best[row["defense"]] for row in attacks}


def figures_of(
    summary: Sequence[Mapping[str, Any]],
    verdicts: Sequence[Mapping[str, Any]],
    accuracies: Mapping[str, Sequence[float]],
) -> dict[str, float]:
    """Returns what was found of every defence, what nobody can find, and the accuracy that is left.

    ``psnr_mean DEFENCE``, ``ssim_mean DEFENCE`` and ``identified DEFENCE`` (the share of the
    images) of the strongest attack; of the verdict ``level DEFENCE`` (0 for excluded, 3 for
    severe), and where there are such ``named``, ``named_known``, ``ceiling``, ``closed_form``,
    ``epsilon`` and ``sigma_needed``; ``accuracy DEFENCE``, the mean over trainings.
    """
    figures: dict[str, float] = {}
    attacks = strongest(summary)
    for verdict in verdicts:
        defense = verdict["defense"]
        for name in ("psnr_mean", "ssim_mean", "identified"):
            figures[f"{name} {defense}"] = attacks[defense][name]
        figures[f"level {defense}"] = Level(verdict["level"]).severity
        for name in _OF_VERDICT:
            if verdict[name] is not None:
                figures[f"{name} {defense}"] = verdict[name]
        if defense in accuracies:
            figures[f"accuracy {defense}"] = fmean(accuracies[defense])
    return figures


_OF_VERDICT = ("named", "named_known", "ceiling", "closed_form", "epsilon", "sigma_needed")


if __name__ == "__main__":
    raise SystemExit(main())
