"""The tasks that a prior is learned from: S = {(theta_i, g_i)}, a folder of updates and weights.

Updates are read from disk when they are visited, so that a folder may be larger than the memory.
"""

import copy
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from gradinv.attacks.evidence.labels import recover_labels
from gradinv.attacks.simulation import as_attacked
from gradinv.errors import AttackError, GradinvError, ModelError, ObservationError, StorageError
from gradinv.federated.observation import Observation, check_fits
from gradinv.files import load_tensors
from gradinv.models.batchnorm import Mode
from gradinv.models.factory import build_model
from gradinv.models.footprint import require_fits
from gradinv.models.normalize import normalization_of
from gradinv.models.outside import normalized_outside
from gradinv.models.weights import fingerprint, load_weights

_LISTED = 5  # broken files that an error names


# Mean and std of each channel.
Normalization = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True)
class Network:
    """Where the weights of some updates come from.

    Attributes:
        spec: the architecture, by name or as ``package.module:factory``.
        num_classes: number of logits.
        image_shape: (channel, height, width).
        mode: that the clients computed in.
        seed: of the random weights, where there is no file.
        weights: the file.
        normalization: mean and std of clients that normalise outside the network.
        module: the network itself, where a caller holds it; it then takes the place of ``spec``
            and ``seed``.
    """

    spec: str
    num_classes: int
    image_shape: tuple[int, int, int]
    mode: Mode
    seed: int
    weights: Path | None = None
    normalization: Normalization | None = None
    module: nn.Module | None = field(default=None, repr=False)

    def build(self) -> nn.Module:
        """Returns the network in the clients' mode.

        Raises:
            ModelError: it cannot be built, or the weights do not fit.
            StorageError: the weights cannot be read.
        """
        model = self._bare()
        if self.weights is not None:
            # Whatever was taken off its names, the fingerprint says whether these are the ones.
            load_weights(model, self.weights)
        # A network that a caller holds may do so already.
        if self.normalization is not None and normalization_of(model) is None:
            model = normalized_outside(model, *self.normalization)
        return model.train(self.mode == "train")

    def _bare(self) -> nn.Module:
        if self.module is not None:
            return copy.deepcopy(self.module)
        channels, _, image_size = self.image_shape
        return build_model(
            self.spec,
            num_classes=self.num_classes,
            channels=channels,
            image_size=image_size,
            seed=self.seed,
        )


@dataclass(frozen=True)
class Task:
    """One update and the network that it was made with.

    Attributes:
        name: the file's path in the folder.
        path: the file.
        batch_size: images behind the update.
        network: its number among the networks of the set.
    """

    name: str
    path: Path
    batch_size: int
    network: int

    def observation(self, model: nn.Module) -> Observation:
        """Returns the update as it is attacked, with labels read from it if they are hidden.

        Raises:
            GradinvError: the file changed since it was checked.
        """
        observation = Observation.load(self.path)
        if observation.labels is None:
            observation = replace(observation, labels=recover_labels(observation, model).labels)
        digest = hashlib.sha256(self.name.encode()).digest()
        source = torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))
        return as_attacked(observation, "simulate", source)


@dataclass(frozen=True)
class TaskSet:
    """The updates of a folder that can be learned from.

    Attributes:
        name: of the folder.
        tasks: in the order of their names.
        networks: those of all rounds.
        image_shape: (channel, height, width) of every image.
        broken: one sentence for each file that was left out.
        digest: tells these tasks from others.
    """

    name: str
    tasks: tuple[Task, ...]
    networks: tuple[Network, ...]
    image_shape: tuple[int, int, int]
    broken: tuple[str, ...]
    digest: str

    @property
    def images(self) -> int:
        """Number of images behind all updates."""
        return sum(task.batch_size for task in self.tasks)

    def offsets(self) -> list[int]:
        """Returns where each task's images begin when all are put in one row."""
        starts, total = [], 0
        for task in self.tasks:
            starts.append(total)
            total += task.batch_size
        return starts


def open_tasks(
    folder: Path,
    *,
    model: str | nn.Module | None = None,
    image_shape: tuple[int, int, int] | None = None,
    rounds: int | None = None,
    callback: Callable[[], None] | None = None,
) -> TaskSet:
    """Finds the updates of a folder and the weights that each was made with.

    Every ``*.safetensors`` below the folder is an update (as ``gradinv observe`` or a simulation
    writes it) or a network's weights. An update's weights are found by their fingerprint: among
    those files, or drawn from the seed that the update states. What is broken, has no weights, or
    shows images of another shape is left out and named; it does not stop the others.

    Args:
        folder: where to look.
        model: the architecture by its spec, or a network of it with weights that some updates may
            have been made with; what each update says by default.
        image_shape: of the images to learn; that of the most updates by default.
        rounds: take the updates of that many first rounds alone, as a server has them that watched
            no longer; all by default. A simulation notes in each update which round it is of.
        callback: called before every file that is read; what it raises is passed on.

    Raises:
        ObservationError: not a single update can be used.
    """
    folder = Path(folder)
    broken: list[str] = []
    shapes: dict[Path, tuple[int, int, int]] = {}
    weights: list[Path] = []
    heard = callback or (lambda: None)
    for path in sorted(folder.rglob("*.safetensors")):
        heard()
        try:
            if _holds_weights(path):
                weights.append(path)
            else:
                shapes[path] = Observation.load(path).image_shape
        except GradinvError as error:
            broken.append(str(error))
    counted = list(shapes.values())
    shape = image_shape or max(counted, key=counted.count, default=None)
    networks = _Networks(weights, model)
    tasks: list[Task] = []
    digest = hashlib.sha256()
    # Read a second time: all updates of a folder need not fit in the memory together.
    for path in shapes:
        name = path.relative_to(folder).as_posix()
        heard()
        try:
            observation = Observation.load(path)
            if rounds is not None and _round_of(observation) >= rounds:
                continue
            number = _usable(observation, shape, networks)
        except GradinvError as error:
            broken.append(f"{name}: {error}")
            continue
        tasks.append(Task(name, path, observation.batch_size, number))
        digest.update(f"{name} {observation.model['fingerprint']}\n".encode())
        for value in observation.gradient.values():
            digest.update(value.contiguous().numpy().tobytes())
    if not tasks or shape is None:
        listed = "; ".join(broken[:_LISTED]) or "no safetensors there"
        raise ObservationError(
            f"expected updates of clients in {folder}, got none that can be used ({listed}); "
            "make some with 'gradinv observe', or simulate a federation with --simulate"
        )
    used = sorted({task.network for task in tasks})
    return TaskSet(
        folder.resolve().name,
        tuple(replace(task, network=used.index(task.network)) for task in tasks),
        tuple(networks.known[number] for number in used),
        shape,
        tuple(broken),
        digest.hexdigest()[:16],
    )


def _holds_weights(path: Path) -> bool:
    _, header = load_tensors(path, what="an update or weights", foreign=True)
    return header.get("kind", "weights") == "weights"


def _round_of(observation: Observation) -> int:
    number = observation.model.get("round", "")
    if not number.isdigit():
        raise ObservationError(
            "expected an update that says which round it is of, got none; learn from all rounds"
        )
    return int(number)


def _usable(
    observation: Observation, shape: tuple[int, int, int] | None, networks: "_Networks"
) -> int:
    """Returns the number of an update's network.

    Raises:
        GradinvError: it cannot be learned from.
    """
    if observation.image_shape != shape:
        raise ObservationError(
            f"expected an update of images {shape} like the others, got {observation.image_shape}; "
            "learn from it in a folder of its own"
        )
    number = networks.find(observation)
    model = networks.models[number]
    check_fits(observation, model)
    require_fits(
        model,
        (observation.batch_size, *observation.image_shape),
        lower="batch_size or image_shape: is the update's header right?",
        error=ObservationError,
    )
    if observation.labels is None:
        recover_labels(observation, model)
    return number


def _normalization_of(observation: Observation) -> Normalization | None:
    """Returns mean and std of a client that normalised its images outside its network."""
    if "mean" not in observation.model:
        return None
    texts = observation.model["mean"], observation.model.get("std", "")
    try:
        mean, std = (tuple(float(word) for word in text.split(",")) for text in texts)
    except ValueError as error:
        raise ObservationError(
            f"expected mean and std in the update as numbers between commas, got {texts[0]!r} and "
            f"{texts[1]!r}; observe it again"
        ) from error
    if len(mean) != observation.image_shape[0]:
        raise ObservationError(
            f"expected a mean for each of {observation.image_shape[0]} channels in the update, "
            f"got {len(mean)}; observe it again"
        )
    return mean, std


class _Networks:
    """The networks that updates were made with, found by fingerprint."""

    def __init__(self, weights: Sequence[Path], spec: str | nn.Module | None) -> None:
        self.weights = weights
        self.spec = spec
        self.known: list[Network] = []
        self.models: list[nn.Module] = []
        self.numbers: dict[tuple[str, Mode, Normalization | None], int] = {}
        self.tried: set[Network] = set()

    def find(self, observation: Observation) -> int:
        """Returns the number of the network that an update was made with."""
        theirs = observation.model.get("fingerprint")
        spec = self.spec or observation.model.get("spec")
        if theirs is None or spec is None:
            raise ObservationError(
                "expected an update that says which network and weights it was made with, got "
                "none of that; make it with 'gradinv observe', and name the network with --model"
            )
        key = theirs, observation.protocol.mode, _normalization_of(observation)
        if key not in self.numbers:
            self._try(spec, observation)
        if key not in self.numbers:
            raise AttackError(
                f"expected the weights ({theirs}) that the update was made with in the folder, "
                "got others; put them there (gradinv observe --save-weights)"
            )
        return self.numbers[key]

    def _try(self, spec: str | nn.Module, observation: Observation) -> None:
        seed = observation.model.get("seed", "0")
        module = None if isinstance(spec, str) else spec
        own = Network(
            spec if isinstance(spec, str) else type(spec).__qualname__,
            observation.num_classes,
            observation.image_shape,
            observation.protocol.mode,
            int(seed) if seed.isdigit() else 0,
            normalization=_normalization_of(observation),
            module=module,
        )
        for path in (None, *self.weights):
            network = replace(own, weights=path)
            if network in self.tried:
                continue
            self.tried.add(network)
            try:
                model = network.build()
            except (ModelError, StorageError):
                if path is None:
                    raise
                continue  # the weights of another architecture
            key = fingerprint(model), network.mode, network.normalization
            if key in self.numbers:
                continue  # a file of weights that the seed draws too
            self.numbers[key] = len(self.known)
            self.known.append(network)
            self.models.append(model)
