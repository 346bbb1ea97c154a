"""What is learned and attacked for ``results/giml.json``, at two scales."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.results import rows_of_audit
from gradinv.api.progress import AuditProgress
from gradinv.audit.plan import AuditConfig
from gradinv.audit.runner import run_audit
from gradinv.cli import main as gradinv
from gradinv.data import load_images
from gradinv.errors import GradinvError
from gradinv.files import read_json
from gradinv.priors.generator import Generator
from gradinv.priors.quality import measure_quality

DEFENSE = "sparsify:0.95"
REAL = 2000  # images that samples are compared with


@dataclass(frozen=True)
class Scale:
    """One setting of the whole comparison.

    Attributes:
        model: the clients' network.
        clients: of the simulated federation.
        rounds: of the simulated federation.
        batches: of test images that are attacked.
        learning: options of ``gradinv learn-prior``.
        steps: outer steps.
        snapshots: outer steps after which the prior is attacked with.
        steps_scale: of every attack.
        attack: over z and w.
        untrained: over w alone, from an untrained generator.
        convergence: smaller fractions of the attacks' steps.
        watched_steps: outer steps for each round watched, for the leakage over rounds.
        watched_batches: of test images that are attacked after each round.
        equal: options with and without remembered latents that cost as many evaluations.
    """

    model: str
    clients: int
    rounds: int
    batches: int
    learning: tuple[str, ...]
    steps: int
    snapshots: tuple[int, ...]
    steps_scale: float
    attack: str
    untrained: str
    convergence: tuple[float, ...]
    watched_steps: int
    watched_batches: int
    equal: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


_EQUAL = {
    "remembered": ("--steps", "300", "--tasks", "8", "--weight-steps", "2"),
    "fresh": (
        "--steps", "5", "--tasks", "8", "--latent-steps", "100", "--weight-steps", "20",
        "--no-remember",
    ),
}  # fmt: skip

SCALES = {
    # For one core: the network of the other tables, four restarts, 0.4 of the attacks' steps.
    "quick": Scale(
        model="convnet",
        clients=100,
        rounds=4,
        batches=8,
        learning=(),
        steps=2000,
        snapshots=(250, 500, 1000, 2000),
        steps_scale=0.4,
        attack="gi-z/w:restarts=4",
        untrained="gi-w:tv=0.01",
        convergence=(0.1, 0.2),
        watched_steps=200,
        watched_batches=4,
        equal=_EQUAL,
    ),
    # The paper's: 4 rounds of 200 nodes, ResNet18, its own inner loop.
    "full": Scale(
        model="resnet18",
        clients=200,
        rounds=4,
        batches=25,
        learning=("--paper",),
        steps=200,
        snapshots=(25, 50, 100, 200),
        steps_scale=1.0,
        attack="gi-z/w",
        untrained="gi-w:tv=0.01",
        convergence=(0.1, 0.25, 0.5),
        watched_steps=100,
        watched_batches=8,
        equal=_EQUAL,
    ),
}


def learn(out: Path, *words: str) -> Path:
    """Learns a prior with the project's own command, or continues to; returns its folder.

    Raises:
        GradinvError: it was stopped, or went wrong.
    """
    status = gradinv(["learn-prior", *words, "--out", str(out)])
    if status != 0:
        raise GradinvError(f"expected learn-prior to end well, got status {status}; run it again")
    return out


def snapshot(prior: Path, step: int) -> Path:
    """Returns the folder of the prior after ``step`` outer steps."""
    return prior / "snapshots" / f"{step:06d}"


def attacked(
    prior: Path, folder: Path, scale: Scale, *, test: str, attack: str, steps_scale: float
) -> list[dict[str, Any]]:
    """Attacks the test batches with a prior; returns one row per image.

    ``psnr_z`` is the batch's mean PSNR after the latents' stage, which is GI-z; it is missing for
    an attack without one.
    """
    config = AuditConfig(
        data=test, model=scale.model, batches=scale.batches, attack=(attack,),
        defense=(DEFENSE,), prior=str(prior), steps_scale=steps_scale,
    )  # fmt: skip
    with AuditProgress().shown() as progress:
        audit = run_audit(config, folder, monitor=progress)
    after_z = {
        cell["batch"]: cell["stages"][0]["psnr_mean"]
        for cell in audit["cells"]
        if cell["stages"][0]["name"] == "z"
    }
    kept = ("attack", "batch", "image", "psnr", "ssim", "mse", "rank", "objective", "seconds")
    return [
        {
            **{name: row[name] for name in kept},
            "steps_scale": steps_scale,
            **({"psnr_z": after_z[row["batch"]]} if row["batch"] in after_z else {}),
        }
        for row in rows_of_audit(audit, data="faces")
    ]


def quality_rows(
    priors: Mapping[int, Generator], train: str, *, image_size: int = 32
) -> list[dict[str, Any]]:
    """Returns how far the samples of each outer step's prior are from real images.

    The judge's side: a server that learns from updates has no images to do this with.
    """
    images = load_images(train, image_size=image_size)
    real = images.images(range(0, len(images), max(1, len(images) // REAL)))
    return [
        {"kind": "samples", "outer_step": step, **measure_quality(prior, real).as_dict()}
        for step, prior in priors.items()
    ]


def mean(rows: Sequence[Mapping[str, Any]], name: str, **wanted: Any) -> float:
    """Returns the mean of a column over the rows with these values."""
    return fmean(
        row[name]
        for row in rows
        if name in row and all(row.get(key) == value for key, value in wanted.items())
    )


def last_cost(prior: Path, entries: int = 50) -> float:
    """Returns the mean matching cost over the last outer steps."""
    return fmean(entry["cost"] for entry in read_json(prior / "learning" / "log.json")[-entries:])
