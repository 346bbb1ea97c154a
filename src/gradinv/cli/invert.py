"""``gradinv invert``: the server's side, which starts from a file. No ground truth in here."""

import dataclasses
import hashlib
import io
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor, nn

from gradinv.attacks import AnalyticAttack, Attack, Checkpoint, Reconstruction, recover_labels
from gradinv.attacks.recursion.peeling import require_peelable
from gradinv.audit.cell import CellStopped, Watch, attack_cell
from gradinv.audit.inputs import check_prior_fits, load_model, load_prior, resolve_device
from gradinv.audit.plan import AuditConfig, Cell
from gradinv.audit.rows import attack_row, picture_tensors
from gradinv.audit.runner import interruption, one_thread
from gradinv.audit.setup import configured, require_bn, require_prior
from gradinv.audit.store import SCHEMA, RunStore
from gradinv.cli.options import Invert
from gradinv.cli.progress import AuditProgress
from gradinv.cli.stopping import Stopped, run_folder
from gradinv.environment import machine, revision, versions
from gradinv.errors import ObservationError
from gradinv.federated import Observation, check_fits, format_defenses
from gradinv.files import read_json, save_tensors, write_bytes, write_json
from gradinv.models import fingerprint
from gradinv.models.footprint import require_fits
from gradinv.priors import Generator

RESULT = "invert.json"
# The options that make another update are not this command's.
_OBSERVE = "observe the update with"


@dataclasses.dataclass(frozen=True, eq=False)
class _Task:
    """What one call of the command works on, checked."""

    attack: Attack
    observation: Observation
    model: nn.Module
    prior: Generator | None
    identity: dict[str, Any]


def invert_update(options: Invert) -> None:
    """Attacks one saved update and writes pictures, tensors and ``invert.json``.

    Raises:
        Stopped: by Ctrl-C.
        GradinvError: wrong settings or inputs, another attack in the folder, a full disk.
    """
    with one_thread():
        task = _prepare(options)
    folder = run_folder(options.out)
    RunStore(folder).claim(task.identity)
    if not (folder / RESULT).is_file():
        _write(folder, _attack(task, options, folder), task)
        _checkpoint_path(folder).unlink(missing_ok=True)
    result = read_json(folder / RESULT)
    found = result["label_recovery"]
    if found is not None:
        certainty = "exactly" if found["exact"] else "estimated"
        print(
            f"labels from the update ({found['method']}, {certainty}): "
            + " ".join(map(str, found["labels"]))
        )
    cost = "not finite" if result["objective"] is None else f"{result['objective']:.4g}"
    print(f"{options.attack}: {result['outcome']}, matching cost {cost}")
    print(folder / "reconstruction.png")


def _prepare(options: Invert) -> _Task:
    config = AuditConfig(
        attack=(options.attack,),
        prior=options.prior,
        steps_scale=options.steps_scale,
        restarts=options.restarts,
        seconds=options.seconds,
        seed=options.seed,
        device=options.device,
    )
    attack = configured(options.attack, config)
    observation = Observation.load(Path(options.update))
    require_bn(
        options.attack,
        attack,
        known=observation.bn_statistics is not None,
        how=_OBSERVE,
    )
    device = resolve_device(options.device)
    model = load_model(
        options.model or observation.model.get("spec", "convnet"),
        num_classes=observation.num_classes,
        image_shape=observation.image_shape,
        seed=_model_seed(observation),
        weights=options.weights,
        mode=observation.protocol.mode,
        device=device,
    )
    check_fits(observation, model)
    require_fits(
        model,
        (observation.batch_size, *observation.image_shape),
        lower="batch_size or image_shape: is the update's header right?",
        error=ObservationError,
    )
    prior = load_prior(options.prior, device=device, embedded=False)
    require_prior(options.attack, attack, prior)
    if prior is not None:
        check_prior_fits(prior, observation.image_shape, how=_OBSERVE)
    if observation.labels is None and attack.needs_labels:
        # Tells now, before a folder is made, that there is no layer to read them from.
        recover_labels(observation, model)
    if isinstance(attack, AnalyticAttack):
        require_peelable(observation, model, options.attack, how=_OBSERVE)
    settings = {**dataclasses.asdict(options), "device": device.type}
    known = versions()
    identity = {
        "settings": settings,
        "versions": {name: known[name] for name in ("gradinv", "torch")},
        "inputs": {
            "update": hashlib.sha256(Path(options.update).read_bytes()).hexdigest()[:16],
            "model": fingerprint(model),
            "prior": None if prior is None else fingerprint(prior),
        },
    }
    return _Task(attack, observation, model, prior, identity)


def _model_seed(observation: Observation) -> int:
    """Returns the seed of the weights, which the server knows: it has sent them."""
    text = observation.model.get("seed", "0")
    try:
        return int(text)
    except ValueError as error:
        raise ObservationError(
            f"expected a whole number as the network's seed in the update, got '{text}'; "
            "give the weights with --weights"
        ) from error


def _checkpoint_path(folder: Path) -> Path:
    return folder / "checkpoint.safetensors"


def _attack(task: _Task, options: Invert, folder: Path) -> Reconstruction:
    path = _checkpoint_path(folder)
    cell = Cell(options.attack, format_defenses(task.observation.defenses), 0)
    with AuditProgress().shown() as progress, one_thread(), interruption() as interrupted:
        progress.start([cell], [], 1)
        try:
            return attack_cell(
                task.observation,
                task.model,
                task.attack,
                prior=task.prior,
                seed=options.seed,
                seconds=options.seconds,
                callback=Watch(
                    cell.slug,
                    save=lambda checkpoint: checkpoint.save(path),
                    stop=interrupted,
                    report=progress.beat,
                ),
                resume=Checkpoint.load(path) if path.exists() else None,
            )
        except CellStopped as stopped:
            raise Stopped("--out", str(folder)) from stopped


def _write(folder: Path, reconstruction: Reconstruction, task: _Task) -> None:
    """Writes the results; ``invert.json`` comes last, so that a folder with it is whole."""
    row = attack_row(reconstruction)
    tensors = picture_tensors(reconstruction)
    labels = reconstruction.labels.tolist()
    spec = task.identity["settings"]["attack"]
    write_bytes(folder / "reconstruction.png", grid_png(tensors["reconstruction"]))
    save_tensors(
        folder / "reconstruction.safetensors",
        {**tensors, "images": reconstruction.images},
        {"kind": "reconstruction", "schema": SCHEMA, "stages": row["stages"], "labels": labels},
    )
    config = {
        **task.identity["settings"],
        "versions": versions(),
        "revision": revision(),
        "machine": machine(),
        "inputs": task.identity["inputs"],
        "attacks": {spec: task.attack.describe()},
    }
    write_json(
        folder / RESULT,
        {
            "schema": SCHEMA,
            "gradinv": config["versions"]["gradinv"],
            "attack": spec,
            "seed": task.identity["settings"]["seed"],
            "labels": labels,
            **row,
            "config": config,
        },
    )


def grid_png(images: UInt8[Tensor, "batch channel height width"], *, side: int = 128) -> bytes:
    """Returns the images in one row (rows of 8), each enlarged to about ``side`` pixels."""
    count, channels, height, width = images.shape
    columns = min(8, count)
    rows = -(-count // columns)
    factor = max(1, side // height)
    sheet = torch.full((rows * columns, channels, height, width), 255, dtype=torch.uint8)
    sheet[:count] = images
    sheet = sheet.view(rows, columns, channels, height, width).permute(0, 3, 1, 4, 2)
    pixels = sheet.reshape(rows * height, columns * width, channels).numpy()
    picture = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    size = (picture.width * factor, picture.height * factor)
    buffer = io.BytesIO()
    picture.resize(size, Image.Resampling.NEAREST).save(buffer, format="PNG")
    return buffer.getvalue()
