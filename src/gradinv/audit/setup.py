"""Everything that an audit needs, loaded and checked before the first step of an attack.

The three sides are separate values: what the client holds never lies beside what the server uses.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gradinv.attacks import AnalyticAttack, Attack, preset, rank_analysis
from gradinv.attacks.ranks import rank_sentence
from gradinv.audit.budget import budget_note, budgets
from gradinv.audit.plan import AuditConfig
from gradinv.audit.protocol import local_training_note, protocol_of, reveal_of
from gradinv.data import ClientBatch, ImageSet, load_images
from gradinv.environment import versions
from gradinv.errors import AttackError, ConfigError, DataError, PriorError
from gradinv.evaluation.controls import decoys_for
from gradinv.evaluation.lpips import Lpips
from gradinv.evaluation.metrics import SSIM_WINDOW
from gradinv.federated import Defense, FedAvg, Protocol, Reveal, parse_defense, trainable
from gradinv.models import batch_norm_layers, build_model, fingerprint, load_weights
from gradinv.priors import Generator, embedded_prior, load_generator

# What --prior takes in place of a folder.
EMBEDDED = "embedded"

RESPONSIBLE_USE = "This audits data that its user holds."


@dataclass(frozen=True, eq=False)
class Client:
    """What the client holds and does.

    Attributes:
        images: the whole image set.
        batches: the batches whose updates are attacked.
        defenses: spec -> what the client does to an update.
    """

    images: ImageSet
    batches: tuple[ClientBatch, ...]
    defenses: Mapping[str, tuple[Defense, ...]]


@dataclass(frozen=True, eq=False)
class Server:
    """What the attacker has beside an observation and the network.

    Attributes:
        attacks: name -> attack, with the steps and restarts that were asked for.
        prior: the generator, if there is one.
    """

    attacks: Mapping[str, Attack]
    prior: Generator | None


@dataclass(frozen=True, eq=False)
class Judge:
    """What compares reconstructions with originals.

    Attributes:
        images: the whole image set, from which decoys are drawn.
        lpips: the perceptual metric, if its weights were given.
        seed: decides the decoys.
    """

    images: ImageSet
    lpips: Lpips | None
    seed: int

    def decoys(self, batch: ClientBatch) -> Float[Tensor, "batch decoy channel height width"]:
        """Returns other images of the set for each image of the batch; the same at every call.

        Raises:
            DataError: one of them cannot be decoded.
        """
        return decoys_for(self.images, batch, seed=self.seed)


@dataclass(frozen=True, eq=False)
class Setup:
    """One audit, ready to run.

    Attributes:
        config: the settings.
        device: where to compute.
        model: the network, known to client and server, in the protocol's mode.
        protocol: what the client computes.
        reveal: what the server knows beside the update.
        client: the client's side.
        server: the server's side.
        judge: the judge's side.
    """

    config: AuditConfig
    device: torch.device
    model: nn.Module
    protocol: Protocol
    reveal: Reveal
    client: Client
    server: Server
    judge: Judge

    def identity(self) -> dict[str, Any]:
        """Returns what the results depend on: settings, versions and fingerprints of the inputs.

        The device is the one that is used, so ``auto`` on another machine is noticed. What follows
        from other settings and inputs stands beside them for whoever reads the results.
        """
        prior = self.server.prior
        known = versions()
        return {
            "settings": {
                **self.config.settings(),
                "device": self.device.type,
                "batch_norm_layers": len(batch_norm_layers(self.model)),
                "budget": budgets(self.server.attacks),
            },
            "versions": {name: known[name] for name in ("gradinv", "torch")},
            "inputs": {
                "images": fingerprint_batches(self.client.batches),
                "model": fingerprint(self.model),
                "prior": None if prior is None else fingerprint(prior),
                "attacks": _digest(self.described_attacks()),
            },
        }

    def described_attacks(self) -> dict[str, Any]:
        """Returns every number of every attack as JSON holds it."""
        return {name: attack.describe() for name, attack in self.server.attacks.items()}

    def model_info(self) -> dict[str, str]:
        """Returns what an observation says about the network."""
        return model_info(self.config)

    def notes(self) -> list[str]:
        """Returns what a reader of the results must know, a sentence each."""
        seen = {
            "none": "no batch-norm statistics",
            "running": "the running batch-norm statistics",
            "exact": "the exact batch-norm statistics of the batch",
        }
        norm = f"batch norm in {self.config.mode} mode"
        if not batch_norm_layers(self.model):
            norm = "the network has no batch norm"
        notes = [
            RESPONSIBLE_USE,
            "Threat model: an honest-but-curious server that knows the network, "
            f"{'the labels and ' if self.reveal.labels else ''}the defence, and "
            f"{seen[self.config.reveal_bn]}; {norm}.",
        ]
        if not self.reveal.labels:
            notes.append(
                "The labels were hidden: each attack used those that it recovered from the update. "
                "Their accuracy is the fraction found, repeats counted."
            )
        if any(isinstance(attack, AnalyticAttack) for attack in self.server.attacks.values()):
            ranks = rank_analysis(self.model, self.client.images.image_shape)
            notes.append(rank_sentence(ranks))
        if isinstance(self.protocol, FedAvg):
            notes.append(local_training_note(self.protocol, self.reveal, self.config.batch_size))
        if self.judge.lpips is None:
            notes.append(
                "LPIPS is absent: its SqueezeNet weights were not given (--lpips-weights FILE)."
            )
        if (budget := budget_note(budgets(self.server.attacks))) is not None:
            notes.append(budget)
        if self.config.batches == 1:
            notes.append("No confidence interval: it needs at least 2 batches.")
        if self.config.seconds is not None:
            notes.append(
                f"Attacks were limited to {self.config.seconds:g} s each, so their results depend "
                "on the speed of the machine."
            )
        return notes


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


def model_info(config: AuditConfig) -> dict[str, str]:
    """Returns what an observation says about the network, as text."""
    info = {"spec": config.model, "seed": str(config.seed), "mode": config.mode}
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
) -> nn.Module:
    """Returns the network with its weights, in the given mode, on the device.

    Raises:
        ModelError: it cannot be built, has nothing to train, or the weights do not fit.
        StorageError: the weights cannot be read.
    """
    channels, _, image_size = image_shape
    model = build_model(
        spec, num_classes=num_classes, channels=channels, image_size=image_size, seed=seed
    )
    trainable(model)
    if weights is not None:
        load_weights(model, Path(weights))
    return model.to(device).train(mode == "train")


def client_images(path: str | None, *, image_size: int, channels: int | None) -> ImageSet:
    """Loads images that a client learns to tell apart, the embedded ones without a path.

    Raises:
        ConfigError: an image size or number of channels without meaning.
        DataError: no images, or a single class: its loss and every update would be zero, so that
            no attack could find anything.
    """
    images = load_images(
        None if path is None else Path(path), image_size=image_size, channels=channels
    )
    if images.num_classes < 2:
        raise DataError(
            f"expected images of at least 2 classes, got only {' '.join(images.classes)} in "
            f"{images.name}; with one class every update is zero and nothing is audited: give a "
            "folder with one folder of images for each class"
        )
    return images


def images_and_network(config: AuditConfig, data: str | None) -> tuple[ImageSet, nn.Module]:
    """Loads images, the embedded ones without a path, and the network that learns their classes.

    Raises:
        GradinvError: images, network or weights are not what they should be.
    """
    images = client_images(data, image_size=config.image_size, channels=config.channels)
    model = load_model(
        config.model,
        num_classes=images.num_classes,
        image_shape=images.image_shape,
        seed=config.seed,
        weights=config.weights,
        mode=config.mode,
        device=resolve_device(config.device),
    )
    return images, model


def prepare_client(config: AuditConfig) -> tuple[Client, nn.Module]:
    """Loads the client's images and network.

    Raises:
        GradinvError: images, network, weights or a defence are not what they should be.
    """
    defenses = {spec: parse_defense(spec) for spec in config.defense}
    images, model = images_and_network(config, config.data)
    batches = images.batches(batch_size=config.batch_size, count=config.batches, seed=config.seed)
    return Client(images, batches, defenses), model


def prepare(config: AuditConfig) -> Setup:
    """Loads and checks everything; whatever a user can have got wrong is said here.

    Deterministic: every process that prepares the same config holds the same things.

    Raises:
        GradinvError: one of them, with what to do.
    """
    require_scorable(config.image_size)
    attacks = {name: configured(name, config) for name in config.attack}
    for name, attack in attacks.items():
        require_bn(name, attack, known=config.reveal_bn != "none")
    device = resolve_device(config.device)
    client, model = prepare_client(config)
    wanted = config.data is None and any(attack.uses_prior for attack in attacks.values())
    prior = load_prior(config.prior, device=device, embedded=wanted)
    for name, attack in attacks.items():
        require_prior(name, attack, prior)
    if prior is not None:
        check_prior_fits(prior, client.images.image_shape)
    lpips = None if config.lpips_weights is None else Lpips(Path(config.lpips_weights))
    if lpips is not None:
        # Tells now, not after the first attack, that the images are too small for it.
        lpips(client.batches[0].images[:1], client.batches[0].images[:1])
    return Setup(
        config=config,
        device=device,
        model=model,
        protocol=protocol_of(config),
        reveal=reveal_of(config),
        client=client,
        server=Server(attacks, prior),
        judge=Judge(client.images, lpips, config.seed),
    )


def require_scorable(image_size: int) -> None:
    """Checks that the judge can compare images of this size; an update can be of smaller ones.

    Raises:
        ConfigError: it cannot.
    """
    if image_size < SSIM_WINDOW:
        raise ConfigError(
            f"expected --image-size of at least {SSIM_WINDOW} pixels, the window of SSIM, got "
            f"{image_size}; raise it"
        )


def configured(name: str, config: AuditConfig) -> Attack:
    """Returns the preset with the steps and restarts that were asked for.

    Raises:
        AttackError: there is no such attack.
    """
    attack = preset(name).scaled(config.steps_scale)
    return attack if config.restarts is None else attack.with_restarts(config.restarts)


def require_bn(name: str, attack: Attack, *, known: bool, how: str = "pass") -> None:
    """Checks that an attack that matches batch-norm statistics gets some.

    Args:
        name: of the attack.
        attack: what it needs.
        known: whether the server knows statistics.
        how: what to do with the option that reveals them.

    Raises:
        AttackError: it does not.
    """
    if attack.needs_bn and not known:
        raise AttackError(
            f"expected known batch-norm statistics for {name}, got none; {how} --reveal-bn exact "
            "(the batch's own) or --reveal-bn running (the network's), or leave out the +bn"
        )


def require_prior(name: str, attack: Attack, prior: Generator | None) -> None:
    """Checks that an attack that searches a generator gets one.

    Raises:
        AttackError: it does not.
    """
    if attack.needs_prior and prior is None:
        raise AttackError(
            f"expected a prior for {name}, got none; pass --prior DIR (make one with 'gradinv "
            "prior train'), or choose an attack without one, such as --attack gi-x"
        )


def load_prior(path: str | None, *, device: torch.device, embedded: bool) -> Generator | None:
    """Returns the generator in ``path``, the embedded one, or none.

    Args:
        path: a prior's folder, or the word ``embedded``; None for what ``embedded`` says.
        device: where to put it.
        embedded: whether to take the embedded one without a path.

    Raises:
        PriorError: it cannot be loaded.
        StorageError: a file in the folder is not what it should be.
    """
    if path == EMBEDDED or (path is None and embedded):
        return embedded_prior().to(device)
    if path is None:
        return None
    return load_generator(Path(path)).to(device)


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


def fingerprint_batches(batches: tuple[ClientBatch, ...]) -> str:
    """Returns 16 hex characters that tell one series of batches from another."""
    digest = hashlib.sha256()
    for batch in batches:
        for tensor in (batch.images, batch.labels):
            digest.update(f"{tuple(tensor.shape)}".encode())
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
