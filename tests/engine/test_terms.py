from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from gradinv.attacks.search.regularizers import LatentNorm, TotalVariation
from gradinv.engine import engine_for
from gradinv.engine.distances import Cosine
from gradinv.engine.terms import Sees, check_terms, seeing, with_gradient
from gradinv.errors import ConfigError


@dataclass(frozen=True)
class Darkness:
    """The mean square of what is searched: a term that the package does not know."""

    sees: ClassVar[Sees] = "images"
    weight: float

    def __call__(self, images: Tensor) -> Tensor:
        return self.weight * images.square().mean()


@pytest.mark.parametrize("sees", [None, "pixels"])
def test_a_term_that_does_not_say_what_it_sees_is_refused(sees):
    class Silent:
        def __call__(self, images: Tensor) -> Tensor:
            return images.sum()

    if sees is not None:
        Silent.sees = sees  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=rf"what it sees.*got Silent with sees={sees!r}"):
        check_terms([TotalVariation(0.1), Silent()])


def test_terms_go_where_they_say():
    terms = (TotalVariation(0.1), LatentNorm(0.1), Darkness(1.0))
    assert seeing(terms, "images") == (terms[0], terms[2])
    assert seeing(terms, "latents") == (terms[1],)


def test_a_term_without_a_closed_form_gets_autograds_slope():
    images = torch.randn(3, 2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    values, gradient = with_gradient(Darkness(0.5), images)
    assert torch.allclose(values, 0.5 * images.square().flatten(1).mean(1))
    assert torch.allclose(gradient, images / images[0].numel())


@pytest.mark.parametrize("way", ["exact", "plain"])
def test_a_term_from_outside_counts_in_every_way(victim, observation, way):
    images = torch.rand(
        (2, 2, *observation.image_shape), generator=torch.Generator().manual_seed(1)
    )
    with_term, without = (
        engine_for(victim, observation, distance=Cosine(), regularizers=terms, way=way)
        for terms in ((Darkness(10.0),), ())
    )
    seen, bare = with_term.evaluate(images), without.evaluate(images)
    units = (images - 0.5) / 0.25
    assert torch.allclose(seen.cost - bare.cost, 10 * units.square().flatten(1).mean(1), rtol=1e-4)
    expected = 20 * units / units[0].numel() / 0.25
    assert torch.allclose(seen.gradient - bare.gradient, expected, rtol=1e-3, atol=1e-4)
