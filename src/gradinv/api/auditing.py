"""``gradinv.audit``: an audit of a model and images that are in memory."""

import html
import io
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from rich.console import Console
from torch import Tensor, nn

from gradinv.api.progress import Progress, monitor_of
from gradinv.api.values import (
    Defenses,
    attacks_by_name,
    defenses_by_spec,
    device_of,
    metrics_by_name,
    mode_of,
    name_of,
    prior_of,
)
from gradinv.attacks import Attack
from gradinv.audit.cell import check_runnable
from gradinv.audit.inputs import Inputs
from gradinv.audit.memory import MemoryStore
from gradinv.audit.plan import UNDEFENDED, AuditConfig
from gradinv.audit.protocol import settings_of
from gradinv.audit.runner import one_thread, run_cells
from gradinv.audit.setup import Setup, prepare
from gradinv.audit.store import RunStore
from gradinv.data import ImageSet
from gradinv.data.tensors import of_tensors
from gradinv.errors import ConfigError, DataError
from gradinv.evaluation.evaluate import Metric
from gradinv.evaluation.lpips import lpips_for
from gradinv.federated import Defense, FedSGD, Protocol, Reveal, logits
from gradinv.files import output_folder
from gradinv.models.wrappers import unwrapped_network
from gradinv.priors import Generator
from gradinv.report import render_report, terminal_table, write_report
from gradinv.report.pictures import CellPictures, cell_pictures, load_cells

_WIDTH = 160  # columns of a table that no terminal limits
_FRAME_HEIGHT = 900  # pixels of the report in a notebook


@dataclass(frozen=True)
class DefenseVerdict:
    """What an audit says of one defence, over all that was tried on it.

    Attributes:
        defense: its spec, such as ``sparsify:0.95``.
        level: ``SEVERE``, ``PARTIAL``, ``OPEN`` or ``EXCLUDED``.
        sentence: level, evidence and what to do, in one line.
        attack: the strongest attack, or ``candidates`` where the judge's search showed more.
        n: images that were judged.
        identified: how many of them were identified or named.
        candidates: how many images each was chosen among.
        luck: how many of them luck identifies.
        ceiling: the highest rate at which any server that knows the candidates names an image; None
            where there is no certificate.
        ceiling_interval: of that, 95 %.
        closed_form: the same from the clip alone, for any images.
        epsilon: of differential privacy for ``delta`` and ``rounds``; None where there is none.
        delta: see there.
        rounds: updates that the client sends.
        sigma_needed: the noise that would exclude naming.
        stalled: whether some attack's search stalled before the true images.
    """

    defense: str
    level: str
    sentence: str
    attack: str
    n: int
    identified: int
    candidates: int
    luck: float
    ceiling: float | None
    ceiling_interval: tuple[float, float] | None
    closed_form: float | None
    epsilon: float | None
    delta: float
    rounds: int
    sigma_needed: float | None
    stalled: bool

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> "DefenseVerdict":
        """Returns an entry of ``verdicts`` in ``audit.json``."""
        values = {field.name: entry[field.name] for field in fields(cls)}
        interval = values["ceiling_interval"]
        values["ceiling_interval"] = None if interval is None else tuple(interval)
        return cls(**values)

    def __str__(self) -> str:
        return f"{self.defense}: {self.sentence}"


@dataclass(frozen=True, eq=False)
class AuditResult:
    """What an audit found.

    Attributes:
        audit: the content of ``audit.json``.
        pictures: originals and reconstructions, by the ``files`` of the cells in ``audit``.
        folder: where the run lies; None where nothing was written.
    """

    audit: dict[str, Any] = field(repr=False)
    pictures: Mapping[str, CellPictures] = field(repr=False)
    folder: Path | None = None
    _store: MemoryStore | None = field(default=None, repr=False)

    @property
    def verdicts(self) -> tuple[DefenseVerdict, ...]:
        """One verdict for each defence, the worst first."""
        return tuple(map(DefenseVerdict.of, self.audit["verdicts"]))

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One row for each attack under each defence, as ``pandas.DataFrame`` takes them."""
        return [dict(row) for row in self.audit["summary"]]

    def table(self) -> str:
        """Returns the rows as a table of text, the strongest attack on each defence marked."""
        console = Console(width=_WIDTH, file=io.StringIO(), record=True)
        console.print(terminal_table(self.audit))
        lines = console.export_text().splitlines()
        return "\n".join(line.rstrip() for line in lines)

    def report(self) -> str:
        """Returns the report: one page of HTML that loads nothing from anywhere."""
        return render_report(self.audit, self.pictures)

    def save(self, folder: str | Path) -> Path:
        """Writes ``audit.json``, the cells and ``report.html`` into a folder.

        Returns:
            The path of the report.

        Raises:
            ConfigError: there is another audit in the folder.
            StorageError: it cannot be written to.
        """
        folder = Path(folder)
        if self._store is not None:
            self._store.write(folder)
        elif self.folder is not None and folder.resolve() != self.folder.resolve():
            if folder.exists():
                raise ConfigError(
                    f"expected a new folder for a copy of {self.folder}, got {folder}, which is "
                    "there already; name another"
                )
            shutil.copytree(self.folder, folder)
        return write_report(folder)

    def __str__(self) -> str:
        return "\n".join([self.table(), "", *map(str, self.verdicts)])

    def _repr_html_(self) -> str:
        """Returns the report in a frame, for notebooks: its styles then touch nothing outside."""
        page = html.escape(self.report(), quote=True)
        return (
            f'<iframe srcdoc="{page}" style="width: 100%; height: {_FRAME_HEIGHT}px; border: 0" '
            'title="gradinv audit"></iframe>'
        )


def audit(
    model: nn.Module,
    images: Float[Tensor, "image channel height width"],
    labels: Int[Tensor, " image"],
    *,
    batch_size: int = 4,
    batches: int = 2,
    defense: str | Defense | Sequence[Defenses] = "none",
    undefended: bool = False,
    attack: str | Attack | Sequence[str | Attack] = ("gi-x", "standard"),
    prior: Generator | str | Path | None = None,
    protocol: Protocol | None = None,
    reveal: Reveal = Reveal(),  # noqa: B008 -- a frozen value
    classes: Iterable[str] | None = None,
    lpips: str | Path | None = None,
    metrics: Mapping[str, Metric] | Sequence[str] | str = (),
    candidates: int = 64,
    rounds: int = 1,
    steps_scale: float | int = 1.0,
    restarts: int | None = None,
    seconds: float | int | None = None,
    seed: int = 0,
    title: str | None = None,
    owner: str | None = None,
    workers: int = 1,
    out: str | Path | None = None,
    progress: Progress = None,
) -> AuditResult:
    """Audits a set-up: how much of the client's images can a server rebuild from its updates?

    Client batches are drawn from the images, their updates are made and attacked, and what was
    rebuilt is compared with the originals and, as a control, with other images of the same label.
    With the same settings the figures are those of ``gradinv audit``, to the bit on one machine:
    everything is computed by one thread. This audits data that its user holds.

    >>> import gradinv, torch
    >>> images = torch.rand(12, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    >>> labels = torch.arange(12) % 3
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 3)).eval()
    >>> result = gradinv.audit(model, images, labels, batch_size=1, attack="gi-x:steps=20")
    >>> [verdict.defense for verdict in result.verdicts]
    ['none']

    Args:
        model: the network that the server sent, in the mode that the client uses and on the device
            to compute on; it maps images to logits and is not changed.
        images: the client's images in [0, 1]; 1 channel (grey) or 3 (RGB).
        labels: their classes, from 0.
        batch_size: images behind one update; with :class:`~gradinv.federated.FedAvg`, the client's
            whole data.
        batches: client batches to attack; intervals need 2 or more.
        defense: what the client does to its update, one setting or several to compare: a spec
            such as ``clip:1+noise:0.01``, a value, or a tuple of values as a chain.
        undefended: attack the undefended update too, with the first attack and candidate search, so
            that one sees what the defences are worth.
        attack: one or several, by name (``gi-z/w``, ``gi-x:tv=0.03``) or as values.
        prior: the server's generator, or the folder that it lies in.
        protocol: what the client computes; the gradient of one batch by default. Its mode is
            taken from the model.
        reveal: what the server knows beside the update.
        classes: their names, for the report; numbers by default.
        lpips: SqueezeNet 1.1 weights (npz) for LPIPS; those of the package by default.
        metrics: further ones, by spec (``package.module:function``) or as name -> function. Each
            maps reconstructions and originals in [0, 1], both (image, channel, height, width), to
            one number for each image; they stand under ``others`` in the rows.
        candidates: images that the judge's candidate search chooses among for each image, itself
            included.
        rounds: updates on the same images at these weights, for certificates and epsilon.
        steps_scale: multiplies the steps of every attack.
        restarts: starts of each attack; its own number by default.
        seconds: wall-clock limit of one attack on one batch.
        seed: of batches, noise and starts.
        title: what the report is called.
        owner: who ran the audit and answers for it, for the report.
        workers: processes; more than one needs ``out``.
        out: folder to write the run into as it goes. The same call continues what was stopped.
            Nothing is written by default.
        progress: False for none, or a function that is called with the fraction done, 0 to 1, and
            a line of text; a bar in terminals and notebooks by default.

    Raises:
        AuditStopped: by Ctrl-C (a KeyboardInterrupt).
        GradinvError: settings or inputs that do not fit together, another audit in the folder.
    """
    attacks, defenses = attacks_by_name(attack), defenses_by_spec(defense)
    measures = metrics_by_name(metrics)
    model = unwrapped_network(model)
    device = device_of(model)
    image_set = _image_set(model, images, labels, batch_size, classes)
    config = AuditConfig.from_mapping({
        "model": type(model).__qualname__,
        "mode": mode_of(model),
        "image_size": min(image_set.image_shape[1:]),
        "batch_size": batch_size,
        "batches": batches,
        "attack": tuple(attacks),
        "defense": tuple(defenses),
        "undefended": "yes" if undefended else "no",
        "prior": name_of(prior),
        "lpips_weights": None if lpips is None else str(lpips),
        "metric": tuple(measures),
        "candidates": candidates,
        "rounds": rounds,
        "title": title,
        "owner": owner,
        "steps_scale": steps_scale,
        "restarts": restarts,
        "seconds": seconds,
        "seed": seed,
        "device": device.type,
        "workers": workers,
        **settings_of(protocol or FedSGD(), reveal),
    })  # fmt: skip
    inputs = Inputs(
        attacks=attacks,
        defenses=({UNDEFENDED: ()} if config.undefended == "yes" else {}) | defenses,
        images=image_set,
        model=model,
        prior=prior_of(prior, device),
        lpips=lpips_for(lpips, min(image_set.image_shape[1:])),
        metrics=measures,
    )
    with one_thread():
        setup = prepare(config, inputs)
        found = check_runnable(setup)
    if workers > 1:
        if out is None:
            raise ConfigError(
                f"expected out= with workers={workers}, got none; processes hand over their "
                "results in a folder: name one, or leave workers out"
            )
        _require_sendable(setup)
    with monitor_of(progress) as monitor:
        if out is None:
            store = MemoryStore()
            content = run_cells(setup, store, found=found, monitor=monitor)
            pictures = {
                store.rows[cell]["files"]: cell_pictures(tensors, header)
                for cell, (tensors, header) in store.pictures.items()
                if not cell.is_candidates
            }
            return AuditResult(content, pictures, None, store)
        with output_folder(Path(out)) as folder:
            content = run_cells(
                setup, RunStore(folder), found=found, worker_setup=setup, monitor=monitor
            )
    write_report(folder)
    return AuditResult(content, load_cells(folder, content), folder)


def _image_set(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    batch_size: int,
    classes: Iterable[str] | None,
) -> ImageSet:
    names = None if classes is None else tuple(classes)
    whole = of_tensors(images, labels, classes=names or int(labels.max()) + 1)
    if whole.channels not in {1, 3}:
        raise DataError(
            f"expected images of 1 channel (grey) or 3 (RGB), got {whole.channels}; an audit shows "
            "and compares pictures: choose channels that make one"
        )
    if names is not None:
        return whole
    with torch.no_grad(), torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        outputs = logits(model, whole.pixels[: max(1, batch_size)].to(device_of(model))).shape[-1]
    return of_tensors(images, labels, classes=max(outputs, whole.num_classes))


def _require_sendable(setup: Setup) -> None:
    """Checks that worker processes can be handed the audit.

    Raises:
        ConfigError: something in it was defined where no other process can import it.
    """
    try:
        ForkingPickler.dumps(setup)
    except Exception as error:  # every class says no in its own way
        raise ConfigError(
            "expected a model and attacks that worker processes can import, got "
            f"{type(error).__name__}: {error}; define them in a module, or leave workers out"
        ) from error
