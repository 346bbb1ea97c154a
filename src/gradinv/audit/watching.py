"""Leakage over rounds: how much better a server rebuilds images the longer it watches.

Before the first round the server has an untrained generator, or a prior of its own. After each
round it goes on learning from all updates that it has seen so far, with outer steps in proportion
to them, so that every update is visited as often; what it has learned then attacks updates of other
clients. These are made with the network of the first round throughout, so that nothing but the
prior differs between two rounds.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from gradinv.attacks import preset
from gradinv.audit.inputs import (
    check_prior_fits,
    images_and_network,
    load_prior,
    model_info,
    resolve_device,
)
from gradinv.audit.plan import CANDIDATES, AuditConfig
from gradinv.audit.protocol import protocol_of, reveal_of
from gradinv.audit.runner import Monitor, one_thread, run_audit
from gradinv.audit.setup import require_scorable
from gradinv.errors import ConfigError
from gradinv.federated import Federation, parse_defense, simulate
from gradinv.files import ensure_writable_folder, write_json
from gradinv.metalearning import LearningConfig, LearningProgress, learn_prior, open_tasks
from gradinv.priors import Generator, load_generator
from gradinv.priors.generator import save_generator

UPDATES = "updates"
RECORD = "watch.json"
_KEPT = ("attack", "n", "psnr_mean", "psnr_ci95", "psnr_best", "ssim_mean", "identified", "seconds")


@dataclass(frozen=True)
class Watcher:
    """Who is watched, and how the server learns from it.

    Attributes:
        images: path of the images of the clients that are watched; those that are attacked are the
            audit's own data.
        federation: the clients and rounds that are watched.
        learning: its outer steps are those for each round that was watched.
    """

    images: str
    federation: Federation
    learning: LearningConfig


@runtime_checkable
class WatchMonitor(Protocol):
    """Opens what hears about each part of the work, for as long as that part takes.

    Whatever it raises leaves the work so that the same call continues it.
    """

    def simulating(self) -> AbstractContextManager[Callable[[int, int], None]]:
        """Returns what is called after every update, with how many there are and will be."""
        ...

    def opened(self) -> None:
        """Called before every file that is read to find the updates to learn from."""
        ...

    def learning(self, rounds: int) -> AbstractContextManager[Callable[[LearningProgress], None]]:
        """Returns what is called after every outer step after so many rounds."""
        ...

    def auditing(self) -> AbstractContextManager[Monitor]:
        """Returns what hears about one audit."""
        ...


def watch(
    config: AuditConfig,
    watcher: Watcher,
    start: Callable[[tuple[int, int, int]], Generator],
    folder: Path,
    *,
    monitor: WatchMonitor,
) -> dict[str, Any]:
    """Audits with what a server has learned after each round, and writes ``watch.json``.

    ``folder`` gets the updates, and ``round-R/prior`` and ``round-R/audit`` for R rounds watched; a
    call that was stopped continues there.

    Args:
        config: the audit; its one defence is also that of the clients that are watched.
        watcher: who is watched.
        start: makes the untrained generator that the server begins with, from the shape of the
            images; the prior of ``config`` takes its place where one is named.
        folder: where everything goes.
        monitor: hears about the work.

    Returns:
        The content of ``watch.json``: under ``rounds`` one row for each number of rounds watched
        and each attack, with the number of updates seen and the values of the audit's summary;
        under ``notes`` what a reader of them must know, a sentence each.

    Raises:
        ConfigError: no attack that uses a prior, not exactly one defence, or images too small to
            be compared.
        GradinvError: as an audit and a learning raise them.
    """
    attacks = tuple(name for name in config.attack if preset(name).uses_prior)
    if not attacks:
        raise ConfigError(
            f"expected an attack that uses a prior, got {', '.join(config.attack)}; "
            "watch with --attack gi-z/w"
        )
    if len(config.defense) != 1:
        raise ConfigError(
            f"expected one defence, got {', '.join(config.defense)}; watch one at a time"
        )
    require_scorable(config.image_size)
    device = resolve_device(config.device)
    own = load_prior(config.prior, device=torch.device("cpu"), embedded=False)
    loaded: list[str] = []
    images, model = images_and_network(config, watcher.images, note=loaded.append)
    if own is not None:
        check_prior_fits(own, images.image_shape)
    first = own or start(images.image_shape)
    folder = ensure_writable_folder(Path(folder))
    with one_thread(), monitor.simulating() as callback:
        simulate(
            model,
            images,
            watcher.federation,
            folder / UPDATES,
            protocol=protocol_of(config),
            defenses=parse_defense(config.defense[0]),
            reveal=reveal_of(config),
            model_info=model_info(config),
            callback=callback,
        )
    prior = folder / "round-0" / "prior"
    save_generator(first, prior, {"state": "start", "updates": 0})
    rows: list[dict[str, Any]] = []
    settings: dict[str, Any] = {}
    for rounds in range(watcher.federation.rounds + 1):
        if rounds:
            prior = _learn(prior, folder, rounds, watcher.learning, device, monitor)
        with monitor.auditing() as heard:
            audit = run_audit(
                replace(config, attack=attacks, prior=str(prior)),
                prior.parent / "audit",
                monitor=heard,
            )
        seen = {"rounds": rounds, "updates": rounds * watcher.federation.clients}
        # Candidate search needs no prior, so there is nothing to watch in it.
        shown = [row for row in audit["summary"] if row["attack"] != CANDIDATES]
        rows += [{**seen, **{name: row[name] for name in _KEPT}} for row in shown]
        settings = audit["config"]
    watched = {
        "schema": 1,
        "start": "untrained" if config.prior is None else Path(config.prior).name,
        "config": settings,
        "notes": [*loaded, *_notes(config, watcher, attacks)],
        "rounds": rows,
    }
    write_json(folder / RECORD, watched)
    return watched


def _notes(config: AuditConfig, watcher: Watcher, attacks: Sequence[str]) -> list[str]:
    """Returns what a reader of the curve must know."""
    notes = []
    left_out = [name for name in config.attack if name not in attacks]
    if left_out:
        which = "which uses no prior" if len(left_out) == 1 else "which use no prior"
        notes.append(
            f"Left out: {', '.join(left_out)}, {which}; watching changes nothing for them."
        )
    if config.data is not None and Path(config.data).resolve() == Path(watcher.images).resolve():
        notes.append(
            "The images that were watched and those that were attacked come from the same folder "
            "and may be the same ones: the curve may show what was seen, not what was learned."
        )
    return notes


def _learn(
    before: Path,
    folder: Path,
    rounds: int,
    learning: LearningConfig,
    device: torch.device,
    monitor: WatchMonitor,
) -> Path:
    """Returns the folder of the prior after so many rounds, learned from the one before."""
    out = folder / f"round-{rounds}" / "prior"
    with one_thread(), monitor.learning(rounds) as callback:
        learn_prior(
            open_tasks(folder / UPDATES, rounds=rounds, callback=monitor.opened),
            load_generator(before),
            out=out,
            config=replace(learning, steps=learning.steps * rounds),
            device=device,
            start_name=f"after {rounds - 1} rounds",
            callback=callback,
        )
    return out
