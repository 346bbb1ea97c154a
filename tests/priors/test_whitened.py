import pytest
import torch

from gradinv.errors import PriorError
from gradinv.priors import load_generator
from gradinv.priors.dcgan import DCGAN
from gradinv.priors.generator import save_generator
from gradinv.priors.whitened import Whitened


@pytest.fixture
def inner():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return DCGAN(image_size=16, channels=1, base_channels=4, latent_dim=5).eval()


@pytest.fixture
def latents(generator):
    mixing = torch.randn(5, 5, generator=generator)
    return torch.randn(400, 5, generator=generator) @ mixing + torch.arange(5.0)


def test_it_starts_as_the_generator_itself(inner, generator):
    z = inner.sample_latents(3, generator)
    assert torch.equal(Whitened.of(inner)(z), inner(z))


def test_standard_normal_latents_stand_for_those_that_were_found(inner, latents, generator):
    fitted = Whitened.of(inner).fitted(latents)
    drawn = fitted._inner_latents(torch.randn(40_000, 5, generator=generator))
    assert torch.allclose(drawn.mean(dim=0), latents.mean(dim=0), atol=0.1)
    assert torch.allclose(torch.cov(drawn.T), torch.cov(latents.T), rtol=0.1, atol=0.2)


def test_it_reaches_the_same_images(inner, latents):
    fitted = Whitened.of(inner).fitted(latents)
    z = torch.linalg.solve(fitted.factor, (latents[:3] - fitted.mean).T).T
    assert torch.allclose(fitted(z), inner(latents[:3]), atol=1e-4)


def test_fits_follow_one_another(inner, latents, generator):
    once = Whitened.of(inner).fitted(latents)
    standard = torch.randn(50_000, 5, generator=generator)
    twice = once.fitted(standard)
    assert torch.allclose(twice.mean, once.mean, atol=0.1)
    cov, again = once.factor @ once.factor.T, twice.factor @ twice.factor.T
    assert torch.allclose(again, cov, rtol=0.05, atol=0.2)
    assert isinstance(twice.generator, DCGAN)


def test_axes_are_principal_and_the_largest_first(inner, latents):
    lengths = Whitened.of(inner).fitted(latents).factor.norm(dim=0)
    assert (lengths.diff() < 0).all()
    few = Whitened.of(inner).fitted(latents[:3])  # a plane
    assert (few.factor.norm(dim=0)[2:] < 1e-2).all()


def test_the_change_of_coordinates_is_not_searched_and_comes_back_from_disk(
    inner, latents, tmp_path
):
    fitted = Whitened.of(inner).fitted(latents)
    assert {name for name, _ in fitted.named_parameters()} == {
        f"generator.{name}" for name, _ in inner.named_parameters()
    }
    save_generator(fitted, tmp_path, {})
    again = load_generator(tmp_path)
    z = torch.randn(2, 5)
    assert torch.equal(again(z), fitted(z))
    features = z
    for block in again.blocks():
        features = block(features)
    assert torch.allclose(features, again(z), atol=1e-6)


def test_what_cannot_be_fitted_or_built(inner, latents):
    with pytest.raises(PriorError, match="expected at least 2 latents to fit a Gaussian to, got 1"):
        Whitened.of(inner).fitted(latents[:1])
    with pytest.raises(PriorError, match="inside a whitened prior, got 'none'; choose one of"):
        Whitened(generator={"architecture": "none"})
