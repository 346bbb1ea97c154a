"""The methods of the literature as values, by the names that the command line knows.

Steps are for two processor cores; docs/methods.md, Settings, has the published ones beside them,
and where the TV weights and learning rates come from. ``preset("gi-x:tv=0.03")`` sets another.
"""

from gradinv.attacks.analytic import AnalyticAttack
from gradinv.attacks.attack import Adam, Attack, Stage
from gradinv.attacks.search.consensus import GroupConsistency
from gradinv.attacks.search.evolution import CMA
from gradinv.attacks.search.features import Features
from gradinv.attacks.search.lbfgs import LBFGS
from gradinv.attacks.search.regularizers import (
    BatchNormMatching,
    ImageNorm,
    LatentKL,
    TotalVariation,
)
from gradinv.attacks.search.schedules import Constant, StepDecay
from gradinv.attacks.search.spaces import OfGenerator, Pixels
from gradinv.attacks.settings import Tuned, settings_of, with_settings
from gradinv.attacks.standard import VERSION, Standard, denoised
from gradinv.engine.distances import SquaredL2
from gradinv.errors import AttackError, ConfigError
from gradinv.resolve import resolve

Z = OfGenerator(latents=True)
W = OfGenerator(weights=True)
ZW = OfGenerator(latents=True, weights=True)
UNTRAINED_W = OfGenerator(weights=True, pretrained=False)


def _x(steps: int, tv: float, *, lr: float = 0.1, signed: bool = True) -> Stage:
    """Pixels (Geiping et al. 2020): Adam 0.1 on the sign of the gradient, box, step decay."""
    return Stage(Pixels(), steps, Adam(lr, signed=signed), StepDecay(), (TotalVariation(tv),))


def _z(steps: int, tv: float = 1e-3, *, keep: int | None = None) -> Stage:
    """Latents (Jeon et al. 2021, eq. 5): Adam 0.1 (the paper: 3e-2), unless they are tuned."""
    return Stage(Z, steps, Adam(0.1), StepDecay(), (TotalVariation(tv),), keep=keep)


def _w(steps: int, tv: float, *, keep: int | None = None) -> Stage:
    """Weights, one copy for every image (Jeon et al. 2021, eq. 7): Adam 5e-4 (the paper: 1e-3)."""
    return Stage(W, steps, Adam(5e-4), StepDecay(), (TotalVariation(tv),), keep=keep)


_DLG_STEPS = 500


def _h(depth: int, steps: int, tv: float) -> Stage:
    """Features of one layer of the generator in an L1 ball (Fang et al. 2023): Adam 3e-2."""
    return Stage(Features(depth, 0.2), steps, Adam(3e-2), StepDecay(), (TotalVariation(tv),))


def _dlg(*, soft_labels: bool) -> Stage:
    """Pixels without a box, L-BFGS, no regulariser (Zhu et al. 2019, algorithm 1)."""
    return Stage(Pixels(box=False, soft_labels=soft_labels), _DLG_STEPS, LBFGS(), Constant())


_ZHU = "Zhu et al. 2019, Deep Leakage from Gradients"
_ZHAO = "Zhao et al. 2020, iDLG: Improved Deep Leakage from Gradients"
_GEIPING = "Geiping et al. 2020, Inverting Gradients"
_YIN = "Yin et al. 2021, See through Gradients"
_JEON = "Jeon et al. 2021, Gradient Inversion with Generative Image Prior"
_RGAP = "Zhu and Blaschko 2021, R-GAP"
# Published with 0.1 beside another distance: the sum over all layers would drown a cosine.
_BN = BatchNormMatching(1e-3)

_ATTACKS = (
    Attack("dlg", (_dlg(soft_labels=True),), SquaredL2(), restarts=4, reference=_ZHU),
    Attack("idlg", (_dlg(soft_labels=False),), SquaredL2(), restarts=4, reference=_ZHAO),
    Tuned.of(Attack("gi-x", (_x(1200, 1e-2),), reference=_GEIPING)),
    denoised(600, "ours, after Martin et al. 2025, PnP-Flow"),
    Attack("gi-x-unsigned", (_x(1200, 1e-2, signed=False),), reference=f"{_JEON}: code of GI-x"),
    Attack(
        "gi-x+bn",
        (
            Stage(
                Pixels(),
                1200,
                Adam(0.1, signed=True),
                StepDecay(),
                (TotalVariation(1e-2), ImageNorm(1e-6), _BN, GroupConsistency(1e-3)),
            ),
        ),
        reference=_YIN,
    ),
    Tuned.of(Attack("gi-z", (_z(600),), restarts=2, reference=f"{_JEON}, eq. 5")),
    Attack(
        "gi-w",
        (Stage(UNTRAINED_W, 1000, Adam(1e-3), StepDecay(), (TotalVariation(3e-3),)),),
        reference=f"{_JEON}, section 5",
    ),
    Tuned.of(
        Attack(
            "gi-z/x",
            (_z(300, keep=1), _x(700, 1e-2, lr=0.03)),
            restarts=2,
            reference=f"{_JEON}, Fig. 3",
        )
    ),
    Tuned.of(
        Attack(
            "gi-z/w",
            (_z(600, keep=1), _w(250, 1e-3)),
            restarts=2,
            reference=f"{_JEON}, eqs. 5 and 7 (GIAS)",
        )
    ),
    Attack(
        "gi-z/w+bn",
        (
            Stage(Z, 250, Adam(0.1), StepDecay(), (TotalVariation(1e-3), _BN), keep=1),
            Stage(W, 500, Adam(5e-4), StepDecay(), (TotalVariation(1e-3), _BN)),
        ),
        restarts=8,
        reference=f"{_JEON}, Table 1",
    ),
    Attack(
        "gi-zw-joint",
        (
            Stage(
                ZW, 1000, Adam(0.1, lr_weights=5e-4), StepDecay(), (TotalVariation(1e-3),), keep=1
            ),
        ),
        reference=f"{_JEON}, section 5.1",
    ),
    Attack(
        "gi-w/z",
        (_w(600, 1e-3), _z(400, 1e-3)),
        reference=f"{_JEON}, section 5.1",
    ),
    Attack(
        "ggl",
        (Stage(Z, 200, CMA(), Constant(), (LatentKL(0.1),)),),
        reference="Li et al. 2022, Auditing Privacy Defenses in Federated Learning (GGL)",
    ),
    Attack(
        "gifd",
        (_z(400, 1e-4, keep=1), *(_h(depth, 200, 1e-4) for depth in (1, 2, 3))),
        restarts=3,
        best_stage=True,
        reference="Fang et al. 2023, GIFD: A Generative Gradient Inversion Method",
    ),
    AnalyticAttack("r-gap", (), reference=_RGAP),
    AnalyticAttack(
        "r-gap+prior",
        (_z(400, 0.0, keep=1), _w(600, 0.0)),
        restarts=4,
        reference=f"{_RGAP}; with a generator: {_JEON}",
    ),
)

_STANDARD = Standard("standard", reference=f"gradinv: standard-{VERSION}")

PRESETS: dict[str, Attack] = {attack.name: attack for attack in (*_ATTACKS, _STANDARD)}


PUBLISHED = "published"
"""Behind the name of an attack: with the numbers of its source."""


def preset(spec: str) -> Attack:
    """Returns a method by name, or with other numbers: ``gi-x:tv=0.03``.

    ``gi-z/w:tv=0,0.01:lr=0.03,0.001`` sets one value for each stage;
    :func:`gradinv.attacks.settings.with_settings` says what can be set. ``gi-x:published`` has the
    numbers of the source, for every update.

    Raises:
        AttackError: no such method; the nearest name is given.
        ConfigError: a setting that there is not, or one that does not fit.
    """
    named = resolve(
        spec,
        PRESETS,
        kind="attack",
        expected="the name of an attack or package.module:attack",
        error=AttackError,
    )
    attack, name = named.value, named.name
    if not isinstance(attack, Attack):
        raise AttackError(
            f"expected an Attack named {name!r}, got {type(attack).__name__}; make one of stages "
            "(docs/contributing.md)"
        )
    if named.settings and isinstance(attack, Standard):
        raise ConfigError(
            f"expected '{name}' without settings, got '{spec}'; it has none, so that its results "
            "can be compared: take another attack to try settings"
        )
    first, _, rest = named.settings.partition(":")
    if first != PUBLISHED:
        return with_settings(attack, named.settings)
    if PUBLISHED not in (known := settings_of(name)):
        raise ConfigError(
            f"expected an attack whose published numbers are kept for '{spec}', got {name}; write "
            "them out (docs/methods.md, Settings)"
        )
    return with_settings(with_settings(attack, known[PUBLISHED]), rest)
