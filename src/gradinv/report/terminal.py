"""The same findings for the terminal."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gradinv.report.findings import (
    check_audit,
    defenses,
    identified,
    ranking,
    sentence,
    strength,
    summary_of,
)
from gradinv.report.words import DASH, clean, duration, interval, is_number, number, percent

if TYPE_CHECKING:
    from rich.table import Table


def terminal_table(audit: dict[str, Any]) -> "Table":
    """Returns the summary as a table, the strongest attack on each defence in bold.

    LPIPS and the accuracy of recovered labels have a column only where they were measured, the
    defence only where there is more than one.

    Raises:
        StorageError: ``audit`` is not the content of an audit.json.
    """
    from rich.table import Table
    from rich.text import Text

    check_audit(audit)
    several = len(defenses(audit)) > 1
    perceptual = any(is_number(row.get("lpips_mean")) for row in audit["summary"])
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    if several:
        table.add_column("Defence")
    table.add_column("Attack")
    for heading in ("PSNR dB", "95 % CI", "best", "SSIM", *(["LPIPS"] if perceptual else [])):
        table.add_column(heading, justify="right")
    table.add_column("identified", justify="right")
    recovered = any(is_number(row.get("label_accuracy")) for row in audit["summary"])
    if recovered:
        table.add_column("labels found", justify="right")
    table.add_column("per batch", justify="right")
    for defense in defenses(audit):
        rows = summary_of(audit, defense)
        strongest = ranking(audit, defense)[0]
        for index, row in enumerate(rows):
            values = [
                clean(row["attack"]),
                number(row.get("psnr_mean")),
                interval(row.get("psnr_ci95")) or DASH,
                number(row.get("psnr_best")),
                number(row.get("ssim_mean"), 3),
                *([number(row.get("lpips_mean"), 3)] if perceptual else []),
                identified(row) or DASH,
                *([percent(row.get("label_accuracy"))] if recovered else []),
                duration(row.get("seconds")),
            ]
            if several:
                values.insert(0, clean(defense) if index == 0 else "")
            style = "bold" if row is strongest and len(rows) > 1 else ""
            # Text, not str: a name may hold what rich reads as markup.
            table.add_row(
                *(Text(value) for value in values), style=style, end_section=row is rows[-1]
            )
    return table


def verdict_line(audit: dict[str, Any]) -> str:
    """Returns the gravest verdict of the audit in one line.

    Raises:
        StorageError: ``audit`` is not the content of an audit.json.
    """
    check_audit(audit)
    strongest = [ranking(audit, defense)[0] for defense in defenses(audit)]
    if not strongest:
        return "Nothing was attacked."
    worst: Mapping[str, Any] = max(strongest, key=strength)
    return " ".join(sentence(worst).split())
