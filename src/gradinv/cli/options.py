"""The commands and their options as values; tyro makes the command line from them."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import (
    FlagCreatePairsOff,
    OmitArgPrefixes,
    Positional,
    UseAppendAction,
    arg,
    subcommand,
)

from gradinv.audit.plan import AuditConfig, option
from gradinv.cli.hints import Device, Mode, RevealBn, hint, required
from gradinv.cli.prior_options import LearnPrior, Prior
from gradinv.errors import ConfigError


@dataclass(frozen=True)
class Audit:
    """Audit a set-up end to end: client batch, update, attacks, scores, report.

    Without arguments: embedded Fashion-MNIST images and prior, a small ConvNet as the client's
    network, gi-x beside gi-z/w at sparsity 0.95. Writes audit.json and report.html.
    """

    config: OmitArgPrefixes[AuditConfig]
    json: bool = False
    """Print audit.json to standard output, and nothing else."""


@dataclass(frozen=True)
class Invert:
    """Attack one saved update; no ground truth is needed.

    Writes reconstruction.png, reconstruction.safetensors and invert.json.
    """

    update: Annotated[Positional[str], required("UPDATE.safetensors")]
    """The update, as 'gradinv observe' writes it."""
    model: Annotated[str | None, hint("as the update says", "NAME")] = None
    """Network: convnet, lenet, leakynet, resnet18, resnet18-imagenet, package.module:factory."""
    weights: Annotated[str | None, hint("random, from the seed in the update", "FILE")] = None
    """Weights of the network that the update was made with, safetensors."""
    mean: Annotated[str | None, hint("as the update says", "M,M,M")] = None
    """What the client subtracts from its images before the network, one for each channel."""
    std: Annotated[str | None, hint("with --mean", "S,S,S")] = None
    """What the client divides its images by then, one for each channel."""
    attack: Annotated[str, arg(metavar="NAME")] = "gi-z/w"
    """The attack, such as gi-x, gi-z, gi-w, gi-z/x or gi-z/w."""
    prior: Annotated[str | None, hint("none", "DIR")] = None
    """The generator: a folder made by 'gradinv prior train', embedded or natural."""
    steps_scale: float = 1.0
    """Multiplies the steps of every stage."""
    restarts: Annotated[int | None, hint("the attack's own", "N")] = None
    """Random starts; the one with the smallest matching cost is kept."""
    seconds: Annotated[float | None, hint("none", "S")] = None
    """Wall-clock limit in seconds."""
    seed: int = 0
    """Decides the starts."""
    device: Device = "auto"
    """Where to compute; auto takes a CUDA device if there is one."""
    out: Annotated[str | None, hint("runs/<time>", "DIR")] = None
    """Folder for the results; the same folder again continues what was stopped."""


@dataclass(frozen=True)
class Observe:
    """Make one client's update and save what the server sees of it.

    With the same settings it is the update that 'gradinv audit' attacks.
    """

    out: Annotated[str, arg(metavar="UPDATE.safetensors")]
    """Where to save the update."""
    data: Annotated[str | None, hint("160 embedded Fashion-MNIST test images", "PATH")] = None
    """The client's images: a folder of class folders, or an IDX image file."""
    image_size: int = 32
    """Side of the images in pixels; larger ones are shrunk and centre-cropped."""
    channels: Annotated[int | None, hint("3 for a folder, 1 for IDX", "{1,3}")] = None
    """Colour channels."""
    classes: Annotated[str | None, hint("the images' own", "N|FILE|A,B,...")] = None
    """The network's classes, where it has more: their number, or all names in its order."""
    model: str = "convnet"
    """Network: convnet, lenet, leakynet, resnet18, resnet18-imagenet, package.module:factory."""
    weights: Annotated[str | None, hint("random, from --seed", "FILE")] = None
    """Weights of the network, safetensors."""
    mean: Annotated[str | None, hint("the network takes images in [0, 1]", "M,M,M")] = None
    """What the client subtracts from its images before the network, one for each channel."""
    std: Annotated[str | None, hint("with --mean", "S,S,S")] = None
    """What the client divides its images by then, one for each channel."""
    batch_size: int = 4
    """Images in the batch; with fedavg, the client's whole local data set."""
    batch: int = 0
    """Which batch, counted from 0."""
    defense: Annotated[str, arg(metavar="SPEC")] = "none"
    """A defence: none, noise:SIGMA, sparsify:FRACTION, clip:NORM, or a chain clip:1+noise:0.01."""
    mode: Mode = "eval"
    """Mode of batch norm while the update is computed."""
    protocol: Literal["fedsgd", "fedavg"] = "fedsgd"
    """What the client sends: one gradient (fedsgd), or what local training changed (fedavg)."""
    local_epochs: Annotated[int | None, hint("5 with fedavg", "N")] = None
    """Passes of local training over the client's batch (fedavg)."""
    local_batch_size: Annotated[int | None, hint("the whole batch", "N")] = None
    """Images in one local step (fedavg); the client shuffles its batch in every epoch."""
    local_lr: Annotated[float | None, hint("0.01 with fedavg", "LR")] = None
    """Step size of local SGD (fedavg)."""
    local_momentum: Annotated[float | None, hint("0 with fedavg", "M")] = None
    """Momentum of local SGD (fedavg)."""
    optimizer: Annotated[str, arg(metavar="SPEC")] = "sgd"
    """Optimiser of local training (fedavg): sgd, adam or adamw; sgd:momentum=0.9,nesterov."""
    loss: Annotated[str, arg(metavar="SPEC")] = "cross-entropy"
    """Loss: cross-entropy, bce, cross-entropy:smoothing=0.1,reduction=sum, or module:factory."""
    reveal_order: bool = False
    """The server knows which images made which local step (fedavg)."""
    reveal_bn: RevealBn = "none"
    """Batch-norm statistics that the server gets to know."""
    hide_labels: bool = False
    """Leave the labels out of the update; the server then reads them from its gradient."""
    seed: int = 0
    """Decides batches, random weights and noise."""
    device: Device = "auto"
    """Where to compute; auto takes a CUDA device if there is one."""
    save_weights: Annotated[str | None, hint("not saved", "FILE")] = None
    """Save the network's weights too, for 'gradinv invert --weights'."""


@dataclass(frozen=True)
class Import:
    """Bring in an update that another program made, and say what is likely wrong with it.

    Takes a gradient, or the weights before and after training. 'gradinv invert' attacks the result.
    """

    out: Annotated[str, arg(metavar="UPDATE.safetensors")]
    """Where to save the update."""
    batch_size: int
    """Images in the batch; with fedavg, in the client's whole local data set."""
    gradient: Annotated[
        Positional[str | None], hint("--before and --after", "GRADIENT.safetensors|.npz")
    ] = None
    """The gradient, or the weights before less those after with --lr: tensors by name."""
    before: Annotated[str | None, hint("none", "FILE")] = None
    """The weights that the client started from, safetensors or .npz; those of the network too."""
    after: Annotated[str | None, hint("none", "FILE")] = None
    """The weights that the client ended with, safetensors or .npz."""
    lr: Annotated[float | None, hint("1 for a gradient", "LR")] = None
    """The client's learning rate, which a difference of weights is divided by."""
    labels: Annotated[str | None, hint("hidden", "3,1,..")] = None
    """Classes of the images, if they are known; the server reads them from the update otherwise."""
    model: str = "convnet"
    """Network: convnet, lenet, leakynet, resnet18, resnet18-imagenet, package.module:factory."""
    weights: Annotated[str | None, hint("--before, or random from --seed", "FILE")] = None
    """Weights of the network that the update was made with, safetensors."""
    image_size: int = 32
    """Side of the images in pixels."""
    channels: int = 3
    """Colour channels."""
    num_classes: int = 10
    """Classes of the network."""
    mode: Mode = "eval"
    """Mode of batch norm while the update was computed."""
    protocol: Literal["fedsgd", "fedavg"] = "fedsgd"
    """What the client sent: one gradient (fedsgd), or what local training changed (fedavg)."""
    local_epochs: Annotated[int | None, hint("5 with fedavg", "N")] = None
    """Passes of local training over the client's batch (fedavg)."""
    local_batch_size: Annotated[int | None, hint("the whole batch", "N")] = None
    """Images in one local step (fedavg)."""
    local_lr: Annotated[float | None, hint("--lr with fedavg", "LR")] = None
    """Step size of local SGD (fedavg)."""
    local_momentum: Annotated[float | None, hint("0 with fedavg", "M")] = None
    """Momentum of local SGD (fedavg)."""
    loss: Annotated[str, arg(metavar="SPEC")] = "cross-entropy"
    """Loss: cross-entropy, bce, cross-entropy:smoothing=0.1,reduction=sum, or module:factory."""
    optimizer: Annotated[str, arg(metavar="SPEC")] = "sgd"
    """Optimiser of local training (fedavg): sgd, adam or adamw; sgd:momentum=0.9,nesterov."""
    defense: Annotated[str, arg(metavar="SPEC")] = "none"
    """What the client did to it: none, noise:SIGMA, sparsify:FRACTION, clip:NORM, or a chain."""
    seed: int = 0
    """Decides random weights, where none are given."""
    save_weights: Annotated[str | None, hint("not saved", "WEIGHTS.safetensors")] = None
    """Save the network's weights too, as 'gradinv invert --weights' reads them."""


@dataclass(frozen=True)
class Data:
    """Look at a folder of images once: what it holds, and everything that is wrong with it.

    Exit status 2 if something keeps the folder from being used.
    """

    # tyro makes no subcommand of a single one.
    action: Annotated[Positional[Literal["check"]], required("check")]
    """What to do with the folder."""
    path: Annotated[Positional[str], required("DIR")]
    """A folder with one folder of images for each class."""
    image_size: int = 32
    """Side in pixels that the images are for; smaller ones are noted."""
    channels: Annotated[int | None, hint("3", "{1,3}")] = None
    """Colour channels that the images are for."""
    json: bool = False
    """Print everything as JSON, with the names of all files."""


@dataclass(frozen=True)
class Watch:
    """Audit what a server rebuilds the longer it watches: leakage over rounds.

    After every round the server goes on learning a prior from all updates that it has seen, and
    attacks updates of other clients with it; the learning starts from --prior, from an untrained
    generator without it. Writes watch.json, leakage.svg, and a prior and an audit for every number
    of rounds. The same command with the same --out continues.
    """

    watched: Annotated[str, arg(metavar="PATH")]
    """Images of the clients that are watched; those under --data are attacked."""
    config: OmitArgPrefixes[AuditConfig]
    clients: int = 20
    """Clients that are watched, each with images of its own."""
    rounds_watched: int = 4
    """Rounds that are watched."""
    server_lr: float = 0.1
    """Step size of the server on the clients' mean update."""
    steps: int = 200
    """Outer steps of learning for each round watched: twice as many after two as after one."""
    base_channels: int = 48
    """Width of the untrained generator."""
    latent: int = 128
    """Length of the untrained generator's latent vector z."""


@dataclass(frozen=True)
class Report:
    """Write the HTML report of a finished audit again from its stored results."""

    run: Annotated[Positional[str], required("RUN_DIR")]
    """The audit's folder."""


Command = (
    Annotated[Audit, subcommand("audit")]
    | Annotated[Invert, subcommand("invert")]
    | Annotated[Observe, subcommand("observe")]
    | Annotated[Import, subcommand("import")]
    | Annotated[Prior, subcommand("prior")]
    | Annotated[Data, subcommand("data")]
    | Annotated[LearnPrior, subcommand("learn-prior")]
    | Annotated[Watch, subcommand("watch")]
    | Annotated[Report, subcommand("report")]
)

_DESCRIPTION = (
    "How much of the clients' data can an honest-but-curious server rebuild from the updates of "
    "federated learning? Audit your own set-up. Every command explains itself with --help."
)


AnyCommand = Audit | Invert | Observe | Import | Prior | Data | LearnPrior | Watch | Report
"""What the command line can come to."""


def parse(arguments: Sequence[str]) -> AnyCommand:
    """Reads the command line.

    Raises:
        SystemExit: after ``--help`` (0) and after wrong usage (2).
        ConfigError: a setting that has no meaning, or one of a single value that is given twice.
    """
    options: AnyCommand = tyro.cli(
        Command,  # type: ignore[arg-type]
        args=list(arguments),
        prog="gradinv",
        description=_DESCRIPTION,
        config=(UseAppendAction, FlagCreatePairsOff),
    )
    _require_once(options, arguments)
    return options


def _require_once(options: AnyCommand, arguments: Sequence[str]) -> None:
    """Refuses the repetition of an option whose last value alone would count.

    Raises:
        ConfigError: there is one.
    """
    given = Counter(
        option(word.split("=", 1)[0].removeprefix("--"))
        for word in arguments
        if word.startswith("--")
    )
    repeatable = {option(name) for name, value in _values(options) if isinstance(value, tuple)}
    for name, times in given.items():
        if times > 1 and name not in repeatable:
            raise ConfigError(
                f"expected {name} once, got {times} times; only the last one would count: "
                "leave the others out"
            )


def _values(options: Any) -> Iterator[tuple[str, Any]]:
    """Yields every option and its value, those of nested values too."""
    for field in fields(options):
        value = getattr(options, field.name)
        yield field.name, value
        if is_dataclass(value):
            yield from _values(value)
