"""Measures what each method promises: ``python -m benchmarks.publish_methods labels r-gap``.

Every section is measured by itself and merged into ``results/methods.json``: its rows, figures and
settings replace those of the same section and leave the others alone. A new section is a function
from options to a :class:`Section` and one entry in :data:`SECTIONS`.
"""

import argparse
import shlex
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.method_labels import measure_labels
from benchmarks.method_r_gap import measure_r_gap
from benchmarks.methods_fedavg import measure as measure_fedavg
from benchmarks.methods_search import measure as measure_search
from benchmarks.results import RESULTS, ROOT, Section, write_results
from gradinv.environment import revision
from gradinv.files import read_json

NAME = "methods"


def _search(options: argparse.Namespace) -> Section:
    rows, figures = measure_search(
        ROOT / "runs" / "methods-search", batches=options.single, seed=options.seed
    )
    rows = [{key: value for key, value in row.items() if key != "section"} for row in rows]
    return Section({"single_images": options.single, "seed": options.seed}, figures, rows)


def _fedavg(options: argparse.Namespace) -> Section:
    rows, figures = measure_fedavg(batches=options.single)
    figures = {key.removeprefix("fedavg "): value for key, value in figures.items()}
    rows = [{key: value for key, value in row.items() if key != "section"} for row in rows]
    return Section({"batches": options.single, "batch_size": 4}, figures, rows)


SECTIONS: dict[str, Callable[[argparse.Namespace], Section]] = {
    "labels": measure_labels,
    "r-gap": measure_r_gap,
    "search": _search,
    "fedavg": _fedavg,
}


def merged(
    old: Mapping[str, Any] | None, name: str, section: Section, provenance: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns settings, figures and rows with one section replaced.

    Args:
        old: the content of the file, if there is one.
        name: of the section; its rows have it as ``section``, its figures begin with it.
        section: what was measured.
        provenance: command, revision and date of this section.
    """
    old = old or {"settings": {}, "figures": {}, "rows": []}
    kept = {key: value for key, value in old["figures"].items() if not key.startswith(f"{name}: ")}
    return {
        "settings": {**old["settings"], name: {**provenance, **section.settings}},
        "figures": kept | {f"{name}: {key}": value for key, value in section.figures.items()},
        "rows": [row for row in old["rows"] if row["section"] != name]
        + [{"section": name, **row} for row in section.rows],
    }


def main(arguments: list[str] | None = None) -> int:
    """Measures the sections that are named and writes ``results/methods.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("section", nargs="+", choices=list(SECTIONS))
    parser.add_argument("--data", type=Path, help="Fashion-MNIST's training images (IDX)")
    parser.add_argument("--batches", type=int, default=100, help="of each case of labels")
    parser.add_argument("--images", type=int, default=8, help="of each case of r-gap")
    parser.add_argument("--single", type=int, default=4, help="updates of search and of fedavg")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    words = sys.argv[1:] if arguments is None else arguments
    shown = [Path(word).name if "/" in word else word for word in words]
    command = "python -m benchmarks.publish_methods " + shlex.join(shown)
    for name in options.section:
        section = SECTIONS[name](options)
        path = RESULTS / f"{NAME}.json"
        content = merged(
            read_json(path) if path.exists() else None,
            name,
            section,
            {
                "command": command,
                "revision": revision(),
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
            },
        )
        written = write_results(NAME, command="python -m benchmarks.publish_methods", **content)
        print(f"{name}: {written.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
