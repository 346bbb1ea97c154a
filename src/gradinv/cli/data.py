"""``gradinv data check``: everything that is wrong with a folder of images, at once."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gradinv.api.progress import WorkProgress
from gradinv.cli.options import Data
from gradinv.data.check import FolderCheck, check_folder
from gradinv.data.decoding import shown
from gradinv.errors import DataError
from gradinv.report.text import print_line, print_paragraph, report_console

_SHOWN = 20


def check(options: Data) -> None:
    """Prints what a folder holds and everything that is wrong with it.

    Raises:
        DataError: something keeps the folder from being used, or there is none.
        ConfigError: an image size or number of channels without meaning.
    """
    with WorkProgress("images") as display:
        found = check_folder(
            Path(options.path),
            image_size=options.image_size,
            channels=options.channels or 3,
            callback=lambda done, of: display.advance(done / of, f"{done:,} of {of:,} files"),
        )
    if options.json:
        json.dump(found.as_json(), sys.stdout, indent=1)
        print()
    else:
        _print(found, report_console())
    if found.problems:
        count = len(found.problems)
        raise DataError(
            f"expected a folder of images that can be used at {shown(options.path)}, got {count} "
            f"problem{'s' * (count > 1)}, each told on standard output; mend what it says"
        )


def _print(found: FolderCheck, console: Console) -> None:
    counts = sorted(found.classes.values())
    lines = {
        "folder": found.name,
        "images": f"{found.images:,} in {len(found.classes)} classes",
        "images in a class": f"{counts[0]:,} to {counts[-1]:,}" if counts else "none",
        "classes": _some({name: f"{n:,}" for name, n in found.classes.items()}),
        "sizes": _some({size: f"{n:,}" for size, n in found.sizes.items()}),
        "pixels": _some({kind: f"{n:,}" for kind, n in found.kinds.items()}),
        "values": _some({
            kind: f"{low:g} to {high:g}" for kind, (low, high) in found.ranges.items()
        }),
    }  # fmt: skip
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for name, value in lines.items():
        # Text, not str: a name may hold what rich reads as markup.
        table.add_row(Text(name, style="bold"), Text(value, overflow="fold"))
    console.print(table)
    for note in found.notes:
        print_paragraph(console, f"note: {note}")
    for problem in found.problems:
        print_paragraph(console, f"problem: {problem}")
    if not found.problems:
        print_line(console, "nothing is wrong with it" if not found.notes else "it can be used")


def _some(counted: Mapping[str, str]) -> str:
    """Returns the first names with their figures, and how many more there are."""
    more = len(counted) - _SHOWN
    words = [f"{name} ({figure})" for name, figure in list(counted.items())[:_SHOWN]]
    return ", ".join(words) + (f", and {more} more" if more > 0 else "")
