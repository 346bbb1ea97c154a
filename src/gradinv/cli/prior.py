"""``gradinv prior train`` and ``gradinv prior show``."""

from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gradinv.api.progress import WorkProgress, left_words
from gradinv.audit.inputs import resolve_device
from gradinv.cli.listening import listening
from gradinv.cli.prior_options import PriorShow, PriorTrain
from gradinv.cli.stopping import stop_if
from gradinv.data import load_images
from gradinv.errors import ConfigError
from gradinv.files import output_folder
from gradinv.models.footprint import outputs_bytes
from gradinv.priors import SHIPPED, load_generator
from gradinv.priors.architectures import training_settings
from gradinv.priors.footprint import require_training_fits
from gradinv.priors.generator import load_card
from gradinv.priors.samples import SAMPLES_A_ROW, save_sample_grid
from gradinv.priors.trainer import Settings
from gradinv.priors.training import (
    TrainingProgress,
    fast_precision,
    train_prior,
)
from gradinv.report.text import print_line, report_console
from gradinv.room import require_room
from gradinv.seeds import require_seed

DEFAULT_MINUTES = 30.0

# Words of the card that would say something else beside the network's own shape.
_CARD_WORDS = {"images": "training images", "seconds": "training seconds"}


_ABOVE_ZERO = (
    "minutes", "steps", "base_channels", "latent", "batch_size", "lr", "lr_discriminator",
)  # fmt: skip


def show_training(shown: WorkProgress, progress: TrainingProgress) -> None:
    """Shows how far a training is."""
    fraction = progress.fraction
    if fraction >= 1:
        # Samples of a flow take minutes to make.
        detail = f"step {progress.step}, the last; measuring what samples are worth"
        shown.advance(fraction, detail, at_once=True)
        return
    left = progress.seconds * (1 - fraction) / fraction if fraction > 0 else None
    detail = (
        f"step {progress.step}, {progress.images_per_second:.0f} images/s, losses "
        f"G {progress.generator_loss:.2f} D {progress.discriminator_loss:.2f}, {left_words(left)}"
    )
    shown.advance(fraction, detail)


def _settings(options: PriorTrain, device: torch.device) -> Settings:
    """Returns how to train: what was given, and the architecture's own numbers for the rest."""
    names = (
        "base_channels", "loss", "batch_size", "lr", "lr_discriminator", "r1", "reconstruction",
        "adversarial", "mapping_layers", "mixing", "path_length", "warmup", "flip", "seed",
    )  # fmt: skip
    given = {name: getattr(options, name) for name in names} | {
        "latent_dim": options.latent,
        "spectral_norm": None if options.spectral_norm else False,
        "precision": fast_precision(device) if options.precision == "auto" else options.precision,
    }
    return training_settings(
        options.arch, {name: value for name, value in given.items() if value is not None}
    )


def train(options: PriorTrain, command: str) -> None:
    """Trains a prior, or continues to.

    Args:
        options: the command line's.
        command: for the card.

    Raises:
        Stopped: by Ctrl-C; the folder holds a checkpoint.
        GradinvError: wrong settings or images, another training in the folder, a full disk.
    """
    if options.minutes is not None and options.steps is not None:
        raise ConfigError("expected either --minutes or --steps, got both; give one of them")
    for name in _ABOVE_ZERO:
        value = getattr(options, name)
        if value is not None and not value > 0:
            raise ConfigError(f"expected --{name.replace('_', '-')} above 0, got {value}; raise it")
    minutes = options.minutes
    if minutes is None and options.steps is None:
        minutes = DEFAULT_MINUTES
    device = resolve_device(options.device)
    config = _settings(options, device)
    images = load_images(
        Path(options.data), image_size=options.image_size, channels=options.channels
    )
    require_training_fits(config, len(images), images.image_shape, device.type)
    with (
        output_folder(Path(options.out)) as out,
        WorkProgress("training") as display,
        listening(display, options.out) as interrupted,
    ):

        def callback(progress: TrainingProgress) -> None:
            show_training(display, progress)
            stop_if(interrupted, options.out)
            if progress.fraction >= 1:
                # The last step is saved; measuring its quality can take long, and asks nobody.
                interrupted.leave_at_once()

        _, quality = train_prior(
            images.all_images_uint8(),
            out=out,
            config=config,
            minutes=minutes,
            steps=options.steps,
            device=device,
            data_name=images.name,
            command=command,
            callback=callback,
        )
    console = Console()
    print_line(
        console,
        f"kernel distance {quality.kernel_distance:.4g}, precision {quality.precision:.2f}, "
        f"recall {quality.recall:.2f}",
    )
    print_line(console, f"{out}, samples in {out / 'samples.png'}")


def show(options: PriorShow) -> None:
    """Prints a prior's card as a table and writes a picture of samples.

    Raises:
        GradinvError: no prior there, or the picture cannot be written.
    """
    if options.rows < 1:
        raise ConfigError(f"expected --rows of at least 1, got {options.rows}; raise it")
    require_seed(options.seed, "--seed")
    folder = SHIPPED.get(options.prior, Path(options.prior))
    generator = load_generator(folder)
    count = options.rows * SAMPLES_A_ROW
    needed = outputs_bytes(generator, (1, *generator.latent_shape)) * count
    require_room(needed, "a picture", "--rows", ConfigError)
    card = load_card(folder)
    out = Path(options.out or f"{folder.resolve().name}-samples.png")
    save_sample_grid(generator, out, rows=options.rows, seed=options.seed)
    channels, height, width = generator.image_shape
    parameters = sum(parameter.numel() for parameter in generator.parameters())
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    if isinstance(quality := card.get("quality"), dict):
        card["quality"] = {
            name: "not finite" if value is None else value for name, value in quality.items()
        }
    about = {
        "images": f"{height}x{width} pixels, {channels} channel{'s' if channels > 1 else ''}",
        "latent": "x".join(str(size) for size in generator.latent_shape),
        "parameters": f"{parameters:,}",
        **{_CARD_WORDS.get(name, name): value for name, value in card.items()},
    }
    for name, value in _lines(about):
        # Text, not str: a path may hold what rich reads as markup.
        table.add_row(Text(name, style="bold"), Text(value, overflow="fold"))
    console = report_console()
    console.print(table)
    print_line(console, str(out))


def _lines(card: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns the card flat, as text."""
    lines = []
    for name, value in card.items():
        if isinstance(value, dict):
            lines += [(f"{name}: {inner}", text) for inner, text in _lines(value)]
        else:
            lines.append((name, f"{value:.4g}" if isinstance(value, float) else str(value)))
    return lines
