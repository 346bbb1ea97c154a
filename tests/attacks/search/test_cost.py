import pytest
import torch

from gradinv.attacks.search.cost import StageCost
from gradinv.attacks.search.regularizers import LatentNorm
from gradinv.attacks.search.spaces import OfGenerator, Pixels, Scene
from gradinv.engine import PlainDoubleBackward
from gradinv.engine.distances import Cosine, Distance, SquaredL2
from tests.attacks.tiny import tiny_batch, tiny_observation, tiny_prior, tiny_victim

COSINE: Distance = Cosine()


def stage_cost(space, generator, *, restarts=2, distance: Distance = COSINE, regularizers=()):
    model = tiny_victim().double()
    batch = tiny_batch()
    observation = tiny_observation(model, type(batch)(batch.images.double(), batch.labels, (0, 1)))
    one = torch.ones((1, 1, 1), dtype=torch.float64)
    scene = Scene(2, (1, 8, 8), 0.5 * one, 0.25 * one, tiny_prior().double(), 4)
    engine = PlainDoubleBackward(
        model,
        observation,
        distance=distance,
        regularizers=regularizers,
        soft_labels=space.soft_labels,
    )
    opened = space.open(scene, None, restarts, generator)
    return StageCost(opened, engine, regularizers, scene)


SPACES = {
    "x": Pixels(box=False),
    "xy": Pixels(box=False, soft_labels=True),
    "z": OfGenerator(latents=True),
    "w": OfGenerator(weights=True),
    "zw": OfGenerator(latents=True, weights=True),
}


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_the_gradient_is_the_finite_difference_in_every_space(space, generator):
    cost = stage_cost(space, generator, distance=SquaredL2(), regularizers=(LatentNorm(0.3),))
    _, gradients = cost.evaluate()
    here = {name: value.detach() for name, value in cost.space.named_parameters()}
    assert set(gradients) == {n for n, p in cost.space.named_parameters() if p.requires_grad}
    along = {
        name: torch.randn(value.shape, generator=generator, dtype=torch.float64)
        for name, value in gradients.items()
    }
    step = 1e-6
    ends = []
    for sign in (1, -1):
        moved = {name: here[name] + sign * step * d for name, d in along.items()}
        ends.append(cost.evaluate({**here, **moved})[0])
    expected = (ends[0] - ends[1]) / (2 * step)
    for restart in range(2):
        slope = torch.stack([(gradients[n][restart] * d[restart]).sum() for n, d in along.items()])
        assert slope.sum().item() == pytest.approx(expected[restart].item(), rel=1e-4)


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_some_restarts_cost_what_they_cost_among_all(space, generator):
    cost = stage_cost(space, generator, restarts=3)
    value, gradients = cost.evaluate()
    chosen = {name: p.detach()[[2, 0]] for name, p in cost.space.named_parameters()}
    some, own = cost.evaluate(chosen)
    assert torch.allclose(some, value[[2, 0]])
    assert all(torch.allclose(own[name], gradients[name][[2, 0]]) for name in gradients)
    assert torch.allclose(cost.value(chosen), some)


def test_a_value_without_gradient_has_the_latent_terms(generator):
    bare = stage_cost(SPACES["z"], generator)
    term = LatentNorm(0.5)
    full = StageCost(bare.space, bare.engine, (term,), bare.scene)
    here = dict(bare.space.named_parameters())
    expected = torch.stack([term(z) for z in here["z"]])
    assert torch.allclose(full.value(here) - bare.value(here), expected)
