"""What ``audit.json`` says, looked up and checked in one place for the page and the terminal."""

from collections.abc import Mapping
from typing import Any

from gradinv.errors import StorageError
from gradinv.evaluation.verdict import Level
from gradinv.report.words import (
    Number,
    clean,
    interval,
    is_number,
    number,
    of,
    significant,
)

SCHEMA = 1
NO_BREAK = "\u00a0"
CANDIDATES = "candidates"
"""What candidate search has in an attack's place."""
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
    """Orders attacks by level, then mean SSIM."""
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


def verdict_of(audit: Mapping[str, Any], defense: str) -> Mapping[str, Any] | None:
    """Returns the verdict on a defence; None in audits from before there were such."""
    entries = audit.get("verdicts")
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, Mapping) and entry.get("defense") == defense:
            return entry
    return None


def worst_first(audit: Mapping[str, Any]) -> list[str]:
    """Returns the defences, the one with the gravest verdict first."""

    def severity(defense: str) -> int:
        found = verdict_of(audit, defense) or ranking(audit, defense)[0]
        return LEVELS.index(found["level"]) if found.get("level") in LEVELS else -1

    return sorted(defenses(audit), key=severity, reverse=True)


def attacks_ranked(audit: Mapping[str, Any], defense: str) -> list[dict[str, Any]]:
    """Returns the summary rows of the attacks on one defence, without candidate search."""
    rows = ranking(audit, defense)
    return [row for row in rows if row["attack"] != CANDIDATES] or rows


def headline(row: Mapping[str, Any]) -> str | None:
    """Returns the level of a verdict in plain words, with the count; None for no known level.

    The audit's own sentence says it in full: :func:`sentence`.
    """
    words = {
        "SEVERE": "Images come back recognisably.",
        "PARTIAL": "Updates tell which images a client holds.",
        "OPEN": "No leak was shown, and none is excluded.",
        "EXCLUDED": "No server names these images much more often than luck does.",
    }.get(str(row.get("level")))
    count, n = row.get("identified"), row.get("n")
    if words is None or not is_number(count) or not isinstance(n, int):
        return words
    found = of(count, n) if isinstance(count, int) else identified(row)
    what = "named" if row.get("attack") == CANDIDATES else "identified"
    return f"{words} {str(found).replace(' ', NO_BREAK)} {what}."


def bounds(verdict: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Returns what no server can do, a name and a sentence each; nothing without a verdict."""
    if verdict is None or "ceiling" not in verdict:
        return []
    rounds = verdict.get("rounds")
    updates = "one update" if rounds == 1 else f"{rounds} updates"
    limits = interval([100 * end for end in verdict["ceiling_interval"] or []], 1)
    ceiling = f"at most {number(_percent(verdict['ceiling']), 1)} % named ({limits} %)"
    closed = f"at most {number(_percent(verdict['closed_form']), 1)} % named, for any images"
    epsilon = f"({significant(verdict['epsilon'])}, {verdict['delta']:g}) for {updates}"
    needed = verdict.get("sigma_needed")
    lines = [
        ("Ceiling for these candidates", _or_none(verdict, "ceiling", ceiling)),
        ("Closed form from the clip", _or_none(verdict, "closed_form", closed)),
        ("(ε, δ)", _or_none(verdict, "epsilon", epsilon)),
    ]
    if len({words for _, words in lines}) == 1:  # refused for one reason
        lines = [("Certificates", lines[0][1])]
    if is_number(needed):
        lines.append(("Noise that would exclude naming", f"σ ≥ {significant(needed, 2)}"))
    return lines


def _or_none(verdict: Mapping[str, Any], name: str, words: str) -> str:
    if is_number(verdict[name]):
        return words
    reason = verdict.get(f"{name}_refusal")
    return f"none: {clean(reason)}" if reason else "none"


def _percent(share: Any) -> Any:
    return 100 * share if is_number(share) else None


def search_of(row: Mapping[str, Any]) -> str | None:
    """Returns where an attack's searches ended beside the truth, ``stalled 2 of 2``."""
    states = {state: row.get(state) for state in ("stalled", "reached", "passed")}
    counts = {state: count for state, count in states.items() if isinstance(count, int) and count}
    total = sum(counts.values())
    return ", ".join(f"{state} {count} of {total}" for state, count in counts.items()) or None


def baselines(audit: Mapping[str, Any], defense: str) -> list[dict[str, Any]]:
    """Returns what a server without the update would show, as rows beside those of a defence.

    Of the placebos that of the attack whose is best.
    """
    held = audit.get("baselines")
    rows = [row for row in held if isinstance(row, dict)] if isinstance(held, list) else []
    mine = [row for row in rows if row.get("defense") == defense]
    shared = [row for row in rows if row.get("attack") is None]
    best = sorted(mine, key=lambda row: strength(row)[1], reverse=True)[:1]
    return [*shared, *best]


def sentence(row: Mapping[str, Any]) -> str:
    """Returns the verdict on an attack or a defence: the audit's own, or bare numbers."""
    for name in ("sentence", "verdict"):
        if row.get(name):
            return clean(row[name])
    found = identified(row)
    parts = [f"{found} images identified"] if found else []
    parts.append(f"mean PSNR {number(row.get('psnr_mean'), 1)} dB")
    parts.append(f"mean SSIM {number(row.get('ssim_mean'), 2)}")
    return f"{clean(row['attack'])} against {clean(row['defense'])}: {', '.join(parts)}"
