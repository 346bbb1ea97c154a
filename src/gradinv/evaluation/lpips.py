"""LPIPS: distance in the features of a network, weighted by human judgement (Zhang et al. 2018).

The SqueezeNet 1.1 variant, version 0.1. Linear heads and backbone come with the package; other
weights of the backbone can be given.
"""

import zipfile
import zlib
from importlib import resources
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from gradinv.errors import DataError, StorageError
from gradinv.files import load_tensors

# (input channels, squeezed, expanded) of SqueezeNet 1.1's Fire modules, by place in `features`.
_FIRES = {
    3: (64, 16, 64),
    4: (128, 16, 64),
    6: (128, 32, 128),
    7: (256, 32, 128),
    9: (256, 48, 192),
    10: (384, 48, 192),
    11: (384, 64, 256),
    12: (512, 64, 256),
}
_POOLS = (2, 5, 8)
_TAPS = (1, 4, 7, 9, 10, 11, 12)  # the outputs that lpips calls relu1 ... relu7
SMALLEST = 17
"""Pixels a side that leave one after a convolution and three poolings, each halving."""

BACKBONE = "lpips_squeezenet.npz"
"""Among the package's assets: torchvision's ImageNet weights in 16 bits."""

# How files of arrays begin, many of them and one.
_ARCHIVE, _ARRAY = b"PK\x03\x04", b"\x93NUMPY"
_MEND = "save torchvision's squeezenet1_1 state_dict as arrays"


def _require_arrays(start: bytes, expected: str) -> None:
    """Refuses what numpy takes for a pickle because it does not know it."""
    if start.startswith((_ARCHIVE, _ARRAY)):
        return
    if start.startswith(b"\x80"):
        raise StorageError(
            f"{expected}, got a pickle; gradinv never unpickles, because that runs the file's "
            f"code: load it where you trust it and {_MEND}"
        )
    raise StorageError(f"{expected}, got a truncated or foreign file; {_MEND}")


class _Fire(nn.Module):
    def __init__(self, channels: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.expand1x1(x)), F.relu(self.expand3x3(x))], 1)


class Lpips(nn.Module):
    """LPIPS with the SqueezeNet 1.1 backbone.

    Args:
        weights: ``.npz`` of SqueezeNet 1.1's ImageNet weights under torchvision's names
            (``features.0.weight`` ...); any float type, the classifier is not needed. Those of the
            package when None.
        convention: ``"correct"`` scales pixels from [0, 1] to the [-1, 1] that the heads were
            fitted on. ``"paper"`` leaves them in [0, 1], as the code of Jeon et al. 2021 did, and
            serves only to compare with the paper's tables.

    Raises:
        StorageError: no such file, not an npz, or weights missing or of another shape.
    """

    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        weights: Path | str | None = None,
        *,
        convention: Literal["correct", "paper"] = "correct",
    ) -> None:
        super().__init__()
        self.convention = convention
        layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, stride=2), nn.ReLU()]
        for place in range(2, 13):
            pool = place in _POOLS
            layers.append(nn.MaxPool2d(3, 2, ceil_mode=True) if pool else _Fire(*_FIRES[place]))
        self.features = nn.Sequential(*layers)
        assets = resources.files("gradinv") / "assets"
        if weights is None:
            with resources.as_file(assets / BACKBONE) as path:
                self._load(path)
        else:
            self._load(Path(weights))
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1))
        with resources.as_file(assets / "lpips_squeeze_heads.safetensors") as path:
            heads, _ = load_tensors(path, what="LPIPS heads")
        for name, head in heads.items():
            self.register_buffer(name, head)
        self.requires_grad_(False).eval()

    def _load(self, path: Path) -> None:
        expected = f"expected SqueezeNet 1.1 weights as an npz file at {path}"
        try:
            # Opened here, because np.load leaves a broken archive's file open.
            with path.open("rb") as stream:
                _require_arrays(stream.read(len(_ARRAY)), expected)
                stream.seek(0)
                file = np.load(stream, allow_pickle=False)
                if not isinstance(file, np.lib.npyio.NpzFile):
                    raise StorageError(f"{expected}, got 'a single array'; check the path")
                given = {name: file[name] for name in file.files if name.startswith("features.")}
        except OSError as error:
            raise StorageError(f"{expected}, got '{error}'; check the path") from error
        except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise StorageError(
                f"{expected}, got a truncated or foreign file ({error}); {_MEND}"
            ) from error
        wanted = self.features.state_dict(prefix="features.")
        misfit = [
            name
            for name, tensor in wanted.items()
            if name not in given or given[name].shape != tuple(tensor.shape)
        ]
        if misfit:
            raise StorageError(
                f"{expected}, got a file without {', '.join(misfit)} of the right shape; {_MEND}"
            )
        state = {
            name.removeprefix("features."): torch.from_numpy(given[name]).float() for name in wanted
        }
        self.features.load_state_dict(state)

    def _taps(self, images: Tensor) -> list[Tensor]:
        if self.convention == "correct":
            images = images * 2 - 1
        x = (images.expand(-1, 3, -1, -1) - self.shift) / self.scale
        taps = []
        for place, layer in enumerate(self.features):
            x = layer(x)
            if place in _TAPS:
                # The official code's ε, outside the root.
                taps.append(x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return taps

    def forward(
        self,
        preds: Float[Tensor, "batch channel height width"],
        target: Float[Tensor, "batch channel height width"],
    ) -> Float[Tensor, " batch"]:
        """Returns the distance of each pair of images in [0, 1]; 0 for equal images.

        One channel is repeated to three. Computed where and in the type the module is (float32).

        Raises:
            DataError: images too small for the network.
        """
        if min(target.shape[-2:]) < SMALLEST:
            raise DataError(
                f"expected images of at least {SMALLEST}x{SMALLEST} pixels for LPIPS, got "
                f"{target.shape[-2]}x{target.shape[-1]}; choose a larger image size"
            )
        pairs = zip(
            self._taps(preds.to(self.shift)), self._taps(target.to(self.shift)), strict=True
        )
        distance = torch.zeros(len(target)).to(self.shift)
        for layer, (a, b) in enumerate(pairs):
            head = self.get_buffer(f"head{layer}").view(1, -1, 1, 1)
            distance = distance + ((a - b).square() * head).sum(1).mean((1, 2))
        return distance


def lpips_for(weights: Path | str | None, image_size: int) -> Lpips | None:
    """Returns the metric for images of a size, or None where they are too small for it.

    Weights that were asked for are loaded in any case, and images that are too small for them are
    then an error of the metric.
    """
    return Lpips(weights) if weights is not None or image_size >= SMALLEST else None
