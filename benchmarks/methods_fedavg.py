"""How much simulating a client's local training is worth: ``python -m benchmarks.methods_fedavg``.

Embedded Fashion-MNIST test images at 16x16, ConvNet with random weights (of two blocks where batch
norm is in train mode), B = 4, no defence, GI-x with TV 0.01, lr 0.3 (the best of three settings for
FedSGD on a batch of training images) and 200 steps for every row. Small images, so that 200 steps
are enough to rebuild something from one gradient, and what is lost is lost to local training. Each
pair of rows differs in how the update is explained alone: local training simulated, or the update
taken for one gradient at the weights that were sent out.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.results import ROOT, rows_of_audit
from gradinv.api.progress import AuditProgress
from gradinv.audit.plan import AuditConfig
from gradinv.audit.runner import run_audit
from gradinv.models.convnet import ConvNet

SIMULATED = "gi-x:tv=0.01:lr=0.3:steps=200"
APPROXIMATED = f"{SIMULATED}:fedavg=approximate"

_BASE = AuditConfig(
    image_size=16,
    model="convnet",
    batch_size=4,
    batches=4,
    attack=(SIMULATED, APPROXIMATED),
    defense=("none",),
    workers=1,
    device="cpu",
)
_FEDAVG = replace(_BASE, protocol="fedavg")
_STRONG = replace(_FEDAVG, local_epochs=5, local_lr=0.3)
# In train mode six blocks hide everything, from FedSGD's attacker too: nothing to compare.
_TRAIN = replace(_FEDAVG, mode="train", model="benchmarks.methods_fedavg:two_blocks")
_SPLIT = replace(_FEDAVG, local_epochs=2, local_batch_size=2, local_lr=0.3)

CASES = {
    "5 steps lr 0.3": _STRONG,
    "5 steps lr 0.03": replace(_STRONG, local_lr=0.03),
    "fedsgd": replace(_BASE, attack=(SIMULATED,)),
    "2 epochs of 2 mini-batches lr 0.3": _SPLIT,
    "2 epochs of 2 mini-batches lr 0.3, order revealed": replace(
        _SPLIT, reveal_order=True, attack=(SIMULATED,)
    ),
    "5 steps lr 0.1 momentum 0.9": replace(_STRONG, local_lr=0.1, local_momentum=0.9),
    "5 steps lr 0.1, train mode, 2 blocks": replace(_TRAIN, local_epochs=5, local_lr=0.1),
    "fedsgd, train mode, 2 blocks": replace(
        _BASE, mode="train", model=_TRAIN.model, attack=(SIMULATED,)
    ),
}


def two_blocks(num_classes: int, channels: int, image_size: int) -> ConvNet:
    """Returns a ConvNet that gives something away in train mode."""
    return ConvNet(num_classes, channels, image_size, widths=(32, 32))


def measure(
    *, batches: int = 4, workers: int = 1, folder: Path | None = None
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Audits every case and returns one row per image, and the figures made from them.

    Figures: ``fedavg psnr_mean CASE: HOW`` and ``fedavg seconds CASE: HOW`` (mean over batches),
    HOW being simulate or approximate, and ``fedavg gain_db CASE``, the difference of the PSNRs.
    Runs are kept in ``folder`` (``runs/methods-fedavg`` by default) and go on where they stopped.

    Args:
        batches: client batches of each case.
        workers: processes; the figures do not depend on it, but the seconds do.
        folder: where the runs are kept.
    """
    kept = folder or ROOT / "runs" / "methods-fedavg"
    rows: list[dict[str, Any]] = []
    figures: dict[str, float] = {}
    for number, (case, config) in enumerate(CASES.items()):
        with AuditProgress().shown() as progress:
            audit = run_audit(
                replace(config, batches=batches, workers=workers),
                kept / f"case{number}-{batches}",
                monitor=progress,
            )
        found = rows_of_audit(audit, data="fashion-mnist 16x16")
        for row in found:
            row["setting"] = case
            row["fedavg"] = "approximate" if row["attack"] == APPROXIMATED else "simulate"
        rows += found
        for how in dict.fromkeys(row["fedavg"] for row in found):
            chosen = [row for row in found if row["fedavg"] == how]
            figures[f"fedavg psnr_mean {case}: {how}"] = fmean(row["psnr"] for row in chosen)
            figures[f"fedavg seconds {case}: {how}"] = fmean(row["seconds"] for row in chosen)
        if len(config.attack) == 2:
            figures[f"fedavg gain_db {case}"] = (
                figures[f"fedavg psnr_mean {case}: simulate"]
                - figures[f"fedavg psnr_mean {case}: approximate"]
            )
    return rows, figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, default=4)
    for name, value in measure(batches=parser.parse_args().batches)[1].items():
        print(f"{value:8.2f}  {name}")
