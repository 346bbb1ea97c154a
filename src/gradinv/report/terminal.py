"""The same findings for the terminal."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gradinv.report.findings import (
    baselines,
    check_audit,
    defenses,
    identified,
    level_of,
    other,
    others,
    ranking,
    search_of,
    sentence,
    summary_of,
    verdict_of,
    worst_first,
)
from gradinv.report.words import (
    DASH,
    clean,
    duration,
    interval,
    is_number,
    number,
    percent,
    significant,
)

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.table import Table

# Left out one after the other where the terminal is too narrow for all.
_EXPENDABLE = ("95 % CI", "per batch", "best", "search", "labels found", "LPIPS", "SSIM")
_GAP = 2
_LEAST_NAME = 20  # characters of an attack's name in one line, before columns are left out


@dataclass(frozen=True)
class _Group:
    """The rows of one defence.

    Attributes:
        title: the defence, where there is more than one.
        rows: one for each attack, heading -> text.
        strongest: which row is in bold.
    """

    title: str | None
    rows: tuple[Mapping[str, str], ...]
    strongest: int | None


@dataclass(frozen=True)
class TerminalTable:
    """A table that rich prints: as many columns as fit, names folded and never cut."""

    groups: tuple[_Group, ...]

    def __rich_console__(
        self, console: "Console", options: "ConsoleOptions"
    ) -> Iterator["Table | Any"]:
        """Yields the headings and, for each defence, its name and its rows."""
        from rich.text import Text

        rows = [row for group in self.groups for row in group.rows]
        if not rows:
            return
        widths = {h: max(_cells(text) for text in (h, *(row[h] for row in rows))) for h in rows[0]}
        left_out = []
        own = [name for name in widths if name.startswith("[")]
        for heading in [*(name for name in _EXPENDABLE if name in widths), *own]:
            if _name_width(widths, options.max_width) >= min(widths["Attack"], _LEAST_NAME):
                break
            left_out.append(heading)
            del widths[heading]
        # A terminal that is narrower still breaks the lines itself; rich would cut them.
        widths["Attack"] = max(1, min(widths["Attack"], _name_width(widths, options.max_width)))
        yield _table(widths, (), heading=True)
        for group in self.groups:
            if group.title is not None:
                yield Text(group.title, style="italic", overflow="fold")
            names = [_folded(row["Attack"], widths["Attack"]) for row in group.rows]
            lines = [
                [name, *(row[heading] for heading in widths if heading != "Attack")]
                for name, row in zip(names, group.rows, strict=True)
            ]
            yield _table(widths, lines, strongest=group.strongest)
        if left_out:
            yield Text(f"(no room for {', '.join(left_out)}: see the report)", style="dim")


def _cells(text: str) -> int:
    from rich.cells import cell_len

    return cell_len(text)


def _folded(name: str, width: int) -> str:
    """Returns a name in lines that end with a colon, as far as the width lets them."""
    lines = [""]
    for part in re.split("(?<=:)", name):
        if lines[-1] and _cells(lines[-1] + part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def _name_width(widths: Mapping[str, int], room: int) -> int:
    """Returns what the other columns leave for the names."""
    return room - sum(width + _GAP for name, width in widths.items() if name != "Attack")


def _table(
    widths: Mapping[str, int],
    lines: Sequence[Sequence[str]],
    *,
    heading: bool = False,
    strongest: int | None = None,
) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(
        box=None, pad_edge=False, padding=(0, _GAP, 0, 0), show_header=heading, header_style="bold"
    )
    for name, width in widths.items():
        left = name in {"Attack", "Level"}
        table.add_column(
            Text(name, overflow="fold"),
            justify="left" if left else "right",
            width=width,
            overflow="fold",
        )
    for index, line in enumerate(lines):
        # Text, not str: a name may hold what rich reads as markup.
        table.add_row(*map(Text, line), style="bold" if index == strongest else "")
    return table


def terminal_table(audit: dict[str, Any]) -> TerminalTable:
    """Returns the summary as a table, the strongest attack on each defence in bold.

    LPIPS, the accuracy of recovered labels and metrics that were asked for (in brackets) have a
    column only where they were measured, the defence a line above its rows only where there is
    more than one.

    Raises:
        StorageError: ``audit`` is not the content of an audit.json.
    """
    check_audit(audit)
    specs = defenses(audit)
    perceptual = any(is_number(row.get("lpips_mean")) for row in audit["summary"])
    recovered = any(is_number(row.get("label_accuracy")) for row in audit["summary"])
    metrics = others(audit)
    groups = []
    for spec in specs:
        rows = summary_of(audit, spec)
        strongest = next(i for i, row in enumerate(rows) if row is ranking(audit, spec)[0])
        groups.append(
            _Group(
                title=clean(spec) if len(specs) > 1 else None,
                rows=tuple(
                    _row(row, metrics, perceptual=perceptual, recovered=recovered)
                    for row in [*rows, *map(_as_row, baselines(audit, spec))]
                ),
                strongest=strongest if len(rows) > 1 else None,
            )
        )
    return TerminalTable(tuple(groups))


def _as_row(baseline: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a server without the update would show as a row of the table."""
    attack = baseline.get("attack")
    return {**baseline, "attack": f"({baseline['name']}{f' of {attack}' if attack else ''})"}


def _row(
    row: Mapping[str, Any], metrics: Sequence[str], *, perceptual: bool, recovered: bool
) -> dict[str, str]:
    return {
        "Attack": clean(row["attack"]),
        "Level": level_of(row) or DASH,
        "PSNR dB": number(row.get("psnr_mean")),
        "95 % CI": interval(row.get("psnr_ci95")) or DASH,
        "best": number(row.get("psnr_best")),
        "SSIM": number(row.get("ssim_mean"), 3),
        **({"LPIPS": number(row.get("lpips_mean"), 3)} if perceptual else {}),
        # In brackets, so that one of an own name takes no other column's place.
        **{f"[{clean(name)}]": significant(other(row, name)) for name in metrics},
        "identified": identified(row) or DASH,
        "search": search_of(row) or DASH,
        **({"labels found": percent(row.get("label_accuracy"))} if recovered else {}),
        "per batch": duration(row.get("seconds")),
    }


def verdict_lines(audit: dict[str, Any]) -> list[str]:
    """Returns one line for each defence, the gravest verdict first.

    Raises:
        StorageError: ``audit`` is not the content of an audit.json.
    """
    check_audit(audit)
    lines = []
    for defense in worst_first(audit):
        found = verdict_of(audit, defense) or ranking(audit, defense)[0]
        lines.append(" ".join(f"{clean(defense)}: {sentence(found)}".split()))
    return lines or ["Nothing was attacked."]
