"""Weights on disk and the fingerprint."""

import io
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from gradinv.errors import ModelError, StorageError
from gradinv.files import save_tensors
from gradinv.models.convnet import ConvNet
from gradinv.models.resnet import ResNet18
from gradinv.models.weights import fingerprint, load_weights, save_weights


def make(seed: int = 0, widths: tuple[int, ...] = (3, 4), classes: int = 5) -> ConvNet:
    torch.manual_seed(seed)
    model = ConvNet(classes, 1, 8, widths=widths).train()
    model(torch.rand(4, 1, 8, 8))  # running statistics of its own
    return model.eval()


def test_round_trip_bit_for_bit(tmp_path):
    saved, loaded = make(0), make(1)
    save_weights(saved, tmp_path / "weights.safetensors")
    load_weights(loaded, tmp_path / "weights.safetensors")
    for name, value in saved.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert fingerprint(loaded) == fingerprint(saved)


def test_a_state_dict_that_another_program_saved(tmp_path):
    saved, loaded = make(0), make(1)
    content = {name: value.clone() for name, value in saved.state_dict().items()}
    save_file(content, tmp_path / "net.safetensors")
    load_weights(loaded, tmp_path / "net.safetensors")
    assert fingerprint(loaded) == fingerprint(saved)


@pytest.mark.parametrize("stored", [None, torch.zeros(0), torch.tensor([7])])
def test_a_batch_norm_counter_is_no_reason_to_refuse(tmp_path, stored):
    state = {name: value.clone() for name, value in make(0).state_dict().items()}
    name = "blocks.block1.bn.num_batches_tracked"
    del state[name]
    if stored is not None:
        state[name] = stored
    save_file(state, tmp_path / "net.safetensors")
    loaded = make(1)
    kept = 7 if stored is not None and len(stored) else loaded.get_buffer(name).item()
    load_weights(loaded, tmp_path / "net.safetensors")
    assert loaded.get_buffer(name).item() == kept
    assert loaded.get_buffer(name).shape == ()
    assert torch.equal(loaded.get_parameter("head.weight"), state["head.weight"])


@pytest.mark.parametrize("prefix", ["module.", "_module.", "_orig_mod.", "_orig_mod.module."])
def test_what_wrappers_put_before_the_names_is_taken_off(tmp_path, prefix):
    saved, loaded = make(0), make(1)
    content = {prefix + name: value.clone() for name, value in saved.state_dict().items()}
    save_file(content, tmp_path / "net.safetensors")
    (note,) = load_weights(loaded, tmp_path / "net.safetensors")
    assert note.startswith("took ")
    assert note.endswith(" off the names")
    assert all(word in note for word in prefix.replace(".", ". ").split())
    assert fingerprint(loaded) == fingerprint(saved)
    save_weights(saved, tmp_path / "own.safetensors")
    assert load_weights(loaded, tmp_path / "own.safetensors") == []


def test_a_name_that_only_looks_like_a_wrappers_stays(tmp_path):
    """One of two names of a tied weight, which named_parameters leaves out."""

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(3, 3)
            self.module = nn.Sequential(nn.Linear(3, 3))
            self.module[0].weight = self.first.weight

    state = {name: value.clone() for name, value in Tied().state_dict().items()}
    assert "module.0.weight" in state
    save_file(state, tmp_path / "w.safetensors")
    assert load_weights(Tied(), tmp_path / "w.safetensors") == []


def test_two_names_that_differ_by_a_prefix_alone_are_refused(tmp_path):
    state = {name: value.clone() for name, value in make().state_dict().items()}
    state["module.head.bias"] = state["head.bias"].clone()
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=r"expected one tensor for head.bias, got two that dif"):
        load_weights(make(), tmp_path / "w.safetensors")


def test_every_problem_is_listed_and_the_model_is_left_alone(tmp_path):
    state = make().state_dict()
    state["extra.weight"] = torch.zeros(1)
    del state["blocks.block1.bn.bias"]
    del state["normalize.std"]
    state["head.weight"] = torch.zeros(7, 64)
    state["head.bias"] = torch.full((5,), torch.nan)
    save_tensors(tmp_path / "w.safetensors", state, {"kind": "weights", "schema": 1})
    model = make(1)
    before = fingerprint(model)
    with pytest.raises(ModelError) as caught:
        load_weights(model, tmp_path / "w.safetensors")
    message = str(caught.value)
    for problem in (
        "extra.weight is unexpected",
        "blocks.block1.bn.bias is missing",
        "normalize.std is missing",
        "head.weight has shape (7, 64) instead of (5, 64)",
        "head.bias holds NaN or infinity",
        "build the model that the weights were saved from",
    ):
        assert problem in message
    assert fingerprint(model) == before


def test_weights_of_another_network_are_told_in_one_line(tmp_path):
    other = ResNet18(5, 1)
    model = make()
    save_weights(other, tmp_path / "w.safetensors")
    with pytest.raises(ModelError) as caught:
        load_weights(model, tmp_path / "w.safetensors")
    message = str(caught.value)
    assert len(message) < 900
    ours, theirs = set(model.state_dict()), set(other.state_dict())
    for problem, names in (("missing", ours - theirs), ("unexpected", theirs - ours)):
        assert message.count(f" is {problem}") == 3
        assert f" is {problem}; and {len(names) - 3} more like that" in message


def test_another_kind_of_file(tmp_path):
    save_tensors(tmp_path / "prior.safetensors", {"a": torch.zeros(1)}, {"kind": "prior"})
    with pytest.raises(ModelError, match=r"expected model weights at .*got 'prior' in its header"):
        load_weights(make(), tmp_path / "prior.safetensors")


def test_pickles_are_refused(tmp_path):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:  # what torch.save writes
        file.writestr("archive/data.pkl", b"\x80\x02.")
    (tmp_path / "w.pt").write_bytes(archive.getvalue())
    with pytest.raises(StorageError, match=r"expected model weights .*got a pickle"):
        load_weights(make(), tmp_path / "w.pt")


def test_fingerprint_sees_every_value_and_name():
    seen = {fingerprint(make())}
    for name in make().state_dict():
        model = make()
        model.state_dict()[name].view(-1)[0] += 1
        seen.add(fingerprint(model))
    assert len(seen) == 1 + len(make().state_dict())
    assert fingerprint(nn.Sequential(make())) not in seen
    assert all(len(text) == 16 and int(text, 16) >= 0 for text in seen)


def test_fingerprint_is_the_same_in_double_precision():
    assert fingerprint(make().double()) == fingerprint(make())
