"""Generative image priors: what the attacker believes that images look like."""

from pathlib import Path

from gradinv.priors import dcgan as dcgan  # registers the architecture
from gradinv.priors import flow as flow
from gradinv.priors import stylegan2 as stylegan2  # and so do these
from gradinv.priors import whitened as whitened
from gradinv.priors.foreign import Adapted
from gradinv.priors.generator import Generator, load_generator, prior_named

_ASSETS = Path(__file__).parent.parent / "assets"

SHIPPED = {
    "embedded": _ASSETS / "fashion_mnist_prior",
    "natural": _ASSETS / "tiny_imagenet_flow",
}
"""Priors that the package has, by what ``--prior`` calls them: a DCGAN of Fashion-MNIST's training
images, 32x32 in grey, and a flow of Tiny ImageNet's, 32x32 in colour."""


def embedded_prior() -> Generator:
    """Returns the 32x32 grey-scale generator trained on Fashion-MNIST's training images."""
    return load_generator(SHIPPED["embedded"])


__all__ = ["SHIPPED", "Adapted", "Generator", "embedded_prior", "load_generator", "prior_named"]
