import copy
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from gradinv.errors import ConfigError, ObservationError, StorageError
from gradinv.federated import (
    FedAvg,
    Observation,
    check_fits,
    from_delta,
    from_state_dicts,
    loss_gradient,
    observe,
    read_tensors,
)
from gradinv.federated.importing import NOTES
from tests.attacks.tiny import tiny_batch, tiny_victim

ABOUT = {"image_shape": (1, 8, 8), "num_classes": 4, "batch_size": 2}


@pytest.fixture
def model():
    return tiny_victim()


@pytest.fixture
def gradient(model):
    batch = tiny_batch()
    return loss_gradient(model, batch.images, batch.labels)


def trained(model, lr=0.1):
    """Returns the network after one step of plain SGD."""
    after = copy.deepcopy(model)
    batch = tiny_batch()
    stepper = torch.optim.SGD(after.parameters(), lr=lr)
    functional.cross_entropy(after(batch.images), batch.labels).backward()
    stepper.step()
    return after


def close(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-4, atol=1e-5)


def test_a_gradient_and_a_difference_of_weights_are_the_update_that_observe_makes(model, gradient):
    made = observe(model, tiny_batch())
    found = from_delta(gradient, model, lr=1.0, labels=tiny_batch().labels, **ABOUT)
    close(found.gradient, made.gradient)
    check_fits(found, model)
    assert found.model[NOTES] == ""
    after = trained(model)
    delta = {name: p - dict(after.named_parameters())[name] for name, p in model.named_parameters()}
    close(from_delta(delta, model, lr=0.1, **ABOUT).gradient, made.gradient)
    states = model.state_dict(), after.state_dict()
    protocol = FedAvg(1, None, lr=0.1)
    found = from_state_dicts(*states, model, lr=0.1, protocol=protocol, **ABOUT)
    close(found.gradient, made.gradient)
    assert found.protocol == protocol
    assert "left out 5 buffers, which are not trained: bn.num_batches_tracked" in found.model[NOTES]


def test_an_imported_update_survives_its_file(model, gradient, tmp_path):
    found = from_delta(gradient, model, lr=1.0, **ABOUT)
    found.save(tmp_path / "u.safetensors")
    close(Observation.load(tmp_path / "u.safetensors").gradient, found.gradient)


@pytest.mark.parametrize("prefix", ["module.", "_module.", "_orig_mod.", "_orig_mod.module."])
def test_what_wrappers_put_in_front_of_names_comes_off_with_a_note(model, gradient, prefix):
    wrapped = {prefix + name: value for name, value in gradient.items()}
    found = from_delta(wrapped, model, lr=1.0, **ABOUT)
    close(found.gradient, gradient)
    assert found.model[NOTES].startswith("took ")
    before, after = (
        {prefix + n: v for n, v in m.state_dict().items()} for m in (model, trained(model))
    )
    assert "off the names" in from_state_dicts(before, after, model, lr=0.1, **ABOUT).model[NOTES]


def test_a_name_of_the_network_that_begins_like_a_wrapper_stays():
    model = nn.ModuleDict({"module": nn.Linear(2, 2)})
    given = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    found = from_delta(given, model, lr=1.0, image_shape=(1, 1, 2), num_classes=2, batch_size=1)
    assert (list(found.gradient), found.model[NOTES]) == (["module.weight", "module.bias"], "")


def test_short_types_are_taken_in_float32_with_a_note(model, gradient):
    short = {name: value.bfloat16() for name, value in gradient.items()}
    found = from_delta(short, model, lr=1.0, **ABOUT)
    assert {value.dtype for value in found.gradient.values()} == {torch.float32}
    assert found.model[NOTES] == "computed in float32 with numbers of bfloat16"


def test_frozen_parameters_are_left_out_with_a_note(model, gradient):
    model.conv.requires_grad_(False)
    found = from_delta(gradient, model, lr=1.0, **ABOUT)
    assert "conv.weight" not in found.gradient
    assert "left out 1 frozen parameters: conv.weight" in found.model[NOTES]


def without(gradient, name):
    return {other: value for other, value in gradient.items() if other != name}


WRONG = {
    "missing": (lambda g: without(g, "head.bias"), "parameter head.bias is missing"),
    "unknown": (lambda g: g | {"x": torch.ones(1)}, "parameter x is unexpected"),
    "shape": (lambda g: g | {"head.bias": torch.ones(5)}, r"head.bias has shape \(5,\)"),
    "zero": (lambda g: {n: v * 0 for n, v in g.items()}, "not zero everywhere"),
    "nan": (lambda g: g | {"head.bias": g["head.bias"] / 0}, "finite numbers.* head.bias"),
    "integers": (lambda g: g | {"head.bias": g["head.bias"].long()}, "int64 in head.bias"),
    "twice": (lambda g: g | {"module.head.bias": g["head.bias"]}, "two that differ by a prefix"),
}


@pytest.mark.parametrize(("spoil", "said"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_one_error(model, gradient, spoil, said):
    with pytest.raises(ObservationError, match=said) as caught:
        from_delta(spoil(gradient), model, lr=1.0, **ABOUT)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("lr", [0.0, -1.0, float("inf"), float("nan")])
def test_a_learning_rate_without_meaning(model, gradient, lr):
    with pytest.raises(ConfigError, match="expected a learning rate above 0 and finite"):
        from_delta(gradient, model, lr=lr, **ABOUT)
    with pytest.raises(ConfigError, match="expected a learning rate above 0 and finite"):
        from_state_dicts(model.state_dict(), model.state_dict(), model, lr=lr, **ABOUT)


def test_two_states_must_be_of_this_network_and_begin_at_its_weights(model):
    before, after = model.state_dict(), trained(model).state_dict()
    with pytest.raises(ObservationError, match=r"head.bias is missing.*two states of one network"):
        from_state_dicts(before, without(after, "head.bias"), model, lr=0.1, **ABOUT)
    with pytest.raises(ObservationError, match=r"the network's own weights before.*--weights"):
        from_state_dicts(after, before, model, lr=0.1, **ABOUT)
    with pytest.raises(ObservationError, match="not zero everywhere"):
        from_state_dicts(before, before, model, lr=0.1, **ABOUT)


def test_plain_safetensors_and_npz_are_read_the_same(gradient, tmp_path):
    save_file({n: v.contiguous() for n, v in gradient.items()}, tmp_path / "g.safetensors")
    np.savez(tmp_path / "g.npz", **{n: v.numpy() for n, v in gradient.items()})
    for name in ("g.safetensors", "g.npz"):
        read = read_tensors(tmp_path / name)
        assert read.keys() == gradient.keys()
        assert all(torch.equal(read[n], v) for n, v in gradient.items())


def npz(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def absurd():
    """An array of 2^50 numbers, says its header."""
    header, file = io.BytesIO(), io.BytesIO()
    about = {"descr": "<f8", "fortran_order": False, "shape": (2**50,)}
    np.lib.format.write_array_header_1_0(header, about)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.npy", header.getvalue())
    return file.getvalue()


def npy():
    file = io.BytesIO()
    np.save(file, np.ones(2))
    return file.getvalue()


BROKEN = {
    "objects": (npz(a=np.array([{}], dtype=object)), "never unpickles"),
    "text": (npz(a=np.array(["x"])), "save arrays of numbers"),
    "one array": (npy(), "got a single array; save it with numpy.savez"),
    "cut": (npz(a=np.ones(100))[:200], "save it again"),
    "no archive": (b"hello there, this is text", "never unpickles"),
    "empty": (b"", "save it again"),
    "spoilt": (npz(a=np.ones(100)).replace(np.ones(2).tobytes(), b"\1" * 16), "save it again"),
    "absurd": (absurd(), "save it again"),
}


@pytest.mark.parametrize(("content", "said"), BROKEN.values(), ids=BROKEN)
def test_a_file_that_is_no_npz_of_numbers(content, said, tmp_path):
    path = tmp_path / "g.npz"
    path.write_bytes(content)
    with pytest.raises(StorageError, match=said) as caught:
        read_tensors(path)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_and_an_update_of_gradinvs_own(model, gradient, tmp_path):
    with pytest.raises(StorageError, match="got nothing there; check the path"):
        read_tensors(tmp_path / "none.npz")
    with pytest.raises(StorageError, match="got nothing there; check the path"):
        read_tensors(Path(tmp_path / "none.safetensors"))
    from_delta(gradient, model, lr=1.0, **ABOUT).save(tmp_path / "u.safetensors")
    with pytest.raises(StorageError, match=r"got gradinv's own .*; give it to gradinv as it is"):
        read_tensors(tmp_path / "u.safetensors")
