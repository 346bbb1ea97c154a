"""Measures tuned settings against those before them, on images that nothing was tuned on.

``python -m benchmarks.publish_tuned --images NAME TEST ...``. ``gi-x`` as it is shipped and as it
was, at the same number of steps on the same updates of the small network; what is said is the mean
of the differences over batches, with its interval. Beside it stands what a server without the
update would show. Writes ``results/tuned.json``; a run continues where it stopped.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from benchmarks.results import ROOT, command_line, rows_of_audit, write_results
from gradinv.api.progress import AuditProgress
from gradinv.attacks.settings import settings_of
from gradinv.audit.plan import AuditConfig
from gradinv.audit.runner import run_audit
from gradinv.evaluation.intervals import mean_interval

BEFORE = "lr=0.1:tv=0.01:signed=yes:schedule=step"
DEFENSES = ("none", "sparsify:0.95")


def gain(rows: Sequence[Mapping[str, Any]], after: str, before: str) -> dict[str, float]:
    """Returns the mean difference of two attacks' PSNR over batches, with its 95 % interval.

    Args:
        rows: of one data set and defence, one for each image and attack.
        after: an attack's spec.
        before: the other's.
    """
    means: dict[tuple[str, int], list[float]] = {}
    for row in rows:
        means.setdefault((row["attack"], row["batch"]), []).append(row["psnr"])
    batches = sorted({batch for _, batch in means})
    differences = [fmean(means[after, b]) - fmean(means[before, b]) for b in batches]
    interval = mean_interval(differences)
    assert interval is not None, "two batches or more"
    return {"gain": fmean(differences), "low": interval[0], "high": interval[1]}


def main(arguments: list[str] | None = None) -> int:
    """Attacks every set and writes ``results/tuned.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--images", nargs=2, action="append", required=True, metavar=("NAME", "TEST")
    )
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batches", type=int, default=25)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=100)
    options = parser.parse_args(arguments)
    after, before = f"gi-x:steps={options.steps}", f"gi-x:steps={options.steps}:{BEFORE}"
    figures: dict[str, float] = {}
    rows: list[dict[str, Any]] = []
    for name, test in options.images:
        config = AuditConfig(
            data=test,
            attack=(after, before),
            defense=DEFENSES,
            batches=options.batches,
            seed=options.seed,
            workers=options.workers,
        )
        with AuditProgress().shown() as progress:
            audit = run_audit(config, ROOT / "runs" / "tuned" / name, monitor=progress)
        found = rows_of_audit(audit, data=name)
        rows += found
        for defense in DEFENSES:
            own = [row for row in found if row["setting"] == defense]
            for key, value in gain(own, after, before).items():
                figures[f"{key} {name} {defense}"] = value
            for spec, word in ((after, "tuned"), (before, "before")):
                mean = fmean(row["psnr"] for row in own if row["attack"] == spec)
                figures[f"psnr_mean {word} {name} {defense}"] = mean
        for row in audit["baselines"]:
            if row["attack"] is None:
                figures[f"psnr_mean {row['name']} {name}"] = row["psnr_mean"]
    path = write_results(
        "tuned",
        command=command_line("publish_tuned", arguments or sys.argv[1:]),
        settings={
            "model": "convnet",
            "mode": "eval",
            "batch_size": 4,
            "batches": options.batches,
            "steps": options.steps,
            "before": BEFORE,
            "tuned": dict(settings_of("gi-x")),
            "seed": options.seed,
        },
        figures=figures,
        rows=rows,
    )
    print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
