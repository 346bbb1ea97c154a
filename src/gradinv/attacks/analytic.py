"""R-GAP as an attack: closed form alone, or with a generator in place of the last least squares."""

from dataclasses import dataclass

from gradinv.attacks.attack import Attack


@dataclass(frozen=True)
class AnalyticAttack(Attack):
    """R-GAP; with stages, the generator takes the place of the input layer's least squares.

    Without stages the image is the solution of least norm of the input layer's linear system
    A u = b, in normalised pixel units. With stages they minimise |A u - b|^2 / |b|^2 instead, over
    the latent and then the weights of a generator (*ours*; Jeon et al. 2021 report the gain and not
    the way).
    """
