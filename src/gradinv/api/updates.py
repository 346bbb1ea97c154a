"""``gradinv.observe`` and ``gradinv.invert``: a client's update, and one attack on it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from gradinv.api.progress import Progress, monitor_of
from gradinv.api.values import Defenses, attacks_by_name, chain_of, device_of, mode_of, prior_of
from gradinv.attacks import Attack, Reconstruction
from gradinv.attacks.preflight import Preflight
from gradinv.audit.cell import observe_cell
from gradinv.audit.inversion import Inversion, checkpoint_path, digest_of, run_inversion
from gradinv.audit.plan import AuditConfig, derive_seed
from gradinv.audit.rows import attack_row, picture_tensors
from gradinv.audit.runner import Monitor, one_thread
from gradinv.audit.setup import adjusted
from gradinv.audit.store import SCHEMA, RunStore
from gradinv.audit.ways import way_notes
from gradinv.data import ClientBatch
from gradinv.environment import machine, revision, versions
from gradinv.federated import FedSGD, Observation, Protocol, Reveal
from gradinv.files import load_tensors, read_json, save_tensors, write_bytes, write_json
from gradinv.models.wrappers import unwrapped_network
from gradinv.priors import Generator
from gradinv.report.poster import grid_png

RESULT, PICTURE, TENSORS = "invert.json", "reconstruction.png", "reconstruction.safetensors"


@dataclass(frozen=True, eq=False)
class Found:
    """What one attack made of one update.

    Attributes:
        images: what it rebuilt, in [0, 1].
        labels: the classes that it knew or read from the update.
        content: what it says about itself, as ``invert.json`` holds it.
        pictures: the same images and those of each stage in 8 bits, and the costs of its steps.
    """

    images: Float[Tensor, "batch channel height width"] = field(repr=False)
    labels: Int[Tensor, " batch"]
    content: dict[str, Any] = field(repr=False)
    pictures: Mapping[str, Tensor] = field(repr=False)

    @property
    def cost(self) -> float | None:
        """Matching cost of the images; None where it left the finite numbers."""
        return self.content["objective"]

    @property
    def outcome(self) -> str:
        """How the attack ended."""
        return self.content["outcome"]

    @property
    def preflight(self) -> tuple[str, ...]:
        """What was found before the attack, a sentence each with what to do about it."""
        return tuple(
            f"{finding['sentence']}; {finding['advice']}" for finding in self.content["preflight"]
        )

    def save(self, folder: str | Path) -> Path:
        """Writes ``reconstruction.png``, ``reconstruction.safetensors`` and ``invert.json``.

        Returns:
            The path of the picture.

        Raises:
            StorageError: the folder cannot be written to.
        """
        folder = Path(folder)
        write_bytes(folder / PICTURE, self._repr_png_())
        header = {"stages": self.content["stages"], "labels": self.content["labels"]}
        save_tensors(
            folder / TENSORS,
            {**self.pictures, "images": self.images},
            {"kind": "reconstruction", "schema": SCHEMA, **header},
        )
        # Last, so that a folder with it is whole.
        write_json(folder / RESULT, self.content)
        return folder / PICTURE

    @classmethod
    def load(cls, folder: Path) -> "Found":
        """Reads what :meth:`save` wrote.

        Raises:
            StorageError: something is missing or broken.
        """
        mend = f"delete {folder} and run the same attack again"
        tensors, _ = load_tensors(folder / TENSORS, what="an attack's pictures", mend=mend)
        content = read_json(folder / RESULT)
        return cls(tensors.pop("images"), torch.tensor(content["labels"]), content, tensors)

    def _repr_png_(self) -> bytes:
        return grid_png(self.pictures["reconstruction"])


def observe(
    model: nn.Module,
    batch: ClientBatch | tuple[Tensor, Tensor],
    *,
    defense: Defenses = "none",
    protocol: Protocol | None = None,
    reveal: Reveal = Reveal(),  # noqa: B008 -- a frozen value
    seed: int = 0,
) -> Observation:
    """Makes a client's update of one batch, and keeps only what the server sees of it.

    >>> import gradinv, torch
    >>> batch = torch.rand(2, 1, 16, 16), torch.tensor([0, 1])
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 3)).eval()
    >>> update = gradinv.observe(model, batch, defense="sparsify:0.5")
    >>> update.batch_size, list(update.gradient)
    (2, ['1.weight', '1.bias'])

    Args:
        model: the network that the server sent, in the mode that the client uses and on the device
            to compute on; it is not changed.
        batch: images in [0, 1] and their classes.
        defense: what the client does to the update: a spec, a value, or a tuple as a chain.
        protocol: what the client computes; the gradient of the batch by default. Its mode is taken
            from the model.
        reveal: what the server knows beside the update.
        seed: of the order of local steps, of noise, and of dropout in train mode.

    Raises:
        GradinvError: the parts do not fit together, or the update is not finite or zero.
    """
    if not isinstance(batch, ClientBatch):
        images, labels = batch
        batch = ClientBatch(images.detach().float(), labels)
    model = unwrapped_network(model)
    mode = mode_of(model)
    with one_thread():
        return observe_cell(
            model,
            batch,
            protocol=replace(protocol or FedSGD(), mode=mode),
            defenses=chain_of(defense),
            reveal=reveal,
            seed=derive_seed(seed, "defense", 0),
            model_info={"spec": _spec(model), "mode": mode},
        )


def invert(
    update: Observation,
    model: nn.Module,
    *,
    attack: str | Attack = "standard",
    prior: Generator | str | Path | None = None,
    steps_scale: float | int = 1.0,
    restarts: int | None = None,
    seconds: float | int | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    progress: Progress = None,
) -> Found:
    """Rebuilds a client's images from its update; no ground truth is needed.

    >>> import gradinv, torch
    >>> batch = torch.rand(1, 1, 16, 16), torch.tensor([2])
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 3)).eval()
    >>> found = gradinv.invert(gradinv.observe(model, batch), model, attack="gi-x:steps=20")
    >>> found.images.shape, found.outcome
    (torch.Size([1, 1, 16, 16]), 'all steps done')

    Args:
        update: what the server saw: from :func:`observe`, ``from_delta`` or ``from_state_dicts``.
        model: the network with the weights that the update was made with, in the client's mode, on
            the device to compute on; it is not changed.
        attack: by name (``gi-z/w``, ``gi-x:tv=0.03``) or as a value.
        prior: the server's generator, or the folder that it lies in.
        steps_scale: multiplies the steps of every stage.
        restarts: random starts; the attack's own number by default.
        seconds: wall-clock limit.
        seed: of the starts.
        out: folder to write the results into. The same call continues what was stopped. Nothing is
            written by default.
        progress: as for :func:`gradinv.audit`.

    Raises:
        AuditStopped: by Ctrl-C (a KeyboardInterrupt).
        GradinvError: the attack lacks something, the parts do not fit together, or another attack
            lies in the folder.
    """
    ((name, value),) = attacks_by_name(attack).items()
    model = unwrapped_network(model)
    device = device_of(model)
    # The same checks of the numbers as the command has.
    config = AuditConfig(
        attack=(name,), steps_scale=steps_scale, restarts=restarts, seconds=seconds, seed=seed
    )
    settings = {
        "attack": name,
        "steps_scale": config.steps_scale,
        "restarts": restarts,
        "seconds": config.seconds,
        "seed": seed,
        "device": device.type,
    }
    inversion = Inversion(
        name, adjusted(value, config), update, model, prior_of(prior, device), settings,
        digest_of(update),
    )  # fmt: skip
    with one_thread():
        inversion.check()
        before = inversion.look(seed=seed)
    with monitor_of(progress) as monitor:
        return find(inversion, before, None if out is None else Path(out), monitor)


def find(inversion: Inversion, before: Preflight, folder: Path | None, monitor: Monitor) -> Found:
    """Runs an attack that was checked, or what is left of it.

    Args:
        inversion: the attack.
        before: what was found before it.
        folder: where its results go, and where those of an earlier call lie; nowhere when None.
        monitor: hears about progress.

    Raises:
        AuditStopped: by Ctrl-C.
        GradinvError: another attack lies in the folder, or the disk is full.
    """
    for line in before.lines():
        monitor.note(line)
    if folder is not None:
        RunStore(folder).claim(inversion.identity())
        if (folder / RESULT).is_file():
            return Found.load(folder)
    settings = inversion.settings
    reconstruction = run_inversion(
        inversion,
        seed=settings["seed"],
        seconds=settings["seconds"],
        folder=folder,
        monitor=monitor,
    )
    found = Found(
        reconstruction.images.cpu(),
        reconstruction.labels.cpu(),
        _content(inversion, before, reconstruction),
        picture_tensors(reconstruction),
    )
    if folder is not None:
        found.save(folder)
        checkpoint_path(folder).unlink(missing_ok=True)
    return found


def _content(
    inversion: Inversion, before: Preflight, reconstruction: Reconstruction
) -> dict[str, Any]:
    known = versions()
    return {
        "schema": SCHEMA,
        "gradinv": known["gradinv"],
        "attack": inversion.name,
        "seed": inversion.settings["seed"],
        "labels": reconstruction.labels.tolist(),
        **attack_row(reconstruction),
        "notes": [
            *inversion.notes,
            *way_notes(
                [inversion.attack],
                inversion.model,
                inversion.observation.image_shape,
                inversion.observation.protocol,
            ),
        ],
        "preflight": before.describe(),
        "config": {
            **inversion.settings,
            "versions": known,
            "revision": revision(),
            "machine": machine(),
            "inputs": inversion.identity()["inputs"],
            "attacks": {inversion.name: inversion.attack.describe()},
        },
    }


def _spec(model: nn.Module) -> str:
    kind = type(model)
    return f"{kind.__module__}:{kind.__qualname__}"
