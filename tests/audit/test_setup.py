import shutil
from pathlib import Path

import pytest
import torch

from gradinv.attacks import preset
from gradinv.audit import inputs
from gradinv.audit.cell import check_runnable
from gradinv.audit.inputs import check_prior_fits, load_inputs
from gradinv.audit.plan import DEFAULT_ATTACKS, cells_of
from gradinv.audit.setup import adjusted, prepare, require_prior
from gradinv.errors import (
    AttackError,
    ConfigError,
    DataError,
    GradinvError,
    ModelError,
    PriorError,
    StorageError,
)
from gradinv.evaluation.lpips import Lpips
from gradinv.models import build_model, save_weights
from gradinv.priors import load_generator
from gradinv.priors.flow.prior import FlowPrior
from gradinv.priors.generator import save_generator
from tests.audit.world import config

TINY = {"num_classes": 3, "channels": 1, "image_size": 32, "seed": 0}


@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        ({"attack": ("gi-y",)}, AttackError, "did you mean 'gi-"),
        ({"attack": ("gi-z",)}, AttackError, "expected a prior for gi-z, got none; pass --prior"),
        ({"attack": ("gi-x+bn",)}, AttackError, "pass --reveal-bn exact"),
        ({"defense": ("fog",)}, ConfigError, "expected a defence such as"),
        ({"data": "nowhere"}, DataError, "nothing at nowhere"),
        ({"image_size": 10}, ConfigError, "of at least 11 pixels, the window of SSIM, got 10"),
        ({"data": "one-class"}, DataError, "expected images of at least 2 classes, got only cat"),
        ({"batches": 10}, DataError, "expected at least 20 images for 10 batches of 2, got 18"),
        ({"model": "convnot"}, ModelError, "did you mean 'convnet'?"),
        ({"weights": "nowhere"}, StorageError, "expected model weights"),
        ({"model": "tiny_net:frozen"}, ModelError, "at least one parameter with requires_grad"),
        ({"model": "tiny_net:empty"}, ModelError, "at least one parameter with requires_grad"),
        ({"prior": "nowhere"}, PriorError, "expected a prior's folder"),
        ({"prior": "prior", "image_size": 16}, PriorError, "expected a prior of 16x16 pixels in 1"),
        ({"prior": "prior", "channels": 3}, PriorError, "got one of 32x32 pixels in 1 channel"),
        ({"lpips_weights": "nowhere"}, StorageError, "expected SqueezeNet 1.1 weights"),
        ({"model": "tiny_net:plain", "reveal_bn": "exact"}, ModelError, "batch-norm layers"),
        (
            {"attack": ("r-gap",), "model": "tiny_net:leaky"},
            AttackError,
            "of one image for r-gap, got 2; use --batch-size 1",
        ),
        (
            {"attack": ("r-gap",), "model": "convnet", "batch_size": 1},
            AttackError,
            "ReLU is not strictly monotone",
        ),
        ({"attack": ("r-gap+prior",), "batch_size": 1}, AttackError, "expected a prior for r-gap"),
        ({"model": "tiny_net:headless", "hide_labels": True}, AttackError, "in a linear layer"),
    ],
)
def test_what_is_wrong_is_said_before_any_attack(settings, kind, message):
    shutil.copytree("images/cat", "one-class/cat")
    with pytest.raises(GradinvError) as error:
        check_runnable(prepare(config(**settings)))
    assert isinstance(error.value, kind)
    assert message in str(error.value)


def test_a_broken_decoy_is_found_before_any_attack():
    check_runnable(setup := prepare(config(batches=1)))
    batch = setup.client.batches[0]
    files = sorted(Path("images").rglob("*.png"))
    for index, file in enumerate(files):
        if index not in batch.ids:
            file.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"expected images .* got 16 that cannot: .*5\.png \("):
        prepare(config(batches=1))
    # A worker does not look again; the judge's images are decoded nevertheless.
    broken = prepare(config(batches=1), load_inputs(config(batches=1), look=False))
    with pytest.raises(DataError, match=r"expected images that can be decoded in images, got"):
        check_runnable(broken)


def test_a_broken_file_that_is_not_drawn_is_found_too():
    Path("images/eel/zzz.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"expected an image at .*zzz\.png, got 'an empty file'"):
        prepare(config())


def test_the_classes_of_the_network_are_told():
    named = prepare(config(classes="zoo,eel,dog,cat"))
    assert named.client.images.classes == ("zoo", "eel", "dog", "cat")
    assert any(
        "tells 4 classes apart" in note and "by their names" in note for note in named.notes()
    )
    numbered = prepare(config(classes="7"))
    assert any("images of 3 of them: the first ones" in note for note in numbered.notes())
    assert not any("classes apart" in note for note in prepare(config()).notes())


def test_decoys_are_others_and_always_the_same():
    setup = prepare(config())
    batch = setup.client.batches[1]
    decoys = setup.judge.decoys(batch, 1)
    torch.testing.assert_close(decoys, setup.judge.decoys(batch, 1), equal_nan=True)
    # Each batch has its own, or what is luck in one would be luck in all.
    assert not torch.equal(decoys.nan_to_num(), setup.judge.decoys(batch, 0).nan_to_num())
    for original in batch.images:
        assert not (decoys == original).flatten(2).all(dim=2).any()


def test_steps_and_restarts_reach_the_attack():
    attack = adjusted(preset("gi-x"), config(steps_scale=0.5, restarts=7))
    assert attack.restarts == 7
    assert attack.total_steps == adjusted(preset("gi-x"), config(steps_scale=1.0)).total_steps / 2
    assert adjusted(preset("gi-x"), config()).restarts == 1


def test_the_network_is_in_the_protocols_mode_with_the_given_weights():
    model = build_model("tiny_net:make", **(TINY | {"seed": 9}))
    save_weights(model, Path("w.safetensors"))
    setup = prepare(config(weights="w.safetensors", mode="train"))
    assert all(module.training for module in setup.model.modules())
    assert setup.protocol.mode == "train"
    assert torch.equal(setup.model.state_dict()["0.weight"], model.state_dict()["0.weight"])
    assert not any(module.training for module in prepare(config()).model.modules())
    assert setup.model_info()["weights"] == "w.safetensors"


def test_every_attack_is_told_what_it_lacks():
    attack = adjusted(preset("gi-z"), config())
    with pytest.raises(AttackError, match="or choose an attack without one"):
        require_prior("gi-z", attack, None)
    generator = load_generator(Path("prior"))
    require_prior("gi-z", attack, generator)
    check_prior_fits(generator, (1, 32, 32))
    with pytest.raises(PriorError, match="--image-size 64 --channels 3"):
        check_prior_fits(generator, (3, 64, 64))


def test_lpips_that_cannot_see_so_small_images_is_refused_at_once(monkeypatch):
    class Blind(Lpips):
        def __init__(self, path):
            pass

        def __call__(self, preds, target):
            raise DataError("expected images of at least 17x17 pixels for LPIPS, got 8x8")

    monkeypatch.setattr(inputs, "lpips_for", lambda *_: Blind("w.npz"))
    with pytest.raises(DataError, match="for LPIPS"):
        prepare(config(lpips_weights="w.npz"))


def test_the_identity_follows_whatever_decides_the_results():
    first = prepare(config()).identity()
    assert prepare(config()).identity() == first
    assert first["settings"]["device"] == "cpu"
    seeded = prepare(config(seed=1)).identity()
    assert seeded["inputs"]["model"] != first["inputs"]["model"]
    assert seeded["inputs"]["images"] != first["inputs"]["images"]
    with_prior = prepare(config(prior="prior")).identity()
    assert first["inputs"]["prior"] is None
    assert len(with_prior["inputs"]["prior"]) == 16
    more_steps = prepare(config(steps_scale=0.5)).identity()
    assert more_steps["inputs"]["attacks"] != first["inputs"]["attacks"]


def test_the_notes_say_what_a_reader_must_know():
    notes = " ".join(prepare(config(batches=1, seconds=2.0, reveal_bn="running")).notes())
    assert "This audits data that its user holds." in notes
    assert "LPIPS" not in notes
    small = prepare(config(image_size=16, prior=None)).notes()
    assert "LPIPS is absent: its network needs images of at least 17 pixels a side." in small
    assert "the running batch-norm statistics" in notes
    assert "they need at least 2 batches" in notes
    assert "limited to 2 s each" in notes
    assert "interval" not in " ".join(prepare(config()).notes())
    assert "batch norm in eval mode" in notes
    assert "the network has no batch norm" in " ".join(
        prepare(config(model="tiny_net:plain")).notes()
    )


def test_with_a_prior_that_denoises_nobody_searches_its_latents_unasked():
    save_generator(FlowPrior(image_size=12, channels=1, base_channels=8), Path("flow"), {})
    usual = prepare(config(attack=(), prior="flow", image_size=12))
    assert list(usual.server.attacks) == list(usual.config.attack) == ["gi-x", "standard"]
    assert any(note.startswith("gi-z/w was left out: the prior") for note in usual.notes())
    assert {cell.attack for cell in cells_of(usual.config)} == {"gi-x", "standard", "candidates"}
    asked = prepare(config(attack=("gi-x", "gi-z"), prior="flow", image_size=12))
    assert list(asked.server.attacks) == ["gi-x", "gi-z"]
    other = prepare(config(attack=(), prior="prior"))
    assert list(other.server.attacks) == list(DEFAULT_ATTACKS)
    assert not any("was left out: the prior" in note for note in other.notes())
