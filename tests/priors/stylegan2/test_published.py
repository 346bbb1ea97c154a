"""Published checkpoints become priors, and nothing in a file is run."""

import argparse
import os
import pickle  # noqa: TID251 - files as other programs write them
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gradinv.cli import main
from gradinv.errors import PriorError, StorageError
from gradinv.files import read_json
from gradinv.priors import load_generator
from gradinv.priors.inert import look_into, network_tensors
from gradinv.priors.stylegan2.generator import StyleGAN2
from gradinv.priors.stylegan2.published import read_published

save = torch.save  # noqa: TID251 - files as other programs write them

SIZES: dict[str, Any] = {"image_size": 16, "base_channels": 4, "latent_dim": 6, "mapping_layers": 2}
FILTER = torch.tensor([1.0, 3.0, 3.0, 1.0])
FILTER = torch.outer(FILTER, FILTER) / 64


@pytest.fixture
def network():
    torch.manual_seed(0)
    made = StyleGAN2(**SIZES, output="clamp").eval().requires_grad_(False)
    for value in made.state_dict().values():
        value.add_(0.3 * torch.randn_like(value))
    return made


def nvidia(network) -> dict[str, torch.Tensor]:
    """The names of stylegan2-ada-pytorch, written out by hand."""
    own = network.state_dict()
    found = {
        "mapping.w_avg": own["mapping.average"],
        "synthesis.b4.const": own["synthesis.constant"],
        "synthesis.b4.resample_filter": FILTER,
    }
    for layer in range(2):
        for kind in ("weight", "bias"):
            found[f"mapping.fc{layer}.{kind}"] = own[f"mapping.layers.{layer}.{kind}"]
    blocks = [("first", "b4.conv1"), ("first_colors", "b4.torgb")]
    for block, size in enumerate((8, 16)):
        blocks += [
            (f"up.{block}", f"b{size}.conv0"),
            (f"same.{block}", f"b{size}.conv1"),
            (f"colors.{block}", f"b{size}.torgb"),
        ]
        found[f"synthesis.b{size}.conv0.resample_filter"] = FILTER
    for ours, theirs in blocks:
        for kind in ("weight", "bias"):
            at = f"synthesis.{theirs}.affine.{kind}"
            found[at] = own[f"synthesis.{ours}.conv.affine.{kind}"]
        found[f"synthesis.{theirs}.weight"] = own[f"synthesis.{ours}.conv.weight"]
        found[f"synthesis.{theirs}.bias"] = own[f"synthesis.{ours}.bias"]
        if not theirs.endswith("torgb"):
            found[f"synthesis.{theirs}.noise_strength"] = own[f"synthesis.{ours}.strength"]
            found[f"synthesis.{theirs}.noise_const"] = own[f"synthesis.{ours}.noise"]
    return found


def rosinality(network) -> dict[str, torch.Tensor]:
    """The names of rosinality's stylegan2-pytorch, written out by hand, with its extra ones."""
    own = network.state_dict()
    found = {"input.input": own["synthesis.constant"][None]}
    for layer in range(2):
        for kind in ("weight", "bias"):
            found[f"style.{layer + 1}.{kind}"] = own[f"mapping.layers.{layer}.{kind}"]
    convolutions = ["first", "up.0", "same.0", "up.1", "same.1"]
    for number, ours in enumerate(convolutions):
        theirs = f"convs.{number - 1}" if number else "conv1"
        found |= {
            f"{theirs}.conv.weight": own[f"synthesis.{ours}.conv.weight"][None],
            f"{theirs}.conv.modulation.weight": own[f"synthesis.{ours}.conv.affine.weight"],
            f"{theirs}.conv.modulation.bias": own[f"synthesis.{ours}.conv.affine.bias"],
            f"{theirs}.noise.weight": own[f"synthesis.{ours}.strength"][None],
            f"{theirs}.activate.bias": own[f"synthesis.{ours}.bias"],
            f"noises.noise_{number}": own[f"synthesis.{ours}.noise"][None, None],
        }
    found["convs.0.conv.blur.kernel"] = 4 * FILTER
    for number, ours in enumerate(["first_colors", "colors.0", "colors.1"]):
        theirs = f"to_rgbs.{number - 1}" if number else "to_rgb1"
        found |= {
            f"{theirs}.conv.weight": own[f"synthesis.{ours}.conv.weight"][None],
            f"{theirs}.conv.modulation.weight": own[f"synthesis.{ours}.conv.affine.weight"],
            f"{theirs}.conv.modulation.bias": own[f"synthesis.{ours}.conv.affine.bias"],
            f"{theirs}.bias": own[f"synthesis.{ours}.bias"][None, :, None, None],
        }
    found["to_rgbs.0.upsample.kernel"] = 4 * FILTER
    return found


def rebuilt(meta):
    """Stands for NVIDIA's function, which runs the source that the file brings along."""
    raise AssertionError("never called")


class Persistent(nn.Module):
    """Pickled as NVIDIA's networks are: a call with the state inside it."""

    def __reduce__(self):
        state = {"type": "class", "module_src": "touch", "state": self.__dict__.copy()}
        return rebuilt, (state,)


class Malicious:
    def __reduce__(self):
        return os.system, ("touch executed",)


def persistent(tensors) -> Persistent:
    """Returns modules that hold tensors under these names."""
    root = Persistent()
    for name, value in tensors.items():
        *path, last = name.split(".")
        place: nn.Module = root
        for part in path:
            if part not in dict(place.named_children()):
                place.add_module(part, Persistent())
            place = place.get_submodule(part)
        if last in {"weight", "bias", "const"}:
            place.register_parameter(last, nn.Parameter(value))
        else:
            place.register_buffer(last, value)
    return root


def write(network, form: str) -> Path:
    path = Path(f"{form}.file")
    if form == "pickle":
        other = persistent({"fc.weight": torch.zeros(2, 2)})
        content = {"G": other, "D": other, "G_ema": persistent(nvidia(network)), "options": None}
        path.write_bytes(pickle.dumps(content))
    elif form == "state":
        save(nvidia(network), path)
    else:
        content = {
            "g": {name: 2 * value for name, value in rosinality(network).items()},
            "d": {"weight": torch.zeros(2)},
            "g_ema": rosinality(network),
            "g_optim": {"state": {0: {"step": 1}}},
            "args": argparse.Namespace(size=16),
            "latent_avg": network.mapping.average,
        }
        save(content, path, _use_new_zipfile_serialization=form != "legacy")
    return path


@pytest.mark.parametrize("form", ["pickle", "state", "rosinality", "legacy"])
def test_a_checkpoint_gives_the_same_network(network, form):
    found = read_published(write(network, form))
    assert found.layout == ("NVIDIA" if form in {"pickle", "state"} else "rosinality")
    assert found.generator.config() == network.config()
    for name, value in network.state_dict().items():
        assert torch.equal(found.generator.state_dict()[name], value), name
    z = torch.randn(3, 6)
    assert torch.equal(found.generator(z), network(z))


def test_truncation_and_size_are_the_priors(network):
    found = read_published(write(network, "pickle"), truncation=0.5, shown_size=8).generator
    z = torch.randn(3, 6)
    w = network.mapping.average + 0.5 * (network.mapping(z) - network.mapping.average)
    whole = network.bounded(network.synthesis(w[:, None].expand(-1, network.layers, -1), "fixed"))
    assert found.image_shape == (3, 8, 8)
    expected = whole.unflatten(3, (8, 2)).unflatten(2, (8, 2)).mean(dim=(3, 5))
    assert torch.allclose(found(z), expected, atol=1e-6)
    for space in ("w", "w+", "w+n"):
        latents = found.latent_space(space)
        images = latents(latents.sample_latents(2, torch.Generator().manual_seed(0)))
        assert images.shape == (2, 3, 8, 8)


def test_the_command_writes_a_prior_and_what_was_taken_over(network, capsys):
    path = write(network, "pickle")
    assert main(["prior", "convert", str(path), "--out", "prior", "--image-size", "8"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "StyleGAN2 in NVIDIA's names: 16x16 pixels, averaged to 8x8",
        f"{len(network.state_dict())} tensors taken over, listed in prior/conversion.json",
        "prior, samples in prior/samples.png",
    ]
    taken = read_json(Path("prior/conversion.json"))["tensors"]
    assert {"name": "synthesis.up.1.conv.weight", "in_file": "synthesis.b16.conv0.weight",
            "shape": [4, 8, 3, 3]} in taken  # fmt: skip
    assert load_generator(Path("prior")).image_shape == (3, 8, 8)
    # It overwrites nothing.
    assert main(["prior", "convert", str(path), "--out", "prior"]) == 2


def test_nothing_of_a_pickle_is_run(network):
    evil = {"G_ema": persistent(nvidia(network)), "other": Malicious()}
    Path("evil.pkl").write_bytes(pickle.dumps(evil))
    assert read_published(Path("evil.pkl")).generator.image_size == 16
    for protocol in (0, 1, 2, 4):
        Path("evil.pkl").write_bytes(pickle.dumps(Malicious(), protocol=protocol))
        with pytest.raises(StorageError):
            read_published(Path("evil.pkl"))
    assert main(["prior", "convert", "evil.pkl", "--out", "prior"]) == 2
    assert not Path("executed").exists()
    assert not Path("prior").exists()


def test_bytes_of_a_storage_are_not_run_either():
    class Storage:
        def __reduce__(self):
            return torch.storage._load_from_bytes, (pickle.dumps(Malicious()),)

    Path("evil.pkl").write_bytes(pickle.dumps({"G_ema": Storage()}))
    with pytest.raises(StorageError, match="expected a pickled network"):
        read_published(Path("evil.pkl"))
    assert not Path("executed").exists()


def test_a_record_says_what_it_stands_for():
    Path("p").write_bytes(pickle.dumps({"layers": nn.ModuleList([nn.Linear(2, 3)])}))
    record = look_into(Path("p"))["layers"]
    assert record.kind == "torch.nn.modules.container.ModuleList"
    assert [name for name, _ in network_tensors(record)] == ["0.weight", "0.bias"]
    Path("p").write_bytes(pickle.dumps(argparse.Namespace(a=[1, {2}])))
    assert look_into(Path("p")).state == {"a": [1, {2}]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"synthesis.b8.conv1.weight": None}, "synthesis.b8.conv1.weight is missing"),
        ({"synthesis.b8.skip.weight": (2, 2)}, "synthesis.b8.skip.weight is unexpected"),
        ({"synthesis.b16.torgb.weight": (5, 4, 1, 1)}, r"shape \(5, 4, 1, 1\) instead of \(3, 4"),
        ({"mapping.fc0.weight": (6, 12)}, r"2 mapping layers, the first of shape \(6, 12\)"),
        ({"mapping.embed.weight": (6, 3)}, "mapping.embed.weight is unexpected"),
        ({"synthesis.b4.const": None}, "expected the names of a StyleGAN2 generator"),
        ({"synthesis.b4.resample_filter": (4, 4)}, "resample_filter is another filter"),
        ({"synthesis.b8.conv1.bias": None}, "got one with 0 blocks and 2 mapping layers"),
    ],
)
def test_another_architecture_lists_what_does_not_fit(network, change, message, capsys):
    tensors = nvidia(network)
    for name, shape in change.items():
        if shape is None:
            del tensors[name]
        else:
            tensors[name] = torch.rand(shape)
    save(tensors, "other.pt")
    with pytest.raises(PriorError, match=message):
        read_published(Path("other.pt"))
    assert main(["prior", "convert", "other.pt", "--out", "prior"]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not Path("prior").exists()


def test_weights_that_are_not_finite(network):
    tensors = nvidia(network)
    tensors["mapping.w_avg"] = tensors["mapping.w_avg"] * float("nan")
    save(tensors, "nan.pt")
    with pytest.raises(PriorError, match=r"mapping\.w_avg holds NaN or infinity"):
        read_published(Path("nan.pt"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "got nothing there"),
        (b"\x80\x04 and so on", "expected a pickled network"),
        (b"PK\x03\x04 and so on", "truncated or foreign file"),
        (b"text", "truncated or foreign file"),
    ],
)
def test_what_is_no_checkpoint(content, message):
    if content is not None:
        Path("w").write_bytes(content)
    with pytest.raises(StorageError, match=message):
        read_published(Path("w"))


@pytest.mark.parametrize("size", [0, 17, -1])
def test_images_are_never_enlarged(network, size):
    with pytest.raises(PriorError, match=f"at most their own 16 pixels, got {size}"):
        read_published(write(network, "state"), shown_size=size)
