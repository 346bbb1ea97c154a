import pytest

from gradinv.attacks import Adam, Stage
from gradinv.attacks.presets import PRESETS, Z, preset
from gradinv.attacks.search.consensus import GroupConsistency
from gradinv.attacks.search.denoising import Denoising
from gradinv.attacks.search.evolution import CMA
from gradinv.attacks.search.lbfgs import LBFGS
from gradinv.attacks.search.regularizers import LatentNorm, TotalVariation
from gradinv.attacks.search.schedules import Constant
from gradinv.attacks.search.spaces import Pixels
from gradinv.attacks.settings import Tuned
from gradinv.errors import AttackError, ConfigError

NAMES = [
    "dlg",
    "idlg",
    "gi-x",
    "gi-x+flow",
    "gi-x-unsigned",
    "gi-x+bn",
    "gi-z",
    "gi-w",
    "gi-z/x",
    "gi-z/w",
    "gi-z/w+bn",
    "gi-zw-joint",
    "gi-w/z",
    "ggl",
    "gifd",
    "r-gap",
    "r-gap+prior",
    "standard",
]


def test_the_names_of_the_contract_are_there():
    assert list(PRESETS) == NAMES
    assert all(attack.reference for attack in PRESETS.values())


def test_who_needs_what():
    assert {name for name in NAMES if not PRESETS[name].needs_prior} == {
        "dlg", "idlg", "gi-x", "gi-x-unsigned", "gi-x+bn", "r-gap", "standard",
    }  # fmt: skip
    assert [name for name in NAMES if not PRESETS[name].needs_labels] == ["dlg"]
    assert [name for name in NAMES if PRESETS[name].needs_denoiser] == ["gi-x+flow"]
    assert {name for name in NAMES if PRESETS[name].needs_bn} == {"gi-x+bn", "gi-z/w+bn"}


def test_gi_x_differs_from_the_papers_form_by_the_sign_alone():
    signed = preset("gi-x:published:steps=1200:tv=0.01")
    unsigned = preset("gi-x-unsigned")
    assert signed.stages == preset("gi-x-unsigned:signed=yes").stages
    assert signed.stages != unsigned.stages


def test_the_published_numbers_are_those_of_every_update():
    published = preset("gi-x:published")
    assert isinstance(published, Tuned)
    assert {stages for _, stages in published.kinds} == {published.stages}
    (stage,) = published.stages
    assert (stage.steps, stage.optimizer) == (4800, Adam(0.1, signed=True))
    assert stage.regularizers == (TotalVariation(1e-4),)
    with pytest.raises(ConfigError, match=r"published numbers are kept for 'gi-w:published'"):
        preset("gi-w:published")


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(AttackError, match=r"got 'gi-zw'; did you mean"):
        preset("gi-zw")
    with pytest.raises(AttackError, match="choose one of dlg, idlg, "):
        preset("#")


def test_tv_weights_can_be_set_for_all_stages_or_each():
    assert [s.regularizers for s in preset("gi-z/w:tv=0,0.5").stages] == [
        (TotalVariation(0.0),), (TotalVariation(0.5),),
    ]  # fmt: skip
    assert all(s.regularizers == (TotalVariation(0.2),) for s in preset("gi-z/w:tv=0.2").stages)
    assert len(preset("gi-x+bn:tv=1").stages[0].regularizers) == 4


@pytest.mark.parametrize("settings", ["tv=", "tv=a", "adam=1", "tv", "tv=1:", "lr=0.1:tv=x"])
def test_settings_that_mean_nothing_are_refused(settings):
    with pytest.raises(ConfigError, match=r"expected attack settings such as tv=0\.01"):
        preset(f"gi-x:{settings}")


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ("tv=1,2,3", "TV weights of at least 0"),
        ("tv=-1", "TV weights of at least 0"),
        ("lr=0", "learning rates above 0"),
        ("steps=1.5", "whole numbers of steps"),
        ("steps=0", "whole numbers of steps"),
        ("steps=inf", "whole numbers of steps"),
    ],
)
def test_settings_must_fit_the_stages(settings, what):
    with pytest.raises(ConfigError, match=rf"expected 1 or 2 {what} for gi-z/w \(z then w\)"):
        preset(f"gi-z/w:{settings}")


def test_a_closed_form_has_no_settings():
    with pytest.raises(ConfigError, match=r"expected no settings for r-gap.*got TV weights"):
        preset("r-gap:tv=0.1")
    assert preset("r-gap").scaled(0.5).total_steps == 0
    assert [stage.space.name for stage in preset("r-gap+prior:tv=0.1").stages] == ["z", "w"]


def test_learning_rates_and_steps_can_be_set_for_each_stage():
    z, w = preset("gi-z/w:lr=0.1,0.2:steps=3,4").stages
    assert (z.optimizer, w.optimizer) == (Adam(0.1), Adam(0.2))
    assert (z.steps, w.steps) == (3, 4)


def test_restarts_can_be_set_in_the_spec():
    assert preset("gi-z/w:restarts=5").restarts == 5
    for wrong in ("1.5", "1,2", "inf"):
        with pytest.raises(ConfigError, match=r"expected one whole number of restarts for gi-z/w"):
            preset(f"gi-z/w:restarts={wrong}")
    with pytest.raises(ConfigError, match=r"expected at least 1 restart, got 0"):
        preset("gi-z/w:restarts=0")


def test_a_learning_rate_is_for_stages_that_have_one():
    with pytest.raises(ConfigError, match=r"with a learning rate for lr=, got LBFGS in dlg"):
        preset("dlg:lr=0.1")


def test_an_optimizer_without_a_rate_takes_no_schedule():
    with pytest.raises(ConfigError, match=r"expected a constant schedule with LBFGS.*StepDecay"):
        Stage(Pixels(), 1, LBFGS())


def test_an_optimizer_without_gradients_takes_no_terms_on_images():
    with pytest.raises(ConfigError, match=r"on latents alone with CMA.*got TotalVariation"):
        Stage(
            Z, 1, CMA(), Constant(), (TotalVariation(0.1), LatentNorm(0.1))
        )  # fmt: skip
    with pytest.raises(
        ConfigError, match=r"expected Adam for a term on all restarts together.*got LBFGS"
    ):
        Stage(Pixels(), 1, LBFGS(), Constant(), (GroupConsistency(0.1),))
    assert Stage(Z, 1, CMA(), Constant(), (LatentNorm(0.1),)).regularizers


def test_denoising_can_be_set_from_the_first_number_on():
    (stage,) = preset("gi-x:denoise=3,0.2").stages
    assert stage.denoising == Denoising(3, 0.2)
    assert preset("gi-x+flow:denoise=no").stages[0].denoising is None
    z, x = preset("gi-z/x:denoise=7,0.5,0.1,0.8").stages
    assert (z.denoising, x.denoising) == (None, Denoising(7, 0.5, 0.1, 0.8))


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("gi-x:denoise=1.5", r"a whole number of steps and at most 3 shares for gi-x, got 1\.5;"),
        ("gi-x:denoise=5,1,0,1,1", r"got 5\.0, 1\.0, 0\.0, 1\.0, 1\.0; write gi-x:denoise=5,0"),
        ("gi-z:denoise=5", r"a stage over pixels for denoise=, got none in gi-z;"),
        ("r-gap:denoise=no", r"a stage over pixels for denoise=, got none in r-gap;"),
        ("gi-x:denoise=5,0", r"a share above 0 and at most 1, .* got 5, 0, 0\.05, 0\.95;"),
        ("idlg:denoise=5", r"over pixels that steps with Adam to denoise, got x with LBFGS;"),
    ],
)
def test_denoising_that_cannot_be_is_refused(spec, said):
    with pytest.raises(ConfigError, match=said):
        preset(spec)


def test_steps_scale_and_restarts():
    attack = preset("gi-z/w")
    assert attack.scaled(0.5).total_steps == attack.total_steps / 2
    assert attack.scaled(1e-9).total_steps == len(attack.stages)
    assert attack.with_restarts(7).restarts == 7
    with pytest.raises(ConfigError, match=r"a factor on the steps above 0 and at most .*, got -1"):
        attack.scaled(-1.0)
    with pytest.raises(ConfigError, match="expected at least 1 restart, got 0"):
        attack.with_restarts(0)


def test_an_attack_describes_every_number():
    text = str(preset("gi-z/w").describe())
    assert "'lr': 0.0005" in text
    assert "'kind': 'TotalVariation'" in text


def test_updates_of_several_local_steps_are_simulated_unless_told_otherwise():
    assert preset("gi-x").fedavg == "simulate"
    attack = preset("gi-x:tv=0.5:fedavg=approximate")
    assert attack.fedavg == "approximate"
    assert attack.stages[0].regularizers == (TotalVariation(0.5),)
    assert preset("gi-x:way=frozen-pattern").way == "frozen-pattern"
    with pytest.raises(ConfigError, match=r"got 'way=frozen'; did you mean 'frozen-pattern'"):
        preset("gi-x:way=frozen")
    assert preset("gi-z:fedavg=simulate") == PRESETS["gi-z"]
    with pytest.raises(ConfigError, match=r"expected fedavg=simulate or .*, got 'fedavg=exact'"):
        preset("gi-x:fedavg=exact")
    with pytest.raises(ConfigError, match="choose one of simulate, approximate"):
        preset("gi-x:fedavg")
