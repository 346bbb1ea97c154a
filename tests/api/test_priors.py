from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import gradinv
from gradinv.errors import ConfigError, DataError, ObservationError, PriorError
from gradinv.federated import Observation
from gradinv.metalearning import LearningConfig
from gradinv.models import fingerprint
from gradinv.priors.gan import TrainingConfig

TINY = TrainingConfig(base_channels=4, latent_dim=8, batch_size=4)
SHORT = LearningConfig(steps=2, tasks=2)
IMAGES = torch.rand(16, 1, 32, 32, generator=torch.Generator().manual_seed(0))


def network(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(1024, 3)).eval()


def observed(model, count=3):
    return [
        gradinv.observe(model, (IMAGES[index : index + 1], torch.tensor([index % 3])))
        for index in range(count)
    ]


def learned(updates, model, **settings):
    tiny = {"base_channels": 4, "latent": 8, "config": SHORT, "progress": False}
    return gradinv.learn_prior(updates, model, **(tiny | settings))


def test_a_prior_is_trained_without_a_file_and_the_same_twice():
    one = gradinv.train_prior(IMAGES, steps=2, config=TINY, progress=False)
    assert list(Path().iterdir()) == []
    assert one.image_shape == (1, 32, 32)
    as_bytes = (IMAGES * 255).round().byte()
    other = gradinv.train_prior(as_bytes, steps=2, config=TINY, progress=False, out="prior")
    assert fingerprint(one) == fingerprint(other)
    assert fingerprint(gradinv.load_prior("prior")) == fingerprint(one)
    assert Path("prior/samples.png").is_file()


def test_it_is_a_prior_for_attacks():
    prior = gradinv.train_prior(IMAGES, steps=1, config=TINY, progress=False)
    (update,) = observed(network(), 1)
    found = gradinv.invert(
        update, network(), attack="gi-z:steps=2", prior=prior, restarts=1, progress=False
    )
    assert found.images.shape == (1, 1, 32, 32)


def test_training_needs_one_bound_and_pixels():
    with pytest.raises(ConfigError, match="expected either minutes= or steps="):
        gradinv.train_prior(IMAGES, config=TINY)
    with pytest.raises(ConfigError, match="expected either minutes= or steps="):
        gradinv.train_prior(IMAGES, minutes=1, steps=1, config=TINY)
    with pytest.raises(DataError, match=r"expected pixels in \[0, 1\], got \[0"):
        gradinv.train_prior(IMAGES * 255, steps=1, config=TINY)


def test_a_prior_is_learned_from_updates_in_memory():
    heard = []
    model = network()
    before = fingerprint(model)
    prior = learned(observed(model), model, progress=lambda *words: heard.append(words))
    assert list(Path().iterdir()) == []
    assert prior.image_shape == (1, 32, 32)
    assert fingerprint(model) == before
    assert heard[-1][0] == 1.0
    assert heard[-1][1].startswith("step 2 of 2, cost ")
    assert fingerprint(prior) == fingerprint(learned(observed(model), model))
    longer = learned(observed(model), model, config=LearningConfig(steps=3, tasks=2))
    assert fingerprint(prior) != fingerprint(longer)


def test_updates_of_several_rounds_find_their_weights():
    first, second = network(0), network(1)
    prior = learned(observed(first, 2) + observed(second, 2), [first, second], out="prior")
    assert fingerprint(gradinv.load_prior("prior")) == fingerprint(prior)


def test_learning_from_a_folder_is_the_same():
    model = network()
    for number, update in enumerate(observed(model)):
        update.save(Path(f"updates/update{number:06d}.safetensors"))
    assert fingerprint(learned("updates", model)) == fingerprint(learned(observed(model), model))


def test_a_start_goes_on_being_learned():
    start = gradinv.train_prior(IMAGES, steps=1, config=TINY, out="start", progress=False)
    before = fingerprint(start)
    from_value = learned(observed(network()), network(), start=start)
    assert fingerprint(start) == before
    assert fingerprint(from_value) == fingerprint(
        learned(observed(network()), network(), start="start")
    )


def test_updates_need_their_network():
    with pytest.raises(ConfigError, match="expected the network that the updates were made with"):
        learned(observed(network()), None)
    with pytest.raises(ObservationError, match="got others; put them there"):
        learned(observed(network(0)), network(1))


def test_a_prior_that_is_not_there():
    with pytest.raises(PriorError, match="nowhere"):
        gradinv.load_prior("nowhere")


def test_observations_are_of_the_class_that_the_package_names():
    assert gradinv.Observation is Observation


def test_a_training_that_no_machine_can_hold():
    huge = replace(TINY, base_channels=10**6)
    with pytest.raises(ConfigError, match=r"expected a training that fits into .* GiB; lower"):
        gradinv.train_prior(IMAGES, steps=1, config=huge, progress=False)
