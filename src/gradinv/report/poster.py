"""One picture for a README: originals above what each attack rebuilt."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import UInt8
from torch import Tensor

from gradinv.errors import ConfigError
from gradinv.report.findings import check_audit
from gradinv.report.pictures import CellPictures, to_pil
from gradinv.report.words import clean, number, stage_words

_THEMES = {
    "light": {"page": "#ffffff", "ink": "#1d1e22", "soft": "#5d6169", "line": "#e3e0d9"},
    "dark": {"page": "#0d1117", "ink": "#e9e7e2", "soft": "#a0a5ae", "line": "#30343c"},
}


@dataclass(frozen=True)
class _Row:
    title: str
    below: str
    images: UInt8[Tensor, "batch channel height width"]
    captions: Sequence[str]
    first: bool


def stage_grid_png(
    audit: dict[str, Any],
    cells: Mapping[str, CellPictures],
    *,
    defense: str | None = None,
    batches: Sequence[int] = (0,),
    attacks: Sequence[str] | None = None,
    side: int = 96,
    theme: Literal["light", "dark"] = "light",
) -> bytes:
    """Draws originals and every stage of every attack, with the PSNR under the final pictures.

    Args:
        audit: the content of ``audit.json``.
        cells: its pictures, from :func:`gradinv.report.load_cells`.
        defense: which one; the audit's first where absent.
        batches: whose images to show, side by side.
        attacks: which ones, in this order; all where absent.
        side: of one picture in pixels; pictures are enlarged without smoothing to the largest
            multiple of their own size that fits.
        theme: colours for a light or a dark page.

    Returns:
        A PNG file.

    Raises:
        ConfigError: no picture of such an attack, defence or batch is in the run.
        StorageError: ``audit`` is not the content of an audit.json.
    """
    from PIL import Image, ImageDraw, ImageFont

    check_audit(audit)
    rows = _rows(audit, cells, defense, batches, attacks)
    height, width = rows[0].images.shape[-2:]
    scale = max(1, side // max(height, width))
    gap, label, caption, margin = 8, 150, 22, 20
    tile_w, tile_h = width * scale, height * scale
    columns = len(rows[0].images)
    tops, y = [], margin
    for index, row in enumerate(rows):
        y += 12 if row.first and index else 0
        tops.append(y)
        y += tile_h + (caption if any(row.captions) else 0) + gap
    colours = _THEMES[theme]
    size = (margin * 2 + label + columns * (tile_w + gap) - gap, y - gap + margin)
    sheet = Image.new("RGB", size, colours["page"])
    draw = ImageDraw.Draw(sheet)
    title, small = ImageFont.load_default(size=19), ImageFont.load_default(size=14)
    for index, (row, top) in enumerate(zip(rows, tops, strict=True)):
        if row.first and index:
            draw.line((margin, top - 10, size[0] - margin, top - 10), fill=colours["line"])
        draw.text((margin, top + 2), row.title, font=title, fill=colours["ink"])
        draw.text((margin, top + 27), row.below, font=small, fill=colours["soft"])
        for place, image in enumerate(row.images):
            left = margin + label + place * (tile_w + gap)
            tile = to_pil(image).convert("RGB")
            sheet.paste(tile.resize((tile_w, tile_h), Image.Resampling.NEAREST), (left, top))
            draw.text(
                (left + tile_w / 2, top + tile_h + 4), row.captions[place],
                font=small, fill=colours["soft"], anchor="ma",
            )  # fmt: skip
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _rows(
    audit: Mapping[str, Any],
    cells: Mapping[str, CellPictures],
    defense: str | None,
    batches: Sequence[int],
    attacks: Sequence[str] | None,
) -> list[_Row]:
    import torch

    shown = [row for row in audit["cells"] if str(row.get("files")) in cells]
    defense = shown[0]["defense"] if defense is None and shown else defense
    found = {(r["attack"], r["batch"]): r for r in shown if r["defense"] == defense}
    attacks = list(dict.fromkeys(name for name, _ in found)) if attacks is None else attacks
    absent = [f"{a} on batch {b}" for a in attacks for b in batches if (a, b) not in found]
    if absent or not attacks or not batches:
        raise ConfigError(
            f"expected pictures under {defense}, got none of {', '.join(absent) or 'any attack'}; "
            "name attacks, a defence and batches of this run"
        )
    parts = {a: [cells[found[a, b]["files"]] for b in batches] for a in attacks}
    originals = torch.cat([part.original for part in parts[attacks[0]]])
    blank = [""] * len(originals)
    rows = [_Row("Original", "", originals, blank, first=True)]
    for attack in attacks:
        scores = [
            image
            for batch in batches
            for image in sorted(found[attack, batch]["images"], key=lambda i: i["original"])
        ]
        final = [f"{number(score.get('psnr'), 1)} dB" for score in scores]
        count = min(len(part.stages) for part in parts[attack])
        for index in range(max(count, 1)):
            last = index >= count - 1
            name = parts[attack][0].stages[index].name if count else ""
            rows.append(
                _Row(
                    title=clean(attack) if index == 0 else "",
                    below=f"{name}  {stage_words(name)}",
                    images=torch.cat(
                        [
                            p.reconstruction if last else p.stages[index].images
                            for p in parts[attack]
                        ]
                    ),
                    captions=final if last else blank,
                    first=index == 0,
                )
            )
    return rows


def grid_png(images: UInt8[Tensor, "batch channel height width"], *, side: int = 128) -> bytes:
    """Returns the images in one row (rows of 8), each enlarged to about ``side`` pixels."""
    from PIL import Image

    count, channels, height, width = images.shape
    columns = min(8, count)
    rows = -(-count // columns)
    factor = max(1, side // height)
    sheet = torch.full((rows * columns, channels, height, width), 255, dtype=torch.uint8)
    sheet[:count] = images
    sheet = sheet.view(rows, columns, channels, height, width).permute(0, 3, 1, 4, 2)
    pixels = sheet.reshape(rows * height, columns * width, channels).numpy()
    picture = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    size = (picture.width * factor, picture.height * factor)
    buffer = io.BytesIO()
    picture.resize(size, Image.Resampling.NEAREST).save(buffer, format="PNG")
    return buffer.getvalue()
