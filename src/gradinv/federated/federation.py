"""A federation in small: clients send updates, the network really trains between the rounds.

The client's side of learning a prior from updates. What ends in the folder is what a server sees:
observations and the weights that it sent out, no images.
"""

import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gradinv.data import ClientBatch, ImageSet, fingerprint_batches
from gradinv.data.check import require_sound
from gradinv.errors import ConfigError, StorageError
from gradinv.federated.defense import Defense
from gradinv.federated.defenses import format_defenses
from gradinv.federated.observing import observe
from gradinv.federated.protocol import FedAvg, FedSGD, Protocol, Reveal, written
from gradinv.files import read_json, write_json
from gradinv.models.weights import fingerprint, save_weights
from gradinv.seeds import require_seed

RECORD = "federation.json"
_CONTENT = "content of the images"


@dataclass(frozen=True)
class Federation:
    """How many clients, for how long, and how the server trains.

    Attributes:
        clients: each with images of its own.
        rounds: in each of which every client sends one update, of images that it has not used yet.
        batch_size: images behind one update.
        lr: step size of the server on the mean of the updates of FedSGD. With FedAvg the mean of
            the clients' weights is taken, and this is not used.
        seed: of the batches and of the defences' noise.

    Raises:
        ConfigError: a value that has no meaning.
    """

    clients: int = 20
    rounds: int = 4
    batch_size: int = 4
    lr: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("clients", "rounds", "batch_size"):
            value = getattr(self, name)
            if value < 1:
                raise ConfigError(f"expected {name} of at least 1, got {value}; raise it")
        require_seed(self.seed)
        if not 0 < self.lr < float("inf"):
            raise ConfigError(f"expected a server's lr above 0 and finite, got {self.lr}; try 0.1")

    def drawn(self, images: ImageSet) -> tuple[int, ...]:
        """Returns the indices of all images that the clients hold, without decoding any.

        Raises:
            DataError: the set has too few images.
        """
        count = self.clients * self.rounds
        drawn = images.draw(batch_size=self.batch_size, count=count, seed=self.seed)
        return tuple(itertools.chain(*drawn))

    def batches(self, images: ImageSet) -> tuple[tuple[ClientBatch, ...], ...]:
        """Returns the batches of every round, one for each client; no image is used twice.

        Raises:
            DataError: the set has too few images.
        """
        drawn = images.batches(
            batch_size=self.batch_size, count=self.clients * self.rounds, seed=self.seed
        )
        return tuple(drawn[number :: self.rounds] for number in range(self.rounds))


def simulate(
    model: nn.Module,
    images: ImageSet,
    federation: Federation,
    folder: Path,
    *,
    protocol: Protocol = FedSGD(),  # noqa: B008 -- a frozen value
    defenses: Sequence[Defense] = (),
    reveal: Reveal = Reveal(),  # noqa: B008 -- a frozen value
    model_info: Mapping[str, str] | None = None,
    callback: Callable[[int, int], None] | None = None,
) -> int:
    """Runs a federation and records every update, with the weights of every round.

    Between rounds theta <- theta - lr mean_k g_k over the clients' updates as they were sent,
    defences included (McMahan et al. 2017, Algorithm 1, with equal numbers of images). Running
    statistics of batch norm stay as they were.

    Args:
        model: theta of the first round, in the protocol's mode; trained in place.
        images: the data of all clients.
        federation: its size and the server's step.
        folder: gets ``federation.json``, which says "unfinished" until all is done, and
            ``round0-client000.safetensors`` ... and ``round0-weights.safetensors`` .... A finished
            federation is left as it is; one that was stopped begins again and writes the same
            files.
        protocol: what a client computes.
        defenses: what a client does to its update.
        reveal: what the server knows beside it.
        model_info: free text about the network, kept in the updates.
        callback: called after every update with the number done and of all.

    Returns:
        The number of updates.

    Raises:
        ConfigError: the folder holds another federation, finished or not, or files of none.
        DataError: too few images, or broken ones, all of which are named.
        ObservationError: the training diverged.
    """
    folder = Path(folder)
    require_sound(images, federation.drawn(images))
    rounds = federation.batches(images)
    settings = {
        **_settings(model, images, federation, protocol, defenses, reveal),
        _CONTENT: fingerprint_batches(itertools.chain.from_iterable(rounds)),
    }
    total = federation.clients * federation.rounds
    if _finished(folder, settings):
        return total
    write_json(folder / RECORD, {**settings, "state": "unfinished"})
    source = torch.Generator().manual_seed(_seed(federation.seed))
    device = next(model.parameters()).device
    lr = protocol.lr if isinstance(protocol, FedAvg) else federation.lr
    for number, batches in enumerate(rounds):
        save_weights(model, folder / f"round{number}-weights.safetensors")
        total_update: dict[str, Tensor] = {}
        for client, batch in enumerate(batches):
            observation = observe(
                model,
                batch.to(device),
                protocol=protocol,
                defenses=defenses,
                reveal=reveal,
                generator=source,
                model_info={**(model_info or {}), "round": str(number), "client": str(client)},
            )
            observation.save(folder / f"round{number}-client{client:03d}.safetensors")
            for name, value in observation.gradient.items():
                total_update[name] = value + total_update.get(name, 0)
            if callback is not None:
                callback(number * federation.clients + client + 1, total)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in total_update:
                    parameter.sub_(total_update[name], alpha=lr / federation.clients)
    write_json(folder / RECORD, {**settings, "state": "finished"})
    return total


def _settings(
    model: nn.Module,
    images: ImageSet,
    federation: Federation,
    protocol: Protocol,
    defenses: Sequence[Defense],
    reveal: Reveal,
) -> dict[str, Any]:
    return {
        "schema": 1,
        "data": images.name,
        "images": len(images),
        "image_shape": list(images.image_shape),
        "weights": fingerprint(model),
        "federation": asdict(federation),
        "protocol": {"name": type(protocol).__name__, **written(protocol)},
        "defenses": format_defenses(tuple(defenses)),
        "reveal": asdict(reveal),
    }


def _finished(folder: Path, settings: Mapping[str, Any]) -> bool:
    """Returns whether this federation is in the folder already; nothing of another one may be.

    What another one left would be learned from as if it belonged to this one, and deleting it is
    not for us.
    """
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.safetensors"))
    if not (folder / RECORD).is_file():
        if files:
            raise ConfigError(
                f"expected no updates or weights in {folder} without {RECORD}, got {files[0]}"
                f"{' and others' if files[1:] else ''}; move them, or use another --out"
            )
        return False
    found = read_json(folder / RECORD)
    if not isinstance(found, dict):
        raise StorageError(
            f"expected the settings of a federation in {folder / RECORD}, got "
            f"{type(found).__name__}; move the folder, or use another --out"
        )
    # Records from before there were a state and a digest were written at the end.
    found = {"state": "finished", _CONTENT: settings[_CONTENT], **found}
    finished = found["state"] == "finished"
    differing = [name for name in settings if found.get(name) != settings[name]]
    # Other settings draw other images: they say why.
    differing = [name for name in differing if name != _CONTENT] or differing
    # Nothing but weights lies there when it failed before its first update.
    if differing and (finished or any("-weights." not in name for name in files)):
        raise ConfigError(
            f"expected the federation that was simulated in {folder}, got another "
            f"{', '.join(differing)}; use the same settings or another --out"
        )
    return finished


def _seed(seed: int) -> int:
    """Returns the seed of the clients' chance, which no server's seed is equal to."""
    return int.from_bytes(hashlib.sha256(f"{seed}/federation".encode()).digest()[:4], "big")
