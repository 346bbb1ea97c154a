"""Candidate search as a cell of an audit, on the judge's side: it holds the true images.

What it makes of an update it makes from an observation alone, as a server would.
"""

import time
from collections.abc import Callable
from typing import Literal

from gradinv.audit.cell import (
    BEAT_SECONDS,
    Beat,
    CellStopped,
    compute_cell,
    observe_cell,
    observe_planned,
)
from gradinv.audit.plan import Cell, derive_seed
from gradinv.audit.rows import to_uint8
from gradinv.audit.setup import Setup
from gradinv.audit.store import Store
from gradinv.data import ClientBatch
from gradinv.evaluation.candidates import candidate_result
from gradinv.federated import FedAvg, Observation, Reveal


def compute(
    setup: Setup,
    cell: Cell,
    store: Store,
    *,
    stop: Callable[[], bool],
    report: Callable[[Beat], None],
) -> bool:
    """Computes a cell of either kind; see :func:`~gradinv.audit.cell.compute_cell`."""
    computed = compute_candidates if cell.is_candidates else compute_cell
    return computed(setup, cell, store, stop=stop, report=report)


def compute_candidates(
    setup: Setup,
    cell: Cell,
    store: Store,
    *,
    stop: Callable[[], bool],
    report: Callable[[Beat], None],
) -> bool:
    """Searches known images for those of one update and stores what was found.

    Arguments and result are those of :func:`compute_cell`. There is no checkpoint: a search that is
    stopped begins again.
    """
    started = time.perf_counter()
    batch = setup.client.batches[cell.batch]
    lists = setup.judge.lists(batch, cell.batch)
    observation = observe_planned(setup, cell)
    seed = derive_seed(setup.config.seed, "candidates", cell.batch)
    told = None
    if isinstance(setup.protocol, FedAvg):
        # The one update, by a client that tells the order of its local steps.
        told = _observed(setup, cell, batch, Reveal(order=True), "defense").order
    control = None
    if lists.others is not None:
        others = ClientBatch(lists.others, lists.labels)
        control = _observed(setup, cell, others, Reveal(), "control")
    beaten = time.monotonic()

    def tick(fraction: float) -> None:
        nonlocal beaten
        if stop():
            raise CellStopped
        now = time.monotonic()
        if now - beaten >= BEAT_SECONDS:
            beaten = now
            seconds = time.perf_counter() - started
            percent = int(100 * fraction)
            report(Beat(cell.slug, fraction, cell.attack, percent, 100, seconds, None))

    try:
        result = candidate_result(
            observation,
            setup.model,
            lists,
            control=control,
            known_order=told,
            rounds=setup.config.rounds,
            seed=seed,
            tick=tick,
        )
    except CellStopped:
        return False
    row = {
        "attack": cell.attack,
        "defense": cell.defense,
        "batch": cell.batch,
        "seed": setup.config.seed,
        "seconds": time.perf_counter() - started,
        **result.row(),
    }
    named = to_uint8(lists.batch(result.picks))
    store.save_cell(
        cell,
        row,
        {"original": to_uint8(batch.images), "named": named},
        {
            "labels": batch.labels.tolist(),
            "classes": [setup.client.images.classes[label] for label in batch.labels.tolist()],
        },
    )
    return True


def _observed(
    setup: Setup,
    cell: Cell,
    batch: ClientBatch,
    reveal: Reveal,
    purpose: Literal["defense", "control"],
) -> Observation:
    return observe_cell(
        setup.model,
        batch,
        protocol=setup.protocol,
        defenses=setup.client.defenses[cell.defense],
        reveal=reveal,
        seed=derive_seed(setup.config.seed, purpose, cell.batch),
        model_info=setup.model_info(),
    )
