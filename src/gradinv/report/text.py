"""Printing text that may hold anything: no markup, no colours for numbers."""

from rich.console import Console


def report_console() -> Console:
    """Returns standard output; without a terminal rich assumes 80 columns, which folds tables."""
    console = Console()
    return console if console.is_terminal else Console(width=160)


def print_line(console: Console, text: str) -> None:
    """Prints one line, however long: a wrapped path could not be copied, nor a log searched."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def print_paragraph(console: Console, text: str) -> None:
    """Prints a sentence, broken between words on a terminal."""
    console.print(text, highlight=False, markup=False, soft_wrap=not console.is_terminal)
