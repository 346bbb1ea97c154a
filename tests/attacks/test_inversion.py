from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch

from gradinv.attacks import (
    Adam,
    AnalyticAttack,
    Attack,
    Checkpoint,
    LabelMethod,
    Outcome,
    Stage,
    invert,
    preset,
    recover_labels,
)
from gradinv.attacks.driver import Search
from gradinv.attacks.evidence.penultimate import Clues
from gradinv.attacks.presets import PRESETS
from gradinv.attacks.recursion.peeling import peel
from gradinv.attacks.search.optimizers import Stepper
from gradinv.attacks.search.schedules import StepDecay
from gradinv.attacks.search.spaces import OfGenerator, Pixels
from gradinv.engine import ExactROperator, PlainDoubleBackward, engine_for
from gradinv.engine.distances import Target
from gradinv.errors import AttackError, ConfigError, ModelError, ObservationError, PriorError
from gradinv.priors.foreign import Adapted
from tests.attacks.tiny import (
    deep_prior,
    tiny_batch,
    tiny_flow,
    tiny_observation,
    tiny_prior,
    tiny_victim,
)

CASES = {
    "grey": {"channels": 1, "mode": "eval", "defense": "none"},
    "colour sparse": {"channels": 3, "mode": "eval", "defense": "sparsify:0.8"},
    "train mode": {"channels": 1, "mode": "train", "defense": "none"},
}


PRIORS = {
    "gifd": deep_prior,
    "gi-x+flow": tiny_flow,
}  # tiny_prior where an attack has no special needs


def short(name: str) -> Attack:
    return preset(name).scaled(0.003)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize(
    "name", [name for name, value in PRESETS.items() if not isinstance(value, AnalyticAttack)]
)
def test_every_attack_runs_on_every_victim(name, case):
    model = tiny_victim(channels=case["channels"]).train(case["mode"] == "train")
    batch = tiny_batch(channels=case["channels"])
    observation = tiny_observation(model, batch, defense=case["defense"], bn="exact")
    prior = PRIORS.get(name, tiny_prior)(channels=case["channels"])
    attack = short(name).resolved(observation, model, prior)
    found = invert(observation, model, short(name), prior=prior, seed=1)
    assert found.outcome is Outcome.COMPLETED
    assert found.images.shape == batch.images.shape
    assert 0 <= found.images.min() <= found.images.max() <= 1
    assert [stage.name for stage in found.stages] == [s.space.name for s in attack.stages]
    assert found.steps == attack.total_steps
    assert found.objective[found.best] == found.objective.min()
    kept = found.stages[-1 if found.kept is None else found.kept]
    assert torch.equal(found.images, kept.images)
    first = found.stages[0].cost
    assert first.shape == (attack.stages[0].steps, attack.restarts)


def test_gi_x_rebuilds_a_single_image(victim):
    batch = tiny_batch(batch=1)
    observation = tiny_observation(victim, batch)
    found = invert(observation, victim, preset("gi-x:tv=0").scaled(0.2), seed=0)
    error = (found.images - batch.images).square().mean().item()
    start = invert(observation, victim, preset("gi-x:tv=0").scaled(1e-9), seed=0)
    assert error < 0.25 * (start.images - batch.images).square().mean().item()
    assert found.stages[0].cost[-1] < 0.1 * found.stages[0].cost[0]


def test_dlg_rebuilds_an_image_and_its_label_from_nothing_but_the_gradient():
    model = tiny_victim(norm=False)
    batch = tiny_batch(batch=1)
    batch = replace(batch, labels=torch.tensor([2]))
    observation = replace(tiny_observation(model, batch), labels=None)
    found = invert(observation, model, preset("dlg").with_steps([120.0]), seed=0)
    assert found.labels.tolist() == [2]
    assert found.recovered is not None
    assert found.recovered.labels.tolist() == [2]
    assert found.recovered.counts.tolist() == [0, 0, 1, 0]
    assert found.recovered.method is LabelMethod.SEARCHED
    assert not found.recovered.exact
    assert 0 <= found.recovered.gap < 0.5
    told = replace(observation, labels=batch.labels)
    assert invert(told, model, preset("dlg").with_steps([2.0])).recovered is None
    assert (found.images - batch.images).square().mean() < 1e-3


def test_idlg_rebuilds_an_image_from_its_label_known_or_read_from_the_update():
    model = tiny_victim(norm=False)
    batch = tiny_batch(batch=1)
    observation = tiny_observation(model, batch)
    assert observation.labels is not None
    found = invert(observation, model, preset("idlg").with_steps([80.0]), seed=0)
    assert (found.images - batch.images).square().mean() < 1e-3
    hidden = replace(observation, labels=None)
    again = invert(hidden, model, preset("idlg").with_steps([80.0]), seed=0)
    assert again.labels.tolist() == observation.labels.tolist()
    assert torch.equal(again.images, found.images)


def test_a_line_search_refuses_a_network_that_answers_by_chance():
    model = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Dropout(0.5), torch.nn.Linear(64, 4)
    ).train()
    observation = tiny_observation(model, tiny_batch())
    with pytest.raises(AttackError, match=r"for dlg.*dropout in train mode in 1;.*gi-x"):
        invert(observation, model, preset("dlg"))
    model[1] = torch.nn.Dropout(0.0)
    assert invert(observation, model, short("dlg")).outcome is Outcome.COMPLETED


def test_dropout_is_the_same_in_every_run_and_resumption():
    model = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Dropout(0.5), torch.nn.Linear(64, 4)
    ).train()
    observation, attack, taken = tiny_observation(model, tiny_batch()), short("gi-x"), []
    before = torch.random.get_rng_state()

    def run(seed, **more):
        return invert(observation, model, attack, seed=seed, **more).images

    first = run(5, callback=lambda progress: taken.append(progress.checkpoint()))
    torch.rand(3)  # whatever else draws from the global source
    assert torch.equal(run(5), first)
    assert torch.equal(run(5, resume=taken[1]), first)
    assert not torch.equal(run(6), first)
    torch.random.set_rng_state(before)


def test_the_same_seed_gives_the_same_pictures_and_another_seed_others(victim, observation, prior):
    def run(seed):
        return invert(observation, victim, short("gi-z/w"), prior=prior, seed=seed).images

    assert torch.equal(run(0), run(0))
    assert not torch.equal(run(0), run(1))


RESUMED = {
    **{name: preset(name).scaled(0.012) for name in ("gi-x", "gi-z/w", "gi-w", "gi-w/z")},
    "ggl": preset("ggl").with_steps([12.0]).with_restarts(2),
    "gifd": preset("gifd").with_steps([3.0]),
    "dlg": preset("dlg").with_steps([12.0]).with_restarts(2),
    "noisy": Attack("noisy", (Stage(Pixels(), 12, Adam(0.1, noise=0.2)),), restarts=2),
}


class StopError(Exception):
    pass


@pytest.mark.parametrize("stop_at", [1, 4, 9])
@pytest.mark.parametrize("name", RESUMED)
def test_resume_equals_an_uninterrupted_run(name, stop_at, victim, observation, tmp_path):
    attack, prior = RESUMED[name], PRIORS.get(name, tiny_prior)()
    whole = invert(observation, victim, attack, prior=prior, seed=5)

    def stop(progress):
        if progress.step == stop_at:
            progress.checkpoint().save(tmp_path / "c.safetensors")
            raise StopError

    with pytest.raises(StopError):
        invert(observation, victim, attack, prior=prior, seed=5, callback=stop)
    checkpoint = Checkpoint.load(tmp_path / "c.safetensors")
    rest = invert(observation, victim, attack, prior=prior, seed=5, resume=checkpoint)
    assert torch.equal(rest.images, whole.images)
    assert torch.equal(rest.objective, whole.objective)
    assert rest.steps == whole.steps
    for mine, theirs in zip(rest.stages, whole.stages, strict=True):
        assert torch.equal(mine.cost, theirs.cost)
        assert torch.equal(mine.images, theirs.images)


def test_a_checkpoint_of_an_older_version_is_refused(victim, observation):
    taken = []
    attack = preset("gi-x:steps=2")
    invert(observation, victim, attack, callback=lambda p: taken.append(p.checkpoint()), seed=0)
    header = {name: value for name, value in taken[0].header.items() if name != "start"}
    old = Checkpoint(taken[0].tensors, header)
    with pytest.raises(AttackError, match="with start, got one of an older version without; start"):
        invert(observation, victim, attack, resume=old, seed=0)


def test_a_checkpoint_of_another_run_is_refused(victim, observation, prior, tmp_path):
    taken = []
    attack = short("gi-z/w")
    invert(
        observation,
        victim,
        attack,
        prior=prior,
        seed=5,
        callback=lambda progress: taken.append(progress.checkpoint()),
    )
    with pytest.raises(AttackError, match=r"one of another seed; resume with the same settings"):
        invert(observation, victim, attack, prior=prior, seed=6, resume=taken[0])
    with pytest.raises(AttackError, match="one of another attack, prior;"):
        invert(observation, victim, short("gi-x"), seed=5, resume=taken[0])
    other = tiny_prior()
    with torch.no_grad():
        next(other.parameters()).add_(0.1)
    with pytest.raises(AttackError, match="one of another prior;"):
        invert(observation, victim, attack, prior=other, seed=5, resume=taken[0])
    assert observation.labels is not None
    relabelled = replace(observation, labels=observation.labels.flip(0))
    with pytest.raises(AttackError, match="one of another labels;"):
        invert(relabelled, victim, attack, prior=prior, seed=5, resume=taken[0])
    observation.save(tmp_path / "u.safetensors")
    with pytest.raises(AttackError, match="expected an attack's checkpoint"):
        Checkpoint.load(tmp_path / "u.safetensors")


def test_restart_selection_is_the_arg_min_even_with_restarts_that_are_not_finite(
    victim, observation, prior, monkeypatch
):
    from gradinv.attacks.search.spaces import SearchSpace

    attack = replace(short("gi-z"), restarts=4)
    opened = OfGenerator.open

    def poisoned(self, *arguments) -> SearchSpace:
        space = opened(self, *arguments)
        space.z.data[0] = torch.nan
        space.z.data[2] = torch.inf
        return space

    monkeypatch.setattr(OfGenerator, "open", poisoned)
    found = invert(observation, victim, attack, prior=prior, seed=0)
    assert found.outcome is Outcome.SOME_NON_FINITE
    assert found.objective[0] == found.objective[2] == torch.inf
    finite = found.objective[[1, 3]]
    assert found.best == (1 if finite[0] <= finite[1] else 3)
    assert torch.isfinite(found.images).all()


def test_pixels_are_put_back_into_the_box_after_every_step(victim, observation):
    """Not in the end alone: a pixel that wandered off would come back late."""
    seen = []
    attack = Attack("fast", (Stage(Pixels(), 5, Adam(3.0)),))  # in steps as wide as the box
    invert(observation, victim, attack, callback=lambda p: seen.append(p.checkpoint()), seed=0)
    assert len(seen) == 5
    for checkpoint in seen:
        images = 0.5 + 0.25 * checkpoint.tensors["space/u"]  # the victim's own units
        assert -1e-6 <= images.min() < 1e-6
        assert 1 - 1e-6 < images.max() <= 1 + 1e-6


@dataclass(frozen=True)
class Standing:
    """An optimiser that moves nothing and tells the costs that it was given, step by step."""

    costs: tuple[tuple[float, ...], ...]
    has_rate: ClassVar[bool] = True
    has_gradient: ClassVar[bool] = True

    def open(self, space, source) -> Stepper:
        return StandingStepper(self.costs)


class StandingStepper:
    def __init__(self, costs):
        self.costs = list(costs)

    def step(self, cost, factor):
        return torch.tensor(self.costs.pop(0))

    def tensors(self):
        return {}

    def load(self, tensors):
        pass


@pytest.mark.parametrize("when", [0, 1, 2])
def test_a_restart_that_was_once_not_finite_is_out_of_the_choice(victim, observation, when):
    """Even where it stands best in the end: its path is no longer the method's."""

    def run(costs):
        attack = Attack("standing", (Stage(Pixels(), 3, Standing(costs)),), restarts=3)
        return invert(observation, victim, attack, seed=0)

    good = run(((1.0,) * 3,) * 3)
    assert good.outcome is Outcome.COMPLETED
    order = good.objective.argsort().tolist()
    broken = [[1.0] * 3 for _ in range(3)]
    broken[when][order[0]] = torch.nan
    found = run(tuple(map(tuple, broken)))
    assert found.best == order[1]
    assert found.outcome is Outcome.SOME_NON_FINITE
    expected = good.objective.clone()
    expected[order[0]] = torch.inf
    assert torch.equal(found.objective, expected)


def test_when_no_restart_is_finite_the_outcome_says_so(victim, observation, monkeypatch):
    opened = Pixels.open

    def poisoned(self, *arguments):
        space = opened(self, *arguments)
        space.u.data[:] = torch.nan
        return space

    monkeypatch.setattr(Pixels, "open", poisoned)
    found = invert(observation, victim, short("gi-x"), seed=0)
    assert found.outcome is Outcome.NON_FINITE
    assert "not a reconstruction" in found.outcome.value
    assert torch.isfinite(found.images).all()


def test_the_restart_returned_has_the_least_matching_cost_of_its_pictures(
    victim, observation, prior
):
    from gradinv.engine.distances import Cosine

    found = invert(observation, victim, replace(short("gi-z"), restarts=5), prior=prior, seed=0)
    engine = PlainDoubleBackward(victim, observation, distance=Cosine())
    cost = engine.matching(found.images[None])[0].item()
    assert cost == pytest.approx(found.objective.min().item(), rel=1e-4)
    assert all(cost < other * (1 + 1e-4) for other in found.objective.tolist())


def test_gifd_returns_the_layer_of_least_matching_cost(victim, observation):
    attack = preset("gifd").with_steps([8.0])
    for seed in range(4):
        found = invert(observation, victim, attack, prior=deep_prior(), seed=seed)
        engine = engine_for(victim, observation, distance=attack.distance)
        costs = engine.matching(torch.stack([stage.images for stage in found.stages]))
        assert found.kept is not None
        # One batch of four stages is summed in another order than each of them was.
        assert found.objective.min().item() == pytest.approx(costs.min().item(), rel=1e-4)
        assert costs[found.kept].item() == pytest.approx(costs.min().item(), rel=1e-4)
        assert torch.equal(found.images, found.stages[found.kept].images)


def test_gifd_asks_for_layers(victim, observation):
    with pytest.raises(AttackError, match=r"features at depth 2, got a DCGAN of 2 layers; .* to 1"):
        invert(observation, victim, short("gifd"), prior=tiny_prior())
    foreign = Adapted(deep_prior(), latent_shape=(6,), image_shape=(1, 8, 8)).eval()
    with pytest.raises(
        PriorError, match=r"successive layers, got Adapted.*define blocks\(\).*gi-z/w"
    ):
        invert(observation, victim, short("gifd"), prior=foreign)


def test_ggl_never_differentiates(victim, observation, prior, monkeypatch):
    def refuse(*arguments):
        raise AssertionError("a gradient was asked for")

    for engine in (PlainDoubleBackward, ExactROperator):
        monkeypatch.setattr(engine, "evaluate", refuse)
    found = invert(observation, victim, preset("ggl").with_steps([20.0]), prior=prior)
    costs = found.stages[0].cost[:, 0]
    assert costs[-5:].mean() < costs[:5].mean()


def test_keeping_one_restart_hands_on_the_best(victim, observation, prior):
    found = invert(observation, victim, short("gi-z/w"), prior=prior, seed=0)
    assert found.stages[0].cost.shape[1] == preset("gi-z/w").restarts
    assert found.stages[1].cost.shape[1] == 1


def test_a_time_limit_ends_the_attack_and_is_named(victim, observation):
    found = invert(observation, victim, preset("gi-x").scaled(100.0), seed=0, seconds=0.3)
    assert found.outcome is Outcome.TIME_LIMIT
    assert 0.2 < found.seconds < 5
    with pytest.raises(ConfigError, match="expected a positive time limit"):
        invert(observation, victim, preset("gi-x"), seed=0, seconds=0.0)


def test_a_time_limit_is_shared_by_restarts_too(victim, observation, prior):
    """Eight restarts of 100 steps, then one of 400: a third of the time for the one."""
    attack = preset("gi-z/w:restarts=8:steps=100,400")
    assert (attack.restarts, attack.stages[0].keep) == (8, 1)
    seen = []
    found = invert(observation, victim, attack, prior=prior, seconds=0.9, callback=seen.append)
    z, w = (stage.seconds for stage in found.stages)
    assert z / w == pytest.approx(2, rel=0.3)
    latents = [progress.fraction for progress in seen if progress.stage == 0]
    assert latents[-1] == pytest.approx(2 / 3)
    assert seen[-1].fraction == pytest.approx(1)


def test_progress_counts_up_to_the_end(victim, observation, prior):
    seen = []
    attack = preset("gi-z/w:restarts=8:steps=1,2")
    invert(observation, victim, attack, prior=prior, callback=seen.append)
    fractions = [progress.fraction for progress in seen]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1
    assert seen[-1].step == seen[-1].steps
    assert {progress.stage_name for progress in seen} == {"z", "w"}
    # One step of z is one of 8 restarts, one step of w is one of a single restart.
    assert fractions[0] == pytest.approx(8 / (8 * 1 + 2))


def test_the_prior_and_the_network_are_left_as_they_were(victim, observation, prior):
    states = [
        {name: value.clone() for name, value in module.state_dict().items()}
        for module in (victim, prior)
    ]
    invert(observation, victim, short("gi-z/w"), prior=prior)
    for module, before in zip((victim, prior), states, strict=True):
        for name, value in module.state_dict().items():
            assert torch.equal(value, before[name])
        assert all(parameter.grad is None for parameter in module.parameters())


def test_what_is_missing_is_said(victim, observation, prior):
    with pytest.raises(AttackError, match=r"expected a prior.*--prior.*gi-x"):
        invert(observation, victim, preset("gi-z"))
    with pytest.raises(PriorError, match=r"expected a prior of images.*\(1, 8, 8\), got \(3, 8, 8"):
        invert(observation, victim, preset("gi-z"), prior=tiny_prior(channels=3))
    with pytest.raises(PriorError, match="expected the prior in eval mode"):
        invert(observation, victim, preset("gi-z"), prior=tiny_prior().train())
    with pytest.raises(ModelError, match="expected the model in eval mode"):
        invert(observation, victim.train(), preset("gi-x"))
    with pytest.raises(ObservationError, match="other weights"):
        invert(observation, tiny_victim(seed=1), preset("gi-x"))


@pytest.mark.parametrize("name", ["gi-x", "dlg", "gi-z/w", "standard"])
def test_an_update_of_several_clients_is_refused(name, victim, observation, prior):
    summed = replace(observation, clients=5)
    with pytest.raises(
        ObservationError,
        match="expected the update of one client, got the sum of those of 5; attack an update",
    ):
        invert(summed, victim, short(name), prior=prior)


def test_labels_and_engines_refuse_several_clients_too(victim, observation):
    from gradinv.engine.distances import Cosine

    summed = replace(observation, clients=5)
    one = tiny_observation(victim, tiny_batch(batch=1))
    refusals = (
        lambda: recover_labels(summed, victim),
        lambda: engine_for(victim, summed, distance=Cosine()),
        lambda: engine_for(victim, summed, distance=Cosine(), target=Target.of(observation)),
        lambda: Clues.of(summed, victim),
        lambda: peel(replace(one, clients=5), victim),
    )
    for refusal in refusals:
        with pytest.raises(ObservationError, match="expected the update of one client, got the"):
            refusal()


def test_a_sparse_update_with_a_trace_of_noise_gives_as_much_away():
    model, batch = tiny_victim(norm=False), tiny_batch(batch=1)
    errors = {}
    for defense in ("sparsify:0.7", "sparsify:0.7+noise:1e-9"):
        observation = tiny_observation(model, batch, defense=defense)
        found = invert(observation, model, preset("gi-x-unsigned:tv=0").scaled(0.2), seed=0)
        errors[defense] = (found.images - batch.images).square().mean().item()
    assert errors["sparsify:0.7+noise:1e-9"] < 1.1 * errors["sparsify:0.7"]


def test_top_tensors_only_match_those(victim, observation):
    attack = replace(short("gi-x"), tensors=1)
    found = invert(observation, victim, attack, seed=0)
    assert found.objective.min() != invert(observation, victim, short("gi-x")).objective.min()


def test_noise_is_in_units_of_the_learning_rate(victim, observation):
    def moved(noise, factor):
        optimizer = Adam(0.1, noise=noise)
        schedule = StepDecay(by=factor, milestones=(0.0,))
        attack = Attack("one", (Stage(Pixels(box=False), 1, optimizer, schedule),))
        return invert(observation, victim, attack, seed=0).images

    for factor in (1.0, 0.1):
        with_noise, without = moved(0.3, factor), moved(0.0, factor)
        inside = (with_noise > 0.01) & (with_noise < 0.99) & (without > 0.01) & (without < 0.99)
        spread = (with_noise - without)[inside].std().item()
        assert spread == pytest.approx(0.25 * 0.1 * factor * 0.3, rel=0.2)


def test_the_sign_step_moves_every_pixel_alike(victim, observation):
    one = Attack("one", (Stage(Pixels(box=False), 1, Adam(0.1, signed=True)),))
    moved = invert(observation, victim, one, seed=0)
    start = torch.randn((1, 2, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    step = (moved.images - (0.5 + 0.25 * start[0]).clamp(0, 1)).abs()
    inside = (moved.images > 0.05) & (moved.images < 0.95)
    assert step[inside].allclose(torch.tensor(0.1 * 0.25), atol=1e-3)


@pytest.mark.parametrize(
    ("way", "kind"),
    [
        ("plain", "plain"),
        ("exact", "exact"),
        ("frozen-pattern", "frozen-pattern"),
        ("bf16", "exact"),
    ],
)
def test_an_attack_says_how_its_gradient_is_computed(way, kind, victim, observation):
    attack = replace(short("gi-x"), way=way)
    search = Search(observation, victim, attack, prior=None, seed=0, seconds=None)
    (engine,) = search.engines
    assert engine.way == kind
    assert isinstance(engine, ExactROperator) is (kind == "exact")
    if isinstance(engine, ExactROperator):
        assert (engine.low is not None) is (way == "bf16")
    found = invert(observation, victim, attack)
    assert found.outcome is Outcome.COMPLETED


def test_where_the_matching_cost_began_is_kept_also_over_a_checkpoint(victim, observation):
    attack, states = short("gi-x"), []
    found = invert(
        observation, victim, attack, seed=5, callback=lambda p: states.append(p.checkpoint())
    )
    assert found.stages[0].start is not None
    assert found.stages[0].objective < found.stages[0].start
    assert found.cost_fell
    resumed = invert(observation, victim, attack, seed=5, resume=states[0])
    assert resumed.stages[0].start == found.stages[0].start
    stood = replace(found.stages[0], start=found.stages[0].objective)
    assert not replace(found, stages=(stood,)).cost_fell
    assert replace(found, stages=(stood, found.stages[0])).cost_fell
