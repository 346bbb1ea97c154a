"""Audits real images and publishes the figures: ``python -m benchmarks.publish audit-convnet ...``.

Each ``--case NAME:DATA:PRIOR`` is one set of images with the prior that belongs to it; the first
case under the first defence is the main setting of the table. ``--tuned DEFENSE=ATTACK:SETTINGS``
gives an attack other numbers under one defence, as found by ``benchmarks.tune`` on training images;
``--skip "NAME DEFENSE"`` leaves a combination out.
Runs are kept in ``runs/publish`` and continue where they stopped. The pictures stay there; only
numbers are published.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.results import ROOT, image_figures, rows_of_audit, write_results
from gradinv.api.progress import AuditProgress
from gradinv.audit.plan import AuditConfig
from gradinv.audit.runner import run_audit
from gradinv.report import write_report

ATTACKS = ("gi-x", "gi-z", "gi-w", "gi-z/x", "gi-z/w")


def main(arguments: list[str] | None = None) -> int:
    """Runs every case and writes ``results/NAME.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", help="of the results file, for example audit-convnet")
    parser.add_argument("--case", action="append", required=True, metavar="NAME:DATA:PRIOR")
    parser.add_argument("--defense", action="append", default=None)
    parser.add_argument("--attack", action="append", default=None)
    parser.add_argument("--tuned", action="append", default=[], metavar="DEFENSE=ATTACK:SETTINGS")
    parser.add_argument("--skip", action="append", default=[], metavar='"NAME DEFENSE"')
    parser.add_argument("--model", default="convnet")
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--steps-scale", type=float, default=1.0)
    parser.add_argument("--seconds", type=float, default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args(arguments)
    defenses = tuple(options.defense or ("sparsify:0.95", "none"))
    config = AuditConfig(
        model=options.model,
        batch_size=options.batch_size,
        batches=options.batches,
        steps_scale=options.steps_scale,
        seconds=options.seconds,
        seed=options.seed,
        device=options.device,
    )
    rows, settings = [], {}
    for case in options.case:
        name, data, prior = case.split(":")
        for defense in defenses:
            if f"{name} {defense}" in options.skip:
                continue
            specs = _specs(options.attack or ATTACKS, options.tuned, defense)
            folder = ROOT / "runs" / "publish" / options.name / f"{name}-{defense.split(':')[0]}"
            own = replace(
                config, data=data, prior=prior, attack=tuple(specs.values()), defense=(defense,)
            )
            with AuditProgress().shown() as progress:
                audit = run_audit(own, folder, monitor=progress)
            write_report(folder)
            names = {spec: attack for attack, spec in specs.items()}
            rows += [
                {**row, "attack": names[row["attack"]]} for row in rows_of_audit(audit, data=name)
            ]
            settings[f"{name} {defense}"] = {
                "data": Path(data).name, "prior": Path(prior).name,
                "inputs": audit["config"]["inputs"], "attacks": audit["config"]["attacks"],
            }  # fmt: skip
    first = options.case[0].split(":")[0]
    shown = [word if ":/" not in word else _named(word) for word in sys.argv[1:]]
    path = write_results(
        options.name,
        command="python -m benchmarks.publish " + shlex.join(arguments or shown),
        settings={
            "main": f"{first} {defenses[0]}",
            "model": options.model,
            "batches": options.batches,
            "batch_size": options.batch_size,
            "mode": "eval",
            "labels_known": True,
            "steps_scale": options.steps_scale,
            "seconds_per_cell": options.seconds,
            "seed": options.seed,
            "cases": settings,
        },
        figures=image_figures(rows, main=f"{first} {defenses[0]}"),
        rows=rows,
    )
    print(path.relative_to(ROOT))
    return 0


def _specs(attacks: Sequence[str], tuned: Sequence[str], defense: str) -> dict[str, str]:
    """Returns name -> spec of every attack under one defence."""
    own = [text.split("=", 1)[1] for text in tuned if text.startswith(f"{defense}=")]
    settings = {spec.split(":")[0]: spec for spec in own}
    return {attack: settings.get(attack, attack) for attack in attacks}


def _named(case: str) -> str:
    """Returns NAME:DATA:PRIOR with the last two parts of each path alone."""
    name, *paths = case.split(":")
    return ":".join([name, *("/".join(Path(path).parts[-2:]) for path in paths)])


if __name__ == "__main__":
    raise SystemExit(main())
