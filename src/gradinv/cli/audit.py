"""``gradinv audit`` and ``gradinv report``."""

import sys
from pathlib import Path

from rich.console import Console

from gradinv.api.progress import AuditProgress
from gradinv.audit.budget import budget_note
from gradinv.audit.runner import AuditStopped, run_audit
from gradinv.audit.ways import notes_of_ways
from gradinv.cli.options import Audit, Report
from gradinv.cli.stopping import Stopped, run_folder
from gradinv.report import terminal_table, verdict_lines, write_report
from gradinv.report.text import print_line, print_paragraph, report_console


def audit(options: Audit) -> None:
    """Runs an audit, writes ``audit.json`` and ``report.html``, and prints what was found.

    Raises:
        Stopped: by Ctrl-C.
        GradinvError: wrong settings or inputs, another audit in the folder, a full disk.
    """
    folder = run_folder(options.config.out)
    try:
        with AuditProgress().shown() as progress:
            result = run_audit(options.config, folder, monitor=progress)
    except AuditStopped as stopped:
        raise Stopped("--out", str(folder)) from stopped
    report = write_report(folder)
    if options.json:
        # The file itself, so that both are the same to the byte.
        sys.stdout.write((folder / "audit.json").read_text("utf-8"))
        return
    console = report_console()
    console.print(terminal_table(result))
    for line in verdict_lines(result):
        print_paragraph(console, line)
    if (budget := budget_note(result["config"]["budget"])) is not None:
        print_paragraph(console, budget)
    for note in notes_of_ways(result["notes"]):
        print_paragraph(console, note)
    print_line(console, f"{folder / 'audit.json'} and {report}")


def report_again(options: Report) -> None:
    """Writes ``report.html`` again from what an audit stored.

    Raises:
        StorageError: there is no finished audit in the folder.
    """
    print_line(Console(), str(write_report(Path(options.run))))
