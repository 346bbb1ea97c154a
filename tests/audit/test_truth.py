"""Where a search ended beside the cost of the true images."""

import doctest
from dataclasses import replace

import pytest
import torch

from gradinv.attacks import invert, preset
from gradinv.attacks.stages import matching_of
from gradinv.audit import truth as module
from gradinv.audit.truth import ADVICE, state_of, truth_row
from gradinv.data import ClientBatch
from gradinv.engine.distances import Cosine
from gradinv.federated import FedAvg, FedSGD, Reveal, observe, parse_defense
from gradinv.federated.client import loss_gradient
from tests.attacks.tiny import tiny_batch, tiny_prior, tiny_victim


def seen(batch: ClientBatch, model, *, defense="none", protocol=None, reveal=None):
    return observe(
        model,
        batch,
        protocol=protocol or FedSGD(),
        defenses=parse_defense(defense),
        reveal=reveal or Reveal(),
        generator=torch.Generator().manual_seed(0),
    )


def test_examples_in_docstrings():
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize(
    ("end", "truth", "state"),
    [
        (0.019, 0.0, "reached"), (0.021, 0.0, "stalled"), (0.5, 0.52, "passed"),
        (0.99, 1.2, "passed"), (1.0, 1.0, "reached"),
    ],
)  # fmt: skip
def test_two_percent_of_the_way_count_as_nothing(end, truth, state):
    assert state_of(1.0, end, truth) == state
    assert ADVICE[state]


@pytest.mark.parametrize("defense", ["none", "sparsify:0.9", "clip:0.1"])
def test_the_truth_costs_nothing_without_noise(defense):
    model, batch = tiny_victim(), tiny_batch()
    observation = seen(batch, model, defense=defense)
    cost = matching_of(observation, model, preset("gi-x"), batch.images, prior=None, seed=0)
    assert cost == pytest.approx(0, abs=1e-5)
    other = matching_of(observation, model, preset("gi-x"), 1 - batch.images, prior=None, seed=0)
    assert other > 0.01


def test_with_noise_it_is_the_distance_itself():
    model, batch = tiny_victim(), tiny_batch()
    observation = seen(batch, model, defense="noise:0.05")
    cost = matching_of(observation, model, preset("gi-x"), batch.images, prior=None, seed=0)
    plain = loss_gradient(model, batch.images, batch.labels)
    flat = [torch.cat([g.flatten() for g in each.values()]) for each in
            (plain, observation.gradient)]  # fmt: skip
    cosine = torch.nn.functional.cosine_similarity(flat[0], flat[1], dim=0)
    assert isinstance(preset("gi-x").distance, Cosine)
    assert cost == pytest.approx(1 - float(cosine), abs=1e-5)


def test_local_steps_are_simulated_with_the_order_that_the_attack_has():
    model, batch = tiny_victim(), tiny_batch()
    protocol = FedAvg(local_epochs=2, batch_size=1, lr=0.05)
    told = seen(batch, model, protocol=protocol, reveal=Reveal(order=True))
    attack = preset("gi-x")
    cost = matching_of(told, model, attack, batch.images, prior=None, seed=0)
    assert cost == pytest.approx(0, abs=1e-5)


def row_of(name: str, batch: ClientBatch, model, *, reveal=None, **settings):
    attack = preset(name)
    prior = tiny_prior() if attack.uses_prior else None
    observation = seen(batch, model, reveal=reveal)
    found = invert(observation, model, attack, prior=prior, seed=1)
    return truth_row(observation, model, attack, batch, found, prior=prior, seed=1, **settings)


@pytest.mark.parametrize("name", ["gi-x:steps=3", "gi-z/w:steps=3", "dlg:steps=3"])
def test_a_short_search_has_stalled(name):
    row = row_of(name, tiny_batch(), tiny_victim())
    assert row is not None
    assert row["state"] == "stalled"
    assert row["cost"] == pytest.approx(0, abs=1e-5)


def test_the_true_labels_are_used_where_they_were_hidden():
    row = row_of("gi-x:steps=3", tiny_batch(), tiny_victim(), reveal=Reveal(labels=False))
    assert row is not None
    assert row["cost"] == pytest.approx(0, abs=1e-5)


def test_what_is_not_finite_has_no_state():
    model, batch = tiny_victim(), tiny_batch()
    observation = seen(batch, model)
    attack = preset("gi-x:steps=3")
    found = replace(invert(observation, model, attack, seed=1), matching=float("inf"))
    row = truth_row(observation, model, attack, batch, found, prior=None, seed=1)
    assert row == {"cost": pytest.approx(0, abs=1e-5), "state": None}
