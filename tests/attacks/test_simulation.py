"""Attacks on FedAvg: the simulated client, against finite differences and against one gradient."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from gradinv.attacks import Checkpoint, Outcome, invert, preset
from gradinv.attacks.driver import Search
from gradinv.attacks.search.regularizers import BatchNormMatching, ImageNorm, TotalVariation
from gradinv.attacks.simulation import as_attacked
from gradinv.engine import (
    ExactROperator,
    PlainDoubleBackward,
    SimulatedTraining,
    engine_for,
)
from gradinv.engine.distances import L1, Cosine, SquaredL2
from gradinv.errors import AttackError
from gradinv.federated import FedAvg, FedSGD, Observation, Reveal, observe, parse_defense
from gradinv.models.convnet import ConvNet
from tests.attacks.slopes import check_against_differences
from tests.attacks.tiny import tiny_batch, tiny_observation, tiny_prior, tiny_victim

SPLIT = FedAvg(local_epochs=2, batch_size=2, lr=0.3, momentum=0.5)
REGULARIZERS = (TotalVariation(0.1, squared=True), ImageNorm(0.1), BatchNormMatching(0.3))


def trained(
    protocol: FedAvg = SPLIT,
    *,
    batch: int = 3,
    defense: str = "none",
    order: bool = True,
    double: bool = True,
) -> tuple[nn.Module, Observation]:
    model = tiny_victim().train(protocol.mode == "train")
    client = tiny_batch(batch=batch)
    if double:
        model = model.double()
        client = type(client)(client.images.double(), client.labels, client.ids)
    observation = observe(
        model,
        client,
        protocol=protocol,
        defenses=parse_defense(defense),
        reveal=Reveal(bn_statistics="exact", order=order),
        generator=torch.Generator().manual_seed(0),
    )
    return model, observation


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("defense", ["none", "sparsify:0.5"])
@pytest.mark.parametrize("distance", [Cosine(), SquaredL2()], ids=lambda d: type(d).__name__)
def test_dc_dx_is_the_finite_difference_in_float64(distance, defense, mode, generator):
    model, observation = trained(replace(SPLIT, mode=mode), defense=defense)
    engine = SimulatedTraining(model, observation, distance=distance, regularizers=REGULARIZERS)
    check_against_differences(engine, 3, generator)


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("defense", ["none", "sparsify:0.9"])
def test_the_true_images_cost_nothing_where_one_gradient_sees_a_difference(mode, defense):
    model, observation = trained(replace(SPLIT, mode=mode), defense=defense)
    engine = SimulatedTraining(
        model, observation, distance=Cosine(), regularizers=(BatchNormMatching(1.0),)
    )
    truth = tiny_batch(batch=3).images.double()
    points = torch.stack([truth, 1 - truth])
    assert engine.matching(points)[0].item() == pytest.approx(0, abs=1e-12)
    assert engine.evaluate(points).cost[0].item() == pytest.approx(0, abs=1e-12)
    assert engine.matching(points)[1].item() > 1e-3
    approximate = PlainDoubleBackward(model, observation.as_one_gradient(), distance=Cosine())
    assert approximate.matching(points)[0].item() > 1e-3


@pytest.mark.parametrize(
    ("protocol", "right"),
    [
        (FedAvg(local_epochs=2, momentum=0.9), True),
        (FedAvg(local_epochs=2, momentum=0.9, mode="train"), True),
        (FedAvg(local_epochs=2, batch_size=2), True),
        (FedAvg(local_epochs=2, batch_size=2, momentum=0.9), False),
        (FedAvg(local_epochs=2, batch_size=3), False),
        (FedAvg(local_epochs=2, batch_size=2, mode="train"), False),
    ],
    ids=["whole", "whole, train", "equal", "equal, momentum", "unequal", "equal, train"],
)
def test_one_gradient_is_right_to_first_order_where_all_images_weigh_the_same(protocol, right):
    """docs/methods.md, Updates of FedAvg: the error at a vanishing step size, and of two orders."""
    protocol = replace(protocol, lr=1e-7)
    model = tiny_victim().train(protocol.mode == "train").double()
    client = tiny_batch(batch=4)
    client = type(client)(client.images.double(), client.labels, client.ids)

    def sent(kind: FedAvg | FedSGD, seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        update = observe(model, client, protocol=kind, generator=generator).as_one_gradient()
        return torch.cat([value.flatten() for value in update.gradient.values()])

    truth = sent(FedSGD(protocol.mode), 0)
    first, second = (sent(protocol, seed) for seed in (0, 1))
    error = ((first - truth).norm() / truth.norm()).item()
    between = ((first - second).norm() / truth.norm()).item()
    assert error < 1e-5 if right else error > 0.01
    assert between < 1e-5 if right else between > 0.01


@pytest.mark.parametrize(
    "defense",
    ["sparsify:0.9+noise:1e-14", "clip:0.1", "sparsify:0.5+clip:0.1", "clip:0.1+sparsify:0.5"],
)
@pytest.mark.parametrize("distance", [Cosine(), SquaredL2(), L1()], ids=lambda d: type(d).__name__)
def test_the_true_images_cost_nothing_behind_defences(distance, defense, generator):
    model, observation = trained(defense=defense)
    engine = SimulatedTraining(model, observation, distance=distance)
    truth = tiny_batch(batch=3).images.double()
    points = torch.stack([truth, 1 - truth])
    right, wrong = engine.matching(points).tolist()
    assert right == pytest.approx(0, abs=1e-9)
    assert wrong > 1e-3
    step, images = 1e-5, torch.rand((1, 3, 1, 8, 8), generator=generator, dtype=torch.float64)
    direction = torch.randn(images.shape, generator=generator, dtype=torch.float64)
    ahead, behind = (engine.evaluate(images + s * direction).cost for s in (step, -step))
    slope = (engine.evaluate(images).gradient * direction).sum().item()
    assert slope == pytest.approx(((ahead - behind) / (2 * step)).item(), rel=1e-5)


def test_the_approximation_clips_in_its_own_units():
    """With tiny local steps all gradients are the one at theta_0, and it is exact."""
    slow = FedAvg(local_epochs=4, lr=1e-7)
    model, sent = trained(slow, defense="clip:0.1")
    engine = engine_for(model, sent.as_one_gradient(), distance=SquaredL2())
    truth = tiny_batch(batch=3).images.double()
    right, wrong = engine.matching(torch.stack([truth, 1 - truth])).tolist()
    assert right < 1e-6 * wrong


def test_cost_and_matching_agree_and_restarts_do_not_see_each_other(generator):
    model, observation = trained()
    engine = SimulatedTraining(model, observation, distance=Cosine())
    images = torch.rand((3, 3, 1, 8, 8), generator=generator, dtype=torch.float64)
    together = engine.evaluate(images)
    assert torch.equal(together.cost, together.matching)
    torch.testing.assert_close(engine.matching(images), together.matching)
    alone = engine.evaluate(images[1:2])
    assert torch.equal(alone.gradient[0], together.gradient[1])
    assert all(parameter.grad is None for parameter in model.parameters())


def test_not_finite_matching_counts_as_infinity():
    model, observation = trained()
    engine = SimulatedTraining(model, observation, distance=Cosine())
    images = torch.full((1, 3, 1, 8, 8), torch.nan, dtype=torch.float64)
    assert engine.matching(images).tolist() == [torch.inf]


def test_what_cannot_be_simulated():
    model, observation = trained(order=False)
    with pytest.raises(AttackError, match="expected an order of the local steps to simulate, got"):
        SimulatedTraining(model, observation, distance=Cosine())
    with pytest.raises(AttackError, match="expected an update of FedAvg to simulate, got one of"):
        SimulatedTraining(model, observation.as_one_gradient(), distance=Cosine())
    with pytest.raises(AttackError, match="expected the labels"):
        SimulatedTraining(model, replace(observation, labels=None), distance=Cosine())


def test_no_r_operator_for_local_training():
    model, observation = trained()
    for way in ("auto", "plain"):
        engine = engine_for(model, observation, distance=Cosine(), way=way)
        assert type(engine) is SimulatedTraining
    with pytest.raises(AttackError, match="expected an update of FedSGD for the way 'exact', got"):
        engine_for(model, observation, distance=Cosine(), way="exact")


class TestAsAttacked:
    def test_an_update_of_fedsgd_stays_what_it_is(self, observation, generator):
        for how in ("simulate", "approximate"):
            assert as_attacked(observation, how, generator) is observation

    def test_an_order_that_was_not_revealed_is_guessed(self):
        _, observation = trained(order=False)

        def guess(seed: int):
            source = torch.Generator().manual_seed(seed)
            return as_attacked(observation, "simulate", source).order

        guesses = {guess(seed) for seed in range(10)}
        assert guess(3) == guess(3)
        assert len(guesses) > 1
        assert all([len(step) for step in order or ()] == [2, 1, 2, 1] for order in guesses)

    def test_a_revealed_order_is_used(self, generator):
        _, observation = trained(order=True)
        assert as_attacked(observation, "simulate", generator) is observation

    def test_one_gradient(self, generator):
        _, observation = trained(order=True)
        found = as_attacked(observation, "approximate", generator)
        assert found.protocol == FedSGD()
        # Any number of steps would do: the cosine does not see a factor, but L2 does.
        factor = SPLIT.gradients(3)
        for name, value in observation.gradient.items():
            torch.testing.assert_close(found.gradient[name] * factor, value)
        _, single = trained(FedAvg(local_epochs=1, lr=0.3))
        assert as_attacked(single, "simulate", generator).protocol == FedSGD()


def engine_of(observation: Observation, model: nn.Module, spec: str):
    search = Search(observation, model, preset(spec), prior=None, seed=0, seconds=None)
    (engine,) = search.engines
    return engine


def test_the_attack_decides_how_the_update_is_explained(victim, observation):
    model, sent = trained(order=False)
    simulated = engine_of(sent, model, "gi-x")
    assert type(simulated) is SimulatedTraining
    assert simulated.protocol == SPLIT
    assert (simulated.way, simulated.reason) == ("simulated", "several local steps")
    assert type(engine_of(sent, model, "gi-x:fedavg=approximate")) is ExactROperator
    _, once = trained(FedAvg(local_epochs=1))
    assert type(engine_of(once, model, "gi-x")) is ExactROperator
    assert type(engine_of(observation, victim, "gi-x")) is ExactROperator
    chosen = replace(preset("standard"), fedavg="approximate").resolved(sent, model, None)
    assert chosen.fedavg == "approximate"


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_one_local_step_is_attacked_as_fedsgd_is(mode):
    model, sent = trained(FedAvg(local_epochs=1, lr=0.05, mode=mode))
    client = tiny_batch(batch=3)
    client = type(client)(client.images.double(), client.labels, client.ids)
    graded = tiny_observation(model, client)
    attack = preset("gi-x:steps=20")
    found, expected = (invert(each, model, attack, seed=0) for each in (sent, graded))
    torch.testing.assert_close(found.images, expected.images, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.objective, expected.objective, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", ["dlg", "ggl", "gi-x+bn", "gi-z/w", "gi-w"])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_other_attacks_run_and_resume(name, mode):
    model, sent = trained(replace(SPLIT, mode=mode), order=False, double=False)
    prior, attack = tiny_prior(), preset(name).scaled(0.008)
    states: list[Checkpoint] = []

    def remember(progress):
        if progress.step == 2:
            states.append(progress.checkpoint())

    whole = invert(sent, model, attack, prior=prior, seed=1, callback=remember)
    assert whole.outcome is Outcome.COMPLETED
    resumed = invert(sent, model, attack, prior=prior, seed=1, resume=states[0])
    assert torch.equal(resumed.images, whole.images)
    approximate = replace(attack, fedavg="approximate")
    with pytest.raises(AttackError, match="got one of another attack"):
        invert(sent, model, approximate, prior=prior, seed=1, resume=states[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "widths", "batch", "rate"),
    [("eval", (16, 16, 32, 32), 2, 0.1), ("train", (16, 16), 4, 0.3)],
)
def test_the_simulation_comes_nearer_to_the_images_than_one_gradient(mode, widths, batch, rate):
    """ReLU and depth: the tiny victim is so smooth that one gradient explains its update well.

    In train mode a deeper network than this hides images of 8 pixels from either attacker.
    """
    torch.manual_seed(0)
    model = ConvNet(4, channels=1, image_size=8, widths=widths).train(mode == "train")
    client = tiny_batch(batch=batch)
    sent = observe(model, client, protocol=FedAvg(local_epochs=5, lr=0.3, mode=mode))
    truth = client.images

    def error(spec: str) -> float:
        found = invert(sent, model, preset(spec), seed=0)
        return (found.images - truth).square().mean().item()

    simulated, approximate = (
        error(f"gi-x:tv=0:lr={rate}:steps=150{how}") for how in ("", ":fedavg=approximate")
    )
    assert simulated < 0.5 * approximate
    assert simulated < 0.02
