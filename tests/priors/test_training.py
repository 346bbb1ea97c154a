import math
from dataclasses import replace

import pytest
import torch

from gradinv.cli import main
from gradinv.errors import ConfigError, DataError, PriorError, StorageError
from gradinv.files import load_tensors, read_json, save_tensors
from gradinv.priors import SHIPPED, embedded_prior, load_generator, training
from gradinv.priors.dcgan import DCGAN
from gradinv.priors.flow.prior import FlowPrior
from gradinv.priors.foreign import Adapted
from gradinv.priors.gan import GanTrainer, TrainingConfig
from gradinv.priors.generator import load_card, save_generator
from gradinv.priors.quality import measure_quality
from gradinv.priors.samples import save_sample_grid
from gradinv.priors.training import CHECKPOINT, LOG, train_prior

TINY = TrainingConfig(base_channels=4, latent_dim=6, batch_size=8)


@pytest.fixture
def images(generator):
    return torch.randint(0, 256, (16, 1, 16, 16), generator=generator, dtype=torch.uint8)


class StopError(Exception):
    pass


@pytest.mark.parametrize(
    "config",
    [TINY, replace(TINY, reconstruction=0.0, loss="non-saturating", r1=0.5, spectral_norm=False)],
    ids=["vae-gan", "gan"],
)
def test_a_stopped_training_resumes_to_the_same_weights(config, images, tmp_path):
    whole, quality = train_prior(images, out=tmp_path / "a", config=config, steps=5)

    def stop(progress):
        if progress.step == 2:
            raise StopError

    with pytest.raises(StopError):
        train_prior(images, out=tmp_path / "b", config=config, steps=5, callback=stop)
    assert load_card(tmp_path / "b")["state"] == "unfinished"
    again, _ = train_prior(images, out=tmp_path / "b", config=config, steps=5)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    card = load_card(tmp_path / "b")
    assert card["state"] == "finished"
    assert card["steps"] == 5
    assert card["quality"] == quality.as_dict()
    assert (tmp_path / "b" / "samples.png").stat().st_size > 100


def test_what_is_kept_shown_and_measured_is_the_average_of_the_weights(images, tmp_path):
    prior, quality = train_prior(images, out=tmp_path, config=TINY, steps=4)
    trainer = GanTrainer(images, TINY, torch.device("cpu"))
    for _ in range(4):
        trainer.step()
    average, saved = trainer.average, load_generator(tmp_path)
    last = trainer.generator.state_dict()["layers.0.weight"]
    for name, value in average.state_dict().items():
        assert name != "layers.0.weight" or not torch.equal(value, last)
        assert torch.equal(saved.state_dict()[name], value), name
        assert torch.equal(prior.state_dict()[name], value), name
    assert quality == measure_quality(average, images / 255)
    save_sample_grid(average, tmp_path / "own.png")
    assert (tmp_path / "own.png").read_bytes() == (tmp_path / "samples.png").read_bytes()


@pytest.mark.parametrize(
    ("n", "count", "indices"),
    [(10, 4, [0, 3, 6, 9]), (5, 5, [0, 1, 2, 3, 4]), (3, 7, [0, 1, 2]), (1, 3, [0])],
)
def test_quality_is_measured_all_over_the_images(n, count, indices):
    assert training._spread(n, count).tolist() == indices


@pytest.fixture
def slow_steps(monkeypatch):
    """Every step takes two seconds of a clock that otherwise stands still."""

    class Clock:
        now = 100.0

        def perf_counter(self):
            return self.now

    clock = Clock()

    def step(trainer):
        clock.now += 2
        trainer.step_count += 1
        trainer.seconds += 2
        return 1.0, 2.0

    monkeypatch.setattr(training, "time", clock)
    monkeypatch.setattr(GanTrainer, "step", step)


def test_minutes_are_of_sixty_seconds_over_all_calls(images, tmp_path, slow_steps):
    seen = []
    train_prior(images, out=tmp_path, config=TINY, minutes=0.1, callback=seen.append)
    train_prior(images, out=tmp_path, config=TINY, minutes=0.3, callback=seen.append)
    assert [progress.step for progress in seen] == [*range(1, 10)]
    assert [progress.fraction for progress in seen] == pytest.approx(
        [1 / 3, 2 / 3, 1, *[step / 9 for step in range(4, 10)]]
    )
    assert [progress.seconds for progress in seen] == [*range(2, 20, 2)]
    # Eight images in two seconds: of this call, not of all that were seen since the first.
    assert {progress.images_per_second for progress in seen} == {4.0}


def test_checkpoints_are_apart_by_their_seconds(images, tmp_path, slow_steps):
    train_prior(images, out=tmp_path, config=TINY, steps=10, checkpoint_seconds=5.0)
    assert [(entry["step"], entry["seconds"]) for entry in read_json(tmp_path / LOG)] == [
        (3, 6.0), (6, 12.0), (9, 18.0)
    ]  # fmt: skip


def test_another_configuration_cannot_continue(images, tmp_path):
    train_prior(images, out=tmp_path, config=TINY, steps=1)
    with pytest.raises(ConfigError, match=r"another lr, seed; use the same settings or another"):
        train_prior(images, out=tmp_path, config=replace(TINY, lr=1.0, seed=3), steps=2)


def test_other_images_of_the_same_shape_cannot_continue(images, tmp_path):
    train_prior(images, out=tmp_path, config=TINY, steps=1)
    other = images.clone()
    other[3, 0, 2, 1] += 1  # a byte, so that 255 becomes 0
    with pytest.raises(ConfigError, match=r"got another content of the images; use the same"):
        train_prior(other, out=tmp_path, config=TINY, steps=2)
    train_prior(images, out=tmp_path, config=TINY, steps=2)


def test_a_checkpoint_from_before_the_digest_continues_and_gets_one(images, tmp_path):
    train_prior(images, out=tmp_path, config=TINY, steps=1)
    tensors, header = load_tensors(tmp_path / CHECKPOINT, what="a checkpoint")
    digest = header["config"].pop("content of the images")
    save_tensors(tmp_path / CHECKPOINT, tensors, header)
    train_prior(images, out=tmp_path, config=TINY, steps=2)
    _, header = load_tensors(tmp_path / CHECKPOINT, what="a checkpoint")
    assert header["config"]["content of the images"] == digest
    assert header["step"] == 2


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_a_prior_without_its_training_is_not_overwritten(images, tmp_path, file):
    train_prior(images, out=tmp_path, config=TINY, steps=1)
    (tmp_path / CHECKPOINT).unlink()
    for name in {"model.safetensors", "config.json"} - {file}:
        (tmp_path / name).unlink()
    before = (tmp_path / file).read_bytes()
    with pytest.raises(
        ConfigError, match=rf"got {file} of a prior without training.*; use another --out"
    ):
        train_prior(images, out=tmp_path, config=TINY, steps=2)
    assert (tmp_path / file).read_bytes() == before


def test_a_quality_that_is_not_finite_is_null_in_the_card(tmp_path, capsys):
    constant = torch.full((16, 1, 16, 16), 7, dtype=torch.uint8)
    _, quality = train_prior(constant, out=tmp_path / "p", config=TINY, steps=1)
    assert math.isnan(quality.kernel_distance)
    card = load_card(tmp_path / "p")
    assert card["state"] == "finished"
    assert card["quality"]["kernel_distance"] is None
    assert card["quality"]["samples"] == 16
    assert main(["prior", "show", str(tmp_path / "p")]) == 0
    assert "quality: kernel_distance  not finite" in capsys.readouterr().out


def test_bounds_and_sizes_that_mean_nothing(images, tmp_path):
    with pytest.raises(ConfigError, match="expected either minutes or steps, got both or none"):
        train_prior(images, out=tmp_path, config=TINY)
    with pytest.raises(DataError, match="expected at least 8 images to train a prior, got 3"):
        train_prior(images[:3], out=tmp_path, config=TINY, steps=1)
    with pytest.raises(ConfigError, match="expected a batch size that divides by 4, got 6"):
        train_prior(images, out=tmp_path, config=replace(TINY, batch_size=6), steps=1)
    with pytest.raises(PriorError, match="expected an image size of 4 times a power of two"):
        DCGAN(image_size=20)


def test_a_saved_prior_comes_back_frozen_and_the_same(tmp_path, generator):
    prior = DCGAN(image_size=16, channels=3, base_channels=4, latent_dim=6).eval()
    save_generator(prior, tmp_path, {"data": "nothing"})
    again = load_generator(tmp_path)
    z = prior.sample_latents(3, generator)
    assert torch.equal(again(z), prior(z))
    assert again.image_shape == (3, 16, 16)
    assert not any(parameter.requires_grad for parameter in again.parameters())


def test_what_is_no_prior_is_refused(tmp_path):
    with pytest.raises(PriorError, match=r"expected a prior's folder.*no config.json there"):
        load_generator(tmp_path)
    prior = DCGAN(image_size=16, channels=3, base_channels=4, latent_dim=6)
    save_generator(prior, tmp_path, {})
    (tmp_path / "config.json").write_text('{"architecture": "dcgn"}')
    with pytest.raises(PriorError, match=r"got 'dcgn'; did you mean 'dcgan'\?"):
        load_generator(tmp_path)
    (tmp_path / "config.json").write_text('{"architecture": "dcgan", "wrong": 1}')
    with pytest.raises(PriorError, match=r"expected the settings of dcgan"):
        load_generator(tmp_path)
    (tmp_path / "config.json").write_text('{"architecture": "dcgan", "image_size": 32}')
    with pytest.raises(PriorError, match="keep the files of one prior together"):
        load_generator(tmp_path)
    pickled = tmp_path / "prior.pt"
    pickled.write_bytes(b"PK\x03\x04 and so on")
    with pytest.raises(StorageError, match="got a pickle"):
        load_generator(pickled)


def test_a_foreign_generator_is_adapted(generator):
    prior = Adapted(
        torch.nn.Sequential(
            torch.nn.Linear(5, 16), torch.nn.Tanh(), torch.nn.Unflatten(1, (1, 4, 4))
        ),
        latent_shape=(5,),
        image_shape=(1, 4, 4),
        output_range=(-1.0, 1.0),
    )
    images = prior(prior.sample_latents(7, generator))
    assert images.shape == (7, 1, 4, 4)
    assert 0 <= images.min() < 0.5 < images.max() <= 1


def test_the_flow_of_natural_images_denoises_and_is_small(generator):
    prior = load_generator(SHIPPED["natural"])
    assert isinstance(prior, FlowPrior)
    assert prior.image_shape == (3, 32, 32)
    weights = SHIPPED["natural"] / "model.safetensors"
    assert weights.stat().st_size < 8e6
    assert load_card(SHIPPED["natural"])["weights"] == "rounded to 16 bits"
    # A smooth picture under noise comes back nearer to itself than any scaling of what was seen.
    ramp = torch.linspace(-0.8, 0.8, 32)
    picture = (ramp[None, :] * ramp[:, None]).expand(4, 3, 32, 32)
    noise = torch.randn(picture.shape, generator=generator)
    seen = 0.5 * noise + 0.5 * picture
    with torch.no_grad():
        found = prior.denoise(seen, torch.full((4,), 0.5))
    scaled = seen * (seen * picture).sum() / seen.square().sum()
    assert (found - picture).square().mean() < (scaled - picture).square().mean() / 4


def test_the_embedded_prior_is_small_and_makes_pictures(generator):
    prior = embedded_prior()
    assert prior.image_shape == (1, 32, 32)
    assert 4 * sum(parameter.numel() for parameter in prior.parameters()) < 8e6
    with torch.no_grad():
        images = prior(prior.sample_latents(32, generator))
    assert images.std(dim=0).mean() > 0.05
    assert images[:, :, 0].mean() < 0.1
