"""``gradinv import``: an update of another program becomes one that can be attacked."""

from pathlib import Path

import torch
from torch import Tensor, nn

from gradinv.attacks.preflight import Severity, preflight
from gradinv.attacks.presets import preset
from gradinv.audit.inputs import load_model, model_info
from gradinv.audit.plan import AuditConfig
from gradinv.audit.protocol import protocol_of
from gradinv.audit.runner import one_thread
from gradinv.cli.options import Import
from gradinv.errors import ConfigError, ObservationError
from gradinv.federated import (
    Observation,
    from_delta,
    from_state_dicts,
    parse_defense,
    read_tensors,
)
from gradinv.federated.importing import NOTES
from gradinv.models import fill_weights, save_weights
from gradinv.models.footprint import require_fits
from gradinv.models.weights import unwrapped


def import_update(options: Import) -> None:
    """Reads an update, says what is likely wrong with it, and saves it for ``gradinv invert``.

    Raises:
        GradinvError: options that contradict each other, files that are not what they should be,
            tensors that do not fit the network, or an update that no attack can work on.
    """
    with one_thread():
        _check(options)
        notes: list[str] = []
        model = _network(options, notes)
        observation = _observation(options, model)
        require_fits(
            model,
            (options.batch_size, *observation.image_shape),
            lower="--batch-size or --image-size",
            error=ConfigError,
        )
        found = preflight(observation, model, attacks=[preset("gi-x")], seed=options.seed)
    for note in notes:
        print(note)
    for note in filter(None, observation.model[NOTES].split("; ")):
        print(f"import: {note}")
    for line in found.lines():
        print(line)
    blocking = [finding for finding in found.findings if finding.severity is Severity.BLOCKS]
    if blocking:
        raise ObservationError(
            f"expected an update that an attack can work on, got one where {blocking[0]}; "
            f"{blocking[0].advice}"
        )
    if not found.findings:
        print("preflight: nothing found")
    observation.save(Path(options.out))
    if options.save_weights is not None:
        save_weights(model, Path(options.save_weights))
    print(" ".join(filter(None, [options.out, options.save_weights])))


def _check(options: Import) -> None:
    """Checks that there is one update, and what it takes to read it.

    Raises:
        ConfigError: there is none, more than one, or a difference without its learning rate.
    """
    pair = (options.before, options.after)
    if (options.gradient is None) == (pair == (None, None)):
        raise ConfigError(
            "expected either a file of gradients or --before and --after, got "
            f"{'neither' if options.gradient is None else 'both'}; give one of them"
        )
    if (
        options.save_weights is not None
        and Path(options.save_weights).resolve() == Path(options.out).resolve()
    ):
        raise ConfigError(
            f"expected another file for --save-weights than for --out, got {options.out} for both; "
            "the weights would take the update's place: name another"
        )
    if options.gradient is None:
        if None in pair:
            raise ConfigError(
                "expected --before and --after together, got one of them; give both states"
            )
        if options.lr is None:
            raise ConfigError(
                "expected --lr with --before and --after, got none; give the learning rate that "
                "the client trained with"
            )


def _network(options: Import, notes: list[str]) -> nn.Module:
    """Returns the network with the weights that the client started from, on the CPU.

    Args:
        options: the command line's.
        notes: gets what was done to make the weights fit.
    """
    shape = (options.channels, options.image_size, options.image_size)
    model = load_model(
        options.model,
        num_classes=options.num_classes,
        image_shape=shape,
        seed=options.seed,
        weights=options.weights,
        mode=options.mode,
        device=torch.device("cpu"),
        note=notes.append,
    )
    if options.before is not None and options.weights is None:
        # The import itself says what it took off the names.
        before, _ = unwrapped(read_tensors(Path(options.before)), model, error=ObservationError)
        fill_weights(model, before, f"the weights of this model at {options.before}")
    return model


def _observation(options: Import, model: nn.Module) -> Observation:
    fedavg = options.protocol == "fedavg"
    config = AuditConfig(
        model=options.model,
        weights=options.weights or options.before,
        image_size=options.image_size,
        channels=options.channels,
        batch_size=options.batch_size,
        mode=options.mode,
        protocol=options.protocol,
        local_epochs=options.local_epochs,
        local_batch_size=options.local_batch_size,
        local_lr=options.lr if fedavg and options.local_lr is None else options.local_lr,
        local_momentum=options.local_momentum,
        loss=options.loss,
        optimizer=options.optimizer,
        seed=options.seed,
    )
    settings = {
        "image_shape": (options.channels, options.image_size, options.image_size),
        "num_classes": options.num_classes,
        "batch_size": options.batch_size,
        "labels": _labels(options.labels),
        "protocol": protocol_of(config),
        "defenses": parse_defense(options.defense),
        "model_info": model_info(config),
    }
    if options.gradient is not None:
        tensors = read_tensors(Path(options.gradient))
        return from_delta(tensors, model, lr=1.0 if options.lr is None else options.lr, **settings)
    assert options.before is not None
    assert options.after is not None
    assert options.lr is not None
    before, after = read_tensors(Path(options.before)), read_tensors(Path(options.after))
    return from_state_dicts(before, after, model, lr=options.lr, **settings)


def _labels(text: str | None) -> Tensor | None:
    """Returns the classes that ``3,1`` names.

    Raises:
        ConfigError: something that is no whole number.
    """
    if text is None:
        return None
    try:
        return torch.tensor([int(word) for word in text.split(",")])
    except ValueError as error:
        raise ConfigError(
            f"expected --labels as whole numbers such as 3,1, got {text!r}; leave it out if they "
            "are not known"
        ) from error
