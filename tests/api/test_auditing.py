import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import gradinv
from gradinv.api.auditing import AuditResult
from gradinv.attacks import preset
from gradinv.audit.inputs import images_and_network
from gradinv.audit.plan import AuditConfig
from gradinv.cli import main
from gradinv.errors import AttackError, ConfigError, DataError, ModelError
from gradinv.federated import Clip, FedAvg, Noise, Reveal
from tests.audit.world import build

IMAGES = torch.rand(12, 1, 16, 16, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(12) % 3


def network(seed=0, *, outputs=3):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(256, outputs)).eval()


def audited(model=None, **settings):
    tiny = {"batch_size": 2, "attack": "gi-x:steps=5", "progress": False}
    return gradinv.audit(model or network(), IMAGES, LABELS, **(tiny | settings))


def figures(value):
    """Returns what does not depend on the clock, nor on what things are called."""
    if isinstance(value, dict):
        return {k: figures(v) for k, v in value.items() if not k.startswith("seconds")}
    return [figures(item) for item in value] if isinstance(value, list) else value


@pytest.fixture
def world(tmp_path, monkeypatch):
    build(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.usefixtures("world")
def test_the_figures_are_those_of_the_command_to_the_bit(mode, capsys):
    attack, defense = ["gi-x", "gi-z/w"], ["sparsify:0.5", "clip:1+noise:0.001"]
    options = {"data": "images", "channels": 1, "model": "tiny_net:make", "image_size": 32}
    named = AuditConfig(**options, mode=mode, seed=3)
    images, model = images_and_network(named, named.data)
    result = gradinv.audit(
        model, images.images(range(len(images))), images.labels, classes=images.classes,
        batch_size=2, batches=2, attack=attack, defense=defense, prior="prior",
        protocol=FedAvg(local_epochs=2, lr=0.1), seed=3, steps_scale=0.01, progress=False,
    )  # fmt: skip
    command = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    command += [f"--attack={name}" for name in attack] + [f"--defense={spec}" for spec in defense]
    command += ["--protocol=fedavg", "--local-epochs=2", "--local-lr=0.1"]
    command += f"--mode={mode} --batch-size=2 --batches=2 --prior=prior --seed=3".split()
    assert main(["audit", *command, "--steps-scale=0.01", "--device=cpu", "--out=run"]) == 0
    written = json.loads(Path("run/audit.json").read_text())
    ours = json.loads(json.dumps(result.audit))
    for part in ("cells", "summary", "notes"):
        assert figures(ours[part]) == figures(written[part])
    assert ours["config"]["inputs"] == written["config"]["inputs"]
    assert ours["config"]["attacks"] == written["config"]["attacks"]


def test_nothing_is_written_unless_asked():
    result = audited()
    assert list(Path().iterdir()) == []
    report = result.save("runs/mine")
    assert report == Path("runs/mine/report.html")
    assert json.loads(Path("runs/mine/audit.json").read_text())["summary"] == result.rows


def test_a_folder_gets_the_same_run_and_is_continued(monkeypatch):
    kept = audited(out="run")
    assert kept.folder == Path("run")
    assert figures(kept.rows) == figures(audited().rows)
    assert Path("run/report.html").is_file()
    monkeypatch.setattr("gradinv.audit.runner.compute", lambda *_, **__: 1 / 0)
    assert audited(out="run").rows == kept.rows
    with pytest.raises(ConfigError, match="got --seed 1 instead of 0"):
        audited(out="run", seed=1)


def test_a_run_in_a_folder_is_copied_whole_and_over_nothing():
    result = audited(out="run")
    assert result.save("run") == Path("run/report.html")
    assert result.save("copy") == Path("copy/report.html")
    assert Path("copy/audit.json").read_bytes() == Path("run/audit.json").read_bytes()
    with pytest.raises(ConfigError, match=r"expected a new folder .* got copy, which is there"):
        result.save("copy")


def test_verdicts_come_one_for_each_defence_and_the_worst_first():
    attack = ["gi-x:steps=5", "r-gap"]
    result = audited(batch_size=1, attack=attack, defense=["noise:100", "none"])
    assert [verdict.defense for verdict in result.verdicts] == ["none", "noise:100"]
    worst = result.verdicts[0]
    assert worst.attack == "r-gap", "one linear layer gives its image away"
    assert worst.level == "SEVERE" or worst.identified == 1.0
    assert worst.sentence in str(result)
    assert str(worst) == f"none: {worst.sentence}"


def test_the_table_is_text_with_a_row_for_each_attack():
    table = audited(attack=["gi-x:steps=5", "gi-x:steps=6"], defense=["none", "clip:1"]).table()
    assert table.splitlines()[0].startswith("Attack")
    names = [line.split()[0] for line in table.splitlines() if line]
    rows = ["gi-x:steps=5", "gi-x:steps=6", "candidates", "(label", "clip:1"]
    assert [names.count(name) for name in rows] == [2, 2, 2, 2, 1]


def test_a_notebook_shows_the_report_in_a_frame():
    result = audited()
    page = result._repr_html_()
    assert page.startswith('<iframe srcdoc="')
    assert page.count("<") == 2, "everything inside is escaped"
    assert "data:image/png;base64" in page
    assert "gradinv" in result.report()


def test_the_model_is_not_changed():
    model = nn.Sequential(nn.Conv2d(1, 3, 8, 8), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 3))
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    audited(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_values_stand_for_specs():
    by_name = audited(defense=["clip:1+noise:0.001"])
    by_value = audited(defense=[(Clip(1.0), Noise(0.001))], attack=preset("gi-x:steps=5"))
    assert by_value.rows[0]["attack"] == "gi-x"
    assert {**by_name.rows[0], "attack": "gi-x"}["psnr_mean"] == by_value.rows[0]["psnr_mean"]
    assert audited(defense=Clip(1.0)).rows[0]["defense"] == "clip:1"


def test_the_threat_model_is_a_value():
    told = audited(reveal=Reveal(labels=False))
    assert any("labels were hidden" in note for note in told.audit["notes"])
    assert told.rows[0]["label_accuracy"] is not None


def test_progress_is_told_to_a_function():
    heard = []
    audited(progress=lambda fraction, text: heard.append((fraction, text)))
    assert [fraction for fraction, _ in heard] == sorted(fraction for fraction, _ in heard)
    assert heard[-1] == (1.0, "finished candidates · none · batch 1")


def test_no_bar_where_nobody_looks(capfd):
    audited(progress=None)
    assert capfd.readouterr() == ("", "")
    audited(progress=True)
    assert "finished gi-x:steps=5" in capfd.readouterr().err


def test_classes_without_images_are_classes():
    result = audited(network(outputs=10))
    assert result.audit["config"]["images"]["classes"] == 10


def test_images_need_not_be_square():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16 * 12, 3)).eval()
    result = gradinv.audit(
        model, IMAGES[..., :12], LABELS, batch_size=1, attack="gi-x:steps=2", progress=False
    )
    assert result.pictures[result.audit["cells"][0]["files"]].original.shape == (1, 1, 16, 12)
    assert "16\N{NO-BREAK SPACE}×\N{NO-BREAK SPACE}12" in result.report()


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"attack": "gi-y"}, AttackError, "expected the name of an attack or .*, got 'gi-y'"),
        ({"attack": []}, ConfigError, "expected at least one attack, got none"),
        ({"defense": []}, ConfigError, "expected at least one defence, got none"),
        ({"defense": ["clip:1", Clip(1.0)]}, ConfigError, "each defence once, got clip:1 more"),
        ({"attack": [preset("gi-x"), "gi-x"]}, ConfigError, "different names, got gi-x twice"),
        ({"batch_size": 0}, ConfigError, "expected --batch-size of at least 1, got 0"),
        ({"attack": "gi-z"}, AttackError, "expected a prior for gi-z, got none"),
        ({"workers": 2}, ConfigError, "expected out= with workers=2, got none"),
        ({"classes": ["a", "b"]}, DataError, "expected labels below 2"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_runs(settings, error, message):
    with pytest.raises(error, match=message):
        audited(**settings)
    assert list(Path().iterdir()) == []


def test_images_that_are_no_pictures():
    model = nn.Sequential(nn.Flatten(), nn.Linear(512, 3)).eval()
    with pytest.raises(DataError, match=r"of 1 channel .* or 3 .*, got 2"):
        gradinv.audit(model, IMAGES.expand(12, 2, 16, 16), LABELS)


def test_a_label_that_the_network_does_not_know():
    with pytest.raises(ModelError, match="expected labels below 2"):
        audited(network(outputs=2))


class Unknown(nn.Sequential):
    """A network that no other process can be handed."""

    def __reduce__(self):
        raise TypeError("not to be copied")


def test_what_other_processes_cannot_import_is_said():
    model = Unknown(*network())
    with pytest.raises(ConfigError, match="worker processes can import, got TypeError: not to be"):
        audited(model.eval(), workers=2, out="run")


@pytest.mark.slow
def test_processes_find_the_same():
    alone = audited(out="alone")
    assert figures(audited(out="many", workers=2).rows) == figures(alone.rows)


def test_the_result_is_what_the_annotation_says():
    assert isinstance(audited(), AuditResult)
    assert isinstance(audited(attack=replace(preset("gi-x:steps=2"), name="mine")), AuditResult)


def test_whole_numbers_are_numbers():
    assert audited(steps_scale=1, seconds=60).audit["config"]["seconds"] == 60.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"restarts": 10**12},
            "an attack with gi-x that fits .* lower --restarts, --batch",
        ),
        (
            {"protocol": FedAvg(local_epochs=10**12)},
            "an attack with gi-x that fits .* lower --local-epochs, --restarts",
        ),
        ({"steps_scale": 1e9}, "expected a factor on the steps above 0 and at most 1e"),
    ],
)
def test_absurd_sizes_are_refused_with_an_estimate(settings, message):
    started = time.monotonic()
    with pytest.raises(ConfigError, match=message):
        audited(**settings)
    assert time.monotonic() - started < 2


def test_more_candidates_than_there_are_images_are_no_more_than_these():
    audit = audited(candidates=10**9, attack="gi-x:steps=1", batches=1).audit
    # Of four images of a label one is the client's, and one another client's, for the control.
    assert {image["candidates"] for image in audit["candidates"][0]["images"]} == {3}
