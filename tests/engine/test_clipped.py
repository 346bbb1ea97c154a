"""Distances that see how long a gradient is, behind clips that the server knows of."""

from dataclasses import replace

import pytest
import torch

from gradinv.attacks import invert, preset
from gradinv.engine import ExactROperator, PlainDoubleBackward, Problem, engine_for
from gradinv.engine.clipped import Clipped, through_clips
from gradinv.engine.distances import L1, Cosine, LayerCosine, SquaredL2, Target
from gradinv.errors import AttackError
from gradinv.federated import Clip, Noise, Sparsify, observe, parse_defense
from tests.attacks.tiny import tiny_batch, tiny_observation, tiny_victim
from tests.engine.networks import guesses, relative, update
from tests.engine.test_exact import victim as relu_network
from tests.outside import Every, Rounded

LENGTHY = (SquaredL2(), L1())
DEFENSES = (
    "clip:0.1", "clip:1e6", "sparsify:0.5+clip:0.1", "clip:0.1+sparsify:0.5",
    "clip:0.3+sparsify:0.5+clip:0.1", "sparsify:0.5+noise:1e-14+clip:0.1",
)  # fmt: skip


def double(defense: str):
    model = tiny_victim().double()
    batch = tiny_batch()
    batch = replace(batch, images=batch.images.double())
    return model, batch, tiny_observation(model, batch, defense=defense)


@pytest.mark.parametrize("distance", [*LENGTHY, Cosine(), LayerCosine()])
@pytest.mark.parametrize("defense", DEFENSES)
@pytest.mark.parametrize("way", ["exact", "plain"])
def test_the_true_images_cost_nothing(way, defense, distance):
    model, batch, observation = double(defense)
    engine = engine_for(model, observation, distance=distance, way=way)
    points = torch.stack([batch.images, 1 - batch.images])
    right, wrong = engine.matching(points).tolist()
    assert right == pytest.approx(0, abs=1e-9)
    assert wrong > 1e-3
    torch.testing.assert_close(engine.evaluate(points).matching, engine.matching(points))


@pytest.mark.parametrize("distance", LENGTHY)
@pytest.mark.parametrize("defense", DEFENSES)
def test_it_is_double_backward(defense, distance):
    model = relu_network("eval").double()
    observation = update(model, defense=defense)
    exact = engine_for(model, observation, distance=distance, way="exact")
    plain = PlainDoubleBackward(model, observation, distance=distance)
    images = guesses(model, 3)
    found, expected = exact.evaluate(images), plain.evaluate(images)
    assert relative(found.gradient, expected.gradient) < 1e-9
    torch.testing.assert_close(found.cost, expected.cost, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("distance", LENGTHY)
def test_the_frozen_pattern_is_near_it(distance):
    model = relu_network("eval").double()
    observation = update(model, defense="sparsify:0.5+clip:0.1")
    images = guesses(model, 2)
    frozen, plain = (
        engine_for(model, observation, distance=distance, way=way).evaluate(images)
        for way in ("frozen-pattern", "plain")
    )
    assert relative(frozen.gradient, plain.gradient) < 1e-4


def test_soft_labels_go_through_the_clip_too():
    model, batch, observation = double("clip:0.1")
    engine = PlainDoubleBackward(model, observation, distance=SquaredL2(), soft_labels=True)
    soft = torch.nn.functional.one_hot(batch.labels, 4).double()[None]
    assert engine.matching(batch.images[None], soft).item() == pytest.approx(0, abs=1e-12)


def test_what_does_not_see_the_length_stays_what_it_is():
    model, _, observation = double("sparsify:0.5+clip:0.1")
    for distance in (Cosine(), LayerCosine()):
        engine = engine_for(model, observation, distance=distance)
        assert isinstance(engine, ExactROperator)
        assert engine.problem.distance is distance
        assert engine.matcher.closed is not None
    for defense in ("none", "sparsify:0.5", "noise:0.1"):
        model, _, observation = double(defense)
        engine = engine_for(model, observation, distance=SquaredL2())
        assert isinstance(engine, ExactROperator)
        assert engine.problem.distance == SquaredL2()


def test_noise_in_front_of_a_clip_counts_with_the_length_that_it_usually_has(generator):
    """Else what is left of the noise is not all that is left at the true gradient."""
    a = {
        name: torch.randn(count, generator=generator)
        for name, count in (("a", 40_000), ("b", 10_000))
    }
    length = 50_000**0.5
    for spec, clipped in (
        ("noise:1+clip:200", 200 / length / 2**0.5),
        ("noise:1+noise:1+clip:200", 200 / length / 3**0.5),
        ("noise:1+clip:200+clip:100", 100 / length / 2**0.5),
        ("noise:1+clip:1000", 1.0),
        ("clip:1+noise:1", 1 / length),
    ):
        defenses = parse_defense(spec)
        found = Clipped(SquaredL2(), defenses).clipped(a, Target(a))
        assert list(found) == ["a", "b"]
        for name, value in found.items():
            torch.testing.assert_close(value, clipped * a[name], rtol=0.02, atol=1e-4)


@pytest.mark.parametrize("left", [0.5, 0.1])
@pytest.mark.parametrize("more", ["", "+noise:2"])
def test_noise_behind_a_sparsification_is_as_long_as_that_of_what_is_left(left, more, generator):
    """Drawn, cut and measured here; the lengths of two independent vectors add as squares."""
    spec = f"noise:3+sparsify:{1 - left:g}{more}+clip:50"
    a = {
        "a": torch.randn(40_000, generator=generator),
        "b": torch.randn(10_000, generator=generator),
    }
    mask = {name: torch.rand(len(v), generator=generator) < left for name, v in a.items()}
    cut = [a[name] + 3 * torch.randn(len(a[name]), generator=generator) for name in a]
    sent = torch.cat([v * kept for v, kept in zip(cut, mask.values(), strict=True)])
    if more:  # a client's noise covers the zeros too
        sent = sent + 2 * torch.randn(len(sent), generator=generator)
    found = Clipped(SquaredL2(), parse_defense(spec)).clipped(a, Target(a, mask))
    for name, value in found.items():
        expected = a[name] * mask[name] * 50 / sent.norm()
        torch.testing.assert_close(value, expected, rtol=0.02, atol=1e-4)


def test_a_part_of_a_clipped_gradient_has_no_length_to_compare():
    model, _, observation = double("clip:0.1")
    target = Target.of(observation).largest(1)
    with pytest.raises(AttackError, match=r"expected every tensor .* SquaredL2, .* got 1 of 5; .*"):
        Problem.of(model, observation, distance=SquaredL2(), regularizers=(), target=target)
    engine_for(model, observation, distance=Cosine(), target=target)
    assert through_clips(L1(), (Sparsify(0.5), Noise(0.1))) == L1()
    assert through_clips(L1(), (Clip(0.5),)) == Clipped(L1(), (Clip(0.5),))


@pytest.mark.parametrize("name", ["idlg", "dlg"])
def test_lbfgs_finds_the_image_behind_a_clip(name):
    model = tiny_victim(norm=False)
    batch = tiny_batch(batch=1)
    size = torch.cat([v.flatten() for v in tiny_observation(model, batch).gradient.values()]).norm()
    defense = f"clip:{float(size) / 2:.6g}"
    observation = tiny_observation(model, batch, defense=defense)
    found = invert(observation, model, preset(name).with_steps([150.0]), seed=0)
    assert (found.images - batch.images).square().mean() < 1e-3


@pytest.mark.parametrize("way", ["exact", "plain", "frozen-pattern"])
@pytest.mark.parametrize("distance", [Cosine(), SquaredL2()])
def test_the_trial_gradient_goes_through_what_is_not_ours(way, distance):
    """Else the true images are no minimum: the rounding of the update would be left."""
    model, batch = tiny_victim().double(), tiny_batch()
    batch = replace(batch, images=batch.images.double())
    plain = tiny_observation(model, batch)
    step = 0.5 * float(torch.cat([v.flatten() for v in plain.gradient.values()]).std())
    rounded = observe(model, batch, defenses=[Rounded(step)])
    engine = engine_for(model, rounded, distance=distance, way=way)
    right, wrong = engine.matching(torch.stack([batch.images, 1 - batch.images])).tolist()
    assert right == pytest.approx(0, abs=1e-12)
    assert wrong > 1e-3
    unaware = engine_for(model, replace(rounded, defenses=()), distance=distance, way=way)
    assert unaware.matching(batch.images[None]).item() > 1e-3
    slope = engine.evaluate(1 - batch.images[None]).gradient
    assert slope.abs().max() > 0
    assert relative(slope, unaware.evaluate(1 - batch.images[None]).gradient) > 1e-3


def test_a_part_from_outside_is_a_mask():
    model, batch = tiny_victim().double(), tiny_batch()
    batch = replace(batch, images=batch.images.double())
    observation = observe(model, batch, defenses=[Every(3.0), Clip(0.1)])
    engine = engine_for(model, observation, distance=SquaredL2())
    assert engine.matching(batch.images[None]).item() == pytest.approx(0, abs=1e-12)
    assert Target.of(observation).mask is not None
