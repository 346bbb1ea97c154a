"""A foreign network becomes a prior, or what does not fit is said before an attack finds out."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from gradinv.attacks.search.spaces import OfGenerator, Scene
from gradinv.errors import PriorError
from gradinv.priors.fitting import NO_LAYERS, save_wrapped, wrapped
from gradinv.priors.generator import load_card, load_generator
from tests.outside import Painter


class Strange(Painter):
    """Does one thing wrong."""

    def __init__(self, fault="", side=8):
        super().__init__(side)
        self.fault = fault
        self.register_buffer("calls", torch.zeros(()))
        self.norm = nn.BatchNorm2d(1, affine=False, track_running_stats=False)
        self.lone = nn.Parameter(torch.ones(()))

    def forward(self, z) -> Any:  # noqa: PLR0912 - a list of faults
        images = super().forward(z) * self.lone
        match self.fault:
            case "noise":
                images = images + 0.1 * torch.randn_like(images)
            case "batch":
                images = self.norm(images).tanh()
            case "counts":
                self.calls += 1
            case "constant":
                images = images[:1].detach().expand_as(images) + 0 * images
            case "detached":
                images = images.detach()
            case "rounded":
                images = images + (images.mul(4).round() / 4 - images).detach() * 1.0
                images = images + 3 * (images.detach() ** 2 - images**2)
            case "bytes":
                images = (images + 1) * 127.5
            case "faint":
                images = images / 1000
            case "nan":
                images = images / 0
            case "grey4":
                images = images.expand(-1, 4, -1, -1)
            case "oblong":
                images = images[:, :, 1:]
            case "integer":
                images = images.mul(100).long()
            case "flat":
                images = images.flatten(1)
            case "dictionary":
                images = {"pictures": images}
            case "zero slope":
                images = images.sign()
            case "python":
                scale = 1.0 if images[0, 0, 0, 0].item() > 5 else 0.5
                images = images * scale
        return images


def strange(fault, **settings):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        module = Strange(fault)
    return wrapped(module, **{"latent_shape": (5,), "output_range": (-1.0, 1.0), **settings})


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("noise", "the same latents give other images at another call"),
        ("batch", "an image depends on the others of its batch"),
        ("counts", r"a call changes its buffers \(calls\)"),
        ("constant", "its images do not depend on the latents"),
        ("detached", "no derivative by the latents"),
        ("rounded", "derivative by the latents is another than its values show"),
        ("zero slope", "its derivative by the latents is zero"),
        ("bytes", r"its values lie from .* to .*, and black to white is -1 to 1: --range=0,255"),
        ("faint", r"its values lie from .*, hardly a part of -1 \(black\) to 1 \(white\)"),
        ("nan", "its images hold NaN or infinity"),
        ("grey4", r"square images of 1 or 3 channels, .* got \(16, 4, 8, 8\)"),
        ("oblong", r"got \(16, 1, 7, 8\)"),
        ("integer", r"got \(16, 1, 8, 8\) of torch.int64"),
        ("flat", r"got \(16, 64\)"),
        ("dictionary", "images as a tensor, a tuple's first or a field 'sample', got dict"),
    ],
)
def test_what_does_not_fit_is_said(fault, message):
    with pytest.raises(PriorError, match=message):
        strange(fault)


def test_all_that_does_not_fit_is_said_in_one_line():
    with pytest.raises(PriorError, match=r"from \S+ to 25\d.*; a call changes") as caught:
        wrapped(_Both("bytes"), latent_shape=(5,))
    assert "\n" not in str(caught.value)


class _Both(Strange):
    def forward(self, z):
        self.calls += 1
        return super().forward(z)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"latent_shape": (7,)}, r"takes latents of shape \(16, 7\), got RuntimeError: .*--latent"),
        ({"latent_shape": ()}, "expected the shape of one latent"),
        ({"latent_shape": (0,)}, "expected the shape of one latent"),
        ({"latent_scale": 0.0}, "and a scale above 0"),
        ({"output_range": (1.0, -1.0)}, "black and white, the lower first, got 1 and -1"),
        ({"output_range": (0.0, 1.0)}, r"--range=-1,1; mend that"),
        ({"image_size": 9}, "at most the module's own 8, got 9"),
        ({"image_size": 0}, "at most the module's own 8, got 0"),
        ({"method": "decode"}, "expected a method of Strange that makes images, got 'decode'"),
        ({"method": "_apply"}, "expected a method of Strange"),
        ({"method": "fault"}, "expected a method of Strange"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(PriorError, match=message):
        strange("", **settings)


def test_what_fits_is_left_as_it_was():
    module = Painter()
    module.train()
    prior = wrapped(module, latent_shape=(5,), output_range=(-1.0, 1.0)).prior
    latents = torch.randn(3, 5)
    assert torch.equal(prior(latents), (module(latents) + 1) / 2)
    assert module.training
    assert all(value.requires_grad for value in module.parameters())
    assert not prior.training
    assert not any(value.requires_grad for value in prior.parameters())


def test_images_are_averaged_to_a_smaller_size():
    module = Painter()
    prior = wrapped(module, latent_shape=(5,), output_range=(-1.0, 1.0), image_size=4).prior
    latents = torch.randn(3, 5)
    whole = (module(latents) + 1) / 2
    expected = whole.unflatten(3, (4, 2)).unflatten(2, (4, 2)).mean(dim=(3, 5))
    assert prior.image_shape == (1, 4, 4)
    assert torch.allclose(prior(latents), expected, atol=1e-6)


class Autoencoder(nn.Module):
    """Encoder, decoder, and the way that diffusers returns images."""

    def __init__(self, form="sample"):
        super().__init__()
        self.encoder = nn.Linear(64, 5)
        self.decoder = Painter()
        self.form = form

    def forward(self, x):
        return self.decode(self.encoder(x.flatten(1)))

    def decode(self, z):
        images = self.decoder(z)
        forms = {"sample": SimpleNamespace(sample=images), "tuple": (images,)}
        return forms.get(self.form, {"sample": images})


@pytest.mark.parametrize("form", ["sample", "tuple", "mapping"])
def test_an_autoencoder_is_its_decoder(form):
    module = Autoencoder(form)
    settings = {"latent_shape": (5,), "output_range": (-1.0, 1.0), "method": "decode"}
    prior = wrapped(module, **settings, latent_scale=2.0, settings={"form": form}).prior
    latents = torch.randn(3, 5)
    assert torch.allclose(prior(latents), (module.decoder(2 * latents) + 1) / 2)
    assert prior.dropped == ("encoder",)
    assert not any(name.startswith("module.encoder") for name in prior.state_dict())
    save_wrapped(
        wrapped(module, **settings, latent_scale=2.0, settings={"form": form}),
        Path("saved"),
        command="none",
    )
    assert torch.equal(load_generator(Path("saved"))(latents), prior(latents))
    assert hasattr(module, "encoder"), "the module itself keeps it"


def test_a_part_that_is_looked_at_stays():
    class Looks(Autoencoder):
        def decode(self, z):
            return super().decode(z + 0 * self.encoder.weight.detach().sum())

    found = wrapped(Looks(), latent_shape=(5,), output_range=(-1.0, 1.0), method="decode")
    assert found.prior.dropped == ()


def test_the_layers_of_a_sequence_are_blocks():
    layers = [nn.Linear(5, 64), nn.ReLU(inplace=True), nn.Unflatten(1, (1, 8, 8)), nn.Sigmoid()]
    found = wrapped(nn.Sequential(*layers), latent_shape=(5,), latent_scale=3.0)
    assert found.limits == ()
    z = torch.randn(2, 5, requires_grad=True)
    images = z
    for block in found.prior.blocks():
        images = block(images)
    assert torch.equal(images, found.prior(z))
    # In place, a ReLU would write over the features that are searched.
    features = torch.randn(2, 64, requires_grad=True)
    found.prior.blocks()[1](features).sum().backward()
    assert features.grad is not None


def test_no_sequence_of_layers_is_a_limit():
    assert strange("").limits == (NO_LAYERS,)


@pytest.mark.parametrize(
    ("fault", "message"),
    [("python", "images cannot have weights of their own"), ("", None)],
)
def test_whether_weights_can_be_searched_is_known_before(fault, message):
    found = strange(fault)
    scene = Scene(2, (1, 8, 8), torch.zeros(1, 1, 1), torch.ones(1, 1, 1), found.prior)
    space = OfGenerator(latents=True, weights=True).open(
        scene, None, 1, torch.Generator().manual_seed(0)
    )
    if message is None:
        space().sum().backward()
        assert all(value.grad is not None for value in space.parameters())
    else:
        assert re.search(message, found.limits[0])
        with pytest.raises(RuntimeError):
            space()


def test_a_network_without_weights_has_none_to_search():
    class Still(nn.Module):
        def forward(self, z):
            return z.sigmoid().unflatten(1, (1, 4, 4))

    assert wrapped(Still(), latent_shape=(16,)).limits[0] == (
        "gi-w, gi-z/w: it has no weights to search"
    )


def test_it_is_saved_where_it_can_be_made_again():
    found = wrapped(Painter(4), latent_shape=(5,), output_range=(-1.0, 1.0), settings={"side": 4})
    save_wrapped(found, Path("saved"), command="gradinv prior wrap")
    card = load_card(Path("saved"))
    assert (card["network"], card["state"]) == ("tests.outside:Painter", "wrapped")
    assert card["cannot"] == NO_LAYERS
    assert Path("saved/samples.png").is_file()
    latents = torch.randn(3, 5)
    assert torch.equal(load_generator(Path("saved"))(latents), found.prior(latents))


def test_settings_that_make_another_network_are_named():
    with pytest.raises(PriorError, match="expected weights of the adapted"):
        save_wrapped(
            wrapped(Painter(4), latent_shape=(5,), output_range=(-1.0, 1.0)),
            Path("saved"),
            command="none",
        )
    with pytest.raises(PriorError, match=r"Strange made of the settings \{\} to be the same"):
        save_wrapped(strange("python"), Path("saved"), command="none")
    assert not Path("saved").exists()
