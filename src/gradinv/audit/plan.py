"""What an audit is to do: its settings, and the cells that they unfold into.

No torch in here: the command line makes its help from `AuditConfig` in well under a second.
"""

import dataclasses
import hashlib
import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import pydantic
from tyro.conf import arg

from gradinv.errors import ConfigError
from gradinv.seeds import require_seed

DEFAULT_ATTACKS = ("gi-x", "gi-z/w", "standard")
DEFAULT_DEFENSES = ("sparsify:0.95",)

UNDEFENDED = "none"

CANDIDATES = "candidates"
"""What a cell of candidate search has in an attack's place."""

# Settings that say where and how fast, not what: they may differ when an audit is continued. What
# follows from other settings and inputs is not compared beside them.
NOT_IDENTITY = ("out", "workers", "title", "owner", "batch_norm_layers", "budget")


def _hint(default: str, metavar: str) -> Any:
    """Returns how the command line shows a setting whose default is worked out later."""
    return arg(metavar=metavar, help_behavior_hint=f"(default: {default})")


@pydantic.dataclasses.dataclass(frozen=True, config=pydantic.ConfigDict(extra="forbid"))
class AuditConfig:
    """The set-up under audit, and the attacks to try on it.

    Raises:
        ConfigError: a value that has no meaning, or an option of FedAvg without FedAvg.
    """

    data: Annotated[str | None, _hint("160 embedded Fashion-MNIST test images", "PATH")] = None
    """The client's images: a folder of class folders, or an IDX image file."""
    image_size: int = 32
    """Side of the images in pixels; larger ones are shrunk and centre-cropped."""
    channels: Annotated[int | None, _hint("3 for a folder, 1 for IDX", "{1,3}")] = None
    """Colour channels."""
    classes: Annotated[str | None, _hint("the images' own", "N|FILE|A,B,...")] = None
    """The network's classes, where it has more: their number, or all names in its order."""
    model: str = "convnet"
    """Network: convnet, lenet, leakynet, resnet18, resnet18-imagenet, package.module:factory."""
    weights: Annotated[str | None, _hint("random, from --seed", "FILE")] = None
    """Weights of the network, safetensors."""
    mean: Annotated[str | None, _hint("the network takes images in [0, 1]", "M,M,M")] = None
    """What the client subtracts from its images before the network, one for each channel."""
    std: Annotated[str | None, _hint("with --mean", "S,S,S")] = None
    """What the client divides its images by then, one for each channel."""
    batch_size: int = 4
    """Images in one client batch; with fedavg, the client's whole local data set."""
    batches: int = 2
    """Client batches to attack; each is a round of its own. Intervals need 2 or more."""
    mode: Literal["eval", "train"] = "eval"
    """Mode of batch-norm while the client computes its update; eval is the worst case."""
    protocol: Literal["fedsgd", "fedavg"] = "fedsgd"
    """What a client sends: one gradient (fedsgd), or what local training changed (fedavg)."""
    local_epochs: Annotated[int | None, _hint("5 with fedavg", "N")] = None
    """Passes of local training over the client's batch (fedavg)."""
    local_batch_size: Annotated[int | None, _hint("the whole batch", "N")] = None
    """Images in one local step (fedavg); the client shuffles its batch in every epoch."""
    local_lr: Annotated[float | None, _hint("0.01 with fedavg", "LR")] = None
    """Step size of local SGD (fedavg)."""
    local_momentum: Annotated[float | None, _hint("0 with fedavg", "M")] = None
    """Momentum of local SGD (fedavg)."""
    optimizer: Annotated[str, arg(metavar="SPEC")] = "sgd"
    """Optimiser of local training (fedavg): sgd, adam or adamw; sgd:momentum=0.9,nesterov."""
    loss: Annotated[str, arg(metavar="SPEC")] = "cross-entropy"
    """Loss: cross-entropy, bce, cross-entropy:smoothing=0.1,reduction=sum, or module:factory."""
    reveal_order: bool = False
    """The server knows which images made which local step (fedavg): the upper bound."""
    attack: Annotated[tuple[str, ...], _hint("gi-x, gi-z/w and standard; repeatable", "NAME")] = ()
    """An attack, such as gi-x, gi-z, gi-w, gi-z/x or gi-z/w, or package.module:attack."""
    defense: Annotated[tuple[str, ...], _hint("sparsify:0.95; repeatable", "SPEC")] = ()
    """A defence: none, noise:SIGMA, sparsify:FRACTION, clip:NORM, or a chain clip:1+noise:0.01."""
    undefended: Literal["auto", "yes", "no"] = "auto"
    """Attack the undefended update beside, with the first attack; auto: only without --defense."""
    reveal_bn: Literal["none", "running", "exact"] = "none"
    """Batch-norm statistics that the server knows; attacks ending in +bn need running or exact."""
    hide_labels: bool = False
    """Do not tell the server the labels; it reads them from the update (default: it knows them)."""
    prior: Annotated[
        str | None, _hint("the embedded one for the embedded images, none for others", "DIR")
    ] = None
    """The server's generator: a prior's folder, embedded, natural, or package.module:object."""
    candidates: int = 64
    """Images that candidate search chooses among for each image, itself included."""
    rounds: int = 1
    """Updates on the same images at these weights, which certificates and epsilon speak of."""
    steps_scale: float = 1.0
    """Multiplies the steps of every stage of every attack."""
    restarts: Annotated[int | None, _hint("the attack's own", "N")] = None
    """Random starts of each attack; the one with the smallest matching cost is kept."""
    seconds: Annotated[float | None, _hint("none", "S")] = None
    """Wall-clock limit of one attack on one batch in seconds (results then vary with speed)."""
    seed: int = 0
    """Decides batches, random weights, noise and starts."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto takes a CUDA device if there is one."""
    out: Annotated[str | None, _hint("runs/<time>", "DIR")] = None
    """Folder for the results; the same folder again continues an audit that was stopped."""
    lpips_weights: Annotated[str | None, _hint("those of the package", "FILE")] = None
    """Other SqueezeNet 1.1 weights (npz) for LPIPS."""
    metric: Annotated[tuple[str, ...], _hint("none; repeatable", "SPEC")] = ()
    """A further metric of every image: mse, psnr, ssim, lpips-paper or package.module:function."""
    title: Annotated[str | None, _hint("none", "TEXT")] = None
    """What the report is called."""
    owner: Annotated[str | None, _hint("none", "TEXT")] = None
    """Who ran the audit and answers for it, for the report."""
    workers: Annotated[int | None, _hint("one per usable core; one on CUDA", "N")] = None
    """Processes, each with one thread; results do not depend on it."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "attack", self.attack or DEFAULT_ATTACKS)
        beside = self.undefended == "yes" or (self.undefended == "auto" and not self.defense)
        beside = beside and UNDEFENDED not in self.defense
        object.__setattr__(self, "undefended", "yes" if beside else "no")
        object.__setattr__(self, "defense", self.defense or DEFAULT_DEFENSES)
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(
                    f"expected {option(name)} of at least {least}, got {value}; raise it"
                )
        require_seed(self.seed, option("seed"))
        for name in ("steps_scale", "seconds"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise ConfigError(
                    f"expected {option(name)} above 0 and finite, got {value}; choose another"
                )
        if self.channels not in {None, 1, 3}:
            raise ConfigError(
                f"expected --channels 1 (grey) or 3 (RGB), got {self.channels}; choose one of them"
            )
        read_normalization(self.mean, self.std)
        for name in ("attack", "defense", "metric"):
            _require_distinct(name, getattr(self, name))
        if CANDIDATES in self.attack:
            raise ConfigError(
                f"expected an attack by another name than {CANDIDATES}, which is the judge's own "
                "search and part of every audit, got it; leave it out"
            )
        if self.protocol == "fedavg":
            self._fill_in_local_training()
        else:
            self._refuse_local_training()

    def _refuse_local_training(self) -> None:
        given = [option(name) for name in _LOCAL if getattr(self, name) is not None]
        given += ["--optimizer"] if self.optimizer != _CLIENT["optimizer"] else []
        given += ["--reveal-order"] if self.reveal_order else []
        if given:
            raise ConfigError(
                f"expected --protocol fedavg with {', '.join(given)}, got fedsgd; "
                "add --protocol fedavg, or leave them out"
            )

    def _fill_in_local_training(self) -> None:
        for name, default in _LOCAL.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, self.batch_size if default is None else default)
        assert self.local_batch_size is not None
        assert self.local_lr is not None
        assert self.local_momentum is not None
        if self.reveal_order and self.hide_labels:
            raise ConfigError(
                "expected either --reveal-order or --hide-labels, got both; an order says nothing "
                "about images without labels: leave one of them out"
            )
        if self.local_batch_size > self.batch_size:
            raise ConfigError(
                f"expected --local-batch-size of at most --batch-size, got {self.local_batch_size} "
                f"of {self.batch_size}; lower it, or raise --batch-size"
            )
        if not (self.local_lr > 0 and math.isfinite(self.local_lr)):
            raise ConfigError(
                f"expected --local-lr above 0 and finite, got {self.local_lr}; try 0.01"
            )
        if not 0 <= self.local_momentum < 1:
            raise ConfigError(
                f"expected --local-momentum in [0, 1), got {self.local_momentum}; try 0.9"
            )

    @classmethod
    def from_mapping(cls, settings: Mapping[str, Any]) -> "AuditConfig":
        """Builds the config from stored or typed settings.

        Raises:
            ConfigError: an unknown setting or one of another type, all of them listed.
        """
        try:
            return cls(**settings)
        except pydantic.ValidationError as error:
            problems = "; ".join(
                f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}"
                for problem in error.errors()
            )
            raise ConfigError(
                f"expected the settings of an audit, got {problems}; see 'gradinv audit --help'"
            ) from error

    @property
    def defenses(self) -> tuple[str, ...]:
        """All defences whose updates are attacked, the undefended one first where it is beside."""
        return (UNDEFENDED, *self.defense) if self.undefended == "yes" else self.defense

    def attacks_on(self, defense: str) -> tuple[str, ...]:
        """Returns the attacks on a defence; on the undefended update beside it, the first alone."""
        return self.attack if defense in self.defense else self.attack[:1]

    def settings(self) -> dict[str, Any]:
        """Returns every setting as JSON holds it.

        The usual loss and optimiser, and metrics, a title, an owner and an undefended update beside
        the others where there are none, are left out, as in audits from before there were any.
        """
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
            if name not in _LEFT_OUT or _LEFT_OUT[name] != value
        }


_LEAST = {
    "image_size": 8, "batch_size": 1, "batches": 1, "restarts": 1, "workers": 1,
    "candidates": 2, "rounds": 1,
    "local_epochs": 1, "local_batch_size": 1,
}  # fmt: skip

_CLIENT = {"loss": "cross-entropy", "optimizer": "sgd"}
_LEFT_OUT: dict[str, Any] = {
    **_CLIENT,
    "metric": (),
    "title": None,
    "owner": None,
    "undefended": "no",
}

# Settings of local training with their defaults; None stands for the whole batch.
_LOCAL: dict[str, float | None] = {
    "local_epochs": 5, "local_batch_size": None, "local_lr": 0.01, "local_momentum": 0.0,
}  # fmt: skip


def option(setting: str) -> str:
    """Returns the command-line option of a setting: ``steps_scale`` is ``--steps-scale``."""
    return "--" + setting.replace("_", "-")


def read_normalization(
    mean: str | None, std: str | None
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Reads mean and std of a client that normalises its images outside its network.

    Raises:
        ConfigError: one without the other, or of another length, or no numbers, or a std that is
            not above 0.

    >>> read_normalization("0.5,0.25", "1,2")
    ((0.5, 0.25), (1.0, 2.0))
    """
    if mean is None and std is None:
        return None
    if mean is None or std is None:
        raise ConfigError(
            f"expected --mean and --std together, got --{'std' if mean is None else 'mean'} alone; "
            "give both, or neither"
        )
    try:
        means, stds = (tuple(float(word) for word in text.split(",")) for text in (mean, std))
    except ValueError as error:
        raise ConfigError(
            f"expected --mean and --std as numbers between commas, got {mean!r} and {std!r}; "
            "write them as 0.485,0.456,0.406"
        ) from error
    if len(means) != len(stds):
        raise ConfigError(
            f"expected as many --mean as --std, got {len(means)} and {len(stds)}; "
            "give one of each for every channel"
        )
    if not all(map(math.isfinite, (*means, *stds))) or min(stds) <= 0:
        raise ConfigError(
            f"expected a finite --mean and a --std above 0, got {mean} and {std}; "
            "give those of images in [0, 1]"
        )
    return means, stds


def _require_distinct(name: str, values: tuple[str, ...]) -> None:
    repeated = sorted({value for value in values if values.count(value) > 1})
    if repeated:
        raise ConfigError(
            f"expected each {option(name)} once, got {', '.join(repeated)} more than once; "
            "leave the repetition out"
        )


@dataclasses.dataclass(frozen=True)
class Cell:
    """One attack on one batch under one defence: the unit of work, of storage and of resuming.

    Attributes:
        attack: name of the attack; :data:`CANDIDATES` for the judge's own search.
        defense: spec of the defence.
        batch: index of the client batch.
    """

    attack: str
    defense: str
    batch: int

    @property
    def is_candidates(self) -> bool:
        """Whether it is the judge's search among known images, no attack."""
        return self.attack == CANDIDATES

    @property
    def slug(self) -> str:
        """Name of the cell's files, such as ``gi-z_w--sparsify-0.95--batch0``."""
        return f"{_plain(self.attack)}--{_plain(self.defense)}--batch{self.batch}"


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.+_-]", "-", text.replace("/", "_"))


def cells_of(config: AuditConfig) -> tuple[Cell, ...]:
    """Returns the audit's cells in the order of the tables: defence, then attack, then batch.

    Candidate search comes after the attacks on a defence.
    """
    return tuple(
        Cell(attack, defense, batch)
        for defense in config.defenses
        for attack in (*config.attacks_on(defense), CANDIDATES)
        for batch in range(config.batches)
    )


Purpose = Literal["defense", "attack", "decoys", "candidates", "control", "prior"]
"""What chance is for: the client's noise and order of local steps, the server's starts, the judge's
decoys, its candidates, another client's update, and pictures of the prior alone."""


def derive_seed(seed: int, purpose: Purpose, batch: int) -> int:
    """Returns the seed of one source of chance in one batch's cells.

    The first four bytes of SHA-256 of ``"<seed>/<purpose>/<batch>"``, as a number. So the client's
    noise and the server's starts are independent of each other (a server that could draw the
    client's noise again would subtract it), the judge's decoys are others for every batch, and the
    same batch meets the same noise, starts and decoys whatever else is in the audit.

    >>> derive_seed(0, "attack", 0)
    243475243
    """
    digest = hashlib.sha256(f"{seed}/{purpose}/{batch}".encode()).digest()
    return int.from_bytes(digest[:4], "big")
