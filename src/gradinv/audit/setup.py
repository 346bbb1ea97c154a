"""Everything that an audit needs, loaded and checked before the first step of an attack.

The three sides are separate values: what the client holds never lies beside what the server uses.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gradinv.attacks import AnalyticAttack, Attack, rank_analysis
from gradinv.attacks.recursion.ranks import rank_sentence
from gradinv.audit.budget import budget_note, budgets
from gradinv.audit.inputs import Inputs, check_prior_fits, load_inputs, model_info
from gradinv.audit.plan import DEFAULT_ATTACKS, AuditConfig, Cell, derive_seed
from gradinv.audit.protocol import local_training_note, protocol_of, reveal_of
from gradinv.audit.ways import way_notes
from gradinv.data import ClientBatch, ImageSet, fingerprint_batches
from gradinv.data.classes import parse_classes
from gradinv.environment import versions
from gradinv.errors import AttackError, ConfigError
from gradinv.evaluation.candidates import (
    CandidateLists,
    affordable,
    affordable_note,
    candidate_lists,
)
from gradinv.evaluation.controls import decoys_for
from gradinv.evaluation.evaluate import Metric, measured
from gradinv.evaluation.lpips import SMALLEST, Lpips
from gradinv.evaluation.metrics import SSIM_WINDOW
from gradinv.federated import Defense, FedAvg, Protocol, Reveal
from gradinv.models import batch_norm_layers, fingerprint
from gradinv.priors import Generator
from gradinv.priors.generator import Denoiser

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
        budget: name -> the steps that it may do, as a fraction of the preset's.
    """

    attacks: Mapping[str, Attack]
    prior: Generator | None
    budget: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Judge:
    """What compares reconstructions with originals.

    Attributes:
        images: the whole image set, from which decoys are drawn.
        lpips: the perceptual metric, if images are large enough for it.
        seed: decides the decoys.
        candidates: how many images candidate search chooses among for each place.
        metrics: name -> further metrics of the matched images.
    """

    images: ImageSet
    lpips: Lpips | None
    seed: int
    candidates: int
    metrics: Mapping[str, Metric] = field(default_factory=dict)

    def decoys(
        self, batch: ClientBatch, number: int
    ) -> Float[Tensor, "batch decoy channel height width"]:
        """Returns other images of the set for each image of the batch; the same at every call.

        Each batch has its own: with the same ones for all, what luck identifies in one batch it
        would often identify in the others too.

        Args:
            batch: the client's.
            number: which one.

        Raises:
            DataError: one of them cannot be decoded.
        """
        return decoys_for(self.images, batch, seed=derive_seed(self.seed, "decoys", number))

    def lists(self, batch: ClientBatch, number: int) -> CandidateLists:
        """Returns the candidates of each image of the batch; the same at every call.

        Args:
            batch: the client's.
            number: which one.

        Raises:
            DataError: one of them cannot be decoded.
        """
        seed = derive_seed(self.seed, "candidates", number)
        return candidate_lists(self.images, batch, count=self.candidates, seed=seed)


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
        loaded: what was done to make files fit, a sentence each.
    """

    config: AuditConfig
    device: torch.device
    model: nn.Module
    protocol: Protocol
    reveal: Reveal
    client: Client
    server: Server
    judge: Judge
    loaded: tuple[str, ...] = ()

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
                "budget": dict(self.server.budget),
            },
            "versions": {name: known[name] for name in ("gradinv", "torch")},
            "inputs": {
                "images": fingerprint_batches(self.client.batches),
                "model": fingerprint(self.model),
                "prior": None if prior is None else fingerprint(prior),
                "attacks": _digest(self.described_attacks()),
            },
        }

    def work(self, cell: Cell) -> float:
        """Returns how long a cell takes beside the others, in steps and restarts.

        Candidate search has no steps; it is short beside most attacks.
        """
        return 0.0 if cell.is_candidates else self.server.attacks[cell.attack].total_work

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
            *self.loaded,
        ]
        if self.config.classes is not None:
            named = not isinstance(parse_classes(self.config.classes), int)
            notes.append(_classes_note(self.client.images, named=named))
        if not self.reveal.labels:
            notes.append(
                "The labels were hidden: each attack used those that it recovered from the update. "
                "Their accuracy is the fraction found, repeats counted."
            )
        if any(isinstance(attack, AnalyticAttack) for attack in self.server.attacks.values()):
            ranks = rank_analysis(self.model, self.client.images.image_shape)
            notes.append(rank_sentence(ranks))
        notes += way_notes(
            self.server.attacks.values(),
            self.model,
            self.client.images.image_shape,
            self.protocol,
        )
        if isinstance(self.protocol, FedAvg):
            notes.append(local_training_note(self.protocol, self.reveal, self.config.batch_size))
        if self.judge.lpips is None:
            notes.append(
                f"LPIPS is absent: its network needs images of at least {SMALLEST} pixels a side."
            )
        if (budget := budget_note(self.server.budget)) is not None:
            notes.append(budget)
        fewer = affordable_note(self.config.candidates, self.judge.candidates, self.model)
        if fewer is not None:
            notes.append(fewer)
        if "none" not in self.client.defenses:
            notes.append(
                "The undefended update was left out, so nothing here says what a defence is worth; "
                "add --undefended yes."
            )
        if self.config.batches == 1:
            notes.append(
                "No confidence interval and no placebo (the same attack on another batch's "
                "update): they need at least 2 batches."
            )
        if self.config.seconds is not None:
            notes.append(
                f"Attacks were limited to {self.config.seconds:g} s each, so their results depend "
                "on the speed of the machine."
            )
        return notes


def prepare(config: AuditConfig, inputs: Inputs | None = None) -> Setup:
    """Checks everything before the first step; whatever a user can have got wrong is said here.

    Deterministic: every process that prepares the same config holds the same things.

    Args:
        config: the settings.
        inputs: what the audit works on; loaded as the settings name it when None.

    Raises:
        GradinvError: one of them, with what to do.
    """
    require_scorable(config.image_size)
    config, inputs = _suited(config, inputs or load_inputs(config))
    images = inputs.images
    batches = images.batches(batch_size=config.batch_size, count=config.batches, seed=config.seed)
    for name, attack in inputs.attacks.items():
        require_bn(name, attack, known=config.reveal_bn != "none")
        require_prior(name, attack, inputs.prior)
    if inputs.prior is not None:
        check_prior_fits(inputs.prior, images.image_shape)
    if inputs.lpips is not None:
        # Tells now, not after the first attack, that the images are too small for it.
        inputs.lpips(batches[0].images[:1], batches[0].images[:1])
    # The same of metrics that do not do what evaluate asks of them.
    measured(inputs.metrics, batches[0].images, batches[0].images)
    attacks = {name: adjusted(attack, config) for name, attack in inputs.attacks.items()}
    return Setup(
        config=config,
        device=next(inputs.model.parameters()).device,
        model=inputs.model,
        protocol=protocol_of(config),
        reveal=reveal_of(config),
        client=Client(images, batches, inputs.defenses),
        server=Server(attacks, inputs.prior, budgets(attacks, inputs.attacks)),
        judge=Judge(
            images,
            inputs.lpips,
            config.seed,
            affordable(inputs.model, config.candidates),
            inputs.metrics,
        ),
        loaded=inputs.notes,
    )


def _suited(config: AuditConfig, inputs: Inputs) -> tuple[AuditConfig, Inputs]:
    """Leaves the search of latents out where nobody chose the attacks and the prior denoises.

    An image of such a prior takes many evaluations of its network; ``standard`` makes more of it.
    """
    if config.attack != DEFAULT_ATTACKS or not isinstance(inputs.prior, Denoiser):
        return config, inputs
    attacks = {name: own for name, own in inputs.attacks.items() if not own.needs_prior}
    left = ", ".join(name for name in inputs.attacks if name not in attacks)
    note = (
        f"{left} was left out: the prior denoises, which standard uses; searching its latents "
        f"takes many times as long and finds less (--attack {left} runs it)."
    )
    return (
        dataclasses.replace(config, attack=tuple(attacks)),
        dataclasses.replace(inputs, attacks=attacks, notes=(*inputs.notes, note)),
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


def adjusted(attack: Attack, config: AuditConfig) -> Attack:
    """Returns the attack with the steps and restarts that were asked for."""
    attack = attack.scaled(config.steps_scale)
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
            "prior train'; natural for 32x32 pixels in colour), or choose an attack without one, "
            "such as --attack gi-x"
        )


def _classes_note(images: ImageSet, *, named: bool) -> str:
    """Returns how the classes of the images stand to those of the network."""
    held = len(images.labels.unique())
    which = "by their names" if named else "the first ones, in the sorted order of their folders"
    return (
        f"The network tells {images.num_classes} classes apart (--classes); there are images of "
        f"{held} of them: {which}."
    )


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
