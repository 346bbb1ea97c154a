from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from gradinv.errors import ConfigError, PriorError
from gradinv.files import read_json
from gradinv.metalearning import LearningConfig, learn_prior, open_tasks
from gradinv.metalearning.costs import LocalCosts
from gradinv.priors import load_generator
from gradinv.priors.dcgan import DCGAN
from gradinv.priors.generator import load_card, save_generator
from gradinv.priors.whitened import Whitened

CONFIG = LearningConfig(steps=4, tasks=4, weight_steps=2, latent_steps=1, seed=3)


class StopError(Exception):
    pass


def same(one, other):
    return all(
        torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items()
    )


@pytest.mark.parametrize(
    "config",
    [CONFIG, replace(CONFIG, remember=False, outer="adam", keep_moments=False)],
    ids=["ours", "the code's"],
)
def test_a_stopped_run_resumes_to_the_same_prior(config, tasks, prior):
    whole = learn_prior(tasks, prior, out=Path("a"), config=config)

    def stop(progress):
        if progress.step == 2:
            raise StopError

    with pytest.raises(StopError):
        learn_prior(tasks, prior, out=Path("b"), config=config, callback=stop)
    assert load_card(Path("b"))["state"] == "unfinished"
    assert load_card(Path("b"))["steps"] == 2
    assert not same(load_generator(Path("b")), whole)
    again = learn_prior(tasks, prior, out=Path("b"), config=config)
    assert same(again, whole)
    card = load_card(Path("b"))
    assert card["state"] == "finished"
    once_more = learn_prior(tasks, prior, out=Path("b"), config=config, command="another")
    assert same(once_more, whole)
    assert load_card(Path("b")) == card
    assert same(load_generator(Path("b")), whole)
    costs = [[entry["cost"] for entry in read_json(Path(out, "learning/log.json"))] for out in "ab"]
    assert costs[0] == costs[1]
    assert len(costs[0]) == 4


def test_a_prior_without_its_learning_is_not_overwritten(tasks, prior):
    save_generator(prior, Path("trained"), {"data": "hours of training"})
    before = Path("trained/model.safetensors").read_bytes()
    with pytest.raises(ConfigError, match=r"model\.safetensors of a prior without learning/check"):
        learn_prior(tasks, prior, out=Path("trained"), config=CONFIG)
    assert Path("trained/model.safetensors").read_bytes() == before


def test_a_run_that_is_killed_in_the_middle_of_a_step_takes_it_again(tasks, prior, monkeypatch):
    whole = learn_prior(tasks, prior, out=Path("a"), config=CONFIG)
    original, calls = LocalCosts.evaluate, []

    def kill(self, chosen, images):
        calls.append(chosen)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return original(self, chosen, images)

    monkeypatch.setattr(LocalCosts, "evaluate", kill)
    with pytest.raises(KeyboardInterrupt):
        learn_prior(tasks, prior, out=Path("b"), config=CONFIG)
    assert load_card(Path("b"))["steps"] == 1
    assert same(learn_prior(tasks, prior, out=Path("b"), config=CONFIG), whole)


def test_the_card_says_what_it_was_learned_from(tasks, prior):
    seen = []
    learned = learn_prior(
        tasks, prior, out=Path("p"), config=CONFIG, snapshot_every=2, command="a command",
        start_name="a start", callback=seen.append,
    )  # fmt: skip
    card = load_card(Path("p"))
    assert (card["learned_from"], card["state"], card["steps"]) == ("gradients", "finished", 4)
    assert card["updates"] == {
        "folder": "updates", "updates": 6, "networks": 2, "images": 12, "left_out": 0,
        "digest": tasks.digest,
    }  # fmt: skip
    assert (card["start"], card["command"], card["config"]["tasks"]) == ("a start", "a command", 4)
    assert [progress.step for progress in seen] == [1, 2, 3, 4]
    assert seen[0].left > seen[-1].left == 0
    middle = load_generator(Path("p/snapshots/000002"))
    assert load_card(Path("p/snapshots/000002"))["steps"] == 2
    assert not same(middle, learned)
    assert same(load_generator(Path("p/snapshots/000004")), learned)
    for folder in ("p", "p/snapshots/000002"):
        with Image.open(Path(folder, "samples.png")) as picture:
            assert picture.size == (256, 256)


def test_what_was_found_is_standard_normal_for_the_prior(tasks, prior):
    learned = learn_prior(tasks, prior, out=Path("p"), config=CONFIG)
    assert not any(parameter.requires_grad for parameter in learned.parameters())
    drawn = learned.sample_latents(4000, torch.Generator().manual_seed(0))
    assert isinstance(learned, Whitened)
    inner = learned._inner_latents(drawn)
    assert inner.std() < 1.5
    assert torch.linalg.matrix_rank(learned.factor) <= 6


def test_it_can_start_from_what_was_learned_before(tasks, prior):
    first = learn_prior(tasks, prior, out=Path("p"), config=CONFIG)
    second = learn_prior(tasks, first, out=Path("q"), config=CONFIG)
    assert isinstance(second, Whitened)
    assert isinstance(second.generator, DCGAN)
    assert not same(first, second)


def test_another_learning_is_not_continued(tasks, folder, prior):
    learn_prior(tasks, prior, out=Path("p"), config=CONFIG)
    with pytest.raises(ConfigError, match=r"began with, got another settings; use the same"):
        learn_prior(tasks, prior, out=Path("p"), config=replace(CONFIG, lr_weights=0.1))
    other = DCGAN(image_size=32, channels=1, base_channels=4, latent_dim=7).eval()
    (folder / "round0-client000.safetensors").unlink()
    fewer = open_tasks(folder)
    with pytest.raises(ConfigError, match="got another updates, start"):
        learn_prior(fewer, other, out=Path("p"), config=CONFIG)


def test_a_start_of_another_size_is_refused(tasks):
    smaller = DCGAN(image_size=16, channels=1, base_channels=4, latent_dim=6).eval()
    with pytest.raises(PriorError, match=r"images \(1, 32, 32\) as behind the updates, got \(1, 1"):
        learn_prior(tasks, smaller, out=Path("p"), config=CONFIG)
