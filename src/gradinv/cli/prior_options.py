"""The commands that make priors, and look at them, as values (:mod:`gradinv.cli.options`)."""

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import OmitArgPrefixes, OmitSubcommandPrefixes, Positional, arg, subcommand

from gradinv.cli.hints import Device, hint, required
from gradinv.errors import ConfigError


@dataclass(frozen=True)
class PriorTrain:
    """Train a prior on a folder of images; the same command again continues.

    Writes the generator, its card, samples.png and what is needed to continue.
    """

    data: Annotated[Positional[str], required("PATH")]
    """Training images: a folder of class folders, or an IDX image file."""
    out: Annotated[str, arg(metavar="PRIOR")]
    """The prior's folder."""
    arch: Literal["dcgan", "stylegan2", "flow"] = "dcgan"
    """Architecture of the generator."""
    image_size: int = 32
    """Side of the images in pixels: 32 or 64."""
    channels: Annotated[int | None, hint("3 for a folder, 1 for IDX", "{1,3}")] = None
    """Colour channels."""
    base_channels: Annotated[int | None, hint("48; stylegan2 32", "N")] = None
    """Width of the networks at the image's size."""
    latent: Annotated[int | None, hint("128; stylegan2 256", "N")] = None
    """Length of the latent vector z."""
    minutes: Annotated[float | None, hint("30, unless --steps is given", "M")] = None
    """Train for that long in minutes, over all sessions together."""
    steps: Annotated[int | None, hint("--minutes decides", "S")] = None
    """Train for that many steps, over all sessions together."""
    batch_size: int = 64
    """Images in a step; a multiple of 4."""
    loss: Annotated[
        Literal["hinge", "non-saturating"] | None, hint("hinge", "{hinge,non-saturating}")
    ] = None
    """Loss of the two networks (dcgan)."""
    lr: Annotated[float | None, hint("1e-3; stylegan2 2e-3", "RATE")] = None
    """Step size of Adam for the generator."""
    lr_discriminator: Annotated[float | None, hint("4e-4; stylegan2 2e-3", "RATE")] = None
    """Step size of Adam for the discriminator."""
    r1: Annotated[float | None, hint("0; stylegan2 0.1", "WEIGHT")] = None
    """Weight of the R1 penalty; 0 for none."""
    spectral_norm: bool = True
    """Leave out the discriminator's spectral normalisation (dcgan; then use --r1)."""
    reconstruction: Annotated[float | None, hint("0.1", "DEVIATION")] = None
    """Pixel deviation (of 1) in the likelihood of the VAE that shares dcgan's generator; 0 for
    none."""
    adversarial: Annotated[float | None, hint("0.02", "WEIGHT")] = None
    """Weight of the adversarial loss beside the VAE's (dcgan)."""
    mapping_layers: Annotated[int | None, hint("4", "N")] = None
    """Layers from z to the styles (stylegan2)."""
    mixing: Annotated[float | None, hint("0.9", "SHARE")] = None
    """Share of the training images with the styles of two latents (stylegan2)."""
    warmup: Annotated[int | None, hint("200", "STEPS")] = None
    """Steps over which the step size rises (flow)."""
    path_length: Annotated[float | None, hint("0", "WEIGHT")] = None
    """Weight of the path length penalty (stylegan2); 0 for none."""
    flip: bool = False
    """Mirror half of the images."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Arithmetic of the convolutions; auto takes bf16 where the processor has it."""
    seed: int = 0
    """Decides weights, the order of images, latents and augmentation."""
    device: Device = "auto"
    """Where to compute; auto takes a CUDA device if there is one."""


@dataclass(frozen=True)
class PriorWrap:
    """Make a prior of a network from elsewhere: any torch.nn.Module from latents to images.

    Checks at once that attacks can search it. Writes the prior, its card and samples.png. The
    folder names the network's class, which must be importable wherever the prior is used.
    """

    network: Annotated[Positional[str], required("PACKAGE.MODULE:CLASS")]
    """The network: its class, or a function that makes it."""
    out: Annotated[str, arg(metavar="PRIOR")]
    """The prior's folder."""
    latent: Annotated[str, arg(metavar="N[,N,N]")]
    """Shape of one latent, such as 128 or 100,1,1."""
    range: Annotated[str, arg(metavar="BLACK,WHITE")] = "0,1"
    """Values that mean black and white; --range=-1,1 for a tanh output."""
    weights: Annotated[str | None, hint("as the network is made", "FILE")] = None
    """Weights: safetensors, or a state_dict that PyTorch saved; nothing in the file is run."""
    part: Annotated[str | None, hint("the only one", "NAME")] = None
    """Which weights of the file, where it holds several, such as g_ema."""
    set: Annotated[tuple[str, ...], hint("none", "NAME=VALUE")] = ()
    """A setting that the network is made with, its value as JSON; may be repeated."""
    settings: Annotated[str | None, hint("none", "FILE")] = None
    """More of them, from a JSON or TOML file."""
    method: Annotated[str, arg(metavar="NAME")] = "forward"
    """Method that makes images: decode for an autoencoder."""
    latent_scale: float = 1.0
    """Standard deviation of the network's latents."""
    image_size: Annotated[int | None, hint("the network's own", "N")] = None
    """Side in pixels to average its images to."""
    seed: int = 0
    """Decides random weights, for a network without --weights."""


@dataclass(frozen=True)
class PriorConvert:
    """Make a prior of a published StyleGAN2 checkpoint; nothing in the file is run.

    Takes pickles of NVIDIA's stylegan2-ada-pytorch and .pt files of rosinality's stylegan2-pytorch,
    unconditional. Writes the prior, its card, samples.png and conversion.json, which lists every
    tensor with its name in the file and its shape.
    """

    checkpoint: Annotated[Positional[str], required("FILE")]
    """The checkpoint."""
    out: Annotated[str, arg(metavar="PRIOR")]
    """The prior's folder."""
    image_size: Annotated[int | None, hint("the network's own", "N")] = None
    """Side in pixels to average its images to."""
    truncation: float = 1.0
    """Share of the way from the average style that styles go; 1 for all of it."""


@dataclass(frozen=True)
class PriorShow:
    """Show a prior's card and write a picture of samples."""

    prior: Annotated[Positional[str], arg(metavar="PRIOR")] = "embedded"
    """The prior's folder, or one that the package has: embedded, natural."""
    out: Annotated[str | None, hint("<name of the prior>-samples.png", "FILE")] = None
    """Where to write the picture."""
    rows: int = 8
    """Rows of 8 samples."""
    seed: int = 0
    """Decides the samples."""


@dataclass(frozen=True)
class Prior:
    """Train a generative prior, make one of a network from elsewhere, or look at one."""

    command: Annotated[
        Annotated[PriorTrain, subcommand("train")]
        | Annotated[PriorWrap, subcommand("wrap")]
        | Annotated[PriorConvert, subcommand("convert")]
        | Annotated[PriorShow, subcommand("show")],
        OmitArgPrefixes,
        OmitSubcommandPrefixes,
    ]


@dataclass(frozen=True)
class LearnPrior:
    """Learn a prior from updates alone (GIML); the same command again continues.

    The updates lie in a folder, with the weights that they were made with, or come from a
    federation that is simulated first (--simulate). Writes the generator, its card, samples.png,
    cost.svg and what is needed to continue.
    """

    out: Annotated[str, arg(metavar="PRIOR")]
    """The prior's folder."""
    updates: Annotated[Positional[str | None], hint("those of --simulate", "UPDATES_DIR")] = None
    """Folder of updates (gradinv observe) and of the weights that they were made with."""
    simulate: Annotated[str | None, hint("no simulation", "PATH")] = None
    """Simulate a federation on these images first: a folder of class folders, or an IDX file."""
    clients: int = 20
    """Clients of the simulated federation, each with images of its own."""
    rounds: int = 4
    """Rounds; the network is trained by the clients' mean update after each of them."""
    batch_size: int = 4
    """Images behind one update of the simulated federation."""
    server_lr: float = 0.1
    """Step size of the simulated server on the mean update."""
    defense: Annotated[str, arg(metavar="SPEC")] = "none"
    """Defence of the simulated clients: none, noise:SIGMA, sparsify:FRACTION, clip:NORM."""
    hide_labels: bool = False
    """The simulated clients leave their labels out; the server reads them from the updates."""
    model: Annotated[str | None, hint("as the updates say; convnet to simulate", "NAME")] = None
    """Network: convnet, lenet, leakynet, resnet18, resnet18-imagenet, package.module:factory."""
    weights: Annotated[str | None, hint("random, from --seed", "FILE")] = None
    """Weights of the simulated network in the first round, safetensors."""
    image_size: int = 32
    """Side of the simulated clients' images in pixels."""
    channels: Annotated[int | None, hint("3 for a folder, 1 for IDX", "{1,3}")] = None
    """Colour channels of the simulated clients' images."""
    rounds_watched: Annotated[int | None, hint("all", "N")] = None
    """Learn from the updates of the first N rounds alone."""
    start: Annotated[str | None, hint("an untrained generator", "DIR")] = None
    """The prior to start from: a folder, embedded or natural."""
    base_channels: int = 48
    """Width of the untrained generator."""
    latent: int = 128
    """Length of the untrained generator's latent vector z."""
    steps: int = 2000
    """Outer steps, over all sessions together."""
    tasks: int = 8
    """Updates that an outer step fits together."""
    latent_steps: int = 0
    """Steps on the latents alone, at each outer step."""
    weight_steps: int = 2
    """Steps on the weights that the tasks share, at each outer step."""
    joint: bool = True
    """Hold the latents still while the weights move."""
    remember: bool = True
    """Draw fresh latents at every visit to an update."""
    keep_moments: bool = True
    """Start the weights' Adam afresh at every outer step."""
    lr_latents: float = 0.2
    """Step size of Adam on the latents."""
    lr_weights: float = 1e-3
    """Step size of Adam on the weights."""
    decay: bool = True
    """Keep the step sizes as they are; they fall to a tenth over the last third otherwise."""
    latent_norm: float = 1e-3
    """Weight of the latents' norm."""
    tv: float = 1e-3
    """Weight of total variation."""
    outer: Literal["reptile", "adam"] = "reptile"
    """w + rate (w' - w), or Adam on that direction as the released code has it."""
    rate: float = 1.0
    """The rate of reptile."""
    lr_outer: float = 1e-2
    """Step size of --outer adam."""
    paper: bool = False
    """Take the paper's numbers: 4 tasks, 1,000 steps on fresh latents, 500 on the weights."""
    snapshot_every: Annotated[int, hint("none", "STEPS")] = 0
    """Keep a prior of every so many outer steps in PRIOR/snapshots."""
    workers: int = 1
    """Processes that compute an outer step's updates side by side; results do not depend on it."""
    seed: int = 0
    """Decides batches, random weights, the order of the updates, and latents."""
    device: Device = "auto"
    """Where to compute; auto takes a CUDA device if there is one."""

    def __post_init__(self) -> None:
        watched = self.rounds_watched
        if self.simulate is not None and watched is not None and watched > self.rounds:
            raise ConfigError(
                f"expected --rounds-watched of at most --rounds, got {watched} of {self.rounds}; "
                "lower it, or simulate more rounds"
            )
