"""Figures of the searching attacks for ``results/methods``: do they reach what their papers say?

Each case is an audit of embedded Fashion-MNIST images, B = 1, without a defence, labels known to
the attack except for DLG's own, which it searches. Runs continue where they stopped.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.results import rows_of_audit
from gradinv.audit.plan import AuditConfig
from gradinv.audit.runner import Monitor, run_audit

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Case:
    """One network with the attacks that should rebuild a single image from its gradient.

    Attributes:
        model: name of the network.
        attacks: run on it.
        least: mean PSNR in dB that they are expected to reach.
    """

    model: str
    attacks: tuple[str, ...]
    least: float


CASES = (
    Case("lenet", ("dlg", "idlg"), 30.0),
    # Without a defence a single image needs less total variation than the preset's batches; the
    # weight was found on training images.
    Case("convnet", ("gi-x:tv=0.001",), 25.0),
)


def measure(
    folder: Path, *, batches: int = 4, seed: int = 0, monitor: Monitor | None = None
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Runs every case and returns its rows, one per image, and its figures.

    Args:
        folder: where the runs are kept.
        batches: single images to attack in each case.
        seed: of the audits.
        monitor: hears about progress.
    """
    rows: list[dict[str, Any]] = []
    for case in CASES:
        config = AuditConfig(
            model=case.model,
            batch_size=1,
            batches=batches,
            attack=case.attacks,
            defense=("none",),
            seed=seed,
        )
        audit = run_audit(config, folder / case.model, monitor=monitor)
        rows += [
            {"section": "search", "model": case.model, "least": case.least, **row}
            for row in rows_of_audit(audit, data="fashion-mnist")
        ]
    return rows, figures(rows)


def figures(rows: Iterable[Row]) -> dict[str, float]:
    """Returns ``psnr_mean ATTACK MODEL`` and ``psnr_least ATTACK MODEL``, in dB over the images.

    ATTACK is the name alone; its settings, if there are some, stand in the rows.
    """
    rows = list(rows)
    values: dict[str, float] = {}
    for spec, model in dict.fromkeys((row["attack"], row["model"]) for row in rows):
        attack = spec.partition(":")[0]
        psnr = [row["psnr"] for row in rows if (row["attack"], row["model"]) == (spec, model)]
        values[f"psnr_mean {attack} {model}"] = fmean(psnr)
        values[f"psnr_least {attack} {model}"] = min(psnr)
    return values
