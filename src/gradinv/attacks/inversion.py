"""``invert``: the server's side as one function.

Methods differ only in the :class:`~gradinv.attacks.attack.Attack` that they hand in; the loop that
steps it is :class:`~gradinv.attacks.search.Search`.
"""

from dataclasses import replace

from torch import nn

from gradinv.attacks.analytic import AnalyticAttack
from gradinv.attacks.attack import Attack
from gradinv.attacks.driver import Callback, Search
from gradinv.attacks.evidence.labels import recover_labels
from gradinv.attacks.recursion.peeling import peel
from gradinv.attacks.result import Checkpoint, Reconstruction
from gradinv.errors import AttackError, ConfigError
from gradinv.federated.observation import Observation, check_fits
from gradinv.memory import own_network
from gradinv.models.batchnorm import require_mode
from gradinv.priors.generator import Generator


def invert(
    observation: Observation,
    model: nn.Module,
    attack: Attack,
    *,
    prior: Generator | None = None,
    seed: int = 0,
    callback: Callback | None = None,
    resume: Checkpoint | None = None,
    seconds: float | None = None,
) -> Reconstruction:
    """Rebuilds the client's images from its update (Jeon et al. 2021, Algorithm 1).

    Runs on the model's device. With the same arguments and the same number of threads the result
    is the same bit for bit, also when it was interrupted and resumed, and wherever in memory the
    tensors lie that are handed in (docs/files.md, The same bits).

    Labels that were not revealed are read from the update first
    (:mod:`gradinv.attacks.evidence.labels`), unless the attack searches them itself; what it found
    then counts as recovered.

    Args:
        observation: what the server saw.
        model: f_theta with the weights that the update was made with, in the protocol's mode.
        attack: the method.
        prior: G_w, for attacks over z or w.
        seed: of the starting points.
        callback: called after every step; an exception that it raises leaves this function.
        resume: continue from here; attack, observation and seed must be those that it was made of.
        seconds: wall-clock limit, shared among the stages in proportion to their steps and
            restarts and replacing the steps: each stage decays its learning rate to the end of its
            share.

    Returns:
        The restart with the least matching cost.

    Raises:
        AttackError: the attack lacks something (a prior, statistics, a gradient that is the same at
            every evaluation), the labels are neither revealed nor to be found in the update, or
            the checkpoint belongs to another run.
        ObservationError: the update was made with another network.
        ModelError: the model is in another mode than the client's.
        PriorError: the prior's images have another shape.
    """
    check_fits(observation, model)
    require_mode(model, observation.protocol.mode)
    if seconds is not None and seconds <= 0:
        raise ConfigError(f"expected a positive time limit in seconds, got {seconds}; use 60")
    model = own_network(model)
    prior = None if prior is None else own_network(prior)
    recovered = None
    if observation.labels is None and attack.needs_labels:
        recovered = recover_labels(observation, model)
        observation = replace(observation, labels=recovered.labels)
    attack = attack.resolved(observation, model, prior)
    peeled = None
    if isinstance(attack, AnalyticAttack):
        _require_whole(resume, attack)
        peeled = peel(observation, model, name=attack.name)
        if not attack.stages:
            assert observation.labels is not None
            return replace(peeled.reconstruction(observation.labels), recovered=recovered)
    search = Search(
        observation, model, attack, prior=prior, seed=seed, seconds=seconds, peeled=peeled
    )
    if resume is not None:
        search.resume(resume)
    while not search.done:
        search.run_stage(callback)
    found = search.reconstruction()
    return found if recovered is None else replace(found, recovered=recovered)


def _require_whole(resume: Checkpoint | None, attack: Attack) -> None:
    """Checks that a closed form, which has no steps to go on from, is not asked to resume."""
    if resume is not None and not attack.stages:
        raise AttackError(
            f"expected no checkpoint for {attack.name}, which is solved at once, got one; "
            "start anew without it"
        )
