"""``gradinv invert``: the server's side, which starts from a file. No ground truth in here."""

import dataclasses
import hashlib
from pathlib import Path

from gradinv.api.progress import AuditProgress
from gradinv.api.updates import PICTURE, find
from gradinv.attacks import preset
from gradinv.audit.inputs import load_model, load_prior, resolve_device
from gradinv.audit.inversion import Inversion
from gradinv.audit.plan import AuditConfig, read_normalization
from gradinv.audit.runner import AuditStopped, one_thread
from gradinv.audit.setup import adjusted
from gradinv.cli.options import Invert
from gradinv.cli.stopping import Stopped, run_folder
from gradinv.errors import ObservationError
from gradinv.federated import Observation


def invert_update(options: Invert) -> None:
    """Attacks one saved update and writes pictures, tensors and ``invert.json``.

    Raises:
        Stopped: by Ctrl-C.
        GradinvError: wrong settings or inputs, another attack in the folder, a full disk.
    """
    with one_thread():
        inversion = _load(options)
        inversion.check()
        before = inversion.look(seed=options.seed)
    folder = run_folder(options.out)
    try:
        with AuditProgress().shown() as progress:
            result = find(inversion, before, folder, progress).content
    except AuditStopped as stopped:
        raise Stopped("--out", str(folder)) from stopped
    recovered = result["label_recovery"]
    if recovered is not None:
        certainty = "exactly" if recovered["exact"] else "estimated"
        print(
            f"labels from the update ({recovered['method']}, {certainty}): "
            + " ".join(map(str, recovered["labels"]))
        )
    cost = "not finite" if result["objective"] is None else f"{result['objective']:.4g}"
    print(f"{options.attack}: {result['outcome']}, matching cost {cost}")
    for note in result["notes"]:
        print(note)
    print(folder / PICTURE)


def _load(options: Invert) -> Inversion:
    config = AuditConfig(
        mean=options.mean,
        std=options.std,
        attack=(options.attack,),
        prior=options.prior,
        steps_scale=options.steps_scale,
        restarts=options.restarts,
        seconds=options.seconds,
        seed=options.seed,
        device=options.device,
    )
    attack = adjusted(preset(options.attack), config)
    observation = Observation.load(Path(options.update))
    device = resolve_device(options.device)
    mean, std = _normalization(observation, options)
    notes: list[str] = []
    model = load_model(
        options.model or observation.model.get("spec", "convnet"),
        num_classes=observation.num_classes,
        image_shape=observation.image_shape,
        seed=_model_seed(observation),
        weights=options.weights,
        mode=observation.protocol.mode,
        device=device,
        mean=mean,
        std=std,
        note=notes.append,
    )
    return Inversion(
        options.attack,
        attack,
        observation,
        model,
        load_prior(options.prior, device=device, embedded=False),
        {**dataclasses.asdict(options), "device": device.type},
        hashlib.sha256(Path(options.update).read_bytes()).hexdigest()[:16],
        notes=tuple(notes),
    )


def _normalization(observation: Observation, options: Invert) -> tuple[str | None, str | None]:
    """Returns mean and std of a client that normalised its images outside its network.

    Raises:
        ObservationError: the update says others than the options.
    """
    theirs = observation.model.get("mean"), observation.model.get("std")
    given = options.mean, options.std
    if theirs == (None, None):
        return given
    if given != (None, None) and read_normalization(*given) != read_normalization(*theirs):
        raise ObservationError(
            f"expected --mean {theirs[0]} --std {theirs[1]} as the update says, got {given[0]} and "
            f"{given[1]}; leave them out"
        )
    return theirs


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
