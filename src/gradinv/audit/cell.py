"""One cell of an audit, three functions that do not share their arguments.

:func:`observe_cell` is the client and gets the images; :func:`attack_cell` is the server and gets
the observation; :func:`judge_cell` is the judge and gets both ends. :func:`compute_cell` calls one
after the other, resumes from a checkpoint and leaves one.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gradinv.attacks import (
    AnalyticAttack,
    Attack,
    Checkpoint,
    Progress,
    Reconstruction,
    invert,
    recover_labels,
)
from gradinv.attacks.preflight import Preflight, preflight_derivative
from gradinv.attacks.recursion.peeling import require_peelable
from gradinv.audit.limits import require_audit_fits
from gradinv.audit.plan import Cell, derive_seed
from gradinv.audit.rows import attack_row, finite, picture_tensors, to_uint8
from gradinv.audit.setup import Setup
from gradinv.audit.store import Store
from gradinv.audit.truth import truth_row
from gradinv.data import ClientBatch
from gradinv.evaluation.evaluate import Evaluation, Metric, evaluate, label_accuracy
from gradinv.evaluation.lpips import Lpips
from gradinv.evaluation.metrics import psnr
from gradinv.federated import (
    Defense,
    Observation,
    Protocol,
    Reveal,
    observe,
    trainable,
)
from gradinv.priors import Generator

CHECKPOINT_SECONDS = 30.0
BEAT_SECONDS = 0.25


class CellStopped(Exception):  # noqa: N818 - no error, a way out of the loop
    """Leaves an attack after its checkpoint was saved."""


@dataclass(frozen=True)
class Beat:
    """How far a running cell is.

    Attributes:
        slug: which cell.
        fraction: of its work, 0 to 1.
        stage: name of the stage.
        step: steps done.
        steps: steps in all.
        seconds: spent on it, before an interruption included.
        cost: smallest matching cost over the restarts; None where there is no such thing.
    """

    slug: str
    fraction: float
    stage: str
    step: int
    steps: int
    seconds: float
    cost: float | None


def observe_cell(
    model: nn.Module,
    batch: ClientBatch,
    *,
    protocol: Protocol,
    defenses: tuple[Defense, ...],
    reveal: Reveal,
    seed: int,
    model_info: Mapping[str, str],
) -> Observation:
    """The client's side: a batch becomes what the server sees.

    Args:
        model: the network, in the protocol's mode.
        batch: the client's data.
        protocol: what the client computes.
        defenses: what it does to the update.
        reveal: what else the server gets to know.
        seed: of the order of local steps, of the defence's noise, and of dropout in train mode.
        model_info: free text about the network.

    Raises:
        ModelError: the network has nothing to train, or as :func:`observe` raises it.
    """
    device = next(iter(trainable(model).values())).device
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        # Dropout, if the network has some, draws from the global source.
        torch.manual_seed(seed)
        return observe(
            model,
            batch.to(device),
            protocol=protocol,
            defenses=defenses,
            reveal=reveal,
            generator=torch.Generator().manual_seed(seed),
            model_info=model_info,
        )


def attack_cell(
    observation: Observation,
    model: nn.Module,
    attack: Attack,
    *,
    prior: Generator | None,
    seed: int,
    seconds: float | None = None,
    callback: Callable[[Progress], None] | None = None,
    resume: Checkpoint | None = None,
) -> Reconstruction:
    """The server's side: no argument can hold an image of the client.

    Args:
        observation: what the server saw.
        model: the network that it sent.
        attack: what it does.
        prior: its generator.
        seed: of its starts.
        seconds: wall-clock limit.
        callback: called after every step.
        resume: where it stopped.
    """
    return invert(
        observation,
        model,
        attack,
        prior=prior,
        seed=seed,
        callback=callback,
        resume=resume,
        seconds=seconds,
    )


def judge_cell(
    images: Float[Tensor, "batch channel height width"],
    batch: ClientBatch,
    *,
    lpips: Lpips | None,
    decoys: Float[Tensor, "batch decoy channel height width"],
    metrics: Mapping[str, Metric] | None = None,
) -> Evaluation:
    """The judge's side: reconstructions beside the originals.

    Args:
        images: what the server rebuilt.
        batch: what the client held.
        lpips: the perceptual metric, if there is one.
        decoys: other images of the set for each original, for the control.
        metrics: name -> further metrics of the matched images.
    """
    return evaluate(images, batch, lpips=lpips, decoys=decoys, metrics=metrics)


class Watch:
    """Called after every step: stops, saves checkpoints and tells how far the cell is.

    Args:
        slug: which cell.
        save: stores a checkpoint.
        stop: whether to stop.
        report: gets the beats.

    Raises:
        CellStopped: on a call after ``stop`` turned true; the checkpoint is saved then.
    """

    def __init__(
        self,
        slug: str,
        *,
        save: Callable[[Checkpoint], None],
        stop: Callable[[], bool],
        report: Callable[[Beat], None],
    ) -> None:
        self.slug = slug
        self.save = save
        self.stop = stop
        self.report = report
        self.saved = self.reported = time.monotonic()

    def __call__(self, progress: Progress) -> None:
        """Does what is due after this step."""
        now = time.monotonic()
        stopping = self.stop()
        if stopping or now - self.saved >= CHECKPOINT_SECONDS:
            self.save(progress.checkpoint())
            self.saved = time.monotonic()
        if stopping:
            raise CellStopped
        if now - self.reported >= BEAT_SECONDS:
            self.reported = now
            self.report(
                Beat(
                    slug=self.slug,
                    fraction=progress.fraction,
                    stage=progress.stage_name,
                    step=progress.step,
                    steps=progress.steps,
                    seconds=progress.seconds,
                    cost=float(progress.cost.min()),
                )
            )


def observe_planned(setup: Setup, cell: Cell) -> Observation:
    """Returns what the server sees in a cell."""
    return observe_cell(
        setup.model,
        setup.client.batches[cell.batch],
        protocol=setup.protocol,
        defenses=setup.client.defenses[cell.defense],
        reveal=setup.reveal,
        seed=derive_seed(setup.config.seed, "defense", cell.batch),
        model_info=setup.model_info(),
    )


def check_runnable(setup: Setup) -> dict[str, Preflight]:
    """Does once what every cell will do beside its attack, so that errors come before any attack.

    Makes one update for each defence, reads its labels where they are hidden, looks whether a
    search can get going on it, and decodes the judge's images.

    Returns:
        Defence -> what was found of its first update.

    Raises:
        GradinvError: what cannot fit into memory, no batch-norm layers to reveal statistics of, an
            update that is not finite, no last linear layer to read labels from, an attack in closed
            form on a batch or a network that it cannot take apart, or an image that cannot be
            decoded.
    """
    require_audit_fits(setup)
    needed = any(attack.needs_labels for attack in setup.server.attacks.values())
    found = {}
    for defense in setup.client.defenses:
        observation = observe_planned(setup, Cell(setup.config.attack[0], defense, 0))
        if observation.labels is None and needed:
            recover_labels(observation, setup.model)
        found[defense] = preflight_derivative(
            observation, setup.model, setup.server.attacks.values(), seed=setup.config.seed
        )
        for name, attack in setup.server.attacks.items():
            if isinstance(attack, AnalyticAttack):
                require_peelable(observation, setup.model, name)
    for number, batch in enumerate(setup.client.batches):
        setup.judge.decoys(batch, number)
        setup.judge.lists(batch, number)
    return found


def compute_cell(
    setup: Setup,
    cell: Cell,
    store: Store,
    *,
    stop: Callable[[], bool],
    report: Callable[[Beat], None],
) -> bool:
    """Computes one cell and stores it, or stops with a checkpoint.

    Args:
        setup: the audit.
        cell: which cell.
        store: where results and checkpoints go.
        stop: asked after every step.
        report: gets a beat now and then.

    Returns:
        Whether the cell is finished.
    """
    batch = setup.client.batches[cell.batch]
    observation = observe_planned(setup, cell)
    seed = derive_seed(setup.config.seed, "attack", cell.batch)
    watch = Watch(cell.slug, save=partial(store.save_checkpoint, cell), stop=stop, report=report)
    try:
        reconstruction = attack_cell(
            observation,
            setup.model,
            setup.server.attacks[cell.attack],
            prior=setup.server.prior,
            seed=seed,
            seconds=setup.config.seconds,
            callback=watch,
            resume=store.load_checkpoint(cell),
        )
    except CellStopped:
        return False
    evaluation = judge_cell(
        reconstruction.images,
        batch,
        lpips=setup.judge.lpips,
        decoys=setup.judge.decoys(batch, cell.batch),
        metrics=setup.judge.metrics,
    )
    order = list(evaluation.permutation)
    row = {
        "attack": cell.attack,
        "defense": cell.defense,
        "batch": cell.batch,
        "seed": setup.config.seed,
        "attack_seed": seed,
        **attack_row(reconstruction),
        "truth": truth_row(
            observation,
            setup.model,
            setup.server.attacks[cell.attack],
            batch,
            reconstruction,
            prior=setup.server.prior,
            seed=seed,
        ),
        "images": [score.row() for score in evaluation.images],
    }
    if row["label_recovery"] is not None:
        row["label_recovery"]["accuracy"] = label_accuracy(reconstruction.labels, batch)
    for stage, described in zip(reconstruction.stages, row["stages"], strict=True):
        values = psnr(stage.images[order].cpu(), batch.images, data_range=1.0)
        described["psnr_mean"] = finite(values.mean())
    store.save_cell(
        cell,
        row,
        {"original": to_uint8(batch.images), **picture_tensors(reconstruction, order)},
        {
            "stages": row["stages"],
            "labels": batch.labels.tolist(),
            "classes": [setup.client.images.classes[label] for label in batch.labels.tolist()],
        },
    )
    return True
