"""The client's side: a batch becomes an update, and the update an observation without images."""

from gradinv.federated.client import local_update, logits, loss_gradient, trainable
from gradinv.federated.defense import Defense
from gradinv.federated.defenses import Clip, Noise, Sparsify, format_defenses, parse_defense
from gradinv.federated.federation import Federation, simulate
from gradinv.federated.importing import from_delta, from_state_dicts, read_tensors
from gradinv.federated.loss import Loss, parse_loss
from gradinv.federated.observation import Observation, check_fits
from gradinv.federated.observing import observe
from gradinv.federated.optimizer import LocalOptimizer, parse_optimizer
from gradinv.federated.protocol import FedAvg, FedSGD, Order, Protocol, Reveal

__all__ = [
    "Clip",
    "Defense",
    "FedAvg",
    "FedSGD",
    "Federation",
    "LocalOptimizer",
    "Loss",
    "Noise",
    "Observation",
    "Order",
    "Protocol",
    "Reveal",
    "Sparsify",
    "check_fits",
    "format_defenses",
    "from_delta",
    "from_state_dicts",
    "local_update",
    "logits",
    "loss_gradient",
    "observe",
    "parse_defense",
    "parse_loss",
    "parse_optimizer",
    "read_tensors",
    "simulate",
    "trainable",
]
