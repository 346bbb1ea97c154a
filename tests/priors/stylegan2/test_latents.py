import pytest
import torch

from gradinv.errors import PriorError
from gradinv.priors import embedded_prior
from tests.priors.stylegan2.test_generator import latents, tiny


@pytest.mark.parametrize("name", ["w", "w+"])
def test_samples_are_those_of_the_generator(name):
    generator = tiny()
    space = generator.latent_space(name)
    torch.testing.assert_close(space(latents(space)), generator(latents(generator)))


def test_shapes():
    generator = tiny()
    assert generator.latent_space("z") is generator
    assert generator.latent_space("w").latent_shape == (6,)
    assert generator.latent_space("w+").latent_shape == (6, 6)
    pixels = 4 * 4 + 2 * 8 * 8 + 2 * 16 * 16
    assert generator.latent_space("w+n").latent_shape == (36 + pixels,)


def test_latents_are_centred_and_of_unit_size():
    space = tiny().latent_space("w")
    drawn = latents(space, 5000)
    assert drawn.mean(dim=0).abs().max() < 0.1
    assert (drawn.std(dim=0) - 1).abs().max() < 0.1


def test_truncated_samples_stay_truncated():
    generator = tiny(truncation=0.5)
    torch.nn.init.normal_(generator.mapping.average)
    space = generator.latent_space("w+")
    torch.testing.assert_close(space(latents(space)), generator(latents(generator)))


def test_noise_is_searched_where_it_is_asked_for():
    generator = tiny()
    space = generator.latent_space("w+n")
    z = latents(space)
    assert torch.equal(z, latents(space))
    images = space(z)
    fixed = torch.cat([part.noise.flatten() for part in _convolutions(generator)])
    z[:, 36:] = fixed
    torch.testing.assert_close(space(z), generator(latents(generator)))
    assert not torch.allclose(images, space(z))


def _convolutions(generator):
    synthesis = generator.synthesis
    yield synthesis.first
    for up, same in zip(synthesis.up, synthesis.same, strict=True):
        yield up
        yield same


@pytest.mark.parametrize("name", ["w", "w+", "w+n"])
def test_the_mapping_network_is_no_part_of_it(name):
    space = tiny().latent_space(name)
    assert {key.partition(".")[0] for key, _ in space.named_parameters()} == {"synthesis"}
    assert len(list(tiny().named_parameters())) > len(list(space.named_parameters()))


def test_untrained_is_the_same_space_of_other_weights():
    space = tiny().latent_space("w+")
    fresh = space.untrained(torch.Generator().manual_seed(5))
    assert fresh.latent_shape == space.latent_shape
    assert not torch.allclose(fresh(latents(fresh)), space(latents(space)))


def test_latents_that_there_are_not():
    with pytest.raises(PriorError, match=r"^expected latents of stylegan2, z, w, w\+, w\+n, got"):
        tiny().latent_space("q")
    with pytest.raises(
        PriorError, match=r"^expected latents that DCGAN has, z, got 'w\+'; leave it out or take"
    ):
        embedded_prior().latent_space("w+")
    assert embedded_prior().latent_space("z").default_space == "z"
