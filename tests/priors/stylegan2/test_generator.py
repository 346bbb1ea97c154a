from typing import Any

import pytest
import torch

from gradinv.errors import PriorError
from gradinv.files import read_json, write_json
from gradinv.priors import load_generator
from gradinv.priors.generator import save_generator
from gradinv.priors.stylegan2 import StyleGAN2
from gradinv.priors.stylegan2.generator import widths


def tiny(**settings: Any) -> Any:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"image_size": 16, "base_channels": 4, "latent_dim": 6}
    generator = StyleGAN2(**{"mapping_layers": 2, **sizes, **settings}).eval()
    for name, parameter in generator.named_parameters():
        if name.endswith("strength"):
            torch.nn.init.constant_(parameter, 0.3)
    return generator


def latents(generator, count=3):
    return generator.sample_latents(count, torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("size", "layers"), [(8, 4), (16, 6), (32, 8), (64, 10)])
def test_shapes_and_range(size, layers):
    generator = tiny(image_size=size, channels=1)
    images = generator(latents(generator))
    assert images.shape == (3, 1, size, size)
    assert 0 <= images.min() < images.max() <= 1
    # Two styles for each resolution, as published.
    assert generator.layers == layers


def test_widths_double_at_every_smaller_resolution_up_to_512():
    assert widths(32, 32) == {4: 256, 8: 128, 16: 64, 32: 32}
    assert widths(256, 64)[4] == 512
    assert widths(256, 64)[256] == 64


def test_an_image_depends_on_its_own_latent_alone():
    generator = tiny()
    z = latents(generator)
    torch.testing.assert_close(generator(z)[1:2], generator(z[1:2]))
    assert torch.equal(generator(z), generator(z))


def test_w_is_the_same_for_a_longer_z():
    """Z is normalised: its direction alone matters."""
    generator = tiny()
    z = latents(generator)
    torch.testing.assert_close(generator(3 * z), generator(z), rtol=1e-4, atol=1e-5)


def test_noise():
    fixed, redrawn, none = tiny(), tiny(noise="redrawn"), tiny(noise="none")
    for other in (redrawn, none):
        other.load_state_dict(fixed.state_dict())
    z = latents(fixed)
    assert not torch.equal(redrawn(z), redrawn(z))
    assert not torch.allclose(fixed(z), none(z))
    silent = tiny()
    silent.load_state_dict(
        {k: v * 0 if k.endswith(".noise") else v for k, v in fixed.state_dict().items()}
    )
    torch.testing.assert_close(silent(z), none(z))


def test_truncation_goes_from_the_average_style():
    generator = tiny(truncation=0.0)
    torch.nn.init.normal_(generator.mapping.average)
    z = latents(generator)
    images = generator(z)
    torch.testing.assert_close(images[0], images[1])
    half = tiny(truncation=0.5)
    half.load_state_dict(generator.state_dict())
    expected = (generator.mapping(z) + generator.mapping.average) / 2
    torch.testing.assert_close(half.styles(z), expected)


def test_colours_of_published_weights_are_clamped():
    generator = tiny(output="clamp")
    colors = torch.tensor([-3.0, -1.0, 0.0, 0.5, 1.0, 2.0]).view(1, 1, 1, -1)
    bounded = generator.bounded(colors).flatten()
    torch.testing.assert_close(bounded, torch.tensor([0.0, 0.0, 0.5, 0.75, 1.0, 1.0]))


def test_derivatives_of_the_whole():
    generator = tiny(image_size=8, base_channels=2, latent_dim=3).double()
    z = latents(generator, 1).requires_grad_()
    assert torch.autograd.gradcheck(generator, (z,))
    assert torch.autograd.gradgradcheck(generator, (z,))


def test_it_is_saved_and_loaded(tmp_path):
    generator = tiny(truncation=0.7, output="clamp")
    save_generator(generator, tmp_path, {})
    loaded = load_generator(tmp_path)
    z = latents(generator)
    assert torch.equal(loaded(z), generator(z))
    assert loaded.config() == generator.config()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 24}, "expected an image size that is a power of two from 8 to 1024"),
        ({"latent_dim": 0}, "as whole numbers above 0, got channels 3, base_channels 4, latent_di"),
        ({"truncation": 1.5}, "expected a truncation from 0 to 1, got 1.5; take 1 for none"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(PriorError) as error:
        tiny(**settings)
    assert message in str(error.value)


@pytest.mark.parametrize("wrong", [{"mapping_layers": 1.5}, {"noise": "loud"}, {"output": "tanh"}])
def test_words_of_a_config_that_there_are_not(wrong, tmp_path):
    save_generator(tiny(), tmp_path, {})
    write_json(tmp_path / "config.json", read_json(tmp_path / "config.json") | wrong)
    with pytest.raises(PriorError, match=str(next(iter(wrong.values())))):
        load_generator(tmp_path)


def test_a_skip_reaches_the_image():
    """Every resolution has colours of its own, and all of them count."""
    generator = tiny()
    z = latents(generator)
    before = generator(z)
    for layer in (generator.synthesis.first_colors, *generator.synthesis.colors):
        kept = layer.bias.detach().clone()
        torch.nn.init.constant_(layer.bias, 1.0)
        assert not torch.allclose(generator(z), before)
        layer.bias.data.copy_(kept)


def test_every_layer_has_a_style_of_its_own():
    generator = tiny()
    w = torch.randn(1, generator.layers, 6)
    before = generator.synthesis(w, "fixed")
    for layer in range(generator.layers):
        moved = w.clone()
        moved[:, layer] += 1
        assert not torch.allclose(generator.synthesis(moved, "fixed"), before), layer
