"""Training a prior on a folder of images: resumable, bounded by minutes or steps."""

import hashlib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import UInt8
from torch import Tensor

from gradinv.environment import revision, versions
from gradinv.errors import ConfigError
from gradinv.files import load_tensors, save_tensors, write_json
from gradinv.priors.generator import Generator, require_no_prior, save_generator
from gradinv.priors.quality import Quality, measure_quality
from gradinv.priors.samples import SAMPLES, save_sample_grid
from gradinv.priors.trainer import Settings, Trainer

CHECKPOINT = Path("training") / "checkpoint.safetensors"
LOG = Path("training") / "log.json"
_CONTENT = "content of the images"


@dataclass(frozen=True)
class TrainingProgress:
    """Handed to the callback after every step.

    Attributes:
        step: steps done, over all sessions.
        fraction: of the whole training, 0 to 1.
        seconds: spent training, over all sessions.
        images_per_second: over this session.
        generator_loss: of this step.
        discriminator_loss: of this step.
    """

    step: int
    fraction: float
    seconds: float
    images_per_second: float
    generator_loss: float
    discriminator_loss: float


def fast_precision(device: torch.device) -> Literal["bf16", "fp32"]:
    """Returns ``bf16`` where the device computes it natively, ``fp32`` elsewhere."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    return "bf16" if torch.cpu.get_capabilities().get("avx512_bf16") else "fp32"


def train_prior(
    images: UInt8[Tensor, "n channel height width"],
    *,
    out: Path,
    config: Settings,
    minutes: float | None = None,
    steps: int | None = None,
    device: torch.device | None = None,
    data_name: str = "",
    command: str = "",
    checkpoint_seconds: float = 60.0,
    callback: Callable[[TrainingProgress], None] | None = None,
) -> tuple[Generator, Quality]:
    """Trains a generator and saves it as a prior; continues where a call in ``out`` stopped.

    ``out`` holds a usable prior from the first checkpoint on. Bounded by ``steps``, an interrupted
    training ends at the same weights as one that was not.

    Args:
        images: training images, 0..255.
        out: the prior's folder.
        config: how to train which architecture; must be the same when continuing.
        minutes: wall-clock bound over all calls.
        steps: bound in steps; exactly one of the two must be given.
        device: where to train; the CPU by default.
        data_name: for the card.
        command: for the card.
        checkpoint_seconds: time between checkpoints.
        callback: called after every step. An exception that it raises ends the training with a
            checkpoint.

    Returns:
        The averaged generator in eval mode, and its quality on the training images.

    Raises:
        ConfigError: both or no bound, another configuration or other images than those of the
            training in ``out``, or a prior there that cannot be trained on.
        DataError: too few images.
    """
    if (minutes is None) == (steps is None):
        raise ConfigError("expected either minutes or steps, got both or none; give one of them")
    out = Path(out)
    trainer = config.trainer(images, device or torch.device("cpu"))
    settings = _settings(config, trainer)
    log: list[dict[str, Any]] = _resume(trainer, out, settings)
    started_step, started = trainer.step_count, time.perf_counter()
    last_checkpoint = started
    unfinished = {"state": "unfinished", "data": data_name}

    def done() -> float:
        return trainer.step_count / steps if steps else trainer.seconds / (60 * (minutes or 1))

    while done() < 1:
        generator_loss, discriminator_loss = trainer.step()
        now = time.perf_counter()
        if now - last_checkpoint > checkpoint_seconds:
            log.append({
                "step": trainer.step_count, "seconds": round(trainer.seconds, 1),
                "generator_loss": generator_loss, "discriminator_loss": discriminator_loss,
            })  # fmt: skip
            _checkpoint(trainer, out, settings, log, unfinished)
            last_checkpoint = time.perf_counter()
        elif done() >= 1:
            # Its quality is still to be measured, which may be left.
            _checkpoint(trainer, out, settings, log, unfinished)
        if callback is not None:
            speed = (trainer.step_count - started_step) * config.batch_size / (now - started)
            progress = TrainingProgress(
                trainer.step_count, min(1.0, done()), trainer.seconds, speed,
                generator_loss, discriminator_loss,
            )  # fmt: skip
            try:
                callback(progress)
            except BaseException:
                _checkpoint(trainer, out, settings, log, unfinished)
                raise
    sample = trainer.images[_spread(len(images), 2000).to(trainer.images.device)].float() / 255
    quality = measure_quality(trainer.average, sample)
    card = {
        "state": "finished",
        "data": data_name,
        "images": len(images),
        "command": command,
        "config": {"architecture": config.architecture, **asdict(config)},
        "steps": trainer.step_count,
        "seconds": round(trainer.seconds, 1),
        "revision": revision(),
        "versions": versions(),
        "quality": quality.as_dict(),
    }
    _checkpoint(trainer, out, settings, log, card)
    return trainer.average, quality


def _spread(n: int, count: int) -> Tensor:
    """Returns ``count`` indices spread evenly over ``n``, so that no class is left out."""
    return torch.linspace(0, n - 1, min(n, count)).long()


def _settings(config: Settings, trainer: Trainer) -> dict[str, Any]:
    """Returns what a training depends on, under the words that an error calls it by."""
    return {
        "architecture": config.architecture,
        **asdict(config),
        "images": list(trainer.images.shape),
        _CONTENT: hashlib.sha256(trainer.images.cpu().contiguous().numpy().data).hexdigest()[:16],
    }


def _resume(trainer: Trainer, out: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    if not (out / CHECKPOINT).is_file():
        require_no_prior(out, CHECKPOINT)
        return []
    tensors, header = load_tensors(out / CHECKPOINT, what="a training checkpoint")
    # Checkpoints from before there was a digest, or another architecture, continue and get both.
    theirs = {_CONTENT: settings[_CONTENT], "architecture": "dcgan", **header["config"]}
    names = dict.fromkeys([*settings, *theirs])
    differing = [name for name in names if theirs.get(name) != settings.get(name)]
    if differing:
        raise ConfigError(
            f"expected the settings that the training in {out} began with, got another "
            f"{', '.join(differing)}; use the same settings or another --out"
        )
    trainer.load_state(tensors, step=header["step"], seconds=header["seconds"])
    return header["log"]


def _checkpoint(
    trainer: Trainer,
    out: Path,
    settings: dict[str, Any],
    log: list[dict[str, Any]],
    card: dict[str, Any],
) -> None:
    header = {
        "kind": "training",
        "schema": 1,
        "config": settings,
        "step": trainer.step_count,
        "seconds": trainer.seconds,
        "log": log,
    }
    save_tensors(out / CHECKPOINT, trainer.state(), header)
    write_json(out / LOG, log)
    save_generator(trainer.average, out, card)
    save_sample_grid(trainer.average, out / SAMPLES)
