"""How an update of several local steps is explained: simulated, or taken for one gradient."""

from dataclasses import replace

import torch

from gradinv.attacks.attack import LocalTraining
from gradinv.federated.observation import Observation
from gradinv.federated.protocol import FedAvg


def as_attacked(
    observation: Observation, fedavg: LocalTraining, generator: torch.Generator
) -> Observation:
    """Returns the update as the attacker explains it; one of FedSGD is left as it is.

    To "approximate" is to take it for one gradient. To "simulate" is to know the order of the local
    steps; where it was not revealed, the attacker draws one of its own, as the client did. The
    images of the trial are not the client's yet, so any order is as good as another as far as the
    images of one label are concerned; for images of different labels the guess can be wrong.

    Args:
        observation: what the server saw.
        fedavg: how updates of several local steps are explained.
        generator: of the guess.
    """
    protocol = observation.protocol
    if not isinstance(protocol, FedAvg):
        return observation
    # A single step is a gradient, which every engine can match.
    if fedavg == "approximate" or protocol.steps(observation.batch_size) == 1:
        return observation.as_one_gradient()
    if observation.order is not None:
        return observation
    return replace(observation, order=protocol.order(observation.batch_size, generator))
