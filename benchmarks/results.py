"""Published figures: one JSON file per experiment, always written by a command, never by hand.

The tables of README and docs are made from these files by :mod:`benchmarks.tables`.
"""

import math
import re
import shlex
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

from gradinv.environment import machine, revision, versions
from gradinv.errors import ConfigError
from gradinv.files import write_json

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
SCHEMA = 1

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Section:
    """A part of a file of results that is measured by itself.

    Attributes:
        settings: everything that the measurement was told.
        figures: flat names and finite numbers.
        rows: one mapping for each measurement.
    """

    settings: Mapping[str, Any]
    figures: Mapping[str, float]
    rows: Sequence[Row]


def accelerator() -> str | None:
    """Returns the kind of accelerator that a run could use, if there is one."""
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def command_line(module: str, arguments: Sequence[str]) -> str:
    """Returns ``python -m benchmarks.MODULE ...`` with every file by its name alone."""
    words = [Path(word).name if Path(word).is_absolute() else word for word in arguments]
    return shlex.join(["python", "-m", f"benchmarks.{module}", *words])


def write_results(
    name: str,
    *,
    command: str,
    settings: Mapping[str, Any],
    figures: Mapping[str, float],
    rows: Sequence[Row],
    folder: Path = RESULTS,
) -> Path:
    """Writes ``results/NAME.json`` whole or not at all and returns its path.

    Args:
        name: the experiment, for example ``audit-convnet``.
        command: the command that measured it; data by name, not by a path of this machine.
        settings: everything the command was told, seeds too.
        figures: flat names and finite numbers.
        rows: one mapping per image, case or measurement; their meaning is the experiment's.
        folder: where the file goes.

    Raises:
        ConfigError: the name is no file name, a number is not finite, or a text holds an absolute
            path.
        StorageError: the file cannot be written.
    """
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise ConfigError(
            f"expected a name such as 'audit-convnet', got '{name}'; "
            "use lower-case letters, digits and single hyphens"
        )
    for key, value in figures.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(
                f"expected a number as figure '{key}' of {name}, got {value!r}; "
                "put anything else in the settings"
            )
    content = {
        "schema": SCHEMA,
        "name": name,
        "command": command,
        "revision": revision(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {**machine(), "accelerator": accelerator()},
        "versions": versions(),
        "settings": dict(settings),
        "figures": dict(figures),
        "rows": [dict(row) for row in rows],
    }
    _refuse_unpublishable(content, name)
    path = Path(folder) / f"{name}.json"
    write_json(path, content)
    return path


def _refuse_unpublishable(value: Any, where: str) -> None:
    """Raises ConfigError at the first number that is not finite or path of this machine."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _refuse_unpublishable(inner, f"{where} > {key}")
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            _refuse_unpublishable(inner, f"{where} > {index}")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(
            f"expected a finite number at '{where}', got {value}; leave out what was not measured"
        )
    elif isinstance(value, str | Path):
        for word in re.split(r"[\s=,'\"]+", str(value)):
            if word.startswith(("/", "~/")) and len(word) > 1:
                raise ConfigError(
                    f"expected no absolute path at '{where}', got '{word}'; name the data instead"
                )


def rows_of_audit(audit: Mapping[str, Any], *, data: str) -> list[dict[str, Any]]:
    """Returns one row per image of an ``audit.json``: its cell's setting and its own values.

    Args:
        audit: the parsed ``audit.json``.
        data: what the table calls the images, for example ``faces``.
    """
    return [
        {
            "data": data,
            "setting": cell["defense"],
            "attack": cell["attack"],
            "batch": cell["batch"],
            "image": image["original"],
            **{key: image.get(key) for key in ("psnr", "ssim", "lpips", "mse", "rank", "decoys")},
            "objective": cell["objective"],
            "steps": cell["steps"],
            "seconds": cell["seconds"],
        }
        for cell in audit["cells"]
        for image in cell["images"]
    ]


def cases_of(rows: Iterable[Row]) -> dict[tuple[str, str, str], list[Row]]:
    """Returns the rows by (data, setting, attack), in the order in which these first appear."""
    cases: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for row in rows:
        cases[row["data"], row["setting"], row["attack"]].append(row)
    return dict(cases)


def figure_key(metric: str, attack: str, case: str, main: str) -> str:
    """Returns ``psnr_mean gi-x`` for the main case, ``psnr_mean gi-x | CASE`` for any other."""
    return f"{metric} {attack}" if case == main else f"{metric} {attack} | {case}"


def image_figures(rows: Sequence[Row], *, main: str) -> dict[str, float]:
    """Returns the figures of an attack table from its rows, one row per image.

    ``psnr_mean`` and ``ssim_mean`` are means over images, ``psnr_best`` the mean over batches of
    the best image of each, ``seconds`` the mean over batches.

    Args:
        rows: as :func:`rows_of_audit` returns them.
        main: the case whose figures have the short names, as ``DATA SETTING``.

    Raises:
        ConfigError: no row belongs to the main case.
    """
    cases = cases_of(rows)
    known = sorted({f"{data} {setting}" for data, setting, _ in cases})
    if main not in known:
        raise ConfigError(
            f"expected the main case to be one of {known}, got '{main}'; name one that was measured"
        )
    figures: dict[str, float] = {}
    for (data, setting, attack), case_rows in cases.items():
        batches: dict[int, list[Row]] = defaultdict(list)
        for row in case_rows:
            batches[row["batch"]].append(row)
        values = {
            "psnr_mean": fmean(row["psnr"] for row in case_rows),
            "psnr_best": fmean(max(row["psnr"] for row in batch) for batch in batches.values()),
            "ssim_mean": fmean(row["ssim"] for row in case_rows),
            "seconds": fmean(batch[0]["seconds"] for batch in batches.values()),
        }
        for metric, value in values.items():
            figures[figure_key(metric, attack, f"{data} {setting}", main)] = value
    return figures
