import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

import gradinv
from gradinv.api.updates import Found
from gradinv.attacks import preset
from gradinv.audit.inputs import images_and_network
from gradinv.audit.inversion import digest_of
from gradinv.audit.plan import derive_seed
from gradinv.audit.runner import AuditStopped
from gradinv.cli import main
from gradinv.errors import AttackError, ConfigError, DataError, ObservationError
from gradinv.federated import Clip, FedAvg, Noise, Observation, Reveal
from gradinv.files import load_tensors
from tests.audit.world import build, config

BATCH = (
    torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0)),
    torch.tensor([0, 2]),
)


def network(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(256, 3)).eval()


@pytest.fixture
def world(tmp_path, monkeypatch):
    build(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("world")
def test_update_and_attack_are_those_of_the_commands_to_the_bit(capsys):
    settings = config(batches=1)
    images, model = images_and_network(settings, settings.data)
    (batch,) = images.batches(batch_size=2, count=1, seed=0)
    update = gradinv.observe(model, batch, defense="clip:1+noise:0.001")
    command = "observe --data images --channels 1 --model tiny_net:make --batch-size 2"
    command += " --defense clip:1+noise:0.001 --device cpu --out u.safetensors"
    assert main(command.split()) == 0
    saved = Observation.load(Path("u.safetensors"))
    assert update.gradient.keys() == saved.gradient.keys()
    for name, value in update.gradient.items():
        assert torch.equal(value, saved.gradient[name])
    assert digest_of(update) == digest_of(saved)
    for attack in ("gi-x", "gi-z/w"):
        found = gradinv.invert(
            update, model, attack=attack, prior="prior", steps_scale=0.01, seed=5, progress=False
        )
        words = f"invert u.safetensors --attack {attack} --prior prior --steps-scale 0.01 --seed 5"
        folder = attack.replace("/", "")
        assert main([*words.split(), "--device", "cpu", "--out", folder]) == 0
        theirs, _ = load_tensors(Path(folder, "reconstruction.safetensors"), what="pictures")
        assert torch.equal(found.images, theirs["images"])
        assert torch.equal(found.pictures["stage/0/cost"], theirs["stage/0/cost"])


def test_nothing_is_written_unless_asked():
    found = gradinv.invert(gradinv.observe(network(), BATCH), network(), attack="gi-x:steps=5")
    assert list(Path().iterdir()) == []
    assert found.images.shape == (2, 1, 16, 16)
    assert found.labels.tolist() == [0, 2]
    assert found.outcome == "all steps done"
    assert found.cost is not None
    assert found.save("here") == Path("here/reconstruction.png")
    with Image.open("here/reconstruction.png") as picture:
        assert picture.size == (256, 128)
    again = Found.load(Path("here"))
    assert torch.equal(again.images, found.images)
    assert again.content == json.loads(json.dumps(found.content))


def test_a_notebook_shows_the_pictures():
    found = gradinv.invert(gradinv.observe(network(), BATCH), network(), attack="gi-x:steps=1")
    assert found._repr_png_().startswith(b"\x89PNG")


def test_a_folder_keeps_what_was_found(monkeypatch):
    update = gradinv.observe(network(), BATCH)
    first = gradinv.invert(update, network(), attack="gi-x:steps=3", out="run", progress=False)
    monkeypatch.setattr("gradinv.audit.inversion.attack_cell", lambda *_, **__: 1 / 0)
    again = gradinv.invert(update, network(), attack="gi-x:steps=3", out="run", progress=False)
    assert torch.equal(first.images, again.images)
    other = gradinv.observe(network(), BATCH, defense="clip:1")
    with pytest.raises(ConfigError, match="other update"):
        gradinv.invert(other, network(), attack="gi-x:steps=3", out="run", progress=False)


def test_ctrl_c_leaves_a_checkpoint_and_the_same_call_continues(monkeypatch):
    update, model = gradinv.observe(network(), BATCH), network()
    whole = gradinv.invert(update, model, attack="gi-x:steps=8", progress=False)

    class Pressed:
        def __enter__(self):
            asked = iter(range(100))
            return lambda: next(asked) == 3

        def __exit__(self, *exception):
            return None

    with monkeypatch.context() as patch:
        patch.setattr("gradinv.audit.inversion.interruption", lambda _heard: Pressed())
        with pytest.raises(AuditStopped, match="run holds what is needed to continue"):
            gradinv.invert(update, model, attack="gi-x:steps=8", out="run", progress=False)
        with pytest.raises(AuditStopped, match="nothing was kept; give out="):
            gradinv.invert(update, model, attack="gi-x:steps=8", progress=False)
    assert Path("run/checkpoint.safetensors").is_file()
    found = gradinv.invert(update, model, attack="gi-x:steps=8", out="run", progress=False)
    assert torch.equal(found.images, whole.images)
    assert not Path("run/checkpoint.safetensors").exists()


def test_the_mode_is_the_models():
    model = nn.Sequential(nn.Conv2d(1, 3, 8, 8), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    update = gradinv.observe(model.train(), BATCH, protocol=FedAvg(local_epochs=2))
    assert update.protocol == FedAvg(local_epochs=2, mode="train")
    assert gradinv.observe(model.eval(), BATCH).protocol.mode == "eval"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_defences_and_knowledge_are_values():
    chain = gradinv.observe(network(), BATCH, defense=(Clip(1.0), Noise(0.01)), seed=4)
    spec = gradinv.observe(network(), BATCH, defense="clip:1+noise:0.01", seed=4)
    assert digest_of(chain) == digest_of(spec)
    assert digest_of(chain) != digest_of(gradinv.observe(network(), BATCH, defense=Clip(1.0)))
    assert gradinv.observe(network(), BATCH, reveal=Reveal(labels=False)).labels is None


def test_noise_is_drawn_from_the_seed_of_an_audit():
    assert derive_seed(0, "defense", 0) != derive_seed(1, "defense", 0)
    one, other = (
        gradinv.observe(network(), BATCH, defense="noise:1", seed=seed) for seed in (0, 1)
    )
    assert digest_of(one) != digest_of(other)


def test_an_attack_as_a_value():
    update = gradinv.observe(network(), BATCH)
    found = gradinv.invert(update, network(), attack=preset("gi-x:steps=2"), progress=False)
    assert found.content["attack"] == "gi-x"


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"attack": "gi-z"}, AttackError, "expected a prior for gi-z, got none"),
        ({"restarts": 0}, ConfigError, "expected --restarts of at least 1, got 0"),
        ({"steps_scale": 0.0}, ConfigError, "expected --steps-scale above 0"),
        ({"attack": "gi-x+bn"}, AttackError, "expected known batch-norm statistics for gi-x"),
    ],
)
def test_what_does_not_fit_is_said_before_a_folder_is_made(settings, error, message):
    with pytest.raises(error, match=message):
        gradinv.invert(
            gradinv.observe(network(), BATCH),
            network(),
            out="run",
            **{"attack": "gi-x", **settings},
        )
    assert not Path("run").exists()


def test_other_weights():
    with pytest.raises(ObservationError, match="made with other weights"):
        gradinv.invert(gradinv.observe(network(), BATCH), network(1), attack="gi-x")


def test_pixels_outside_0_to_1():
    with pytest.raises(DataError, match=r"expected pixels in \[0, 1\]"):
        gradinv.observe(network(), (BATCH[0] * 255, BATCH[1]))
