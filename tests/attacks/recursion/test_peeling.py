from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from gradinv.attacks import AnalyticAttack, Checkpoint, Outcome, invert, preset, rank_analysis
from gradinv.attacks.recursion.chain import chain_of
from gradinv.attacks.recursion.linear import system_of
from gradinv.attacks.recursion.peeling import _last_layer, peel
from gradinv.attacks.recursion.ranks import rank_sentence
from gradinv.attacks.recursion.system import SystemEngine
from gradinv.attacks.search.regularizers import TotalVariation
from gradinv.data import ClientBatch
from gradinv.errors import AttackError
from gradinv.evaluation.metrics import psnr
from gradinv.federated import (
    Clip,
    FedAvg,
    FedSGD,
    LocalOptimizer,
    Loss,
    Observation,
    Reveal,
    observe,
    parse_defense,
)
from gradinv.models import LeakyNet, Normalize
from tests.attacks.tiny import tiny_prior
from tests.outside import Every

SIDE = 8


def seeded(build, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build().eval()


def image(*, channels: int = 1, seed: int = 3, count: int = 1) -> ClientBatch:
    source = torch.Generator().manual_seed(seed)
    pixels = torch.rand((count, channels, SIDE, SIDE), generator=source)
    return ClientBatch(pixels, torch.arange(count) + 1, tuple(range(count)))


def update(model: nn.Module, batch: ClientBatch, defense: str = "none", *, labels=True):
    return observe(
        model,
        batch,
        protocol=FedSGD(mode="train" if model.training else "eval"),
        defenses=parse_defense(defense),
        reveal=Reveal(labels=labels),
        generator=torch.Generator().manual_seed(0),
    )


def quality(found, batch: ClientBatch) -> float:
    return float(psnr(found.images, batch.images, data_range=1.0))


class Dense(nn.Module):
    """Linear layers alone."""

    def __init__(self, *, bias: bool = True) -> None:
        super().__init__()
        self.flat = nn.Flatten()
        self.first = nn.Linear(SIDE**2, 20, bias=bias)
        self.act = nn.Sigmoid()
        self.last = nn.Linear(20, 4, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.act(self.first(self.flat(x))))


def with_batch_norm() -> nn.Module:
    norm = nn.BatchNorm2d(6)
    norm.running_mean = torch.linspace(-0.5, 0.5, 6)
    norm.running_var = torch.linspace(0.5, 2, 6)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.uniform_(norm.bias, -1, 1)
    return nn.Sequential(
        Normalize([0.4], [0.3]), nn.Conv2d(1, 6, 3, padding=1, bias=False), norm, nn.Tanh(),
        nn.Dropout(0.5), nn.Conv2d(6, 8, 3, padding=2, dilation=2), nn.LeakyReLU(0.1),
        nn.Identity(), nn.Flatten(), nn.Linear(512, 30), nn.LeakyReLU(0.3), nn.Linear(30, 4),
    )  # fmt: skip


def without_bias() -> nn.Module:
    net = LeakyNet(4, 1, SIDE)
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_parameter("bias", None)
    return net


def head_without_bias() -> nn.Module:
    net = LeakyNet(2, 1, SIDE)
    net.head.register_parameter("bias", None)
    return net


@pytest.mark.parametrize(
    ("build", "channels"),
    [
        (lambda: LeakyNet(4, 1, SIDE), 1),
        (lambda: LeakyNet(4, 3, SIDE), 3),
        (without_bias, 1),
        (head_without_bias, 1),
        (with_batch_norm, 1),
        (Dense, 1),
        (lambda: Dense(bias=False), 1),
    ],
)
def test_the_image_comes_back_where_the_equations_determine_it(build, channels):
    model = seeded(build)
    batch = image(channels=channels)
    found = invert(update(model, batch), model, preset("r-gap"))
    assert quality(found, batch) > 40
    assert found.outcome is Outcome.COMPLETED
    (stage,) = found.stages
    assert stage.name == "layers"
    assert stage.cost.shape == (found.steps, 1)
    assert found.objective.max() < 1e-6
    assert found.recovered is None


@pytest.mark.parametrize("name", ["r-gap", "r-gap+prior:steps=2,2"])
def test_one_local_step_is_taken_for_the_gradient_that_it_is(name):
    model = seeded(lambda: LeakyNet(4, 1, SIDE)).double()
    batch = image().to(dtype=torch.float64)
    prior = tiny_prior().double()
    once = observe(model, batch, protocol=FedAvg(local_epochs=1, lr=0.05, momentum=0.5))
    found = invert(once, model, preset(name), prior=prior)
    expected = invert(update(model, batch), model, preset(name), prior=prior)
    (stage, *_), (same, *_) = found.stages, expected.stages
    assert psnr(stage.images, batch.images, data_range=1.0) > 40
    torch.testing.assert_close(stage.images, same.images, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.images, expected.images, rtol=1e-3, atol=1e-3)
    twice = observe(model, batch, protocol=FedAvg(local_epochs=2, lr=0.05))
    with pytest.raises(AttackError, match=r"single gradient for r-gap.*of 2 local steps; .*gi-x"):
        invert(twice, model, preset(name), prior=prior)


@pytest.mark.parametrize("build", [lambda: LeakyNet(4, 1, SIDE), without_bias])
@pytest.mark.parametrize("label", [0, 3])
def test_hidden_labels_are_read_first(build, label):
    model = seeded(build)
    batch = replace(image(), labels=torch.tensor([label]))
    found = invert(update(model, batch, labels=False), model, preset("r-gap"))
    assert found.recovered is not None
    assert found.labels.tolist() == [label]
    assert quality(found, batch) > 40


def test_equations_are_those_of_the_network():
    """A x = b holds for the client's own x, and an entry of A for each entry of the gradient."""
    model = seeded(lambda: LeakyNet(4, 3, SIDE)).double()
    batch = image(channels=3).to(dtype=torch.float64)
    observed = update(model, batch)
    link = next(link for link in chain_of(model, (3, SIDE, SIDE)) if link.name == "blocks.conv2")
    assert isinstance(link.layer, nn.Conv2d)
    entering = batch.images
    for name in ("normalize", "blocks.conv1", "blocks.leaky1"):
        entering = model.get_submodule(name)(entering)
    leaving = link.layer(entering.detach()).requires_grad_()
    rest = model.get_submodule("head")(model.get_submodule("blocks.leaky2")(leaving).flatten(1))
    (slope,) = torch.autograd.grad(nn.functional.cross_entropy(rest, batch.labels), leaving)
    system = system_of(link, leaving[0].detach(), slope[0], dict(observed.gradient))
    error = system.matrix @ entering[0].detach().flatten() - system.right
    assert error.abs().max() < 1e-10 * system.right.abs().max()
    assert len(system.matrix) == leaving.numel() + link.layer.weight.numel()
    assert system.rank == int(torch.linalg.matrix_rank(system.matrix, rtol=1e-5))
    pseudo = torch.linalg.pinv(system.matrix, rtol=1e-5) @ system.right
    assert torch.allclose(system.solution.flatten(), pseudo, atol=1e-6)


def test_a_network_without_a_convolution_leaves_nothing_open():
    model = nn.Sequential(nn.Flatten(), nn.Linear(SIDE**2, 3)).eval()
    assert rank_analysis(model, (1, SIDE, SIDE)) == ()
    assert "determine the input of every layer" in rank_sentence(())


def test_what_is_open_is_said_beforehand_and_the_solution_of_least_norm_is_taken():
    model = seeded(lambda: LeakyNet(4, 1, SIDE, widths=(1, 12)))
    first, second = rank_analysis(model, (1, SIDE, SIDE))
    assert (first.name, second.name) == ("blocks.conv1", "blocks.conv2")
    assert first.unknowns == 64
    assert first.equations == 16 + 25
    assert first.rank == 40, "<W, dl/dW> = <k, W x> says one thing twice for each output channel"
    assert first.open == 24
    assert second.open == 0
    assert "blocks.conv1 (40 of 64 dimensions)" in rank_sentence((first, second))
    assert "determine the input of every layer" in rank_sentence((second,))
    batch = image()
    observed = update(model, batch)
    found = invert(observed, model, preset("r-gap"))
    assert found.outcome is Outcome.UNDER_DETERMINED
    assert quality(found, batch) < 30
    peeled = peel(observed, model)
    solution = peeled.inner.solution.flatten()
    true = ((batch.images - 0.5) / 0.25).flatten().double()
    assert peeled.residuals[-1] < 1e-9
    assert solution.norm() < true.norm()
    # What the equations see of the two is the same.
    assert torch.allclose(peeled.inner.matrix @ solution, peeled.inner.matrix @ true, atol=1e-4)


def test_a_generator_decides_what_is_open():
    """An image of the prior itself: least squares miss it, the generator's latent is found."""
    model = seeded(lambda: LeakyNet(4, 1, SIDE, widths=(1, 12)))
    prior = tiny_prior()
    z = prior.sample_latents(1, torch.Generator().manual_seed(11))
    with torch.no_grad():
        batch = replace(image(), images=prior(z))
    observed = update(model, batch)
    plain = invert(observed, model, preset("r-gap"))
    seen, taken = [], []

    def watch(progress):
        seen.append(progress)
        if progress.step == 170:
            taken.append(progress.checkpoint())

    attack = preset("r-gap+prior:steps=160,20")
    found = invert(observed, model, attack, prior=prior, callback=watch)
    assert [stage.name for stage in found.stages] == ["layers", "z", "w"]
    assert quality(found, batch) > quality(plain, batch) + 6
    assert torch.equal(found.stages[0].images, plain.images)
    assert found.objective.min() < 0.01
    assert len(seen) == 180
    assert seen[-1].fraction == 1
    again = invert(observed, model, attack, prior=prior, resume=taken[0])
    assert torch.equal(again.images, found.images)
    assert [stage.name for stage in again.stages] == ["layers", "z", "w"]


def test_the_generators_cost_is_the_residual_and_its_gradient():
    model = seeded(lambda: LeakyNet(4, 1, SIDE, widths=(1, 12))).double()
    observed = update(model, image().to(dtype=torch.float64))
    peeled = peel(observed, model)
    units = (torch.full((1, 1, 1), 0.5), torch.full((1, 1, 1), 0.25))
    x = torch.rand((2, 1, 1, SIDE, SIDE), generator=torch.Generator().manual_seed(1)).double()
    weight = 0.3
    engine = SystemEngine(peeled, units, (TotalVariation(weight),))
    evaluated = engine.evaluate(x)
    system = peeled.inner
    for restart in range(2):
        u = ((x[restart] - 0.5) / 0.25).flatten()
        expected = (system.matrix @ u - system.right).square().sum() / system.right.square().sum()
        assert evaluated.matching[restart] == pytest.approx(float(expected))
        penalty = TotalVariation(weight)((x[restart] - 0.5) / 0.25)
        assert evaluated.cost[restart] == pytest.approx(float(expected + penalty))
    assert torch.equal(engine.matching(x), evaluated.matching)
    step = torch.zeros_like(x)
    step[1, 0, 0, 2, 3] = 1e-6
    difference = (engine.evaluate(x + step).cost - engine.evaluate(x - step).cost) / 2e-6
    assert difference[0] == 0
    assert evaluated.gradient[1, 0, 0, 2, 3] == pytest.approx(float(difference[1]), rel=1e-5)


@pytest.mark.parametrize(("defense", "least"), [("clip:0.001", 40.0), ("sparsify:0.5", 0.0)])
def test_through_defences_it_does_what_it_can(defense, least):
    model = seeded(lambda: LeakyNet(4, 1, SIDE))
    batch = image()
    found = invert(update(model, batch, defense), model, preset("r-gap"))
    assert quality(found, batch) >= least
    assert torch.isfinite(found.images).all()


@pytest.mark.parametrize("build", [without_bias, lambda: Dense(bias=False)])
@pytest.mark.parametrize("defense", ["clip:0.001", "clip:1e6"])
def test_a_clip_takes_nothing_from_it_without_biases_either(build, defense):
    """The scale of the last layer's gradient says nothing then about that of its features."""
    model = seeded(build)
    batch = image()
    found = invert(update(model, batch, defense), model, preset("r-gap"))
    assert quality(found, batch) > 40


def test_noise_behind_a_sparsification_makes_no_equations():
    model = seeded(lambda: LeakyNet(4, 1, SIDE))
    seen, hidden = (
        invert(update(model, image(), defense), model, preset("r-gap"))
        for defense in ("sparsify:0.5", "sparsify:0.5+noise:1e-10")
    )
    torch.testing.assert_close(hidden.images, seen.images, atol=1e-3, rtol=0)


@pytest.mark.parametrize("build", [lambda: LeakyNet(4, 1, SIDE), Dense])
def test_coordinates_that_were_dropped_say_nothing(build):
    """Dropped by lot in every layer but the last; the others determine the image alone."""
    model, batch = seeded(build), image()
    observed = update(model, batch)
    source = torch.Generator().manual_seed(5)
    thin = {
        name: value * (torch.rand(value.shape, generator=source) < 0.8)
        if name.endswith("weight") and name not in {"head.weight", "last.weight"}
        else value
        for name, value in observed.gradient.items()
    }
    dropped = replace(observed, gradient=thin, defenses=parse_defense("sparsify:0.2"))
    assert quality(invert(dropped, model, preset("r-gap")), batch) > 40


@pytest.mark.parametrize("build", [lambda: LeakyNet(4, 1, SIDE), Dense])
def test_a_known_bias_that_was_not_trained_is_still_in_the_logits(build):
    model, batch = seeded(build), image()
    bias = model.get_parameter("head.bias" if build is not Dense else "last.bias")
    with torch.no_grad():
        bias.copy_(torch.tensor([2.0, -1.0, 0.5, -3.0]))
    bias.requires_grad_(False)
    found = invert(update(model, batch), model, preset("r-gap"))
    assert quality(found, batch) > 40


def test_one_local_step_is_a_gradient_without_biases_too():
    model, batch = seeded(without_bias).double(), image().to(dtype=torch.float64)
    once = observe(model, batch, protocol=FedAvg(local_epochs=1, lr=0.05))
    assert psnr(peel(once, model).image, batch.images, data_range=1.0) > 40


def test_residuals_are_relative_and_the_input_layers_is_the_objective():
    model, batch = seeded(lambda: LeakyNet(4, 1, SIDE)), image()
    observed = update(model, batch, "noise:0.01")
    found, peeled = invert(observed, model, preset("r-gap")), peel(observed, model)
    weight, k = (observed.gradient[f"head.{name}"].double() for name in ("weight", "bias"))
    # |W' - k h^T|^2 / |W'|^2 at its least over h, by Pythagoras.
    own = 1 - (weight.T @ k).square().sum() / (k.square().sum() * weight.square().sum())
    assert peeled.residuals[0] == pytest.approx(float(own))
    inner = peeled.inner
    error = inner.matrix @ inner.solution.flatten() - inner.right
    relative = float(error.square().sum() / inner.right.square().sum())
    assert found.matching == pytest.approx(relative)
    assert found.objective.tolist() == pytest.approx([relative])
    assert relative != pytest.approx(float(own), rel=0.1)
    assert found.stages[0].cost[:, 0].tolist() == pytest.approx(list(peeled.residuals))


class Shortcut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)
        self.head = nn.Linear(SIDE**2, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((x + self.conv(x)).flatten(1))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)
        self.head = nn.Linear(SIDE**2, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(self.conv(x)).flatten(1))


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(SIDE**2, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1)) if x.sum() > 0 else self.head(-x.flatten(1))


def chain(*layers: nn.Module, features: int = SIDE**2) -> nn.Module:
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, 4))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (chain(nn.ReLU()), r"0 \(ReLU is not strictly monotone"),
        (chain(nn.MaxPool2d(2), features=16), r"0 \(MaxPool2d pools"),
        (chain(nn.AdaptiveAvgPool2d(2), features=4), r"0 \(AdaptiveAvgPool2d pools"),
        (chain(nn.BatchNorm2d(1)), r"0 \(batch norm in train mode"),
        (
            chain(nn.BatchNorm2d(1, track_running_stats=False)).eval(),
            r"0 \(batch norm in train mode",
        ),
        (chain(nn.Dropout()), r"0 \(dropout in train mode"),
        (chain(nn.GELU()), r"0 \(GELU has no rule\)"),
        (chain(nn.LeakyReLU(0.0)), r"LeakyReLU without a positive slope"),
        (
            chain(nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular")),
            "no plain convolution",
        ),
        (Shortcut(), r"a branch or a shortcut"),
        (Twice(), r"conv \(used more than once\)"),
        (Branching(), r"torch.fx cannot trace"),
        (nn.Sequential(nn.Conv2d(1, 4, SIDE), nn.Flatten()), "1 at its end"),
    ],
)
def test_a_network_that_cannot_be_taken_apart_is_named_with_the_reason(model, reason):
    with pytest.raises(AttackError, match=rf"for r-gap, got .*{reason}.*attack with gi-x"):
        chain_of(model, (1, SIDE, SIDE))


def test_all_reasons_are_given_at_once():
    model = chain(nn.ReLU(), nn.MaxPool2d(2), features=16)
    with pytest.raises(AttackError, match=r"0 \(ReLU .*, 1 \(MaxPool2d"):
        chain_of(model.eval(), (1, SIDE, SIDE))


def test_a_layer_whose_system_would_not_fit_is_refused():
    with pytest.raises(AttackError, match=r"blocks.conv1 with 12288 inputs \(at most 8192\)"):
        chain_of(LeakyNet(4, 3, 64).eval(), (3, 64, 64))


def test_what_does_not_fit_the_update_is_said():
    model = seeded(lambda: LeakyNet(4, 1, SIDE))
    pair = update(model, image(count=2))
    with pytest.raises(AttackError, match=r"of one image for r-gap, got 2; use --batch-size 1"):
        invert(pair, model, preset("r-gap"))
    with pytest.raises(AttackError, match=r"of one image for r-gap\+prior, got 2"):
        invert(pair, model, preset("r-gap+prior"), prior=tiny_prior())
    model.get_parameter("blocks.conv1.weight").requires_grad_(False)
    with pytest.raises(AttackError, match=r"got none of blocks\.conv1 \(a frozen layer\)"):
        invert(update(model, image()), model, preset("r-gap"))
    model.get_parameter("blocks.conv1.weight").requires_grad_(True)
    single = update(model, image())
    with pytest.raises(AttackError, match="expected a prior"):
        invert(single, model, preset("r-gap+prior"))
    with pytest.raises(AttackError, match="expected no checkpoint for r-gap"):
        invert(single, model, preset("r-gap"), resume=Checkpoint({}, {}))


def test_an_analytic_attack_is_a_value_beside_the_others():
    attack = preset("r-gap+prior")
    assert isinstance(attack, AnalyticAttack)
    assert isinstance(attack.scaled(0.1).with_restarts(2), AnalyticAttack)
    assert attack.describe()["kind"] == "AnalyticAttack"


def test_a_gradient_of_zeros_ends_in_an_outcome():
    model = seeded(lambda: LeakyNet(4, 1, SIDE))
    observed = update(model, image())
    zeros = {name: torch.zeros_like(value) for name, value in observed.gradient.items()}
    found = invert(replace(observed, gradient=zeros), model, preset("r-gap"))
    assert isinstance(observed, Observation)
    assert found.outcome is Outcome.NON_FINITE
    assert torch.isfinite(found.images).all()


def test_entries_that_were_not_sent_say_nothing_of_the_features():
    """Taken for zeros, they would make every feature smaller than it is."""
    model = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(SIDE**2, 4))).double()
    batch = image().to(dtype=torch.float64)
    gradient = dict(observe(model, batch).gradient)
    kept = Every(3.0).survivors(gradient["1.weight"])
    gradient["1.weight"] = gradient["1.weight"] * kept
    link = chain_of(model, (1, SIDE, SIDE))[-1]
    h, _, error = _last_layer(link, gradient, 1, clipped=False, kept=kept)
    assert torch.allclose(h, batch.images.flatten(), atol=1e-10)
    assert error < 1e-20


def test_a_feature_none_of_whose_entries_was_sent_is_taken_for_zero():
    model = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(SIDE**2, 4))).double()
    batch = image().to(dtype=torch.float64)
    found = peel(observe(model, batch, defenses=[Every(3.0), Clip(0.1)]), model)
    kept = Every(3.0).survivors(torch.zeros(4, SIDE**2))
    # The bias tells of the entries 0 and 3 alone, so only features that these two rows sent.
    told = (kept[0] | kept[3]).reshape(1, 1, SIDE, SIDE)
    assert torch.allclose(found.image[told], batch.images[told], atol=1e-9)
    assert found.image[~told].abs().max() == 0


@pytest.mark.parametrize(
    ("protocol", "message"),
    [
        (FedSGD(loss=Loss(smoothing=0.1)), "expected the mean cross entropy for r-gap, got the"),
        (FedAvg(1, optimizer=LocalOptimizer("adam")), "expected a gradient for r-gap, got a step"),
    ],
)
def test_another_loss_or_a_step_that_is_no_gradient(protocol, message):
    torch.manual_seed(0)
    net = LeakyNet(3, 1, 16).eval()
    batch = ClientBatch(torch.rand(1, 1, 16, 16), torch.tensor([1]), (0,))
    with pytest.raises(AttackError, match=message):
        peel(observe(net, batch, protocol=protocol), net)
