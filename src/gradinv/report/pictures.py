"""The pictures of a run: reading ``cells/*.safetensors``, and pictures as PNG."""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from gradinv.errors import StorageError
from gradinv.files import load_tensors

if TYPE_CHECKING:
    from PIL import Image

SCHEMA = 1
_MEND = "run the audit again"


@dataclass(frozen=True, eq=False)
class StagePictures:
    """One stage of an attack, as far as it can be shown.

    Attributes:
        name: the space searched: "x", "z", "w" or "zw".
        images: the best restart at the end of the stage, in the order of the originals.
        cost: the cost at every step of every restart; may hold values that are not finite.
    """

    name: str
    images: UInt8[Tensor, "batch channel height width"]
    cost: Float[Tensor, "steps restarts"]


@dataclass(frozen=True, eq=False)
class CellPictures:
    """The pictures of one cell: one attack on one batch under one defence.

    Attributes:
        original: what the client holds.
        reconstruction: what the server rebuilt, matched to the originals.
        stages: the way there.
        classes: the name of the class of each image.
    """

    original: UInt8[Tensor, "batch channel height width"]
    reconstruction: UInt8[Tensor, "batch channel height width"]
    stages: tuple[StagePictures, ...]
    classes: tuple[str, ...]


def read_cell(path: Path) -> CellPictures:
    """Reads ``cells/<slug>.safetensors``.

    Raises:
        StorageError: missing, truncated, of another kind, or with tensors that do not fit together.
    """
    mend = (
        f"delete {path} and {path.with_suffix('.json').name} beside it and run the same audit "
        "again: it attacks that batch again and no other"
    )
    tensors, header = load_tensors(path, what="the pictures of a cell", mend=mend)
    if header.get("kind") != "cell" or header.get("schema") != SCHEMA:
        raise StorageError(
            f"expected the pictures of a cell (kind 'cell', schema {SCHEMA}) in {path}, got kind "
            f"{header.get('kind')!r}, schema {header.get('schema')!r}; {mend}"
        )
    problems = _problems(tensors, header)
    if problems:
        raise StorageError(
            f"expected whole pictures of a cell in {path}, got {'; '.join(problems)}; {mend}"
        )
    return cell_pictures(tensors, header)


def cell_pictures(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> CellPictures:
    """Returns the pictures among the tensors of a cell, which must be whole."""
    return CellPictures(
        original=tensors["original"],
        reconstruction=tensors["reconstruction"],
        stages=tuple(
            StagePictures(
                name=str(stage.get("name", "?")),
                images=tensors[f"stage/{index}/images"],
                cost=tensors[f"stage/{index}/cost"].float(),
            )
            for index, stage in enumerate(header["stages"])
        ),
        classes=tuple(str(name) for name in header["classes"]),
    )


def load_cells(run_folder: Path, audit: Mapping[str, Any]) -> dict[str, CellPictures]:
    """Reads the pictures of every finished cell that ``audit`` names.

    Returns:
        The pictures by the value of the cell's ``files``. Cells without it (not finished) are left
        out.

    Raises:
        StorageError: a file is missing, broken, outside the folder, or holds another number of
            images than ``audit`` says; or two cells of one batch differ in the originals.
    """
    cells: dict[str, CellPictures] = {}
    originals: dict[Any, tuple[str, Tensor]] = {}
    root = Path(run_folder).resolve()
    for row in audit["cells"]:
        name = row.get("files")
        if not name:
            continue
        path = (root / str(name)).resolve()
        if not path.is_relative_to(root):
            raise StorageError(
                f"expected the cell files inside {run_folder}, got {name!r}; "
                "put the file into the run folder, or mend audit.json"
            )
        cell = read_cell(path)
        if len(row["images"]) != len(cell.original):
            raise StorageError(
                f"expected {len(row['images'])} images in {path}, as audit.json says, "
                f"got {len(cell.original)}; {_MEND}"
            )
        first, original = originals.setdefault(row["batch"], (str(name), cell.original))
        if original.shape != cell.original.shape or not bool((original == cell.original).all()):
            raise StorageError(
                f"expected the same originals in {name} as in {first} (batch {row['batch']}), "
                f"got others; {_MEND}"
            )
        cells[str(name)] = cell
    return cells


def to_pil(image: UInt8[Tensor, "channel height width"]) -> "Image.Image":
    """Returns one picture for pillow; grey for one channel, colours for three."""
    from PIL import Image

    array = image.detach().cpu().numpy()
    return Image.fromarray(
        array[0] if array.shape[0] == 1 else np.ascontiguousarray(array.transpose(1, 2, 0))
    )


def png(image: UInt8[Tensor, "channel height width"]) -> bytes:
    """Returns one picture as a PNG file of its own size; browsers enlarge it."""
    buffer = io.BytesIO()
    to_pil(image).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def png_data_uri(image: UInt8[Tensor, "channel height width"]) -> str:
    """Returns one picture as ``data:image/png;base64,...``."""
    return "data:image/png;base64," + base64.b64encode(png(image)).decode("ascii")


def _problems(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> list[str]:
    """Returns everything that keeps a cell from being shown."""
    original = tensors.get("original")
    if original is None:
        return ["no tensor 'original'"]
    problems = _picture_problems("original", original, original)
    if problems:
        return problems
    stages = header.get("stages")
    if not isinstance(stages, list) or not all(isinstance(stage, dict) for stage in stages):
        return ["no list 'stages' in the header"]
    problems = _picture_problems("reconstruction", tensors.get("reconstruction"), original)
    for index in range(len(stages)):
        name = f"stage/{index}/images"
        problems += _picture_problems(name, tensors.get(name), original)
        cost = tensors.get(f"stage/{index}/cost")
        if cost is None:
            problems.append(f"no tensor 'stage/{index}/cost'")
        elif cost.ndim != 2 or not cost.is_floating_point():
            problems.append(
                f"stage/{index}/cost is {cost.dtype} {tuple(cost.shape)}, "
                "not float (steps, restarts)"
            )
    classes = header.get("classes")
    if not isinstance(classes, list) or len(classes) != len(original):
        count = len(classes) if isinstance(classes, list) else "no"
        problems.append(f"{count} class names for {len(original)} images")
    return problems


def _picture_problems(name: str, images: Tensor | None, original: Tensor) -> list[str]:
    if images is None:
        return [f"no tensor '{name}'"]
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in {1, 3}:
        return [f"{name} is {images.dtype} {tuple(images.shape)}, not uint8 (batch, 1 or 3, h, w)"]
    if images.shape != original.shape:
        return [f"{name} has shape {tuple(images.shape)}, original {tuple(original.shape)}"]
    return []
