"""Measures ``standard`` against GIAS and GI-x at equal time.

``python -m benchmarks.publish_standard --case ...``. For every case,
``--case NAME:DATA:PRIOR:MODEL:DEFENSE:BATCH_SIZE:SECONDS``, each attack gets the
same wall-clock time on the same updates, GIAS and GI-x with the settings that ``--tuned`` names.
``standard`` runs with fractions of that time too: ``time_ratio`` is the least of them at which its
mean PSNR is at least that of the better of the two others after all of theirs, and 1 or more where
no fraction was enough. Writes ``results/standard.json``; runs continue where they stopped.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.results import ROOT, rows_of_audit, write_results
from gradinv.api.progress import AuditProgress
from gradinv.attacks.standard import VERSION
from gradinv.audit.plan import AuditConfig
from gradinv.audit.runner import run_audit

FRACTIONS = (1.0, 1 / 3)


def measure(case: str, *, tuned: Sequence[str], batches: int, seed: int) -> list[dict[str, Any]]:
    """Returns one row per image of every attack and fraction of the time."""
    name, data, prior, model, defense, parameter, size, seconds = _parts(case)
    config = {
        "data": data,
        "prior": prior,
        "model": model,
        "defense": (f"{defense}:{parameter}" if parameter else defense,),
        "batch_size": size,
        "batches": batches,
        "seed": seed,
    }
    own = {"gi-x": "gi-x", "gi-z/w": "gi-z/w"}
    for text in tuned:
        where, spec = text.split("=", 1)
        if where == f"{name}-{model}":
            own[spec.split(":")[0]] = spec
    runs = [(1.0, tuple(own.values())), *((fraction, ("standard",)) for fraction in FRACTIONS)]
    rows = []
    for fraction, attacks in runs:
        folder = ROOT / "runs" / "standard" / f"{name}-{model}-{attacks[0].split(':')[0]}"
        folder = folder.with_name(f"{folder.name}-{fraction:.3f}")
        with AuditProgress().shown() as progress:
            audit = run_audit(
                AuditConfig(**config, attack=attacks, seconds=seconds * fraction),
                folder,
                monitor=progress,
            )
        rows += [
            {**row, "attack": row["attack"].split(":")[0], "spec": row["attack"], "model": model,
             "fraction": fraction, "seconds_allowed": seconds * fraction}
            for row in rows_of_audit(audit, data=name)
        ]  # fmt: skip
    return rows


def _parts(case: str) -> tuple[str, str, str, str, str, str, int, float]:
    """Returns the parts of a case; a defence may have a parameter of its own behind a colon."""
    parts = case.split(":")
    if len(parts) == 7:
        parts.insert(5, "")
    name, data, prior, model, defense, parameter, size, seconds = parts
    return name, data, prior, model, defense, parameter, int(size), float(seconds)


def figures_of(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Returns ``gain_db``, ``time_ratio`` and ``psnr_mean`` of every data set and model.

    The last also for ``standard`` in a third of the time.
    """
    figures: dict[str, float] = {}
    for data, model in dict.fromkeys((row["data"], row["model"]) for row in rows):
        means = {}
        for row in rows:
            if (row["data"], row["model"]) == (data, model):
                means.setdefault((row["attack"], row["fraction"]), []).append(row["psnr"])
        psnr = {key: fmean(values) for key, values in means.items()}
        other = max(psnr["gi-x", 1.0], psnr["gi-z/w", 1.0])
        reached = [f for f in FRACTIONS if psnr["standard", f] >= other]
        figures[f"gain_db {data} {model}"] = psnr["standard", 1.0] - other
        # Without any that reached it: more than the whole time, by how much is not known.
        figures[f"time_ratio {data} {model}"] = min(reached, default=2.0)
        for attack in ("standard", "gi-z/w", "gi-x"):
            figures[f"psnr_mean {attack} {data} {model}"] = psnr[attack, 1.0]
        figures[f"psnr_mean standard {data} {model} | a third"] = psnr["standard", 1 / 3]
    return figures


def main(arguments: list[str] | None = None) -> int:
    """Runs every case and writes ``results/standard.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", action="append", required=True)
    parser.add_argument(
        "--tuned", action="append", default=[], metavar="NAME-MODEL=ATTACK:SETTINGS"
    )
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    rows = [
        row
        for case in options.case
        for row in measure(case, tuned=options.tuned, batches=options.batches, seed=options.seed)
    ]
    words = [_named(word) for word in arguments or sys.argv[1:]]
    path = write_results(
        "standard",
        command="python -m benchmarks.publish_standard " + shlex.join(words),
        settings={
            "version": VERSION,
            "cases": [_named(case) for case in options.case],
            "tuned": options.tuned,
            "batches": options.batches,
            "seed": options.seed,
        },
        figures=figures_of(rows),
        rows=rows,
    )
    print(path.relative_to(ROOT))
    return 0


def _named(word: str) -> str:
    """Returns a case with the last two parts of each of its paths alone."""
    return ":".join(
        "/".join(Path(part).parts[-2:]) if part.startswith("/") else part
        for part in word.split(":")
    )


if __name__ == "__main__":
    raise SystemExit(main())
