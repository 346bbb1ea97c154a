"""What a text names: one of the package's own values, or one from any importable module.

``name``, ``name:settings``, ``package.module:object`` and ``package.module:object:settings``; the
same for networks, attacks, defences, distances, priors and metrics.
"""

import importlib
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradinv.errors import ConfigError, GradinvError, did_you_mean

_OUTSIDE = re.compile(r"[^:]*:[A-Za-z_]\w*(?::|$)")


@dataclass(frozen=True)
class Named:
    """What a text names.

    Attributes:
        value: the object.
        name: the part of the text that names it.
        settings: what stands behind the name and a colon; empty without.
        outside: whether it comes from a module that the text names.
    """

    value: Any
    name: str
    settings: str
    outside: bool


def names_object(spec: str) -> bool:
    """Returns whether a text has the form ``package.module:object``."""
    return _OUTSIDE.match(spec) is not None


def resolve(
    spec: str,
    known: Mapping[str, Any],
    *,
    kind: str,
    expected: str | None = None,
    whole: str | None = None,
    also: Iterable[str] = (),
    error: type[GradinvError] = ConfigError,
) -> Named:
    """Returns what ``spec`` names. The working directory is importable too.

    Importing a module runs it; nothing that is found is called here. Whoever reads a text from a
    file that others made checks what was found before calling it.

    Args:
        spec: the text.
        known: name -> value of the package's own.
        kind: a word for what is looked for, such as "attack", for errors.
        expected: what to write, for errors; made from the known names when None.
        whole: the text that ``spec`` is a part of, for errors.
        also: further names that could be meant, for errors.
        error: class of the errors.

    Raises:
        GradinvError: of the class ``error``: no such name, module or object in it.
    """
    name, _, settings = spec.partition(":")
    if name in known:
        return Named(known[name], name, settings, outside=False)
    if not names_object(spec):
        expected = expected or f"{kind}s among {', '.join(known)} or package.module:object"
        around = spec if whole is None and name != spec else whole
        inside = "" if around is None else f" in {around!r}"
        nearest = did_you_mean(name, [*also, *known])
        raise error(f"expected {expected}, got {name!r}{inside}; {nearest}")
    attribute, _, settings = settings.partition(":")
    value = _attribute(_module(name, spec, known, kind, error), attribute, kind, error)
    return Named(value, f"{name}:{attribute}", settings, outside=True)


def _module(
    name: str, spec: str, known: Mapping[str, Any], kind: str, error: type[GradinvError]
) -> Any:
    try:
        with _working_directory_importable():
            return importlib.import_module(name)
    except Exception as cause:  # importing runs foreign code, which may raise anything
        nearest = did_you_mean(name, known)
        own = f" ({nearest})" if nearest.startswith("did you mean") else ""
        raise error(
            f"expected {kind} {spec!r} to name an importable module, got "
            f"{type(cause).__name__}: {cause}; check the name{own}, or run where "
            f"{name or 'the module'} lies"
        ) from cause


def _attribute(module: Any, attribute: str, kind: str, error: type[GradinvError]) -> Any:
    missing = object()
    value = getattr(module, attribute, missing)
    if value is missing:
        public = [name for name in dir(module) if name[0] != "_"]
        raise error(
            f"expected {kind} {attribute!r} in {module.__name__}, got nothing of that name; "
            f"{did_you_mean(attribute, public)}"
        )
    return value


@contextmanager
def _working_directory_importable() -> Iterator[None]:
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)
