"""What an audit found, for people: one HTML file, a table for the terminal, a picture.

Everything here is made from what lies in a run folder (``audit.json`` and ``cells/``), so that a
report can be made again at any time; nothing is measured here.
"""

from gradinv.report.html import render_report, write_report
from gradinv.report.pictures import CellPictures, StagePictures, load_cells, read_cell
from gradinv.report.poster import stage_grid_png
from gradinv.report.terminal import terminal_table, verdict_lines

__all__ = [
    "CellPictures",
    "StagePictures",
    "load_cells",
    "read_cell",
    "render_report",
    "stage_grid_png",
    "terminal_table",
    "verdict_lines",
    "write_report",
]
