"""The look at an update before any attack: what keeps a search back, and what the update is not."""

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn

from gradinv.attacks.analytic import AnalyticAttack
from gradinv.attacks.attack import Attack, LocalTraining
from gradinv.attacks.evidence.labels import recover_labels
from gradinv.attacks.preflight.derivative import derivative_findings
from gradinv.attacks.preflight.entries import entry_findings
from gradinv.attacks.preflight.findings import Finding, Kind, Preflight, Severity
from gradinv.attacks.preflight.first_layer import first_layer_findings
from gradinv.attacks.preflight.invariants import invariant_findings
from gradinv.attacks.preflight.last_layer import last_layer_findings
from gradinv.attacks.preflight.sign import sign_findings
from gradinv.engine.distances import Distance
from gradinv.errors import AttackError
from gradinv.federated.loss import Loss
from gradinv.federated.observation import Observation
from gradinv.federated.protocol import FedAvg

_TURNED = -0.8
"""Cosine of an update that was turned round; of one with three other labels of ten it is -0.4."""


def preflight(
    observation: Observation, model: nn.Module, *, attacks: Iterable[Attack] = (), seed: int = 0
) -> Preflight:
    """Returns what can be told before any attack, from the server's side alone.

    Whether a search can get going at all, and whether the update is what it is said to be: its
    sign, scale, labels, loss, optimiser and weights. What is found is likely, not proven, unless
    its detail says so; a defence that hides it leaves it unsaid.

    Args:
        observation: the update.
        model: f_theta in the protocol's mode.
        attacks: those that will be tried.
        seed: of random images.

    Raises:
        AttackError: an attack's engine does not know the network.
    """
    if not any(bool(value.any()) for value in observation.gradient.values()):
        return Preflight((Finding(Kind.ZERO),))
    observation = observation.to("cpu")
    found = list(preflight_derivative(observation, model, attacks, seed=seed).findings)
    usual = _usual_client(observation)
    entries = entry_findings(observation)
    found += [finding for finding in entries if usual or finding.kind is not Kind.ADAPTIVE]
    kinds = {finding.kind for finding in entries}
    if usual and Kind.ADAPTIVE not in kinds and Kind.SPARSE not in kinds:
        coarse = Kind.COARSE in kinds
        last = last_layer_findings(observation, model, coarse=coarse, seed=seed)
        if [finding.kind for finding in last] == [Kind.OTHER_LABELS]:
            last = _labels_or_sign(last, observation, model, seed)
        found += last
        if not last:
            found += sign_findings(observation, model, seed=seed)
            found += invariant_findings(observation, model, coarse=coarse, seed=seed)
            found += first_layer_findings(observation, model, seed=seed)
    return _in_order(found)


def _usual_client(observation: Observation) -> bool:
    """Returns whether the update is said to be one of mean cross entropy and SGD without decay.

    What a gradient of that obeys says nothing of another loss, of Adam, or of weight decay that is
    known of.
    """
    protocol = observation.protocol
    plain = not isinstance(protocol, FedAvg) or protocol.stepper.keeps_signs
    return protocol.loss == Loss() and plain


def preflight_derivative(
    observation: Observation, model: nn.Module, attacks: Iterable[Attack], *, seed: int = 0
) -> Preflight:
    """Returns what keeps the attacks from getting going, whatever the update is.

    One look for each distance among the attacks; none for attacks in closed form.

    Args:
        observation: the update; where its labels are hidden and cannot be read, any will do.
        model: f_theta in the protocol's mode.
        attacks: those that will be tried.
        seed: of random images.
    """
    ways: list[tuple[Distance, LocalTraining]] = []
    for attack in attacks:
        way = (attack.distance, attack.fedavg)
        if not isinstance(attack, AnalyticAttack) and way not in ways:
            ways.append(way)
    if not ways:
        return Preflight(())
    if observation.labels is None:
        observation = replace(observation, labels=_some_labels(observation, model))
    found: list[Finding] = []
    for distance, fedavg in ways:
        for finding in derivative_findings(
            observation, model, distance=distance, fedavg=fedavg, seed=seed
        ):
            if finding.kind not in {other.kind for other in found}:
                found.append(finding)
    return _in_order(found)


def _labels_or_sign(
    found: list[Finding], observation: Observation, model: nn.Module, seed: int
) -> list[Finding]:
    """Returns that the sign is wrong where it explains better than other labels what was found.

    With an image of nearly every class, both turn the same signs round; only the wrong sign turns
    the whole update round.
    """
    turned = sign_findings(observation, model, seed=seed)
    whole = [finding for finding in turned if finding.numbers["cosine"] < _TURNED]
    return whole or found


def _some_labels(observation: Observation, model: nn.Module) -> Tensor:
    """Returns the labels that the update gives away, or any: dc/dx is there for all or for none."""
    try:
        return recover_labels(observation, model).labels.cpu()
    except AttackError:
        return torch.arange(observation.batch_size) % observation.num_classes


def _in_order(findings: list[Finding]) -> Preflight:
    """Returns the findings with the gravest first."""
    order = list(Severity)
    return Preflight(tuple(sorted(findings, key=lambda found: order.index(found.severity))))
