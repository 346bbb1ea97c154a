"""What the stages of an attack share and what computes their costs; the cost of given images.

The driver steps a search with them; a judge asks for the cost of the truth.
"""

import copy
from contextlib import nullcontext
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from gradinv.attacks.attack import Attack
from gradinv.attacks.evidence.penultimate import Clues, FeatureEngine
from gradinv.attacks.recursion.peeling import Peeled
from gradinv.attacks.recursion.system import SystemEngine
from gradinv.attacks.search.chance import dropout_from, dropping
from gradinv.attacks.search.spaces import Scene
from gradinv.attacks.simulation import as_attacked
from gradinv.engine import Engine, PlainDoubleBackward, engine_for, pixel_units
from gradinv.engine.distances import Target
from gradinv.errors import PriorError
from gradinv.federated.observation import Observation
from gradinv.priors.generator import Generator


def matching_of(
    observation: Observation,
    model: nn.Module,
    attack: Attack,
    images: Float[Tensor, "batch channel height width"],
    *,
    prior: Generator | None,
    seed: int,
    kept: int | None = None,
    peeled: Peeled | None = None,
) -> float:
    """Returns the matching cost of given images in a stage of an attack, as its search has it.

    For a judge, who holds the true images and asks after the attack whether it could have come to
    them. Infinite where it is not finite.

    Args:
        observation: what the server saw, with the labels of the images.
        model: the network that it sent.
        attack: the attack, with its settings resolved.
        images: in the order of the labels, in [0, 1].
        prior: the server's generator, which sets the scene.
        seed: of the attack: a server that was not told the order of local steps guesses one.
        kept: which stage; the last when None.
        peeled: what the closed form found, for the attacks that search after one.
    """
    weight = next(model.parameters())
    attacked = as_attacked(observation, attack.fedavg, torch.Generator().manual_seed(seed))
    attacked = attacked.to(weight.device, weight.dtype)
    clues = Clues.of(attacked, model) if attack.needs_features else None
    scene = scene_of(attacked, model, attack, prior, clues)
    stage = -1 if kept is None else kept
    engine = engines_of(attacked, model, attack, scene, clues, peeled)[stage]
    x = images.to(weight.device, weight.dtype)[None]
    with dropout_from((seed, 0, 0), weight.device) if dropping(model) else nullcontext():
        if not attack.stages[stage].space.soft_labels:
            return float(engine.matching(x)[0])
        assert isinstance(engine, PlainDoubleBackward)  # the way that takes soft labels
        assert attacked.labels is not None
        sure = functional.one_hot(attacked.labels.long(), observation.num_classes)
        return float(engine.matching(x, sure.to(x)[None])[0])


def engines_of(
    observation: Observation,
    model: nn.Module,
    attack: Attack,
    scene: Scene,
    clues: Clues | None,
    peeled: Peeled | None,
) -> list[Engine]:
    """Returns what computes the cost of each stage.

    Args:
        observation: as it is attacked, with its labels where they are known.
        model: f_theta in its mode.
        attack: the attack, with its settings resolved.
        scene: what its stages share.
        clues: what the last layer gives away, for stages that match features.
        peeled: what a closed form found, for attacks that search after one.
    """
    if peeled is not None:
        return [
            SystemEngine(peeled, (scene.mean, scene.std), stage.regularizers)
            for stage in attack.stages
        ]
    target = Target.of(observation)
    if attack.tensors is not None:
        target = target.largest(attack.tensors)
    return [
        FeatureEngine(model, observation, clues, stage.regularizers)
        if stage.features and clues is not None
        else engine_for(
            model,
            observation,
            distance=attack.distance,
            regularizers=stage.regularizers,
            target=target,
            soft_labels=stage.space.soft_labels,
            way="exact" if attack.way == "bf16" else attack.way,
            tangent_dtype=torch.bfloat16 if attack.way == "bf16" else None,
        )
        for stage in attack.stages
    ]


def scene_of(
    observation: Observation,
    model: nn.Module,
    attack: Attack,
    prior: Generator | None,
    clues: Clues | None,
) -> Scene:
    """Returns what the stages share: sizes, pixel units, the prior in the network's type.

    Args:
        observation: as it is attacked.
        model: f_theta in its mode.
        attack: which says whether it needs a prior.
        prior: the server's generator.
        clues: what the last layer gives away.

    Raises:
        PriorError: the prior makes images of another shape, is in train mode, or does not have the
            latents that the attack asks for.
    """
    weight = next(model.parameters())
    mean, std = pixel_units(model, observation.image_shape, weight.detach())
    if prior is not None and attack.needs_prior:
        if tuple(prior.image_shape) != tuple(observation.image_shape):
            raise PriorError(
                f"expected a prior of images (channel, height, width) {observation.image_shape}, "
                f"got {prior.image_shape}; train one of that size, or change --image-size"
            )
        if prior.training:
            raise PriorError("expected the prior in eval mode, got train mode; call prior.eval()")
        same = all(value.dtype == weight.dtype for value in prior.parameters())
        prior = (prior if same else copy.deepcopy(prior)).to(weight.device, weight.dtype)
        prior = prior.latent_space(attack.latents or prior.default_space)
    scene = Scene(
        observation.batch_size,
        observation.image_shape,
        mean,
        std,
        prior,
        observation.num_classes,
        None if clues is None else partial(clues.fits, model),
    )
    if attack.needs_denoiser:
        scene.denoiser()
    elif attack.needs_prior:
        scene.generator()
    return scene
