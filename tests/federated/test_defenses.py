"""Defences: what each one does to an update, and the text that names it."""

from decimal import Decimal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradinv.errors import ConfigError
from gradinv.federated.defenses import (
    Clip,
    Noise,
    Sparsify,
    defense_words,
    format_defenses,
    parse_defense,
)


def gradient() -> dict[str, torch.Tensor]:
    source = torch.Generator().manual_seed(0)
    return {
        "first": torch.randn(4, 3, 3, 3, generator=source),
        "second": 100 * torch.randn(7, generator=source),
        "third": torch.randn((), generator=source),
    }


def norm(update: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([value.flatten() for value in update.values()]).norm()


class TestNoise:
    def test_deterministic_by_generator(self):
        def draw(seed: int) -> dict[str, torch.Tensor]:
            return Noise(0.1).apply(gradient(), torch.Generator().manual_seed(seed))

        first, again, other = draw(3), draw(3), draw(4)
        assert all(torch.equal(first[name], again[name]) for name in first)
        assert not any(torch.equal(first[name], other[name]) for name in first)

    def test_global_chance_plays_no_part(self, generator):
        before = torch.get_rng_state()
        Noise(0.1).apply(gradient(), generator)
        assert torch.equal(torch.get_rng_state(), before)

    def test_sigma_is_absolute_and_entries_are_independent(self, generator):
        zeros = {"small": torch.zeros(20_000), "large": torch.full((20_000,), 1e3).double()}
        noisy = Noise(0.5).apply(zeros, generator)
        added = torch.stack([noisy["small"].double(), noisy["large"] - 1e3])
        torch.testing.assert_close(
            torch.cov(added), 0.25 * torch.eye(2, dtype=torch.float64), rtol=0, atol=0.01
        )
        assert added.mean(dim=1).abs().max() < 0.02
        assert noisy["large"].dtype == torch.float64

    def test_no_generator(self):
        with pytest.raises(ConfigError, match=r"expected a torch\.Generator for the noise"):
            Noise(0.1).apply(gradient(), None)

    @pytest.mark.parametrize("sigma", [-0.1, float("nan"), float("inf")])
    def test_meaningless(self, sigma):
        with pytest.raises(ConfigError, match=r"expected a noise sigma of 0 or more, got .*; try"):
            Noise(sigma)


class TestSparsify:
    @given(
        fraction=st.floats(0, 1, exclude_max=True),
        values=st.lists(
            st.integers(-(10**6), 10**6).filter(bool), min_size=1, max_size=60, unique_by=abs
        ),
    )
    def test_keeps_the_right_number_and_the_largest_of_each_layer(self, fraction, values):
        layers = {"a": torch.tensor(values).float(), "b": 1e-9 * torch.tensor(values).double()}
        for name, kept in Sparsify(fraction).apply(layers, None).items():
            survived = kept != 0
            count = int(survived.sum())
            assert count == max(1, len(values) - int(Decimal(repr(fraction)) * len(values)))
            assert torch.equal(kept[survived], layers[name][survived])
            if count < len(values):
                assert layers[name][survived].abs().min() > layers[name][~survived].abs().max()

    @given(percent=st.integers(0, 99), hundreds=st.integers(1, 5))
    def test_percentages_are_exact(self, percent, hundreds):
        assert Sparsify(percent / 100).kept(100 * hundreds) == (100 - percent) * hundreds

    def test_ties_change_no_count(self):
        kept = Sparsify(0.5).apply({"a": torch.ones(10), "b": -torch.ones(2, 2)}, None)
        assert [int((value != 0).sum()) for value in kept.values()] == [5, 2]

    def test_one_entry_survives_in_every_layer(self):
        kept = Sparsify(0.99).apply(gradient(), None)
        assert [int((value != 0).sum()) for value in kept.values()] == [2, 1, 1]
        assert [value.shape for value in kept.values()] == [(4, 3, 3, 3), (7,), ()]

    def test_empty_layer(self):
        assert Sparsify(0.5).apply({"a": torch.zeros(0, 3)}, None)["a"].shape == (0, 3)

    def test_the_update_that_came_in_is_left_alone(self):
        update = gradient()
        Sparsify(0.9).apply(update, None)
        assert all(torch.equal(value, gradient()[name]) for name, value in update.items())

    @pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
    def test_meaningless(self, fraction):
        with pytest.raises(ConfigError, match=r"expected a sparsify fraction in \[0, 1\), got .*;"):
            Sparsify(fraction)


class TestClip:
    def test_long_updates_get_the_norm_and_keep_their_direction(self):
        clipped = Clip(0.5).apply(gradient(), None)
        torch.testing.assert_close(norm(clipped), torch.tensor(0.5))
        factor = 0.5 / norm(gradient())
        for name, value in gradient().items():
            torch.testing.assert_close(clipped[name], value * factor)

    @pytest.mark.parametrize("scale", [0.0, 1e-3])
    def test_short_updates_stay(self, scale):
        short = {name: scale * value for name, value in gradient().items()}
        clipped = Clip(1.0).apply(short, None)
        assert all(torch.equal(clipped[name], value) for name, value in short.items())

    @pytest.mark.parametrize("limit", [0.0, -1.0, float("nan"), float("inf")])
    def test_meaningless(self, limit):
        with pytest.raises(ConfigError, match=r"expected a clip norm above 0, got .*; try clip:1"):
            Clip(limit)


@pytest.mark.parametrize("factor", [0.25, 3.0])
@pytest.mark.parametrize("defense", [Noise(0.1), Sparsify(0.5), Clip(0.5), Clip(1e9)])
def test_in_other_units_it_does_the_same(defense, factor):
    def source() -> torch.Generator:
        return torch.Generator().manual_seed(0)

    scaled = {name: factor * value for name, value in gradient().items()}
    found = defense.scaled(factor).apply(scaled, source())
    for name, value in defense.apply(gradient(), source()).items():
        torch.testing.assert_close(found[name], factor * value)


def test_a_gradient_of_zeros_has_a_derivative_behind_a_clip():
    zeros = torch.zeros(3, requires_grad=True)
    Clip(0.5).apply({"a": zeros}, None)["a"].sum().backward()
    assert zeros.grad is not None
    assert torch.equal(zeros.grad, torch.ones(3))


@pytest.mark.parametrize("defense", [Noise(0.1), Sparsify(0.5), Clip(0.5)])
def test_an_attacker_can_differentiate_it(defense):
    update = {"a": torch.tensor([3.0, -1.0, 0.5, 2.0], dtype=torch.float64, requires_grad=True)}

    def apply(value: torch.Tensor) -> torch.Tensor:
        return defense.apply({"a": value}, torch.Generator().manual_seed(0))["a"]

    assert torch.autograd.gradcheck(apply, update["a"])


@pytest.mark.parametrize(
    ("spec", "defenses"),
    [
        ("none", ()),
        ("noise:0.01", (Noise(0.01),)),
        ("sparsify:0.95", (Sparsify(0.95),)),
        ("clip:1+noise:0.01", (Clip(1.0), Noise(0.01))),
        ("noise:0.01+clip:1", (Noise(0.01), Clip(1.0))),
        ("clip:1e+3 + sparsify:.5", (Clip(1000.0), Sparsify(0.5))),
    ],
)
def test_parse(spec, defenses):
    assert parse_defense(spec) == defenses
    assert parse_defense(format_defenses(defenses)) == defenses


def test_format():
    assert format_defenses(()) == "none"
    assert format_defenses([Clip(1.0), Noise(1e-2), Sparsify(0.95)]) == (
        "clip:1+noise:0.01+sparsify:0.95"
    )


@given(
    st.lists(
        st.one_of(
            st.floats(0, 1e300).map(Noise),
            st.floats(0, 1, exclude_max=True).map(Sparsify),
            st.floats(1e-300, 1e300).map(Clip),
        )
    )
)
def test_format_and_parse_are_inverse(defenses):
    assert parse_defense(format_defenses(defenses)) == tuple(defenses)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nois:0.1", "got 'nois' in 'nois:0.1'; did you mean 'noise'?"),
        ("", "got '' in ''; choose one of none, noise, sparsify, clip"),
        ("clip:1+none", r"got 'none' in 'clip:1\+none'"),
        ("noise", "expected a number after 'noise:', got '' in 'noise'; write noise:0.5"),
        ("clip:1+noise:x", r"after 'noise:', got 'x' in 'clip:1\+noise:x'"),
        ("clip:1+", r"after 'clip:', got '1\+' in"),
        ("sparsify:95", r"expected a sparsify fraction in \[0, 1\), got 95.0"),
    ],
)
def test_parse_errors(spec, message):
    with pytest.raises(ConfigError, match=message):
        parse_defense(spec)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("none", "no defence"),
        ("sparsify:0.95", "only the largest 5 % of every tensor sent"),
        ("sparsify:0.999", "only the largest 0.1 % of every tensor sent"),
        ("clip:1.0+noise:0.01", "update clipped to norm 1, then Gaussian noise of σ 0.01"),
        ("clip:1e+3", "update clipped to norm 1000"),
        ("clip:1e+3 + mine_w:Round:0.1", "update clipped to norm 1000, then mine_w:Round:0.1"),
        ("shuffle:3", "shuffle:3"),
        ("noise:much", "noise:much"),
        ("clip:0", "clip:0"),
    ],
)
def test_defences_in_words(spec, said):
    assert defense_words(spec) == said
