"""What ``audit.json`` says, looked up and checked in one place for the page and the terminal."""

from collections.abc import Mapping
from typing import Any

from gradinv.errors import StorageError
from gradinv.evaluation.verdict import Level
from gradinv.report.words import Number, clean, is_number, number, of

SCHEMA = 1
NO_BREAK = "\u00a0"
LEVELS = tuple(level.value for level in Level)
_MEND = "run the audit again"


def check_audit(audit: Any, where: str = "audit.json") -> None:
    """Checks that ``audit`` has what a report cannot do without.

    Raises:
        StorageError: it is no object, of another schema, or lacks something; the place is named.
    """
    if not isinstance(audit, dict):
        raise StorageError(f"expected an object in {where}, got {type(audit).__name__}; {_MEND}")
    if audit.get("schema") != SCHEMA:
        raise StorageError(
            f"expected schema {SCHEMA} in {where}, got {audit.get('schema')!r}; "
            "use the version of gradinv that wrote it"
        )
    if not isinstance(audit.get("config", {}), dict):
        raise StorageError(
            f"expected an object 'config' in {where}, got {type(audit['config']).__name__}; {_MEND}"
        )
    needs = {
        "cells": {"attack": str, "defense": str, "batch": int, "images": list},
        "summary": {"attack": str, "defense": str},
    }
    for part, keys in needs.items():
        rows = audit.get(part)
        if not isinstance(rows, list):
            raise StorageError(
                f"expected a list '{part}' in {where}, got {type(rows).__name__}; {_MEND}"
            )
        for index, row in enumerate(rows):
            for key, kind in keys.items():
                value = row.get(key) if isinstance(row, dict) else None
                if not isinstance(value, kind):
                    raise StorageError(
                        f"expected {part}[{index}].{key} in {where} to be of type {kind.__name__}, "
                        f"got {value!r}; {_MEND}"
                    )
    for index, row in enumerate(audit["cells"]):
        places = [i.get("original") if isinstance(i, dict) else None for i in row["images"]]
        if set(places) != set(range(len(places))):
            raise StorageError(
                f"expected every original 0..{len(row['images']) - 1} once in "
                f"cells[{index}].images of {where}, got {places}; {_MEND}"
            )


def defenses(audit: Mapping[str, Any]) -> list[str]:
    """Returns the defences in the order of the audit."""
    return list(dict.fromkeys(row["defense"] for row in audit["summary"]))


def summary_of(audit: Mapping[str, Any], defense: str) -> list[dict[str, Any]]:
    """Returns the summary rows of one defence, in the order of the audit."""
    return [row for row in audit["summary"] if row["defense"] == defense]


def cells_of(audit: Mapping[str, Any], row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the cells (batches) behind one row of the summary."""
    return [
        cell
        for cell in audit["cells"]
        if (cell["attack"], cell["defense"]) == (row["attack"], row["defense"])
    ]


def images_of(audit: Mapping[str, Any], row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the images behind one row of the summary."""
    return [image for cell in cells_of(audit, row) for image in cell["images"]]


def level_of(row: Mapping[str, Any]) -> str:
    """Returns the level of a summary row, whatever its name; nothing where it has none."""
    level = row.get("level")
    return clean(level) if isinstance(level, str) else ""


def strength(row: Mapping[str, Any]) -> tuple[int, Number]:
    """Orders attacks as :func:`gradinv.evaluation.verdict.worst` does: by level, then mean SSIM."""
    severity = LEVELS.index(row["level"]) if row.get("level") in LEVELS else -1
    ssim = row.get("ssim_mean")
    return severity, ssim if is_number(ssim) else float("-inf")


def ranking(audit: Mapping[str, Any], defense: str) -> list[dict[str, Any]]:
    """Returns the summary rows of one defence, the strongest attack first."""
    return sorted(summary_of(audit, defense), key=strength, reverse=True)


def identified(row: Mapping[str, Any]) -> str | None:
    """Returns ``6 of 8``, or None where the control was not made."""
    fraction, n = row.get("identified"), row.get("n")
    return of(fraction * n, n) if is_number(fraction) and isinstance(n, int) else None


def others(audit: Mapping[str, Any]) -> list[str]:
    """Returns the names of the metrics that were asked for, in the order of the audit."""
    held = [row["others"] for row in audit["summary"] if isinstance(row.get("others"), Mapping)]
    return list(dict.fromkeys(name for names in held for name in names))


def other(row: Mapping[str, Any], name: str) -> Any:
    """Returns a metric's value in a row of the summary or of an image; None where it has none."""
    held = row.get("others")
    return held.get(name) if isinstance(held, Mapping) else None


def decoys(audit: Mapping[str, Any]) -> tuple[int, int] | None:
    """Returns the smallest and the largest number of decoys an image had, None without any."""
    counts = [
        image["decoys"]
        for cell in audit["cells"]
        for image in cell["images"]
        if isinstance(image.get("decoys"), int) and image["decoys"] > 0
    ]
    return (min(counts), max(counts)) if counts else None


def budget(config: Mapping[str, Any]) -> str | None:
    """Returns what part of the presets' steps the attacks did; None where the audit does not say.

    Args:
        config: the ``config`` of an audit.
    """
    stored = config.get("budget")
    fractions = {
        clean(name): fraction
        for name, fraction in (stored.items() if isinstance(stored, Mapping) else ())
        if is_number(fraction)
    }
    if not fractions:
        return None
    few = min(fractions.values()) < 1
    first_look = ": a first look only" if few else ""
    if len(set(fractions.values())) == 1:
        part = _part(next(iter(fractions.values())))
        return f"{part} of the preset’s steps{first_look}"
    parts = ", ".join(f"{name} {_part(fraction)}" for name, fraction in fractions.items())
    return f"{parts} of the presets’ steps{first_look}"


def _part(fraction: Number) -> str:
    return f"{100 * fraction:.3g}{NO_BREAK}%" if fraction != 1 else "all"


def headline(row: Mapping[str, Any]) -> str | None:
    """Returns the level of a summary row in plain words, with the count; None for no known level.

    The audit's own sentence says it in full: :func:`sentence`.
    """
    words = {
        "SEVERE": "Images come back recognisably.",
        "PARTIAL": "There are signs of leakage.",
        "UNDECIDED": "Too little evidence to decide.",
        "NONE FOUND": "Nothing found beyond chance.",
    }.get(str(row.get("level")))
    found = identified(row)
    if words is None or found is None:
        return words
    return f"{words} {found.replace(' ', NO_BREAK)} identified."


def sentence(row: Mapping[str, Any]) -> str:
    """Returns the verdict on one attack under one defence: the audit's own, or bare numbers."""
    if row.get("verdict"):
        return clean(row["verdict"])
    found = identified(row)
    parts = [f"{found} images identified"] if found else []
    parts.append(f"mean PSNR {number(row.get('psnr_mean'), 1)} dB")
    parts.append(f"mean SSIM {number(row.get('ssim_mean'), 2)}")
    return f"{clean(row['attack'])} against {clean(row['defense'])}: {', '.join(parts)}"
