"""Weights of other programs are read, and nothing that a file says is run."""

import argparse
import os
import pickle  # noqa: TID251 - files as attackers write them
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from gradinv.cli import main
from gradinv.errors import StorageError
from gradinv.priors.checkpoints import read_weights
from tests.outside import Painter

save = torch.save  # noqa: TID251 - files as other programs write them


class Malicious:
    def __reduce__(self):
        return os.system, ("touch executed",)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_state_dict_is_read(legacy):
    state = nn.Linear(2, 3).state_dict()
    save(state, "w.pt", _use_new_zipfile_serialization=not legacy)
    found = read_weights(Path("w.pt"))
    assert list(found) == ["weight", "bias"]
    assert torch.equal(found["weight"], state["weight"])


def test_safetensors_are_read():
    state = {"weight": torch.rand(2)}
    save_file(state, "w.safetensors")
    assert torch.equal(read_weights(Path("w.safetensors"))["weight"], state["weight"])


def test_one_of_several_sets_is_named():
    content = {
        "g": {"a": torch.zeros(1)},
        "g_ema": {"a": torch.ones(1)},
        "inside": {"ema": {"a": torch.full((1,), 2.0)}},
        "args": argparse.Namespace(size=32),
        "step": 3,
    }
    save(content, "w.pt")
    with pytest.raises(
        StorageError,
        match=r"one set of weights at w.pt, got g \(1\), g_ema \(1\), inside.ema \(1\)",
    ):
        read_weights(Path("w.pt"))
    assert read_weights(Path("w.pt"), "g_ema")["a"] == 1
    assert read_weights(Path("w.pt"), "inside.ema")["a"] == 2
    with pytest.raises(StorageError, match=r"weights in 'ema' at w.pt, got g \(1\).*--part"):
        read_weights(Path("w.pt"), "ema")


@pytest.mark.parametrize("legacy", [False, True])
def test_a_malicious_pickle_is_refused_unexecuted(legacy, capsys):
    save({"weight": torch.zeros(1), "other": Malicious()}, "evil.pt",
         _use_new_zipfile_serialization=not legacy)  # fmt: skip
    with pytest.raises(StorageError, match=r"asks for more than tensors .*nothing of it was run"):
        read_weights(Path("evil.pt"))
    command = "prior wrap tests.outside:Painter --latent 5 --weights evil.pt --out prior"
    assert main(command.split()) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not Path("executed").exists()
    assert not Path("prior").exists()


def test_a_plain_pickle_is_refused_unexecuted():
    Path("evil.pkl").write_bytes(pickle.dumps(Malicious(), protocol=2))
    with pytest.raises(StorageError):
        read_weights(Path("evil.pkl"))
    Path("evil4.pkl").write_bytes(pickle.dumps(Malicious(), protocol=4))
    with pytest.raises(StorageError, match="got a pickle; gradinv never unpickles"):
        read_weights(Path("evil4.pkl"))
    assert not Path("executed").exists()


def test_a_whole_network_is_refused():
    save(Painter(), "network.pt")
    with pytest.raises(StorageError, match=r"asks for more than tensors .*Painter"):
        read_weights(Path("network.pt"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "got nothing there"),
        (b"PK\x03\x04 and so on", "truncated or foreign file"),
        (b"\x80\x02", "truncated or foreign file|more than tensors"),
        (b"text", "truncated or foreign file"),
    ],
)
def test_what_is_no_weights(content, message):
    if content is not None:
        Path("w.pt").write_bytes(content)
    with pytest.raises(StorageError, match=message):
        read_weights(Path("w.pt"))


def test_a_file_without_tensors():
    save({"step": 3}, "w.pt")
    with pytest.raises(StorageError, match="got no tensors; save the generator's state_dict"):
        read_weights(Path("w.pt"))
