"""Images, network, prior and device, loaded as the command line names them.

What an audit, an inversion, a watch and a learning have in common before each goes its own way.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import torch
from torch import nn

from gradinv.attacks import Attack, preset
from gradinv.audit.plan import AuditConfig, derive_seed, read_normalization
from gradinv.data import ImageSet, load_images
from gradinv.data.check import require_sound
from gradinv.data.classes import parse_classes
from gradinv.errors import ConfigError, DataError, PriorError
from gradinv.evaluation.candidates.lists import candidate_rows
from gradinv.evaluation.controls import decoy_rows
from gradinv.evaluation.evaluate import Metric, metric_of
from gradinv.evaluation.lpips import Lpips, lpips_for
from gradinv.federated import Defense, parse_defense, trainable
from gradinv.models import build_model, load_weights, normalized_outside
from gradinv.models.footprint import require_fits
from gradinv.priors import SHIPPED, Generator, load_generator, prior_named
from gradinv.resolve import names_object

WEIGHTS = "Weights:"
"""How a note on a file of weights begins."""

# What --prior takes in place of a folder.
EMBEDDED = "embedded"


def resolve_device(name: str) -> torch.device:
    """Returns the device; ``auto`` is CUDA if there is one.

    Raises:
        ConfigError: CUDA is asked for and absent.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "expected a CUDA device for --device cuda, got none that torch can use; "
            "choose --device cpu"
        )
    return torch.device(name)


@dataclass(frozen=True, eq=False)
class Inputs:
    """What an audit works on, loaded by a command or handed in by a caller.

    Attributes:
        attacks: name -> attack, before an audit's own factor on the steps.
        defenses: spec -> what a client does to its update.
        images: the client's images.
        model: the network in the client's mode, on the device that is computed on.
        prior: the server's generator, if there is one.
        lpips: the perceptual metric, if images are large enough for it.
        metrics: name -> further metrics of the matched images.
        notes: what was done to make files fit, a sentence each.
    """

    attacks: Mapping[str, Attack]
    defenses: Mapping[str, tuple[Defense, ...]]
    images: ImageSet
    model: nn.Module
    prior: Generator | None
    lpips: Lpips | None
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def load_inputs(config: AuditConfig, *, look: bool = True) -> Inputs:
    """Loads everything that the settings of an audit name, in one pass.

    Args:
        config: the settings.
        look: look at all files of the images first, so that all broken ones are named at once; one
            process of an audit is enough.

    Raises:
        GradinvError: one of them is not what it should be.
    """
    attacks = {name: preset(name) for name in config.attack}
    defenses = {spec: parse_defense(spec) for spec in config.defenses}
    metrics = {spec: metric_of(spec) for spec in config.metric}
    notes: list[str] = []
    images, model = images_and_network(config, config.data, note=notes.append)
    if look:
        drawn = images.draw(batch_size=config.batch_size, count=config.batches, seed=config.seed)
        require_sound(images, chain(*drawn, *judged_rows(images, drawn, config)))
    wanted = config.data is None and any(attack.uses_prior for attack in attacks.values())
    prior = load_prior(config.prior, device=resolve_device(config.device), embedded=wanted)
    lpips = lpips_for(config.lpips_weights, config.image_size)
    return Inputs(attacks, defenses, images, model, prior, lpips, metrics, tuple(notes))


def judged_rows(
    images: ImageSet, drawn: Sequence[Sequence[int]], config: AuditConfig
) -> list[list[int]]:
    """Returns which images the judge looks at beside those of the client's batches.

    Args:
        images: the set.
        drawn: indices of each batch's images.
        config: the settings.
    """
    rows: list[list[int]] = []
    for number, ids in enumerate(drawn):
        decoys, candidates = (
            derive_seed(config.seed, purpose, number) for purpose in ("decoys", "candidates")
        )
        rows += decoy_rows(images, ids, seed=decoys)
        listed, others = candidate_rows(images, ids, count=config.candidates, seed=candidates)
        rows += [*listed, others or []]
    return rows


def model_info(config: AuditConfig) -> dict[str, str]:
    """Returns what an observation says about the network, as text."""
    info = {"spec": config.model, "seed": str(config.seed), "mode": config.mode}
    if config.mean is not None and config.std is not None:
        info |= {"mean": config.mean, "std": config.std}
    return info if config.weights is None else {**info, "weights": Path(config.weights).name}


def load_model(
    spec: str,
    *,
    num_classes: int,
    image_shape: tuple[int, int, int],
    seed: int,
    weights: str | None,
    mode: str,
    device: torch.device,
    mean: str | None = None,
    std: str | None = None,
    note: Callable[[str], None] | None = None,
) -> nn.Module:
    """Returns the network with its weights, in the given mode, on the device.

    With ``mean`` and ``std``, as ``--mean`` and ``--std`` have them, it normalises images in
    [0, 1] first; its names and weights stay those of the network that takes normalised images.
    ``note`` is called with a sentence on what was done to make the weights fit, where it was.

    Raises:
        ConfigError: a mean and std without meaning, or of other channels than the images'.
        ModelError: it cannot be built, has nothing to train, or the weights do not fit.
        StorageError: the weights cannot be read.
    """
    channels, _, image_size = image_shape
    model = build_model(
        spec, num_classes=num_classes, channels=channels, image_size=image_size, seed=seed
    )
    trainable(model)
    if weights is not None:
        done = load_weights(model, Path(weights))
        if done and note is not None:
            note(weights_note(done, weights))
    normalization = read_normalization(mean, std)
    if normalization is not None:
        if len(normalization[0]) != channels:
            raise ConfigError(
                f"expected one --mean and --std for each of the {channels} channels of the images, "
                f"got {len(normalization[0])}; give {channels}, or set --channels"
            )
        model = normalized_outside(model, *normalization)
    return model.to(device).train(mode == "train")


def weights_note(done: Sequence[str], path: str) -> str:
    """Returns a sentence on what was done to make the weights in a file fit a network."""
    return f"{WEIGHTS} {'; '.join(done)} in {Path(path).name}."


def client_images(
    path: str | None, *, image_size: int, channels: int | None, classes: str | None = None
) -> ImageSet:
    """Loads images that a client learns to tell apart, the embedded ones without a path.

    Args:
        path: of the images.
        image_size: height and width in pixels.
        channels: 1 or 3.
        classes: those of the network as ``--classes`` has them; those of the images by default.

    Raises:
        ConfigError: an image size, number of channels or list of classes without meaning.
        DataError: no images, classes of theirs that the network does not have, or a network of a
            single class: its loss and every update would be zero, so that no attack could find
            anything.
    """
    images = load_images(
        None if path is None else Path(path),
        image_size=image_size,
        channels=channels,
        classes=None if classes is None else parse_classes(classes),
    )
    if images.num_classes < 2:
        raise DataError(
            f"expected images of at least 2 classes, got only {' '.join(images.classes)} in "
            f"{images.name}; with one class every update is zero and nothing is audited: give a "
            "folder with one folder of images for each class, or the network's classes (--classes)"
        )
    return images


def images_and_network(
    config: AuditConfig, data: str | None, *, note: Callable[[str], None] | None = None
) -> tuple[ImageSet, nn.Module]:
    """Loads images, the embedded ones without a path, and the network that learns their classes.

    Args:
        config: the settings.
        data: where the images lie.
        note: called as :func:`load_model` calls it.

    Raises:
        GradinvError: images, network or weights are not what they should be.
    """
    images = client_images(
        data, image_size=config.image_size, channels=config.channels, classes=config.classes
    )
    model = load_model(
        config.model,
        num_classes=images.num_classes,
        image_shape=images.image_shape,
        seed=config.seed,
        weights=config.weights,
        mode=config.mode,
        device=resolve_device(config.device),
        mean=config.mean,
        std=config.std,
        note=note,
    )
    require_fits(
        model,
        (config.batch_size, *images.image_shape),
        lower="--image-size or --batch-size",
        error=ConfigError,
    )
    return images, model


def load_prior(path: str | None, *, device: torch.device, embedded: bool) -> Generator | None:
    """Returns the generator in ``path``, the embedded one, or none.

    Args:
        path: a prior's folder, ``package.module:object``, or the word of a prior that the package
            has: ``embedded``, ``natural``; None for what ``embedded`` says.
        device: where to put it.
        embedded: whether to take the embedded one without a path.

    Raises:
        PriorError: it cannot be loaded.
        StorageError: a file in the folder is not what it should be.
    """
    if path is None and embedded:
        path = EMBEDDED
    if path is None:
        return None
    if path in SHIPPED:
        return load_generator(SHIPPED[path]).to(device)
    outside = names_object(path) and not Path(path).exists()
    return (prior_named(path) if outside else load_generator(Path(path))).to(device)


def check_prior_fits(
    prior: Generator, image_shape: tuple[int, int, int], *, how: str = "set"
) -> None:
    """Checks that the prior makes images of the client's size and channels.

    Args:
        prior: the server's generator.
        image_shape: (channel, height, width) of the client's images.
        how: what to do with the options that make images of another size.

    Raises:
        PriorError: it does not.
    """
    if tuple(prior.image_shape) != tuple(image_shape):
        raise PriorError(
            f"expected a prior of {_shape(image_shape)}, got one of {_shape(prior.image_shape)}; "
            f"{how} --image-size {prior.image_shape[1]} and --channels {prior.image_shape[0]}, or "
            f"train one with 'gradinv prior train --image-size {image_shape[1]} --channels "
            f"{image_shape[0]}'"
        )


def _shape(shape: tuple[int, int, int]) -> str:
    channels, height, width = shape
    return f"{height}x{width} pixels in {channels} channel{'s' if channels > 1 else ''}"
