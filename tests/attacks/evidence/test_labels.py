import itertools
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from gradinv.attacks import invert, preset
from gradinv.attacks.evidence import labels as label_module
from gradinv.attacks.evidence.head import find_head, random_images
from gradinv.attacks.evidence.labels import (
    LabelMethod,
    RecoveredLabels,
    _whole,
    recover_labels,
    searched_labels,
)
from gradinv.data import ClientBatch
from gradinv.errors import AttackError
from gradinv.federated import (
    FedAvg,
    FedSGD,
    LocalOptimizer,
    Loss,
    Observation,
    Reveal,
    loss_gradient,
    observe,
    parse_defense,
)
from gradinv.models import build_model
from tests.attacks.tiny import tiny_victim

CLASSES = 6


def network(model: str = "convnet", *, seed: int = 0, bias: bool = True) -> nn.Module:
    net = build_model(model, num_classes=CLASSES, channels=1, image_size=16, seed=seed)
    if not bias:
        layer = net.head if model == "convnet" else net.fc
        assert isinstance(layer, nn.Linear)
        layer.register_parameter("bias", None)
    return net


def batch_of(labels: list[int], *, seed: int = 0) -> ClientBatch:
    """Smooth random pictures: nothing that the label recovery has seen."""
    source = torch.Generator().manual_seed(1000 + seed)
    coarse = torch.rand((len(labels), 1, 5, 5), generator=source)
    images = nn.functional.interpolate(coarse, size=(16, 16), mode="nearest")
    return ClientBatch(images, torch.tensor(labels), tuple(range(len(labels))))


def update(model: nn.Module, batch: ClientBatch, defense: str = "none") -> Observation:
    return observe(
        model,
        batch,
        protocol=FedSGD(mode="train" if model.training else "eval"),
        defenses=parse_defense(defense),
        reveal=Reveal(labels=False),
        generator=torch.Generator().manual_seed(0),
    )


def random_labels(count: int, seed: int) -> list[int]:
    source = torch.Generator().manual_seed(seed)
    return torch.randint(CLASSES, (count,), generator=source).tolist()


@pytest.mark.parametrize(
    ("model", "training", "bias"),
    [
        ("convnet", False, True), ("convnet", True, True),
        ("convnet", False, False), ("convnet", True, False),
        ("resnet18", False, True), ("resnet18", True, True),
    ],
)  # fmt: skip
def test_counts_with_repeats_are_found_in_untrained_networks(model, training, bias):
    net = network(model, bias=bias).train(training)
    wrong, batches = 0, 5 if model == "convnet" else 1
    for seed in range(batches):
        labels = random_labels(8, seed)
        found = recover_labels(update(net, batch_of(labels, seed=seed)), net)
        assert found.method is LabelMethod.COUNTS
        assert not found.exact
        assert found.counts.sum() == 8
        assert found.labels.tolist() == sorted(found.labels.tolist())
        assert Counter(found.labels.tolist()) == Counter(
            {c: n for c, n in enumerate(found.counts.tolist()) if n}
        )
        wrong += 8 - (Counter(found.labels.tolist()) & Counter(labels)).total()
    # Without a bias the size of the features is a guess.
    assert wrong <= (0 if bias else 8), "of 40 labels"


def test_the_counts_are_those_of_the_nearest_update_among_all(generator):
    """An independent recount: every multiset of labels is tried on the client's own images."""
    net = network()
    batch = batch_of([2, 2, 5])
    observed = update(net, batch)
    found = recover_labels(observed, net)

    def distance(labels: tuple[int, ...]) -> float:
        gradient = loss_gradient(net, batch.images, torch.tensor(labels))
        return float((gradient["head.bias"] - observed.gradient["head.bias"]).norm())

    every = itertools.combinations_with_replacement(range(CLASSES), 3)
    assert tuple(found.labels.tolist()) == min(every, key=distance)


@pytest.mark.parametrize(
    ("steps", "defense", "least"), [(3, "none", 0.95), (12, "none", 0.95), (12, "noise:0.001", 0.5)]
)
def test_a_network_that_has_learned_is_read_too(steps, defense, least):
    """Where the class of an image moves its own probabilities, and never worse than rank alone."""
    net = network(seed=1).train()
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-4)
    templates = torch.rand((CLASSES, 1, 16, 16), generator=torch.Generator().manual_seed(7))

    def draw(labels: list[int], seed: int) -> ClientBatch:
        source = torch.Generator().manual_seed(seed)
        noise = torch.randn((len(labels), 1, 16, 16), generator=source)
        images = (templates[labels] + 0.15 * noise).clamp(0, 1)
        return ClientBatch(images, torch.tensor(labels), tuple(range(len(labels))))

    for step in range(steps):
        seen = draw(random_labels(32, step), step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(seen.images), seen.labels).backward()
        optimizer.step()
    correct = ranked = probability = 0.0
    for seed in range(10):
        batch = draw(random_labels(6, 50 + seed), 50 + seed)
        true, observed = Counter(batch.labels.tolist()), update(net, batch, defense)
        found = recover_labels(observed, net).labels
        correct += (Counter(found.tolist()) & true).total() / 60
        found = recover_labels(observed, net, method=LabelMethod.COLUMN_MINIMUM).labels
        ranked += (Counter(found.tolist()) & true).total() / 60
        with torch.no_grad():
            probability += float(net(batch.images).softmax(1).max(1).values.mean()) / 10
    assert probability > 2 / CLASSES, "the network has learned nothing: the test says nothing"
    assert correct > max(least, ranked)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("label", range(CLASSES))
def test_one_label_is_exact(label, bias):
    net = network(bias=bias)
    found = recover_labels(update(net, batch_of([label])), net)
    assert (found.labels.tolist(), found.method, found.exact) == ([label], LabelMethod.IDLG, True)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("label", [0, 1])
def test_one_of_two_classes(label, bias):
    """The two rows are of one length there: their signs decide."""
    net = build_model("convnet", num_classes=2, channels=1, image_size=16, seed=0)
    if not bias:
        net.get_submodule("head").register_parameter("bias", None)
    assert recover_labels(update(net, batch_of([label])), net).labels.tolist() == [label]


@pytest.mark.parametrize(
    ("defense", "exact"),
    [("clip:0.01", True), ("sparsify:0.9", False), ("noise:0.001", False)],
)
def test_one_label_survives_defences_and_its_certainty_is_said(defense, exact):
    net = network()
    found = recover_labels(update(net, batch_of([3]), defense), net)
    assert found.labels.tolist() == [3]
    assert found.exact == exact


def test_distinct_labels_by_the_smallest_entry():
    net = network()
    found = recover_labels(update(net, batch_of([4, 0, 3])), net, method=LabelMethod.COLUMN_MINIMUM)
    assert found.labels.tolist() == [0, 3, 4]
    repeated = recover_labels(
        update(net, batch_of([4, 4, 3])), net, method=LabelMethod.COLUMN_MINIMUM
    )
    assert set(repeated.labels.tolist()) > {3, 4}, "blind to repeats, as its authors say"


@pytest.mark.parametrize("defense", ["clip:0.1", "noise:0.005", "sparsify:0.5", "sparsify:0.9"])
def test_counts_through_defences(defense):
    net = network()
    right = 0.0
    for seed in range(5):
        labels = random_labels(4, seed)
        found = recover_labels(update(net, batch_of(labels, seed=seed), defense), net)
        right += (Counter(found.labels.tolist()) & Counter(labels)).total() / 20
    assert right >= 0.9


@pytest.mark.parametrize("defense", ["clip:0.001", "clip:1e6"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_clip_changes_no_count(bias, defense):
    """The part of a gradient that is left would else pass for fewer images."""
    net = network(bias=bias)
    for seed in range(5):
        labels = random_labels(8, seed)
        found = recover_labels(update(net, batch_of(labels, seed=seed), defense), net)
        assert found.labels.tolist() == sorted(labels)


@pytest.mark.parametrize("fraction", [0.9, 0.95])
def test_a_dropped_coordinate_is_not_taken_for_a_zero(fraction):
    """It was small, not zero: a fit to zeros finds too few of the classes with small rows."""
    net = network()
    for seed in range(6):
        labels = random_labels(6, seed)
        observed = update(net, batch_of(labels, seed=seed), f"sparsify:{fraction}")
        assert recover_labels(observed, net).labels.tolist() == sorted(labels)


@pytest.mark.parametrize("kept", [0.5, 0.1])
def test_what_was_dropped_may_have_been_anything(kept):
    """Coordinates dropped by lot, the largest too: their zeros would bind the fit wrongly."""
    net = network()
    for seed in range(4):
        labels = random_labels(6, seed)
        observed = update(net, batch_of(labels, seed=seed))
        source = torch.Generator().manual_seed(seed)
        weight = observed.gradient["head.weight"]
        thin = weight * (torch.rand(weight.shape, generator=source) < kept)
        found = recover_labels(
            replace(
                observed,
                gradient={**observed.gradient, "head.weight": thin},
                defenses=parse_defense(f"sparsify:{1 - kept:g}"),
            ),
            net,
        )
        assert found.labels.tolist() == sorted(labels)
        assert found.gap < 0.01


def test_noise_behind_a_sparsification_makes_no_coordinate_certain():
    net = network()
    for seed in range(5):
        batch = batch_of(random_labels(4, seed), seed=seed)
        seen, hidden = (
            recover_labels(update(net, batch, defense), net)
            for defense in ("sparsify:0.9", "sparsify:0.9+noise:1e-9")
        )
        assert hidden.labels.tolist() == seen.labels.tolist()
        assert hidden.gap == pytest.approx(seen.gap, abs=1e-3)


def test_the_last_layer_alone_is_read_and_the_scale_of_features_does_not_matter():
    net = network()
    observed = update(net, batch_of([1, 1, 4, 5]))
    only = {name: value for name, value in observed.gradient.items() if name.startswith("head")}
    found = recover_labels(replace(observed, gradient=only), net)
    assert found.labels.tolist() == [1, 1, 4, 5]
    assert 0 <= found.gap < 0.5


def test_the_labels_are_the_same_at_every_call_and_the_network_stays_as_it_was():
    net = network().train()
    observed = update(net, batch_of([1, 1, 4, 5]))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    chance = torch.random.get_rng_state()
    first, second = recover_labels(observed, net), recover_labels(observed, net)
    assert torch.equal(first.counts, second.counts)
    assert first.gap == second.gap
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(chance, torch.random.get_rng_state())


def test_an_update_of_zeros_gives_some_labels():
    net = network()
    observed = update(net, batch_of([1, 2]))
    zeros = {name: torch.zeros_like(value) for name, value in observed.gradient.items()}
    assert len(recover_labels(replace(observed, gradient=zeros), net).labels) == 2


def test_what_does_not_fit_is_said():
    net = network()
    several, many = update(net, batch_of([1, 2])), update(net, batch_of([0] * 7))
    with pytest.raises(AttackError, match="expected one image for the labels' method idlg, got 2"):
        recover_labels(several, net, method=LabelMethod.IDLG)
    with pytest.raises(AttackError, match=r"at most 6 images .*column-minimum.*got 7; use counts"):
        recover_labels(many, net, method=LabelMethod.COLUMN_MINIMUM)
    with pytest.raises(
        AttackError, match=r"got 'searched with the images'; .* dlg.* or use counts"
    ):
        recover_labels(several, net, method=LabelMethod.SEARCHED)
    frozen = {name: v for name, v in several.gradient.items() if name != "head.weight"}
    with pytest.raises(AttackError, match=r"the gradient of head\.weight.*\(a frozen layer\)"):
        recover_labels(replace(several, gradient=frozen), net)


@pytest.mark.parametrize(
    ("counts", "batch", "least", "whole"),
    [
        ([1.2, 2.8, 0.0], 4, [0, 0, 0], [1, 3, 0]),
        ([1.4, 1.4, 1.2], 4, [0, 0, 0], [2, 1, 1]),
        ([0.0, 0.0, 2.0], 2, [0, 0, 0], [0, 0, 2]),
        ([0.9, 0.9, 0.2], 2, [0, 0, 0], [1, 1, 0]),
        ([2.0, 1 - 1e-12, 1e-12], 3, [0, 1, 0], [2, 1, 0]),
        ([1.7, 0.8, 0.5], 3, [0, 0, 1], [1, 1, 1]),
    ],
)
def test_whole_numbers_sum_to_the_batch(counts, batch, least, whole):
    real = torch.tensor(counts, dtype=torch.float64)
    assert _whole(real, batch, torch.tensor(least).double()).tolist() == whole


def test_the_gap_is_the_largest_on_either_side(monkeypatch):
    net = network()
    solved = torch.tensor([1.3, 1.3, 1.4, 0.0, 0.0, 0.0], dtype=torch.float64)
    monkeypatch.setattr(label_module, "_solve_counts", lambda _: solved)
    found = recover_labels(update(net, batch_of([0, 1, 2, 2])), net)
    assert found.counts.tolist() == [1, 1, 2, 0, 0, 0]
    assert found.gap == pytest.approx(0.6)


def test_features_are_kept_as_they_usually_are():
    """Not negative behind a ReLU, and at most 1.5 times as long as usual; the bias's stays 1."""
    net = network()
    observed = update(net, batch_of([0, 1, 2, 2]))
    head = find_head(net, random_images(8, (1, 16, 16), torch.Generator().manual_seed(0)))
    own = label_module._Update.of(observed, head)
    assert own.usual[:, :-1].norm(dim=1).mean().item() == pytest.approx(1)
    features = head.weight.shape[1]
    means = torch.zeros(3, features + 1, dtype=torch.float64)
    means[0, :3] = torch.tensor([3.0, -9.0, 4.0])
    means[1, :3] = torch.tensor([0.3, -0.2, 0.4])
    means[2, :3] = torch.tensor([torch.nan, torch.inf, 1.0])
    found = own.feasible(means)
    expected = torch.zeros_like(means)
    expected[0, :3] = torch.tensor([0.9, 0.0, 1.2])
    expected[1, :3] = torch.tensor([0.3, 0.0, 0.4])
    expected[2, 2] = 1.0
    expected[:, -1] = 1.0
    torch.testing.assert_close(found, expected)


def test_under_a_sparsification_the_bias_is_fitted_and_the_columns_of_most_survivors():
    net = network()
    observed = update(net, batch_of([0, 1, 2, 2]), "sparsify:0.9")
    weight = observed.gradient["head.weight"]
    # A bias's gradient of any size says more than a column.
    faint = {**observed.gradient, "head.bias": 1e-6 * observed.gradient["head.bias"]}
    head = find_head(net, random_images(8, (1, 16, 16), torch.Generator().manual_seed(0)))
    fitted = label_module._Update.of(replace(observed, gradient=faint), head).fitted
    assert fitted is not None
    assert weight.shape[1] in fitted
    largest = weight.abs().sum(dim=0).argsort(descending=True)[: label_module.COLUMNS - 1]
    assert set(fitted.tolist()) == {*largest.tolist(), weight.shape[1]}


def test_searched_labels_are_the_most_probable_ones():
    soft = torch.tensor([[0.1, 0.7, 0.2], [0.6, 0.4, 0.0], [0.0, 0.9, 0.1]])
    found = searched_labels(soft)
    assert found.labels.tolist() == [0, 1, 1]
    assert found.counts.tolist() == [1, 2, 0]
    assert (found.method, found.exact) == (LabelMethod.SEARCHED, False)
    assert found.gap == pytest.approx(0.3)


def test_an_attack_goes_on_with_the_labels_that_it_found():
    net = tiny_victim()
    source = torch.Generator().manual_seed(3)
    images = torch.rand((2, 1, 8, 8), generator=source)
    batch = ClientBatch(images, torch.tensor([2, 0]), (0, 1))
    hidden = update(net, batch)
    attack = preset("gi-x").scaled(0.005)
    found = invert(hidden, net, attack, seed=1)
    assert isinstance(found.recovered, RecoveredLabels)
    assert found.labels.tolist() == found.recovered.labels.tolist() == [0, 2]
    told = invert(replace(hidden, labels=found.labels), net, attack, seed=1)
    assert told.recovered is None
    assert torch.equal(told.images, found.images)


def test_labels_do_not_move_to_another_type(generator):
    net = network().double()
    observed = update(net, batch_of([1, 3]).to(dtype=torch.float64))
    found = recover_labels(observed, net)
    assert found.labels.tolist() == [1, 3]
    assert isinstance(found.labels, Tensor)
    assert found.labels.dtype == torch.int64


def test_an_update_of_several_local_steps_is_read_as_one_gradient():
    """The same labels as in the gradient, only that nothing is certain any more."""
    model = network()
    for seed, labels in enumerate(([0, 0, 3, 5], [2], [1, 1, 1, 4])):
        batch = batch_of(labels, seed=seed)
        sent = observe(
            model,
            batch,
            protocol=FedAvg(local_epochs=3, lr=0.01, momentum=0.5),
            reveal=Reveal(labels=False),
        )
        found = recover_labels(sent, model)
        assert found.labels.tolist() == labels
        assert not found.exact
        once = observe(model, batch, protocol=FedAvg(1, lr=0.1), reveal=Reveal(labels=False))
        assert recover_labels(once, model).exact == (len(labels) == 1)
        if len(labels) > 1:
            continue
        assert invert(sent, model, preset("gi-x:steps=1")).labels.tolist() == labels


def _sent(labels, protocol):
    return observe(network(), batch_of(labels), protocol=protocol, reveal=Reveal(labels=False))


@pytest.mark.parametrize("loss", [Loss(reduction="sum", scale=0.5), Loss(scale=4.0)])
def test_the_sum_is_read_as_the_mean_is(loss):
    """Of weight and bias alike; of so many images not all are proven to be there."""
    labels = random_labels(16, 1)
    mean = recover_labels(_sent(labels, FedSGD()), network())
    found = recover_labels(_sent(labels, FedSGD(loss=loss)), network())
    assert torch.equal(found.counts, mean.counts)
    assert found.gap == pytest.approx(mean.gap, abs=1e-5)


def test_a_smoothed_label_of_one_image_is_no_certainty():
    assert recover_labels(_sent([3], FedSGD()), network()).exact
    found = recover_labels(_sent([3], FedSGD(loss=Loss(smoothing=0.1))), network())
    assert found.labels.tolist() == [3]
    assert not found.exact


@pytest.mark.parametrize(
    ("protocol", "message"),
    [
        (FedSGD(loss=Loss("bce")), "expected a cross entropy that weighs all classes alike"),
        (
            FedSGD(loss=Loss(weights=(2.0,) * CLASSES)),
            "expected a cross entropy that weighs all classes alike",
        ),
        (FedAvg(1, optimizer=LocalOptimizer("adam")), "expected SGD to read labels off an update"),
    ],
)
def test_losses_and_optimizers_that_hide_counts(protocol, message):
    with pytest.raises(AttackError, match=message):
        recover_labels(_sent([0, 3], protocol), network())
