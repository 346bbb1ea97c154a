"""Published StyleGAN2 checkpoints in the package's own format.

Two layouts of the same network: that of NVIDIA (Karras et al. 2020, stylegan2-ada-pytorch) and that
of rosinality's port, to which the original TensorFlow weights are converted. Both are told apart by
their names of tensors.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gradinv.errors import PriorError, StorageError
from gradinv.priors.checkpoints import weight_sets
from gradinv.priors.inert import look_into, network_tensors
from gradinv.priors.stylegan2.generator import StyleGAN2

_TAPS = torch.tensor([1.0, 3.0, 3.0, 1.0])
_NAMED = 6
_EMA = ("G_ema", "g_ema", "ema")  # the average of the weights, where a file holds several networks


@dataclass(frozen=True, eq=False)
class Published:
    """A checkpoint that was read.

    Attributes:
        generator: with its weights, in eval mode.
        layout: whose names the file had.
        names: name here -> name in the file.
    """

    generator: StyleGAN2
    layout: str
    names: dict[str, str]


def read_published(
    path: Path, *, truncation: float = 1.0, shown_size: int | None = None
) -> Published:
    """Reads a checkpoint; nothing of a pickle is run.

    Args:
        path: a pickle of NVIDIA's, a ``.pt`` of rosinality's, or a state in either's names that
            PyTorch or safetensors saved.
        truncation: of the prior to be.
        shown_size: side in pixels to average images to; their own by default.

    Raises:
        StorageError: the file is missing or broken, or holds no weights.
        PriorError: it is no unconditional StyleGAN2 with output skips; what does not fit is listed.
    """
    tensors = _tensors(Path(path))
    layout = next((known for known in _LAYOUTS if known.mark in tensors), None)
    if layout is None:
        listed = ", ".join(list(tensors)[:_NAMED])
        raise PriorError(
            f"expected the names of a StyleGAN2 generator in {path} "
            f"({' or '.join(known.mark for known in _LAYOUTS)}), got {listed} and "
            f"{max(0, len(tensors) - _NAMED)} others; use 'gradinv prior wrap' with its class"
        )
    generator = _sized(layout, tensors, path, truncation, shown_size)
    names = {name: layout.rename(name) for name in generator.state_dict()}
    _fill(generator, names, tensors, path, layout)
    return Published(generator.eval().requires_grad_(False), layout.name, names)


def _tensors(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of the generator in a file, the averaged one where there are several."""
    if not path.is_file():
        raise StorageError(f"expected a checkpoint at {path}, got nothing there; check the path")
    with path.open("rb") as file:
        start = file.read(2)
    if start[:1] == b"\x80" and not _is_legacy(path):
        content = look_into(path)
        records = content if isinstance(content, Mapping) else {"": content}
        sets = {str(name): dict(network_tensors(record)) for name, record in records.items()}
        extra: dict[str, Tensor] = {}
    else:
        sets = weight_sets(path)
        # The average style lies beside the networks.
        extra = {name: value for name, value in sets.get("", {}).items() if name == "latent_avg"}
    chosen = next((sets[name] for name in _EMA if sets.get(name)), None)
    chosen = chosen or max(sets.values(), key=len, default={})
    if not chosen:
        raise StorageError(
            f"expected a network's weights in {path}, got none; give a checkpoint of StyleGAN2"
        )
    return {**extra, **chosen}


def _is_legacy(path: Path) -> bool:
    """Returns whether a pickle is one of PyTorch before 1.6, which begins with a magic number."""
    with path.open("rb") as file:
        start = file.read(32)
    return (0x1950A86A20F9469CFC6C).to_bytes(10, "little") in start


@dataclass(frozen=True)
class _Layout:
    """How somebody names the tensors of StyleGAN2.

    Attributes:
        name: whose it is.
        mark: a name that no other layout has.
        rename: a name of ours -> theirs.
        ignored: names of theirs that hold no weights of the network.
    """

    name: str
    mark: str
    rename: Callable[[str], str]
    ignored: re.Pattern[str]


def _nvidia(name: str) -> str:
    """Returns NVIDIA's name of a tensor of ours."""
    if name == "mapping.average":
        return "mapping.w_avg"
    if match := re.fullmatch(r"mapping\.layers\.(\d+)\.(weight|bias)", name):
        return f"mapping.fc{match[1]}.{match[2]}"
    if name == "synthesis.constant":
        return "synthesis.b4.const"
    _, block, *rest = name.split(".")
    layer, number, rest = _place(block, rest)
    tail = {
        "conv.weight": "weight", "conv.affine.weight": "affine.weight",
        "conv.affine.bias": "affine.bias", "bias": "bias", "strength": "noise_strength",
        "noise": "noise_const",
    }[".".join(rest)]  # fmt: skip
    words = {"first": "conv1", "colors": "torgb", "up": "conv0", "same": "conv1"}
    return f"synthesis.b{4 * 2**number}.{words[layer]}.{tail}"


def _rosinality(name: str) -> str:
    """Returns rosinality's name of a tensor of ours."""
    if name == "mapping.average":
        return "latent_avg"
    if match := re.fullmatch(r"mapping\.layers\.(\d+)\.(weight|bias)", name):
        return f"style.{int(match[1]) + 1}.{match[2]}"
    if name == "synthesis.constant":
        return "input.input"
    _, block, *rest = name.split(".")
    layer, number, rest = _place(block, rest)
    convolution = {"up": 2 * number - 2, "same": 2 * number - 1}.get(layer)
    own = ".".join(rest)
    if own == "noise":
        return f"noises.noise_{0 if convolution is None else convolution + 1}"
    tail = {
        "conv.weight": "conv.weight", "conv.affine.weight": "conv.modulation.weight",
        "conv.affine.bias": "conv.modulation.bias", "strength": "noise.weight",
        "bias": "bias" if layer == "colors" else "activate.bias",
    }[own]  # fmt: skip
    if layer == "colors":
        return f"to_rgbs.{number - 1}.{tail}" if number else f"to_rgb1.{tail}"
    return f"conv1.{tail}" if convolution is None else f"convs.{convolution}.{tail}"


def _place(block: str, rest: list[str]) -> tuple[str, int, list[str]]:
    """Returns what a layer of the synthesis is, the number of its block, and the rest of a name."""
    if block == "first":
        return "first", 0, rest
    if block == "first_colors":
        return "colors", 0, rest
    return block, int(rest[0]) + 1, rest[1:]


_LAYOUTS = (
    _Layout("NVIDIA", "synthesis.b4.const", _nvidia, re.compile(r".*resample_filter")),
    _Layout(
        "rosinality",
        "input.input",
        _rosinality,
        re.compile(r".*(blur|upsample)\.kernel|latent_avg"),
    ),
)


def _sized(
    layout: _Layout,
    tensors: Mapping[str, Tensor],
    path: Path,
    truncation: float,
    shown_size: int | None,
) -> StyleGAN2:
    """Returns a generator of the sizes that the tensors have.

    Raises:
        PriorError: sizes that this architecture cannot have.
    """
    blocks = 0
    while layout.rename(f"synthesis.same.{blocks}.bias") in tensors:
        blocks += 1
    layers = 0
    while layout.rename(f"mapping.layers.{layers}.weight") in tensors:
        layers += 1
    last = f"synthesis.same.{blocks - 1}.bias" if blocks else "synthesis.first.bias"
    first = tensors.get(layout.rename("mapping.layers.0.weight"))
    colours = tensors.get(layout.rename("synthesis.first_colors.bias"))
    if not blocks or first is None or colours is None or first.shape[0] != first.shape[1]:
        raise PriorError(
            f"expected an unconditional StyleGAN2 with output skips in {path}, got one with "
            f"{blocks} blocks and {layers} mapping layers"
            + (f", the first of shape {tuple(first.shape)}" if first is not None else "")
            + "; a conditional network or another architecture cannot be taken over"
        )
    return StyleGAN2(
        image_size=4 * 2**blocks,
        channels=colours.numel(),
        base_channels=tensors[layout.rename(last)].numel(),
        latent_dim=first.shape[1],
        mapping_layers=layers,
        truncation=truncation,
        output="clamp",
        shown_size=shown_size,
    )


def _fill(
    generator: StyleGAN2,
    names: Mapping[str, str],
    tensors: Mapping[str, Tensor],
    path: Path,
    layout: _Layout,
) -> None:
    """Puts a file's tensors into the generator.

    Raises:
        PriorError: some are missing, of another shape or not finite, or others are left over.
    """
    own = generator.state_dict()
    problems, filled = [], {}
    for name, value in own.items():
        theirs = tensors.get(names[name])
        if theirs is None:
            problems.append(f"{names[name]} is missing")
        elif theirs.numel() != value.numel() or _squeezed(theirs) != _squeezed(value):
            problems.append(
                f"{names[name]} has shape {tuple(theirs.shape)} instead of {tuple(value.shape)}"
            )
        elif not torch.isfinite(theirs).all():
            problems.append(f"{names[name]} holds NaN or infinity")
        else:
            filled[name] = theirs.float().reshape(value.shape)
    known = set(names.values())
    left = [name for name in tensors if name not in known and not layout.ignored.fullmatch(name)]
    problems += [f"{name} is unexpected" for name in left]
    problems += [f"{name} is another filter" for name in tensors if _is_other(name, tensors[name])]
    if problems:
        more = len(problems) - _NAMED
        raise PriorError(
            f"expected the weights of a StyleGAN2 of {generator.synthesis.layers} styles "
            f"({layout.name}) in {path}, got {'; '.join(problems[:_NAMED])}"
            f"{f'; and {more} more like that' if more > 0 else ''}; it is another architecture"
        )
    generator.load_state_dict(filled)


def _squeezed(value: Tensor) -> list[int]:
    return [size for size in value.shape if size != 1]


def _is_other(name: str, value: Tensor) -> bool:
    """Returns whether a tensor is a filter of resampling other than [1, 3, 3, 1]."""
    if not re.fullmatch(r".*(resample_filter|(blur|upsample)\.kernel)", name):
        return False
    usual = torch.outer(_TAPS, _TAPS)
    return value.shape != usual.shape or not torch.allclose(
        value.float() / value.float().sum(), usual / usual.sum(), atol=1e-4
    )
