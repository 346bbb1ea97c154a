"""The commands and their options as values; tyro makes the command line from them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import (
    FlagCreatePairsOff,
    OmitArgPrefixes,
    OmitSubcommandPrefixes,
    Positional,
    UseAppendAction,
    arg,
    subcommand,
)

from gradinv.audit.plan import AuditConfig

Device = Literal["auto", "cpu", "cuda"]
RevealBn = Literal["none", "running", "exact"]
Mode = Literal["eval", "train"]


def _hint(default: str, metavar: str) -> Any:
    return arg(metavar=metavar, help_behavior_hint=f"(default: {default})")


def _required(metavar: str) -> Any:
    return arg(metavar=metavar)


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

    update: Annotated[Positional[str], _required("UPDATE.safetensors")]
    """The update, as 'gradinv observe' writes it."""
    model: Annotated[str | None, _hint("as the update says", "NAME")] = None
    """Network: convnet, lenet, leakynet, resnet18, resnet18-imagenet, package.module:factory."""
    weights: Annotated[str | None, _hint("random, from the seed in the update", "FILE")] = None
    """Weights of the network that the update was made with, safetensors."""
    attack: Annotated[str, arg(metavar="NAME")] = "gi-z/w"
    """The attack, such as gi-x, gi-z, gi-w, gi-z/x or gi-z/w."""
    prior: Annotated[str | None, _hint("none", "DIR")] = None
    """The generator: a folder made by 'gradinv prior train', or the word embedded."""
    steps_scale: float = 1.0
    """Multiplies the steps of every stage."""
    restarts: Annotated[int | None, _hint("the attack's own", "N")] = None
    """Random starts; the one with the smallest matching cost is kept."""
    seconds: Annotated[float | None, _hint("none", "S")] = None
    """Wall-clock limit in seconds."""
    seed: int = 0
    """Decides the starts."""
    device: Device = "auto"
    """Where to compute; auto takes a CUDA device if there is one."""
    out: Annotated[str | None, _hint("runs/<time>", "DIR")] = None
    """Folder for the results; the same folder again continues what was stopped."""


@dataclass(frozen=True)
class Observe:
    """Make one client's update and save what the server sees of it.

    With the same settings it is the update that 'gradinv audit' attacks.
    """

    out: Annotated[str, arg(metavar="UPDATE.safetensors")]
    """Where to save the update."""
    data: Annotated[str | None, _hint("160 embedded Fashion-MNIST test images", "PATH")] = None
    """The client's images: a folder of class folders, or an IDX image file."""
    image_size: int = 32
    """Side of the images in pixels; larger ones are shrunk and centre-cropped."""
    channels: Annotated[int | None, _hint("3 for a folder, 1 for IDX", "{1,3}")] = None
    """Colour channels."""
    model: str = "convnet"
    """Network: convnet, lenet, leakynet, resnet18, resnet18-imagenet, package.module:factory."""
    weights: Annotated[str | None, _hint("random, from --seed", "FILE")] = None
    """Weights of the network, safetensors."""
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
    local_epochs: Annotated[int | None, _hint("5 with fedavg", "N")] = None
    """Passes of local training over the client's batch (fedavg)."""
    local_batch_size: Annotated[int | None, _hint("the whole batch", "N")] = None
    """Images in one local step (fedavg); the client shuffles its batch in every epoch."""
    local_lr: Annotated[float | None, _hint("0.01 with fedavg", "LR")] = None
    """Step size of local SGD (fedavg)."""
    local_momentum: Annotated[float | None, _hint("0 with fedavg", "M")] = None
    """Momentum of local SGD (fedavg)."""
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
    save_weights: Annotated[str | None, _hint("not saved", "FILE")] = None
    """Save the network's weights too, for 'gradinv invert --weights'."""


@dataclass(frozen=True)
class PriorTrain:
    """Train a prior on a folder of images; the same command again continues.

    Writes the generator, its card, samples.png and what is needed to continue.
    """

    data: Annotated[Positional[str], _required("PATH")]
    """Training images: a folder of class folders, or an IDX image file."""
    out: Annotated[str, arg(metavar="PRIOR")]
    """The prior's folder."""
    arch: Literal["dcgan"] = "dcgan"
    """Architecture of the generator."""
    image_size: int = 32
    """Side of the images in pixels: 32 or 64."""
    channels: Annotated[int | None, _hint("3 for a folder, 1 for IDX", "{1,3}")] = None
    """Colour channels."""
    base_channels: int = 48
    """Width of generator and discriminator."""
    latent: int = 128
    """Length of the latent vector z."""
    minutes: Annotated[float | None, _hint("30, unless --steps is given", "M")] = None
    """Train for that long in minutes, over all sessions together."""
    steps: Annotated[int | None, _hint("--minutes decides", "S")] = None
    """Train for that many steps, over all sessions together."""
    batch_size: int = 64
    """Images in a step; a multiple of 4."""
    loss: Literal["hinge", "non-saturating"] = "hinge"
    """Loss of the two networks."""
    lr: float = 1e-3
    """Step size of the generator's Adam."""
    lr_discriminator: float = 4e-4
    """Step size of the discriminator's Adam."""
    r1: float = 0.0
    """Weight of the R1 penalty; 0 for none."""
    spectral_norm: bool = True
    """Leave out the discriminator's spectral normalisation (then use --r1)."""
    reconstruction: float = 0.1
    """Pixel deviation (of 1) in the likelihood of the VAE that shares the generator; 0 for none."""
    adversarial: float = 0.02
    """Weight of the adversarial loss beside the VAE's."""
    flip: bool = False
    """Mirror half of the images."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Arithmetic of the convolutions; auto takes bf16 where the processor has it."""
    seed: int = 0
    """Decides weights, the order of images, latents and augmentation."""
    device: Device = "auto"
    """Where to compute; auto takes a CUDA device if there is one."""


@dataclass(frozen=True)
class PriorShow:
    """Show a prior's card and write a picture of samples."""

    prior: Annotated[Positional[str], arg(metavar="PRIOR")] = "embedded"
    """The prior's folder, or the word embedded."""
    out: Annotated[str | None, _hint("<name of the prior>-samples.png", "FILE")] = None
    """Where to write the picture."""
    rows: int = 8
    """Rows of 8 samples."""
    seed: int = 0
    """Decides the samples."""


@dataclass(frozen=True)
class Prior:
    """Train a generative prior, or look at one."""

    command: Annotated[
        Annotated[PriorTrain, subcommand("train")] | Annotated[PriorShow, subcommand("show")],
        OmitArgPrefixes,
        OmitSubcommandPrefixes,
    ]


@dataclass(frozen=True)
class Report:
    """Write the HTML report of a finished audit again from its stored results."""

    run: Annotated[Positional[str], _required("RUN_DIR")]
    """The audit's folder."""


Command = (
    Annotated[Audit, subcommand("audit")]
    | Annotated[Invert, subcommand("invert")]
    | Annotated[Observe, subcommand("observe")]
    | Annotated[Prior, subcommand("prior")]
    | Annotated[Report, subcommand("report")]
)

_DESCRIPTION = (
    "How much of the clients' data can an honest-but-curious server rebuild from the updates of "
    "federated learning? Audit your own set-up. Every command explains itself with --help."
)


def parse(arguments: Sequence[str]) -> Audit | Invert | Observe | Prior | Report:
    """Reads the command line.

    Raises:
        SystemExit: after ``--help`` (0) and after wrong usage (2).
        ConfigError: a setting that has no meaning.
    """
    return tyro.cli(
        Command,  # type: ignore[arg-type]
        args=list(arguments),
        prog="gradinv",
        description=_DESCRIPTION,
        config=(UseAppendAction, FlagCreatePairsOff),
    )
