"""One attack on one update: checked, run so that it can be continued. No ground truth in here."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gradinv.attacks import AnalyticAttack, Attack, Checkpoint, Reconstruction, recover_labels
from gradinv.attacks.footprint import require_attack_fits
from gradinv.attacks.preflight import Preflight, preflight
from gradinv.attacks.recursion.peeling import require_peelable
from gradinv.audit.cell import CellStopped, Watch, attack_cell
from gradinv.audit.inputs import check_prior_fits
from gradinv.audit.interruption import LeftAtOnce, interruption
from gradinv.audit.plan import Cell
from gradinv.audit.runner import AuditStopped, Monitor, one_thread
from gradinv.audit.setup import require_bn, require_prior
from gradinv.environment import versions
from gradinv.errors import ObservationError
from gradinv.federated import Observation, check_fits, format_defenses
from gradinv.models import fingerprint
from gradinv.models.footprint import require_fits
from gradinv.priors import Generator

# The options that make another update are not those of an attack on it.
_OBSERVE = "observe the update with"


@dataclass(frozen=True, eq=False)
class Inversion:
    """What one attack works on.

    Attributes:
        name: what the attack is called, with its settings.
        attack: as it is run.
        observation: the update.
        model: the network that the server sent, in the client's mode.
        prior: the server's generator, if there is one.
        settings: what the caller asked for, by the names of the command's options.
        update: digest of the update.
        notes: what was done to make files fit, a sentence each.
    """

    name: str
    attack: Attack
    observation: Observation
    model: nn.Module
    prior: Generator | None
    settings: Mapping[str, Any]
    update: str
    notes: tuple[str, ...] = ()

    def check(self) -> None:
        """Says what is wrong before a folder is made and before the first step.

        Raises:
            GradinvError: the attack lacks something, or the parts do not fit together.
        """
        observation, model = self.observation, self.model
        require_bn(
            self.name, self.attack, known=observation.bn_statistics is not None, how=_OBSERVE
        )
        check_fits(observation, model)
        require_fits(
            model,
            (observation.batch_size, *observation.image_shape),
            lower="batch_size or image_shape: is the update's header right?",
            error=ObservationError,
        )
        require_prior(self.name, self.attack, self.prior)
        if self.prior is not None:
            check_prior_fits(self.prior, observation.image_shape, how=_OBSERVE)
        if observation.labels is None and self.attack.needs_labels:
            # Tells now that there is no layer to read them from.
            recover_labels(observation, model)
        require_attack_fits(
            self.attack,
            model,
            (observation.batch_size, *observation.image_shape),
            classes=observation.num_classes,
            prior=self.prior,
            protocol=observation.protocol,
            lower="the restarts (--restarts), or batch_size or image_shape in the update",
        )
        if isinstance(self.attack, AnalyticAttack):
            require_peelable(observation, model, self.name, how=_OBSERVE)

    def look(self, *, seed: int) -> Preflight:
        """Returns what can be told of the update and the network before the first step.

        Args:
            seed: of random images.
        """
        return preflight(self.observation, self.model, attacks=[self.attack], seed=seed)

    @property
    def cell(self) -> Cell:
        """The name that progress is shown under."""
        return Cell(self.name, format_defenses(self.observation.defenses), 0)

    def identity(self) -> dict[str, Any]:
        """Returns what the result depends on; see :meth:`gradinv.audit.setup.Setup.identity`."""
        known = versions()
        return {
            "settings": dict(self.settings),
            "versions": {name: known[name] for name in ("gradinv", "torch")},
            "inputs": {
                "update": self.update,
                "model": fingerprint(self.model),
                "prior": None if self.prior is None else fingerprint(self.prior),
            },
        }


def run_inversion(
    inversion: Inversion,
    *,
    seed: int,
    seconds: float | None,
    folder: Path | None,
    monitor: Monitor,
) -> Reconstruction:
    """Runs one attack, or what is left of it.

    Args:
        inversion: what to work on, checked.
        seed: of the starts.
        seconds: wall-clock limit.
        folder: where a checkpoint goes now and then; nowhere when None.
        monitor: hears about progress.

    Raises:
        AuditStopped: by Ctrl-C.
        GradinvError: the attack cannot be run, or the disk is full.
    """
    path = None if folder is None else checkpoint_path(folder)
    cell = inversion.cell
    monitor.start([cell], [], 1)
    with one_thread(), interruption(monitor.stopping) as interrupted:
        watch = Watch(cell.slug, save=_saver(path), stop=interrupted, report=monitor.beat)
        try:
            return attack_cell(
                inversion.observation,
                inversion.model,
                inversion.attack,
                prior=inversion.prior,
                seed=seed,
                seconds=seconds,
                callback=watch,
                resume=Checkpoint.load(path) if path is not None and path.exists() else None,
            )
        except (CellStopped, LeftAtOnce) as stopped:
            raise AuditStopped(folder) from stopped


def checkpoint_path(folder: Path) -> Path:
    """Returns where an unfinished attack's state lies."""
    return folder / "checkpoint.safetensors"


def _saver(path: Path | None) -> Callable[[Checkpoint], None]:
    def save(checkpoint: Checkpoint) -> None:
        if path is not None:
            checkpoint.save(path)

    return save


def digest_of(observation: Observation) -> str:
    """Returns what tells one update from another, whatever file it lies in."""
    labels = None if observation.labels is None else observation.labels.tolist()
    about = (
        observation.batch_size, observation.image_shape, observation.num_classes, labels,
        observation.protocol, format_defenses(observation.defenses), observation.clients,
        observation.order,
    )  # fmt: skip
    digest = hashlib.sha256(repr(about).encode())
    for name, value in observation.gradient.items():
        digest.update(name.encode())
        digest.update(
            value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()[:16]
