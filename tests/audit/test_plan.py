import itertools
import json
import subprocess
import sys

import pytest

from gradinv.attacks import PRESETS
from gradinv.audit.plan import (
    DEFAULT_ATTACKS,
    DEFAULT_DEFENSES,
    AuditConfig,
    Cell,
    cells_of,
    derive_seed,
    option,
)
from gradinv.errors import ConfigError


def test_nothing_given_means_the_defaults():
    config = AuditConfig()
    assert (config.attack, config.defense) == (DEFAULT_ATTACKS, DEFAULT_DEFENSES)
    assert AuditConfig(attack=("gi-z",)).attack == ("gi-z",)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "--batch-size of at least 1, got 0"),
        ({"batches": 0}, "--batches of at least 1, got 0"),
        ({"image_size": 4}, "--image-size of at least 8, got 4"),
        ({"restarts": 0}, "--restarts of at least 1, got 0"),
        ({"workers": 0}, "--workers of at least 1, got 0"),
        ({"seed": -1}, "--seed of at least 0, got -1"),
        ({"steps_scale": 0.0}, "--steps-scale above 0 and finite, got 0"),
        ({"steps_scale": float("nan")}, "--steps-scale above 0 and finite, got nan"),
        ({"seconds": float("inf")}, "--seconds above 0 and finite, got inf"),
        ({"channels": 2}, "--channels 1 (grey) or 3 (RGB), got 2"),
        ({"local_epochs": 5}, "--protocol fedavg with --local-epochs, got fedsgd; add --protocol"),
        ({"local_lr": 0.1, "reveal_order": True}, "with --local-lr, --reveal-order, got fedsgd"),
        ({"local_batch_size": 2}, "--protocol fedavg with --local-batch-size, got fedsgd"),
        ({"local_momentum": 0.0}, "--protocol fedavg with --local-momentum, got fedsgd"),
        ({"protocol": "fedavg", "local_epochs": 0}, "--local-epochs of at least 1, got 0"),
        ({"protocol": "fedavg", "local_batch_size": 0}, "--local-batch-size of at least 1, got 0"),
        (
            {"protocol": "fedavg", "local_batch_size": 5},
            "--local-batch-size of at most --batch-size, got 5 of 4; lower it",
        ),
        (
            {"protocol": "fedavg", "reveal_order": True, "hide_labels": True},
            "expected either --reveal-order or --hide-labels, got both",
        ),
        ({"protocol": "fedavg", "local_lr": 0.0}, "--local-lr above 0 and finite, got 0.0"),
        (
            {"protocol": "fedavg", "local_lr": float("nan")},
            "--local-lr above 0 and finite, got nan",
        ),
        ({"protocol": "fedavg", "local_momentum": 1.0}, "--local-momentum in [0, 1), got 1.0"),
        ({"attack": ("gi-x", "gi-x")}, "each --attack once, got gi-x more than once"),
        ({"defense": ("none", "none")}, "each --defense once, got none more than once"),
    ],
)
def test_a_setting_without_meaning_is_refused(settings, message):
    with pytest.raises(ConfigError) as error:
        AuditConfig(**settings)
    assert message in str(error.value)


def test_stored_settings_are_checked_all_at_once():
    with pytest.raises(ConfigError, match=r"seed: Input should be .*; batch_sizes: Unexpected"):
        AuditConfig.from_mapping({"batch_sizes": 3, "seed": "x"})


def test_settings_survive_json():
    config = AuditConfig(attack=("gi-x", "gi-z"), steps_scale=0.1, data="a")
    assert AuditConfig.from_mapping(json.loads(json.dumps(config.settings()))) == config


def test_local_training_has_defaults_once_it_is_asked_for():
    def local(**settings):
        config = AuditConfig(**settings)
        return tuple(
            getattr(config, f"local_{name}") for name in ("epochs", "batch_size", "lr", "momentum")
        )

    assert local() == (None, None, None, None)
    assert local(protocol="fedavg", batch_size=6) == (5, 6, 0.01, 0.0)
    given = {"local_epochs": 2, "local_batch_size": 3, "local_lr": 0.5, "local_momentum": 0.9}
    assert local(protocol="fedavg", **given) == (2, 3, 0.5, 0.9)
    config = AuditConfig(protocol="fedavg", **given)
    assert AuditConfig.from_mapping(json.loads(json.dumps(config.settings()))) == config


def test_cells_are_the_product_in_the_order_of_the_tables():
    config = AuditConfig(attack=("a", "b"), defense=("none", "clip:1"), batches=2)
    expected = [
        (attack, defense, batch)
        for defense in ("none", "clip:1")
        for attack in ("a", "b", "candidates")
        for batch in (0, 1)
    ]
    assert [(c.attack, c.defense, c.batch) for c in cells_of(config)] == expected


def test_slugs_are_file_names_and_distinct():
    assert Cell("gi-z/w", "sparsify:0.95", 0).slug == "gi-z_w--sparsify-0.95--batch0"
    defenses = ["none", "noise:0.01", "noise:0.1", "clip:1+noise:0.01", "sparsify:1e-05"]
    attacks = [*PRESETS, "gi-x:tv=0.1", "gi-z/w:tv=0,0.01"]
    cells = [Cell(*parts) for parts in itertools.product(attacks, defenses, range(11))]
    slugs = {cell.slug for cell in cells}
    assert len(slugs) == len(cells)
    assert not [slug for slug in slugs if set(slug) & set('/\\:*?"<>| ')]


def test_seeds_of_the_two_sides_and_of_batches_differ():
    triples = itertools.product(range(20), ("defense", "attack"), range(20))
    seeds = [derive_seed(*triple) for triple in triples]  # type: ignore[arg-type]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**32 for seed in seeds)
    # What is published must stay reproducible: this value is part of the format.
    assert derive_seed(0, "attack", 0) == 243475243


def test_option_of_a_setting():
    assert option("steps_scale") == "--steps-scale"


def test_the_plan_does_not_import_torch():
    code = "import sys, gradinv.audit.plan; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("mean", "std", "said"),
    [
        ("0.5", None, "expected --mean and --std together, got --mean alone"),
        (None, "0.5", "expected --mean and --std together, got --std alone"),
        ("0.5,x", "1,1", "as numbers between commas, got '0.5,x' and '1,1'"),
        ("0.5", "1,1", "expected as many --mean as --std, got 1 and 2"),
        ("0.5", "0", "a --std above 0, got 0.5 and 0"),
        ("nan", "1", "expected a finite --mean"),
    ],
)
def test_a_normalisation_without_meaning(mean, std, said):
    with pytest.raises(ConfigError, match=said):
        AuditConfig(mean=mean, std=std)


def test_the_undefended_update_stands_beside_with_the_first_attack():
    config = AuditConfig(attack=("a", "b"), defense=("clip:1",), undefended="yes", batches=1)
    assert [(c.attack, c.defense) for c in cells_of(config)] == [
        ("a", "none"), ("candidates", "none"),
        ("a", "clip:1"), ("b", "clip:1"), ("candidates", "clip:1"),
    ]  # fmt: skip
    assert AuditConfig().defenses == ("none", "sparsify:0.95")
    assert AuditConfig(defense=("clip:1",)).defenses == ("clip:1",)
    assert AuditConfig(undefended="no").defenses == ("sparsify:0.95",)
    both = AuditConfig(attack=("a", "b"), defense=("none", "clip:1"), undefended="yes")
    assert both.undefended == "no"
    assert both.attacks_on("none") == ("a", "b")


def test_candidates_is_no_name_of_an_attack():
    with pytest.raises(ConfigError, match="by another name than candidates, which is the judge's"):
        AuditConfig(attack=("candidates",))


@pytest.mark.parametrize("setting", ["candidates", "rounds"])
def test_too_few(setting):
    with pytest.raises(ConfigError, match=f"expected --{setting} of at least"):
        AuditConfig.from_mapping({setting: 0})
