"""The run folder: what lies where, and how an audit that was stopped finds its place again.

::

    OUT/config.json                     the settings, versions and inputs that the folder belongs to
    OUT/cells/<slug>.json               one finished cell: a row of audit.json
    OUT/cells/<slug>.safetensors        its pictures and cost curves
    OUT/checkpoints/<slug>.safetensors  one cell that was stopped
    OUT/audit.json                      all of it, when every cell is finished
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from gradinv.attacks import Checkpoint
from gradinv.audit.plan import NOT_IDENTITY, Cell, option
from gradinv.errors import ConfigError, StorageError
from gradinv.files import ensure_writable_folder, load_tensors, read_json, save_tensors, write_json

SCHEMA = 1


@runtime_checkable
class Store(Protocol):
    """Where the cells of one audit lie, and where those are that were stopped."""

    @property
    def folder(self) -> Path | None:
        """The run folder; None where nothing is written."""
        ...

    def claim(self, identity: Mapping[str, Any]) -> None:
        """Makes the place this audit's, or checks that it is this audit's already."""
        ...

    def is_finished(self, cell: Cell) -> bool:
        """Whether the cell need not be computed again."""
        ...

    def require_whole(self, cell: Cell) -> None:
        """Checks that a finished cell can be read."""
        ...

    def load_row(self, cell: Cell) -> dict[str, Any]:
        """Returns a finished cell's row."""
        ...

    def load_pictures(self, cell: Cell) -> dict[str, Tensor]:
        """Returns a finished cell's pictures and curves by name."""
        ...

    def save_checkpoint(self, cell: Cell, checkpoint: Checkpoint) -> None:
        """Stores where an unfinished cell is."""
        ...

    def load_checkpoint(self, cell: Cell) -> Checkpoint | None:
        """Returns where an unfinished cell was stopped; None where it has not begun."""
        ...

    def save_cell(
        self,
        cell: Cell,
        row: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        header: Mapping[str, Any],
    ) -> None:
        """Stores a finished cell and drops its checkpoint."""
        ...

    def write_audit(self, audit: Mapping[str, Any]) -> None:
        """Stores the whole audit."""
        ...


def stored_row(cell: Cell, row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a finished cell's row with the place of its pictures in the run folder."""
    return {**row, "status": "finished", "files": f"cells/{cell.slug}.safetensors"}


class RunStore:
    """The files of one audit.

    Args:
        folder: the run folder; :meth:`claim` makes it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    def claim(self, identity: Mapping[str, Any]) -> None:
        """Makes the folder this audit's, or checks that it is this audit's already.

        Args:
            identity: ``settings``, ``versions`` and ``inputs`` (fingerprints of images, network
                and prior): whatever the results depend on.

        Raises:
            StorageError: the folder cannot be written to.
            ConfigError: it holds another audit; every difference is named.
        """
        ensure_writable_folder(self.folder)
        path = self.folder / "config.json"
        if not path.exists():
            strange = [name for name in ("audit.json", "cells") if (self.folder / name).exists()]
            if strange:
                raise ConfigError(
                    f"expected a new folder or one of an audit at {self.folder}, got "
                    f"{' and '.join(strange)} without config.json; choose another --out"
                )
            write_json(path, {"schema": SCHEMA, **identity})
            return
        differences = _differences(read_json(path), identity)
        if differences:
            raise ConfigError(
                f"expected the settings that the audit in {self.folder} began with, got "
                f"{'; '.join(differences)}; use the same settings or another --out"
            )

    def json_path(self, cell: Cell) -> Path:
        """Returns where a finished cell's row lies."""
        return self.folder / "cells" / f"{cell.slug}.json"

    def tensors_path(self, cell: Cell) -> Path:
        """Returns where a finished cell's pictures lie."""
        return self.folder / "cells" / f"{cell.slug}.safetensors"

    def checkpoint_path(self, cell: Cell) -> Path:
        """Returns where an unfinished cell's state lies."""
        return self.folder / "checkpoints" / f"{cell.slug}.safetensors"

    def save_checkpoint(self, cell: Cell, checkpoint: Checkpoint) -> None:
        """Stores where an unfinished cell is.

        Raises:
            StorageError: the folder cannot be written to, or the disk is full.
        """
        checkpoint.save(self.checkpoint_path(cell))

    def load_checkpoint(self, cell: Cell) -> Checkpoint | None:
        """Returns where an unfinished cell was stopped; None where it has not begun.

        Raises:
            StorageError: the file is no checkpoint; it says which one to delete.
        """
        path = self.checkpoint_path(cell)
        return Checkpoint.load(path) if path.exists() else None

    def is_finished(self, cell: Cell) -> bool:
        """Whether the cell need not be computed again."""
        return self.json_path(cell).is_file() and self.tensors_path(cell).is_file()

    def save_cell(
        self,
        cell: Cell,
        row: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        header: Mapping[str, Any],
    ) -> None:
        """Stores a finished cell and drops its checkpoint.

        The row comes last: a cell with a row is whole.

        Raises:
            StorageError: the folder cannot be written to, or the disk is full.
        """
        save_tensors(self.tensors_path(cell), tensors, {"kind": "cell", "schema": SCHEMA, **header})
        write_json(self.json_path(cell), stored_row(cell, row))
        self.checkpoint_path(cell).unlink(missing_ok=True)

    def load_row(self, cell: Cell) -> dict[str, Any]:
        """Returns a finished cell's row.

        Raises:
            StorageError: the file is missing, no JSON, or the row of another cell.
        """
        path = self.json_path(cell)
        try:
            row = read_json(path)
        except StorageError as error:
            raise StorageError(
                f"expected the row of {cell.slug} in {path}, got no JSON ({error.__cause__}); "
                f"{self._mend(cell)}"
            ) from error
        found = (
            tuple(row.get(key) for key in ("attack", "defense", "batch"))
            if isinstance(row, dict)
            else row
        )
        if found != (cell.attack, cell.defense, cell.batch):
            raise StorageError(
                f"expected the row of {cell.slug} in {path}, got {found}; {self._mend(cell)}"
            )
        if not isinstance(row.get("images"), list):
            raise StorageError(
                f"expected the row of {cell.slug} in {path}, got one without images; "
                f"{self._mend(cell)}"
            )
        return row

    def load_pictures(self, cell: Cell) -> dict[str, Tensor]:
        """Returns a finished cell's pictures and curves by name.

        Raises:
            StorageError: they cannot be read; the files to delete are named.
        """
        what, mend = "the pictures of a cell", self._mend(cell)
        return load_tensors(self.tensors_path(cell), what=what, mend=mend)[0]

    def require_whole(self, cell: Cell) -> None:
        """Checks that a finished cell can be read, before hours are spent on the others.

        Raises:
            StorageError: it cannot; the files to delete are named.
        """
        self.load_row(cell)
        path, mend = self.tensors_path(cell), self._mend(cell)
        _, header = load_tensors(path, what="the pictures of a cell", mend=mend)
        if (header.get("kind"), header.get("schema")) != ("cell", SCHEMA):
            raise StorageError(
                f"expected the pictures of {cell.slug} in {path}, got kind "
                f"{header.get('kind')!r}, schema {header.get('schema')!r}; {mend}"
            )

    def _mend(self, cell: Cell) -> str:
        return (
            f"delete {self.json_path(cell)} and {self.tensors_path(cell)} and run the same "
            "audit again: it attacks that batch again and no other"
        )

    def write_audit(self, audit: Mapping[str, Any]) -> None:
        """Writes ``audit.json``.

        Raises:
            StorageError: the folder cannot be written to, or the disk is full.
        """
        write_json(self.folder / "audit.json", audit)
        checkpoints = self.folder / "checkpoints"
        if checkpoints.is_dir() and not any(checkpoints.iterdir()):
            checkpoints.rmdir()


def _differences(stored: Any, identity: Mapping[str, Any]) -> list[str]:
    """Returns one phrase for each thing that decides the results and is not the same."""
    if not isinstance(stored, dict) or stored.get("schema") != SCHEMA:
        return [f"a config.json that is not one of schema {SCHEMA}"]
    before, now = stored.get("inputs", {}), identity["inputs"]
    # A file may be named by another path, as long as its content is the same.
    same = [
        setting
        for setting, name in _CONTENT.items()
        if name in before and name in now and before[name] == now[name]
    ]
    for part, words in _PARTS:
        old, new = stored.get(part, {}), identity[part]
        found = [
            words(key, new.get(key), old.get(key))
            for key in (*new, *(key for key in old if key not in new))
            if key not in NOT_IDENTITY and key not in same and new.get(key) != old.get(key)
        ]
        if found:
            # Other settings make other inputs: the first part that differs says why.
            return found
    return []


def _setting_words(key: str, new: Any, old: Any) -> str:
    return f"{option(key)} {_shown(new)} instead of {_shown(old)}"


def _version_words(key: str, new: Any, old: Any) -> str:
    return f"version {_shown(new)} of {key} instead of {_shown(old)}"


def _input_words(key: str, new: Any, old: Any) -> str:
    return f"other {key} (fingerprint {_shown(new)} instead of {_shown(old)})"


# Settings that are paths, and the input whose fingerprint is that of the content.
_CONTENT = {"update": "update", "weights": "model", "prior": "prior"}

_PARTS = (
    ("settings", _setting_words),
    ("versions", _version_words),
    ("inputs", _input_words),
)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(str(item) for item in value)
    return "none" if value is None else str(value)
