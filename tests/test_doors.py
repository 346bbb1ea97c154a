"""Every door: a value from outside the package is taken, by its name, and has an effect."""

import re
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch

import gradinv
from gradinv.attacks import preset
from gradinv.attacks.evidence.labels import LabelMethod, recover_labels
from gradinv.attacks.presets import PRESETS
from gradinv.audit.summary import signed_off
from gradinv.cli import main
from gradinv.data import ClientBatch
from gradinv.engine.distances import DISTANCES, distance_of
from gradinv.errors import AttackError, ConfigError, PriorError
from gradinv.evaluation.evaluate import METRICS, evaluate, metric_of
from gradinv.federated import Observation, Reveal, parse_defense
from gradinv.files import read_json, write_json
from gradinv.models import build_model
from gradinv.priors import load_generator, prior_named
from gradinv.priors.foreign import Adapted
from gradinv.priors.generator import save_generator
from tests.attacks.tiny import tiny_batch, tiny_victim
from tests.audit.world import build
from tests.outside import Darkness, Painter, Power, Rounded, mine, network, painted, worst


@pytest.fixture
def model():
    return tiny_victim()


def found(model, update, attack, **more) -> torch.Tensor:
    return gradinv.invert(update, model, attack=attack, progress=False, **more).images


def differ(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool((one - other).abs().max() > 1e-3)


def test_an_attack(model):
    update = gradinv.observe(model, tiny_batch())
    images = found(model, update, "tests.outside:mine")
    assert torch.equal(images, found(model, update, mine))
    assert differ(images, found(model, update, "tests.outside:mine:steps=9"))
    assert differ(images, found(model, update, "tests.outside:mine:tv=10:lr=0.3"))
    assert differ(images, found(model, update, "gi-x:steps=5"))


def test_a_distance(model):
    update = gradinv.observe(model, tiny_batch())
    by_name = found(model, update, "gi-x-unsigned:distance=tests.outside:Power:steps=5")
    by_value = replace(preset("gi-x-unsigned:steps=5"), distance=Power())
    assert torch.equal(by_name, found(model, update, by_value))
    assert differ(by_name, found(model, update, "gi-x-unsigned:steps=5"))
    assert preset("gi-x:distance=l2").distance == DISTANCES["l2"]


def test_a_regularizer(model):
    update = gradinv.observe(model, tiny_batch())
    plain, (stage,) = found(model, update, mine), mine.stages
    dark = replace(mine, stages=(replace(stage, regularizers=(Darkness(1e6),)),))
    assert found(model, update, dark).mean() < plain.mean() - 0.01


def test_a_defence(model):
    """In the update and in what the attack does about it."""
    plain = gradinv.observe(model, tiny_batch())
    update = gradinv.observe(model, tiny_batch(), defense="tests.outside:Rounded:0.05")
    assert update.defenses == (Rounded(0.05),)
    assert any(differ(update.gradient[name], plain.gradient[name]) for name in plain.gradient)
    unaware, longer = replace(update, defenses=()), mine.with_steps([40.0])
    assert differ(found(model, update, longer), found(model, unaware, longer))


def test_labels_are_not_called_exact_under_a_quantiser(model):
    one = tiny_batch(batch=1)
    for defense, exact in (
        ("none", True),
        ("clip:0.1", True),
        ("tests.outside:Rounded:0.05", False),
    ):
        update = gradinv.observe(model, one, defense=defense, reveal=Reveal(labels=False))
        read = recover_labels(update, model)
        assert read.method is LabelMethod.IDLG
        assert read.exact == exact


def test_a_prior(model):
    update = gradinv.observe(model, tiny_batch())
    by_name = found(model, update, "tests.outside:through_latents", prior="tests.outside:painted")
    by_value = found(model, update, "tests.outside:through_latents", prior=painted().eval())
    assert torch.equal(by_name, by_value)
    save_generator(painted(), Path("saved"), {})
    assert torch.equal(
        found(model, update, "tests.outside:through_latents", prior="saved"), by_name
    )
    other = found(
        model,
        update,
        "tests.outside:through_latents",
        prior=painted().eval().untrained(torch.Generator().manual_seed(3)),
    )
    assert differ(by_name, other)


def test_a_metric():
    batch = ClientBatch(torch.rand(2, 1, 16, 16), torch.tensor([0, 1]), (0, 1))
    given = batch.images.clone()
    given[1, 0, 3, 3] += 0.25
    metrics = {"tests.outside:worst": metric_of("tests.outside:worst"), "psnr": metric_of("psnr")}
    scores = evaluate(given, batch, metrics=metrics).images
    assert [score.others["tests.outside:worst"] for score in scores] == pytest.approx([0, 0.25])
    assert scores[1].others["psnr"] == pytest.approx(scores[1].psnr)
    assert scores[1].row()["others"] == scores[1].others
    assert "others" not in evaluate(given, batch).images[0].row()
    assert metric_of("tests.outside:worst") is worst


AUDIT = (
    "audit --data images --channels 1 --model tiny_net:make --batch-size 2 --batches 1 --attack "
    "gi-x --defense none --steps-scale 0.01 --workers 1 --device cpu"
)


def test_a_metric_at_the_command_line(capsys, monkeypatch):
    """In each image's row, in the mean of audit.json, on the screen and in the report."""
    monkeypatch.setenv("COLUMNS", "200")
    build(Path.cwd())
    name = "tests.outside:worst"
    assert main([*AUDIT.split(), "--out", "plain"]) == 0
    plain, said = read_json(Path("plain/audit.json")), capsys.readouterr().out
    assert "[" not in said.splitlines()[0]
    assert "others" not in plain["summary"][0]
    assert "metric" not in plain["config"]
    more = [*AUDIT.split(), "--metric", name, "--metric", "psnr", "--out", "run"]
    assert main(more) == 0
    found, said = read_json(Path("run/audit.json")), capsys.readouterr().out
    (cell,), (row, _) = found["cells"], found["summary"]
    values = [image["others"][name] for image in cell["images"]]
    assert all(0 < value <= 1 for value in values)
    means = row.pop("others")
    assert means[name] == pytest.approx(fmean(values))
    assert means["psnr"] == pytest.approx(row["psnr_mean"])
    assert {**row, "seconds": 0} == {**plain["summary"][0], "seconds": 0}
    heading, line, *_ = said.splitlines()
    words = (re.split(r"\s{2,}", text.strip()) for text in (heading, line))
    shown = dict(zip(*words, strict=True))
    assert shown[f"[{name}]"] == f"{means[name]:.3g}"
    page = Path("run/report.html").read_text()
    assert f"<td>{means[name]:.3g}</td>" in page
    assert all(f"<td>{value:.3g}</td>" in page for value in values)
    assert page.count('<span class="part">tests.outside:</span>') == 2
    # Another set of metrics is another audit.
    assert main([*AUDIT.split(), "--metric", name, "--out", "run"]) == 2
    assert "got --metric tests.outside:worst instead of" in capsys.readouterr().err


def test_a_metric_in_memory():
    model = network(num_classes=2, channels=1, image_size=16).eval()
    images = torch.rand(6, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(6) % 2

    def measured(metrics):
        return gradinv.audit(
            model, images, labels, batch_size=2, batches=1, attack="gi-x:steps=3",
            metrics=metrics, progress=False,
        )  # fmt: skip

    given = measured({"far": worst})
    row, _ = given.rows
    by_name, _ = measured(["tests.outside:worst"]).rows
    assert row["others"]["far"] == by_name["others"]["tests.outside:worst"] > 0
    assert measured("tests.outside:worst").rows[0]["others"] == by_name["others"]
    assert "[far]" in given.table()
    assert "others" not in measured(()).rows[0]


def test_a_metric_changes_no_other_figure_and_need_not_be_finite():
    batch = ClientBatch(torch.rand(2, 1, 16, 16), torch.tensor([0, 1]), (0, 1))

    def spoils(preds, target):
        preds.zero_()
        target.zero_()
        return torch.tensor([float("nan"), 2.0])

    found, plain = (
        evaluate(batch.images, batch, metrics=m).images for m in ({"mine": spoils}, None)
    )
    assert [score.others["mine"] for score in found] == [None, 2.0]
    assert [score.mse for score in found] == [score.mse for score in plain] == [0, 0]
    for scores, mean in ((found, 2.0), (found[:1], None)):
        images = [score.row() for score in scores]
        cell = {"attack": "a", "defense": "none", "seconds": 1.0, "images": images}
        rows, _ = signed_off([cell], [], defenses={"none": ()}, budgets={"a": 1.0})
        assert rows[0]["others"] == {"mine": mean}


def test_a_metric_that_fails_is_heard_before_the_first_attack(capsys):
    build(Path.cwd())
    assert main([*AUDIT.split(), "--metric", "tests.outside:network", "--out", "run"]) == 2
    assert "expected the metric tests.outside:network to take" in capsys.readouterr().err
    assert not Path("run").exists()
    assert main([*AUDIT.split(), "--metric", "psnr", "--metric", "psnr"]) == 2
    assert "expected each --metric once, got psnr more than once" in capsys.readouterr().err


def test_a_network():
    shape = {"num_classes": 3, "channels": 1, "image_size": 16, "seed": 0}
    model = build_model("tests.outside:network", **shape)
    batch = torch.rand(1, 1, 16, 16), torch.tensor([2])
    images = found(model, gradinv.observe(model, batch), "gi-x:steps=5")
    other = build_model("tests.outside:network", **{**shape, "seed": 1})
    assert differ(images, found(other, gradinv.observe(other, batch), "gi-x:steps=5"))


def test_all_doors_at_the_command_line(capsys):
    observe = (
        "observe --image-size 16 --model tests.outside:network --batch-size 1 --device cpu "
        "--defense tests.outside:Rounded:0.001 --out u.safetensors --save-weights w.safetensors"
    )
    assert main(observe.split()) == 0
    assert Observation.load(Path("u.safetensors")).defenses == parse_defense(
        "tests.outside:Rounded:0.001"
    )
    invert = (
        "invert u.safetensors --weights w.safetensors --device cpu --out found --prior "
        "tests.outside:painted_16 --attack tests.outside:through_latents:distance=l2:steps=3"
    )
    assert main(invert.split()) == 0, capsys.readouterr().err
    assert read_json(Path("found/invert.json"))["steps"] == 3


def test_an_adapted_generator_is_saved_and_loaded(generator):
    prior = painted().eval()
    save_generator(prior, Path("saved"), {"data": "none"})
    again = load_generator(Path("saved"))
    latents = prior.sample_latents(3, generator)
    assert torch.equal(again(latents), prior(latents))
    assert isinstance(again, Adapted)
    assert isinstance(again.module, Painter)
    assert (again.latent_shape, again.image_shape) == ((5,), (1, 8, 8))
    assert again.output_range == (-1.0, 1.0)
    assert again.config() == prior.config()


def test_an_adapted_generator_whose_class_is_not_found_is_not_saved(monkeypatch):
    class Local(Painter):
        pass

    local = Adapted(Local(), latent_shape=(5,), image_shape=(1, 8, 8))
    with pytest.raises(PriorError, match=r"expected a generator class as package.module:Class, g"):
        save_generator(local, Path("saved"), {})
    prior = painted()
    monkeypatch.setattr("tests.outside.Painter", Local)
    with pytest.raises(PriorError, match=r"under its own name, got another at .*:Painter; define"):
        save_generator(prior, Path("saved"), {})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"module": "os:abort"},
            "expected a subclass of torch.nn.Module named 'os:abort', got bui",
        ),
        ({"module": "subprocess:Popen"}, "expected a subclass of .* named 'subprocess:Popen', got"),
        ({"module": "tests.outside:Nobody"}, "expected generator class 'Nobody' in tests.outside"),
        ({"module": 3}, "expected a generator class as package.module:Class, got '3'"),
        ({"settings": {"sides": 8}}, "expected the settings of adapted in .*'sides'"),
        ({"settings": 3}, "expected the settings of adapted in"),
        ({"colour": [1]}, "expected the settings of adapted in .*'colour'"),
    ],
)
def test_nothing_but_a_module_is_made_of_a_folder(changes, message):
    save_generator(painted(), Path("saved"), {})
    config = read_json(Path("saved/config.json"))
    write_json(Path("saved/config.json"), {**config, **changes})
    with pytest.raises(PriorError, match=message):
        load_generator(Path("saved"))


@pytest.mark.parametrize(
    ("named", "spec", "error", "message"),
    [
        (
            preset,
            "tests.outside:worst",
            AttackError,
            "an Attack named 'tests.outside:worst', got f",
        ),
        (
            preset,
            "tests.outside:mines",
            AttackError,
            "attack 'mines' in tests.outside, got nothing",
        ),
        (preset, "gi-x:distance=l3", ConfigError, "expected distances among cosine, .*, got 'l3'"),
        (distance_of, "l2:4", ConfigError, "expected the distance l2 without settings, got '4'"),
        (
            distance_of,
            "math:pi",
            ConfigError,
            "expected a distance named 'math:pi', got float; def",
        ),
        (metric_of, "sim", ConfigError, "expected metrics among mse, .*, got 'sim'; did you mean"),
        (metric_of, "psnr:2", ConfigError, "expected a metric named 'psnr:2', got '2'; name a fu"),
        (metric_of, "math:pi", ConfigError, "expected a metric named 'math:pi', got 'float'; name"),
        (
            prior_named,
            "tests.outside:painted:8",
            PriorError,
            "tests.outside:painted without settin",
        ),
        (prior_named, "tests.outside:Painter", PriorError, "to be a Generator, got Painter; wrap"),
        (prior_named, "tests.outside:mine", PriorError, "to be a Generator, got Attack; wrap"),
        (prior_named, "folder", PriorError, "expected a prior's folder, 'embedded' or package"),
    ],
)
def test_what_is_no_such_value_is_refused(named, spec, error, message):
    with pytest.raises(error, match=message):
        named(spec)


def test_a_metric_gives_one_number_for_each_image():
    batch = ClientBatch(torch.rand(2, 1, 16, 16), torch.tensor([0, 1]), (0, 1))
    given: list[tuple[Any, str]] = [
        (lambda a, b: (a - b).mean(), "shape ()"),
        (lambda a, b: 3, "int"),
    ]
    for metric, got in given:
        with pytest.raises(ConfigError) as error:
            evaluate(batch.images, batch, metrics={"mine": metric})
        assert f"each of 2 images from the metric mine, got {got};" in str(error.value)


def test_own_names_come_first():
    assert set(METRICS) == {"mse", "psnr", "ssim", "lpips-paper"}
    assert preset("gi-x") is PRESETS["gi-x"]
