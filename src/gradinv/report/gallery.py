"""The pictures of the page: originals above what every stage of every attack made of them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import UInt8
from torch import Tensor

from gradinv.report.pictures import CellPictures, png_data_uri
from gradinv.report.words import clean, is_number, number, plain, stage_words

OPEN_BATCHES = 2
"""Batches whose pictures are unfolded; the others are a click away."""


@dataclass(frozen=True)
class Picture:
    """One picture with what is said below it.

    ``psnr`` is whatever the audit holds, shown as a dash where it is no finite number.
    """

    uri: str
    alt: str
    psnr: Any = None
    rank: int | None = None
    candidates: int | None = None
    best: bool = False


@dataclass(frozen=True)
class PictureRow:
    """One row of a gallery: a stage of an attack."""

    attack: str
    stage: str
    words: str
    psnr_mean: Any
    first: bool
    final: bool
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Gallery:
    """One batch under one defence: the originals, and every stage of every attack below them."""

    batch: int
    unfolded: bool
    classes: tuple[str, ...]
    originals: tuple[Picture, ...]
    rows: tuple[PictureRow, ...]
    missing: tuple[str, ...]


@dataclass(frozen=True)
class Evidence:
    """An original beside what came back."""

    caption: str
    original: Picture
    reconstruction: Picture


def with_pictures(
    rows: Iterable[Mapping[str, Any]], cells: Mapping[str, CellPictures]
) -> list[tuple[Mapping[str, Any], CellPictures]]:
    """Returns the cells that have pictures, with them."""
    return [(row, cells[str(row["files"])]) for row in rows if str(row.get("files")) in cells]


def evidence_of(
    rows: Iterable[Mapping[str, Any]], cells: Mapping[str, CellPictures]
) -> tuple[Evidence, ...]:
    """Returns an attack's best image and the median one, so that the best is not the whole story.

    Args:
        rows: the attack's cells.
        cells: pictures by the value of the cell's ``files``.
    """
    scored = sorted(
        (
            (image["psnr"], str(row["files"]), image["original"])
            for row, _ in with_pictures(rows, cells)
            for image in row["images"]
            if is_number(image.get("psnr"))
        ),
        reverse=True,
    )
    if not scored:
        return ()
    picks = {f"best of {len(scored)}": scored[0]}
    if len(scored) > 2:
        picks["median"] = scored[len(scored) // 2]
    return tuple(
        Evidence(
            caption=caption,
            original=Picture(
                png_data_uri(cells[file].original[place]),
                f"Original, {clean(cells[file].classes[place])}",
            ),
            reconstruction=Picture(
                png_data_uri(cells[file].reconstruction[place]),
                f"Reconstruction of it, PSNR {number(psnr, 1)} dB",
                psnr=psnr,
            ),
        )
        for caption, (psnr, file, place) in picks.items()
    )


def galleries_of(
    rows: Iterable[Mapping[str, Any]], cells: Mapping[str, CellPictures]
) -> tuple[Gallery, ...]:
    """Returns one gallery for each batch, in the order of the cells.

    Args:
        rows: the cells of one defence.
        cells: pictures by the value of the cell's ``files``.
    """
    batches: dict[int, list[Mapping[str, Any]]] = {}
    for row in rows:
        batches.setdefault(row["batch"], []).append(row)
    return tuple(
        _gallery(batch, found, cells, unfolded=place < OPEN_BATCHES)
        for place, (batch, found) in enumerate(batches.items())
    )


def _gallery(
    batch: int,
    rows: Sequence[Mapping[str, Any]],
    cells: Mapping[str, CellPictures],
    *,
    unfolded: bool,
) -> Gallery:
    shown = with_pictures(rows, cells)
    best = _best_attacks(rows)
    classes = tuple(clean(name) for name in shown[0][1].classes) if shown else ()
    return Gallery(
        batch=batch,
        unfolded=unfolded,
        classes=classes,
        originals=tuple(
            Picture(png_data_uri(image), f"Original {place}: {classes[place]}")
            for place, image in enumerate(shown[0][1].original)
        )
        if shown
        else (),
        rows=tuple(line for row, pictures in shown for line in _picture_rows(row, pictures, best)),
        missing=tuple(
            f"{clean(row['attack'])}: {plain(row.get('outcome') or row.get('status'))}"
            for row in rows
            if str(row.get("files")) not in cells
        ),
    )


def _best_attacks(rows: Sequence[Mapping[str, Any]]) -> dict[int, str]:
    """Returns for every original the attack of largest PSNR; empty with one attack alone."""
    found: dict[int, tuple[Any, str]] = {}
    for row in rows:
        for image in row["images"]:
            place, psnr = image["original"], image.get("psnr")
            if is_number(psnr) and (place not in found or psnr > found[place][0]):
                found[place] = (psnr, row["attack"])
    return {place: attack for place, (_, attack) in found.items()} if len(rows) > 1 else {}


def _picture_rows(
    row: Mapping[str, Any], pictures: CellPictures, best: Mapping[int, str]
) -> list[PictureRow]:
    attack = clean(row["attack"])
    scores = sorted(row["images"], key=lambda image: image["original"])
    earlier = pictures.stages[:-1]
    name = pictures.stages[-1].name if pictures.stages else ""
    stages = [(stage.name, stage.images) for stage in earlier] + [(name, pictures.reconstruction)]
    told = row.get("stages") or []
    lines = []
    for index, (stage, images) in enumerate(stages):
        said = told[index] if index < len(told) and isinstance(told[index], Mapping) else {}
        final = index == len(stages) - 1
        lines.append(
            PictureRow(
                attack=attack,
                stage=clean(stage),
                words=stage_words(stage),
                psnr_mean=said.get("psnr_mean"),
                first=index == 0,
                final=final,
                pictures=tuple(
                    _scored_picture(
                        image, scores[place], attack, best=best.get(place) == row["attack"]
                    )
                    if final
                    else Picture(png_data_uri(image), f"{attack} after {stage}, original {place}")
                    for place, image in enumerate(images)
                ),
            )
        )
    return lines


def _scored_picture(
    image: UInt8[Tensor, "channel height width"],
    score: Mapping[str, Any],
    attack: str,
    *,
    best: bool,
) -> Picture:
    psnr = score.get("psnr")
    rank, decoys = score.get("rank"), score.get("decoys")
    return Picture(
        uri=png_data_uri(image),
        alt=f"{attack}, original {score['original']}: PSNR {number(psnr, 1)} dB",
        psnr=psnr,
        rank=rank if isinstance(rank, int) else None,
        candidates=decoys + 1 if isinstance(decoys, int) and decoys > 0 else None,
        best=best,
    )
