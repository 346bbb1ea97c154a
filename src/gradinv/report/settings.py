"""The settings of an audit as lines of text."""

from collections.abc import Mapping
from typing import Any

from gradinv.report.words import clean, plain, sentence_case


def settings_of(
    config: Mapping[str, Any],
) -> tuple[tuple[str, tuple[tuple[str, str], ...]], ...]:
    """Returns groups (title, lines) of (name, value): flat settings first, then every object.

    Args:
        config: the ``config`` of an audit, of any depth.
    """
    groups: list[tuple[str, Mapping[str, Any]]] = [
        ("Settings", {k: v for k, v in config.items() if not isinstance(v, Mapping)})
    ]
    for key, group in config.items():
        name = sentence_case(clean(key).replace("_", " "))
        if isinstance(group, Mapping) and all(isinstance(v, Mapping) for v in group.values()):
            groups += [(f"{name}: {clean(part)}", lines) for part, lines in group.items()]
        elif isinstance(group, Mapping):
            groups.append((name, group))
    return tuple((title, tuple(_flattened(group))) for title, group in groups if group)


def _flattened(group: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Returns one line for every value, however deep; ``kind`` stands for its whole object."""
    lines: list[tuple[str, str]] = []
    for key, value in group.items():
        name = f"{prefix}{clean(key)}"
        if key == "kind" and prefix:
            lines.insert(0, (prefix.rstrip("."), plain(value)))
        elif isinstance(value, Mapping):
            lines += _flattened(value, f"{name}.")
        elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            numbered = {str(place + 1): item for place, item in enumerate(value)}
            lines += _flattened(numbered, f"{name}.")
        else:
            lines.append((name, plain(value)))
    return lines
