"""One self-contained HTML file from a run folder.

Whoever opens it sends nothing anywhere: pictures are data URIs, charts are SVG, there is no
script, and a content security policy in the file forbids browsers to load anything.
"""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradinv.errors import StorageError
from gradinv.files import read_json, write_text
from gradinv.report import findings, words
from gradinv.report.findings import check_audit
from gradinv.report.pictures import CellPictures, load_cells
from gradinv.report.view import page_view

if TYPE_CHECKING:
    from jinja2 import Environment


def write_report(run_folder: Path) -> Path:
    """Writes ``report.html`` into a run folder and returns its path.

    Args:
        run_folder: holds ``audit.json``, and ``cells/`` with the pictures that it names.

    Raises:
        StorageError: ``audit.json`` is missing, no JSON or no audit; pictures are missing or
            broken; the folder cannot be written to.
    """
    run_folder = Path(run_folder)
    path = run_folder / "audit.json"
    if not path.is_file():
        raise StorageError(
            f"expected a finished run with audit.json in {run_folder}, got none; "
            "finish the audit first, or name its folder"
        )
    audit = read_json(path)
    check_audit(audit, str(path))
    page = render_report(audit, load_cells(run_folder, audit))
    target = run_folder / "report.html"
    write_text(target, page)
    return target


def render_report(audit: dict[str, Any], cells: Mapping[str, CellPictures]) -> str:
    """Returns the page.

    Args:
        audit: the content of ``audit.json``.
        cells: pictures by the value of the cell's ``files``; cells without are shown as unfinished.

    Raises:
        StorageError: ``audit`` is not the content of an audit.json.
    """
    check_audit(audit)
    template = environment().get_template("report.html.j2")
    return words.clean(template.render(page=page_view(audit, cells)))


@lru_cache(maxsize=1)
def environment() -> "Environment":
    """Returns the templates, in which every string is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("gradinv.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        clean=words.clean,
        duration=words.duration,
        interval=words.interval,
        number=words.number,
        plain=words.plain,
        identified=findings.identified,
        other=findings.other,
        percent=words.percent,
        sentence_case=words.sentence_case,
        significant=words.significant,
    )
    environment.tests["finite"] = words.is_number
    return environment
