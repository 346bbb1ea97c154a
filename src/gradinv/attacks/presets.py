"""The methods of the literature as values, by the names that the command line knows.

Steps are for two processor cores; docs/methods.md gives the papers' own. The best TV weight depends
on network, defence and data: ``preset("gi-x:tv=0.03")`` sets another.
"""

from gradinv.attacks.analytic import AnalyticAttack
from gradinv.attacks.attack import Adam, Attack, Stage
from gradinv.attacks.objectives import BatchNormMatching, ImageNorm, TotalVariation
from gradinv.attacks.schedules import StepDecay
from gradinv.attacks.spaces import OfGenerator, Pixels
from gradinv.errors import AttackError, ConfigError, did_you_mean

Z = OfGenerator(latents=True)
W = OfGenerator(weights=True)
ZW = OfGenerator(latents=True, weights=True)
UNTRAINED_W = OfGenerator(weights=True, pretrained=False)


def _x(steps: int, tv: float, *, signed: bool = True) -> Stage:
    """Pixels (Geiping et al. 2020): Adam 0.1 on the sign of the gradient, box, step decay."""
    return Stage(Pixels(), steps, Adam(0.1, signed=signed), StepDecay(), (TotalVariation(tv),))


def _z(steps: int, tv: float, *, keep: int | None = None) -> Stage:
    """Latents (Jeon et al. 2021, eq. 5): Adam 3e-2."""
    return Stage(Z, steps, Adam(3e-2), StepDecay(), (TotalVariation(tv),), keep=keep)


def _w(steps: int, tv: float, *, keep: int | None = None) -> Stage:
    """Weights, one copy for every image (Jeon et al. 2021, eq. 7): Adam 1e-3."""
    return Stage(W, steps, Adam(1e-3), StepDecay(), (TotalVariation(tv),), keep=keep)


_GEIPING = "Geiping et al. 2020, Inverting Gradients"
_YIN = "Yin et al. 2021, See through Gradients"
_JEON = "Jeon et al. 2021, Gradient Inversion with Generative Image Prior"
_ZHU = "Zhu and Blaschko 2021, R-GAP"
_BN = BatchNormMatching(0.1)

_ATTACKS = (
    Attack("gi-x", (_x(1200, 1e-2),), reference=_GEIPING),
    Attack("gi-x-unsigned", (_x(1200, 1e-2, signed=False),), reference=f"{_JEON}: code of GI-x"),
    Attack(
        "gi-x+bn",
        (
            Stage(
                Pixels(),
                1200,
                Adam(0.1, signed=True),
                StepDecay(),
                (TotalVariation(1e-2), ImageNorm(1e-6), _BN),
            ),
        ),
        reference=_YIN,
    ),
    Attack("gi-z", (_z(800, 1e-4),), restarts=3, reference=f"{_JEON}, eq. 5"),
    Attack(
        "gi-w",
        (Stage(UNTRAINED_W, 1000, Adam(1e-3), StepDecay(), (TotalVariation(1e-3),)),),
        reference=f"{_JEON}, section 5",
    ),
    Attack(
        "gi-z/x",
        (_z(400, 1e-4, keep=1), _x(800, 1e-2)),
        restarts=3,
        reference=f"{_JEON}, Fig. 3",
    ),
    Attack(
        "gi-z/w",
        (_z(400, 1e-4, keep=1), _w(600, 1e-3)),
        restarts=3,
        reference=f"{_JEON}, eqs. 5 and 7 (GIAS)",
    ),
    Attack(
        "gi-z/w+bn",
        (
            Stage(Z, 400, Adam(3e-2), StepDecay(), (TotalVariation(1e-4), _BN), keep=1),
            Stage(W, 600, Adam(1e-3), StepDecay(), (TotalVariation(1e-3), _BN)),
        ),
        restarts=3,
        reference=f"{_JEON}, Table 1",
    ),
    Attack(
        "gi-zw-joint",
        (
            Stage(
                ZW, 1000, Adam(3e-2, lr_weights=1e-3), StepDecay(), (TotalVariation(1e-3),), keep=1
            ),
        ),
        reference=f"{_JEON}, section 5.1",
    ),
    Attack(
        "gi-w/z",
        (_w(600, 1e-3), _z(400, 1e-4)),
        reference=f"{_JEON}, section 5.1",
    ),
    AnalyticAttack("r-gap", (), reference=_ZHU),
    AnalyticAttack(
        "r-gap+prior",
        (_z(400, 0.0, keep=1), _w(600, 0.0)),
        restarts=4,
        reference=f"{_ZHU}; with a generator: {_JEON}",
    ),
)

PRESETS: dict[str, Attack] = {attack.name: attack for attack in _ATTACKS}


_SETTINGS = {
    "tv": Attack.with_total_variation,
    "lr": Attack.with_learning_rates,
    "steps": Attack.with_steps,
}


def preset(spec: str) -> Attack:
    """Returns a method by name, or with other numbers: ``gi-x:tv=0.03``.

    ``gi-z/w:tv=0,0.01:lr=0.03,0.001`` sets one value for each stage. The best TV weight depends on
    network, defence and data, and cannot be known without them; that is why it can be set.

    Raises:
        AttackError: no such method; the nearest name is given.
        ConfigError: a setting other than tv, lr or steps, or one that does not fit the stages.
    """
    name, *settings = spec.split(":")
    if name not in PRESETS:
        raise AttackError(
            f"expected the name of an attack, got '{name}'; " + did_you_mean(name, PRESETS)
        )
    attack = PRESETS[name]
    for setting in settings:
        key, _, values = setting.partition("=")
        try:
            numbers = [float(value) for value in values.split(",")]
        except ValueError:
            numbers = []
        if key not in _SETTINGS or not numbers:
            raise ConfigError(
                f"expected attack settings such as tv=0.01, lr=0.03,0.001 or steps=400,600, "
                f"got '{setting}'; write {name}:tv=0.01"
            )
        attack = _SETTINGS[key](attack, numbers)
    return attack
