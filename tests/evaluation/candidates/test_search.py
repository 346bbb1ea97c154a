"""The search names the client's images where the update tells them, and only then."""

import itertools
import math

import pytest
import torch

from gradinv.evaluation.candidates import (
    CandidateScore,
    Fit,
    candidate_lists,
    candidate_result,
    search_candidates,
    trials_for,
)
from gradinv.evaluation.certificates import DROPOUT
from gradinv.evaluation.verdict import chance_of
from gradinv.federated import FedAvg, FedSGD, Reveal
from gradinv.federated.channel import NO_NOISE, NOT_LAST
from tests.attacks.tiny import tiny_victim
from tests.evaluation.candidates.places import images_of, lists_of, other_client, update_of

FEDAVG = FedAvg(local_epochs=2, batch_size=2, lr=0.05)


@pytest.mark.parametrize("defense", ["none", "sparsify:0.9", "clip:0.1+noise:0.001"])
@pytest.mark.parametrize("protocol", [FedSGD(), FedSGD(mode="train"), FEDAVG])
def test_it_names_all_images_by_swaps_and_with_the_rest_known(protocol, defense):
    model = tiny_victim().train(protocol.mode == "train")
    images = images_of()
    batch, lists = lists_of(images)
    reveal = Reveal(order=protocol is FEDAVG)
    seen = update_of(model, batch, protocol, defense, reveal=reveal)
    other = update_of(model, other_client(lists), protocol, defense, reveal=reveal)
    found = candidate_result(seen, model, lists, control=other)
    assert [score.rank for score in found.images] == [0, 0, 0]
    assert [score.rank_known for score in found.images] == [0, 0, 0]
    assert all(score.named and score.named_known for score in found.images)
    assert found.picks == lists.truth
    assert any(score.control for score in found.images)


def test_the_control_names_about_as_many_as_luck():
    """The control's update has no image of the lists in it."""
    model, images = tiny_victim(), images_of(64)
    named = []
    for seed in range(12):
        batch, lists = lists_of(images, count=4, seed=seed)
        seen = update_of(model, batch, FedSGD())
        other = update_of(model, other_client(lists), FedSGD())
        found = candidate_result(seen, model, lists, control=other, seed=seed)
        named += [score.control_known == 0 for score in found.images]
    assert len(named) == 36
    assert chance_of(sum(named), [0.25] * 36) > 1e-3
    assert sum(named) > 0


def test_with_the_rest_known_it_is_the_brute_force():
    model, images = tiny_victim(), images_of()
    batch, lists = lists_of(images, count=5)
    fit = Fit(update_of(model, batch, FedSGD(), "noise:0.3"))
    trials = trials_for(model, lists, FedSGD())
    found = search_candidates(lists, trials, fit)
    for place in range(3):
        distances = []
        for pick in range(5):
            picks = list(lists.truth)
            picks[place] = pick
            distances.append(float((fit.target - trials.update(picks)).double().square().sum()))
        own = distances[lists.truth[place]]
        assert found.known[place] == sum(other <= own for other in distances) - 1
        weights = [math.exp(-(other - own) / (2 * 0.3**2)) for other in distances]
        assert found.known_posteriors[place] == pytest.approx(1 / sum(weights), rel=1e-3)


def test_swaps_end_where_no_other_combination_fits_better():
    model, images = tiny_victim(), images_of()
    batch, lists = lists_of(images, count=4)
    fit = Fit(update_of(model, batch, FedSGD(), "noise:0.05"))
    trials = trials_for(model, lists, FedSGD())
    found = search_candidates(lists, trials, fit)
    best = min(
        itertools.product(range(4), repeat=3), key=lambda picks: fit.distance(trials.update(picks))
    )
    assert found.picks == best


def test_a_tie_counts_against_the_true_image():
    images = images_of()
    batch, lists = lists_of(images, count=3)
    twins = type(lists)(
        images=tuple(
            torch.cat([each, batch.images[i, None]]) for i, each in enumerate(lists.images)
        ),
        truth=lists.truth,
        labels=lists.labels,
        others=lists.others,
    )
    model = tiny_victim()
    found = candidate_result(update_of(model, batch, FedSGD()), model, twins)
    assert [score.rank_known for score in found.images] == [1, 1, 1]
    assert not any(score.named or score.named_known for score in found.images)


def test_an_image_alone_in_its_list_is_not_named():
    alone = CandidateScore(0, 0, 1, 0, None, 0, None, None, None)
    assert not alone.named
    assert not alone.named_known


def test_unknown_order_of_local_steps():
    """With the rest known the order is known too; by swaps the server takes a guess."""
    model, images = tiny_victim(), images_of()
    batch, lists = lists_of(images, batch=4)
    told = update_of(model, batch, FEDAVG, reveal=Reveal(order=True))
    seen = update_of(model, batch, FEDAVG)
    assert seen.order is None
    assert told.order is not None
    found = candidate_result(seen, model, lists, known_order=told.order)
    assert [score.rank_known for score in found.images] == [0] * 4


def test_ceilings_are_given_where_they_hold():
    model, images = tiny_victim(), images_of()
    batch, lists = lists_of(images)
    for defense, reason in (
        ("noise:0.1", None),
        ("sparsify:0.5", NO_NOISE),
        ("noise:0.1+sparsify:0.5", NOT_LAST),
    ):
        found = candidate_result(update_of(model, batch, FedSGD(), defense), model, lists)
        assert found.refusal == reason
        assert all((score.ceiling is None) == (reason is not None) for score in found.images)
        assert (found.sigma_needed is None) == (reason == NOT_LAST)
    dropping = torch.nn.Sequential(torch.nn.Dropout(0.5), tiny_victim(norm=False)).train()
    seen = update_of(dropping, batch, FedSGD(mode="train"), "noise:0.1")
    found = candidate_result(seen, dropping, lists)
    assert (found.refusal, found.sigma_needed, found.images[0].ceiling) == (DROPOUT, None, None)


def test_never_above_the_ceiling_in_100_settings():
    """Named images of servers that know the rest, against what no server can do."""
    model, images = tiny_victim(), images_of(80)
    rates, named = [], []
    for seed in range(100):
        batch, lists = lists_of(images, batch=1 + seed % 3, count=2 + seed % 7, seed=seed)
        sigma = 0.02 * 3 ** (seed % 5)
        clip = "clip:0.5+" if seed % 2 else ""
        seen = update_of(model, batch, FedSGD(), f"{clip}noise:{sigma}", seed=seed)
        found = candidate_result(seen, model, lists, seed=seed)
        for score in found.images:
            assert score.ceiling is not None
            assert score.ceiling_interval is not None
            rates.append(min(1.0, score.ceiling_interval[1]))
            named += [score.named_known]
            assert score.ceiling_interval[0] <= score.ceiling <= score.ceiling_interval[1]
    assert 0.3 < sum(rates) / len(rates) < 0.9  # neither all nor nothing
    assert chance_of(sum(named), rates) > 0.01
    # ... and the bound is met: the search with the rest known is the Bayes rule.
    assert sum(named) > 0.8 * sum(rates)


def test_the_noise_that_is_asked_for_excludes():
    model, images = tiny_victim(), images_of()
    batch, lists = lists_of(images)
    needed = candidate_result(update_of(model, batch, FedSGD()), model, lists).sigma_needed
    assert needed is not None
    for sigma, enough in ((needed, True), (needed / 1.3, False)):
        seen = update_of(model, batch, FedSGD(), f"noise:{sigma}")
        found = candidate_result(seen, model, lists)
        high = sum(score.ceiling_interval[1] for score in found.images if score.ceiling_interval)
        assert (high / 3 <= 1 / 6 + 0.1) == enough


def test_rounds_are_less_noise():
    model, images = tiny_victim(), images_of()
    batch, lists = lists_of(images)
    seen = update_of(model, batch, FedSGD(), "noise:0.3")
    one, nine = (candidate_result(seen, model, lists, rounds=rounds) for rounds in (1, 9))
    third = update_of(model, batch, FedSGD(), "noise:0.1")
    same = candidate_result(third, model, lists)
    assert [a.ceiling for a in nine.images] == pytest.approx([b.ceiling for b in same.images])
    assert (nine.images[0].ceiling or 0) > (one.images[0].ceiling or 1)


def test_it_can_be_left():
    model, images = tiny_victim(), images_of()
    batch, lists = lists_of(images)
    seen = update_of(model, batch, FedSGD())
    heard = []

    def tick(fraction):
        heard.append(fraction)
        if len(heard) == 7:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        candidate_result(seen, model, lists, tick=tick)
    assert heard == sorted(heard)
    assert 0 <= heard[-1] < 1


def test_a_seed_decides_it():
    images = images_of()
    model = tiny_victim()
    (batch,) = images.batches(batch_size=2, count=1, seed=0)
    lists = candidate_lists(images, batch, count=5, seed=0)
    seen = update_of(model, batch, FedSGD(), "noise:0.2")
    rows = [candidate_result(seen, model, lists, seed=4).row() for _ in range(2)]
    assert rows[0] == rows[1]
