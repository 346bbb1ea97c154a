"""An audit in memory: the same cells as in a run folder, and nothing on disk unless asked for."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from gradinv.attacks import Checkpoint
from gradinv.audit.plan import Cell
from gradinv.audit.store import RunStore, stored_row


class MemoryStore:
    """An audit that is written nowhere, unless asked for.

    Attributes:
        identity: what the results depend on, once claimed.
        rows: of the finished cells.
        pictures: tensors and header of each finished cell, as its file would hold them.
        audit: the content of ``audit.json``, once all cells are finished.
    """

    folder: Path | None = None

    def __init__(self) -> None:
        self.identity: dict[str, Any] = {}
        self.rows: dict[Cell, dict[str, Any]] = {}
        self.pictures: dict[Cell, tuple[dict[str, Tensor], dict[str, Any]]] = {}
        self.audit: dict[str, Any] = {}

    def claim(self, identity: Mapping[str, Any]) -> None:
        """Takes note of the identity."""
        self.identity = dict(identity)

    def is_finished(self, cell: Cell) -> bool:
        """Whether the cell need not be computed again."""
        return cell in self.rows

    def require_whole(self, cell: Cell) -> None:
        """Nothing can have happened to it."""

    def load_row(self, cell: Cell) -> dict[str, Any]:
        """Returns a finished cell's row."""
        return self.rows[cell]

    def load_pictures(self, cell: Cell) -> dict[str, Tensor]:
        """Returns a finished cell's pictures and curves by name."""
        return self.pictures[cell][0]

    def save_checkpoint(self, cell: Cell, checkpoint: Checkpoint) -> None:
        """Drops it: what is in memory alone ends with the process."""

    def load_checkpoint(self, cell: Cell) -> Checkpoint | None:
        """Returns None: no cell can have been stopped."""
        del cell
        return None

    def save_cell(
        self,
        cell: Cell,
        row: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        header: Mapping[str, Any],
    ) -> None:
        """Keeps a finished cell."""
        self.rows[cell] = stored_row(cell, row)
        self.pictures[cell] = (
            {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()},
            dict(header),
        )

    def write_audit(self, audit: Mapping[str, Any]) -> None:
        """Keeps the whole audit."""
        self.audit = dict(audit)

    def write(self, folder: Path) -> None:
        """Writes a run folder, as an audit with a folder would have.

        Raises:
            StorageError: the folder cannot be written to.
            ConfigError: it holds another audit.
        """
        store = RunStore(folder)
        store.claim(self.identity)
        for cell, row in self.rows.items():
            tensors, header = self.pictures[cell]
            store.save_cell(cell, row, tensors, header)
        store.write_audit(self.audit)
