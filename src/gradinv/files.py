"""Reading and writing so that nothing is ever half-written: a temporary file, then a rename.

Tensors are stored as safetensors with everything else as JSON in its header. Pickles are refused
everywhere: loading one runs code.
"""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradinv.errors import StorageError

if TYPE_CHECKING:
    from torch import Tensor

HEADER_KEY = "gradinv"
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def write_bytes(path: Path, content: bytes) -> None:
    """Writes ``content`` to ``path`` whole or not at all.

    Raises:
        StorageError: the folder cannot be made or written to, or the disk is full.
    """
    path = Path(path)
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"
        )
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException as error:
        # Ctrl-C too: a checkpoint takes long to write, and none may leave a file that nobody reads.
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        raise StorageError(
            f"expected to write {path}, got '{error.strerror or error}'; "
            "choose a folder that is writable and has room"
        ) from error


def write_text(path: Path, content: str) -> None:
    """Writes UTF-8 text whole or not at all; see :func:`write_bytes`."""
    write_bytes(path, content.encode())


def write_json(path: Path, content: Any) -> None:
    """Writes indented JSON whole or not at all; see :func:`write_bytes`."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        StorageError: the file is missing, unreadable or not JSON.
    """
    try:
        return json.loads(Path(path).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise StorageError(
            f"expected a JSON file at {path}, got '{error}'; check the path"
        ) from error
    except RecursionError as error:
        raise StorageError(
            f"expected a JSON file at {path}, got one of far too many nested brackets; "
            "make it again"
        ) from error


def ensure_writable_folder(path: Path) -> Path:
    """Makes the folder if needed and proves that a file can be written there.

    Called before hours of work, so that the answer has a place to go.

    Raises:
        StorageError: it is a file, or cannot be made or written to.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise StorageError(
            f"expected a writable folder at {path}, got '{error.strerror or error}'; choose another"
        ) from error
    return path


@contextmanager
def output_folder(path: Path) -> Iterator[Path]:
    """Makes a writable folder, and takes it away again if what follows fails before it wrote there.

    Raises:
        StorageError: it is a file, or cannot be made or written to.
    """
    path = Path(path)
    existed = path.exists()
    folder = ensure_writable_folder(path)
    try:
        yield folder
    except BaseException:
        if not existed:
            with suppress(OSError):  # not empty: what is there may be gone on from
                folder.rmdir()
        raise


def save_tensors(path: Path, tensors: Mapping[str, "Tensor"], header: Mapping[str, Any]) -> None:
    """Saves tensors by name, with ``header`` (anything JSON holds) beside them.

    Raises:
        StorageError: the file cannot be written.
    """
    from safetensors.torch import save

    content = save(
        {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()},
        metadata={HEADER_KEY: json.dumps(header)},
    )
    write_bytes(Path(path), content)


@contextmanager
def _in_utf8(path: Path) -> Iterator[Path]:
    """Gives a path that safetensors opens: it refuses names whose bytes are no UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        with tempfile.TemporaryDirectory() as folder:
            link = Path(folder) / "link"
            link.symlink_to(path.absolute())
            yield link
    else:
        yield path


def load_tensors(
    path: Path, *, what: str, foreign: bool = False, mend: str = "make it again"
) -> tuple[dict[str, "Tensor"], dict[str, Any]]:
    """Loads what :func:`save_tensors` wrote, into memory that is the tensors' own.

    Args:
        path: the file.
        what: what the file should be, for the error ("an update", "a prior").
        foreign: take safetensors of other programs too; their header is empty.
        mend: what to do about a broken file, for the error.

    Raises:
        StorageError: missing, a pickle, truncated, or safetensors that some other program wrote.
    """
    from safetensors import SafetensorError, safe_open

    from gradinv.memory import copied

    path = Path(path)
    expected = f"expected {what} as a safetensors file at {path}"
    if not path.is_file():
        got = "a folder" if path.is_dir() else "nothing there"
        raise StorageError(f"{expected}, got {got}; check the path")
    try:
        with path.open("rb") as file:
            start = file.read(16)
        # A header of 640 bytes begins as a pickle does; the header itself begins with a brace.
        if start.startswith(_PICKLE_STARTS) and start[8:9] != b"{":
            raise StorageError(
                f"{expected}, got a pickle; gradinv never unpickles, because that runs the file's "
                "code: load it where you trust it and save it with safetensors"
            )
        with _in_utf8(path) as printable, safe_open(printable, framework="pt") as file:
            metadata = file.metadata() or {}
            # What comes out are views of the mapped file, wherever they lie in it.
            tensors = {name: copied(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"{expected}, got a truncated or foreign file ({error}); {mend}"
        ) from error
    if HEADER_KEY not in metadata:
        if foreign:
            return tensors, {}
        raise StorageError(
            f"{expected}, got safetensors without gradinv's header; make it with gradinv"
        )
    try:
        header = json.loads(metadata[HEADER_KEY])
    except ValueError as error:
        raise StorageError(
            f"{expected}, got a header that is not JSON ({error}); {mend}"
        ) from error
    except RecursionError as error:
        raise StorageError(
            f"{expected}, got a header of far too many nested brackets; {mend}"
        ) from error
    if not isinstance(header, dict):
        raise StorageError(
            f"{expected}, got a header that is no JSON object but {type(header).__name__}; {mend}"
        )
    return tensors, header
