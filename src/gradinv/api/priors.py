"""``gradinv.load_prior``, ``train_prior``, ``wrap_prior``, ``learn_prior``: what a server knows."""

import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Num
from torch import Tensor, nn

from gradinv.api.progress import Progress, WorkProgress, left_words, shows_bars
from gradinv.audit.inputs import load_prior as load_prior_named
from gradinv.audit.runner import one_thread
from gradinv.errors import ConfigError, DataError
from gradinv.federated import Observation
from gradinv.files import output_folder
from gradinv.metalearning import LearningConfig, LearningProgress, open_tasks
from gradinv.metalearning import learn_prior as learn
from gradinv.models import save_weights
from gradinv.models.wrappers import unwrapped_network
from gradinv.priors import Generator
from gradinv.priors.dcgan import untrained_dcgan
from gradinv.priors.fitting import NO_LAYERS, save_wrapped, wrapped
from gradinv.priors.footprint import require_training_fits
from gradinv.priors.gan import TrainingConfig
from gradinv.priors.generator import require_no_prior
from gradinv.priors.trainer import Settings
from gradinv.priors.training import CHECKPOINT, TrainingProgress
from gradinv.priors.training import train_prior as train


def load_prior(path: str | Path, *, device: torch.device | str = "cpu") -> Generator:
    """Loads a generator that a server searches.

    >>> import gradinv
    >>> prior = gradinv.load_prior("embedded")
    >>> prior.image_shape
    (1, 32, 32)

    Args:
        path: a folder that ``gradinv prior train`` or :func:`train_prior` made, ``embedded`` for
            the one of Fashion-MNIST that the package has, ``natural`` for its flow of natural
            images, or ``package.module:object``.
        device: where to put it.

    Raises:
        GradinvError: it cannot be loaded.
    """
    prior = load_prior_named(str(path), device=torch.device(device), embedded=False)
    assert prior is not None
    return prior


def train_prior(
    images: Num[Tensor, "image channel height width"],
    *,
    minutes: float | int | None = None,
    steps: int | None = None,
    config: Settings = TrainingConfig(),  # noqa: B008 -- a frozen value
    device: torch.device | str = "cpu",
    out: str | Path | None = None,
    progress: Progress = None,
) -> Generator:
    """Trains a generator on images like the client's, which a server may have.

    >>> import gradinv, torch
    >>> from gradinv.priors.gan import TrainingConfig
    >>> tiny = TrainingConfig(base_channels=4, latent_dim=8, batch_size=4)
    >>> gradinv.train_prior(torch.rand(16, 1, 32, 32), steps=1, config=tiny).latent_shape
    (8,)

    Args:
        images: in [0, 1], or bytes; 32 or 64 pixels high and wide.
        minutes: wall-clock bound; this or ``steps``.
        steps: bound on the steps; the same steps give the same weights.
        config: which architecture, and everything else that changes the result.
        device: where to compute.
        out: folder to write the prior into, with its card and samples. The same call continues
            what was stopped. Nothing is left on disk by default.
        progress: as for :func:`gradinv.audit`.

    Raises:
        ConfigError: both bounds or none.
        GradinvError: images that do not fit, or another training in the folder.
    """
    if (minutes is None) == (steps is None):
        raise ConfigError("expected either minutes= or steps=; give one of them")
    if images.is_floating_point():
        low, high = float(images.min()), float(images.max())
        if not 0 <= low <= high <= 1:
            raise DataError(
                f"expected pixels in [0, 1], got [{low:.4g}, {high:.4g}]; divide bytes by 255"
            )
        images = images.detach().mul(255).round().to(torch.uint8)
    minutes = None if minutes is None else float(minutes)
    channels, height, width = images.shape[1:]
    kind = torch.device(device).type
    require_training_fits(config, len(images), (channels, height, width), kind)
    with _folder(out) as folder, _told("training", progress) as tell:

        def callback(now: TrainingProgress) -> None:
            left = now.seconds * (1 - now.fraction) / now.fraction if now.fraction > 0 else None
            tell(now.fraction, f"step {now.step}, {left_words(left)}")

        generator, _ = train(
            images.cpu(), out=folder, config=config, minutes=minutes, steps=steps,
            device=torch.device(device), data_name="images in memory",
            command="gradinv.train_prior", callback=callback,
        )  # fmt: skip
    return generator


def wrap_prior(
    module: nn.Module,
    *,
    latent_shape: Sequence[int],
    output_range: tuple[float | int, float | int] = (0.0, 1.0),
    method: str = "forward",
    latent_scale: float | int = 1.0,
    image_size: int | None = None,
    settings: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
) -> Generator:
    """Makes a prior of a network from elsewhere, once it is known that attacks can search it.

    >>> import gradinv, torch
    >>> layers = torch.nn.Linear(8, 1024), torch.nn.Tanh(), torch.nn.Unflatten(1, (1, 32, 32))
    >>> module = torch.nn.Sequential(*layers)
    >>> gradinv.wrap_prior(module, latent_shape=[8], output_range=(-1, 1)).image_shape
    (1, 32, 32)

    Args:
        module: maps (batch, *latent_shape) to (batch, channel, height, width), or to a tuple or an
            object with a ``sample`` that is that. A copy is used, in eval mode.
        latent_shape: shape of one latent, standard normal.
        output_range: the values that mean black and white; (-1, 1) for a tanh output.
        method: of the module that makes images: ``decode`` for an autoencoder.
        latent_scale: what latents are multiplied by before the module gets them.
        image_size: height and width to average its images to; its own by default.
        settings: the keyword arguments that made the module; with ``out``, if there were any.
        out: folder to save the prior in, which names the module's class.

    Returns:
        The prior. A warning names the attacks that cannot search its weights, if so; gifd needs a
        sequence of layers.

    Raises:
        GradinvError: all that does not fit; it cannot be saved or loaded again.
    """
    low, high = output_range
    found = wrapped(
        module, latent_shape=tuple(latent_shape), output_range=(float(low), float(high)),
        method=method, latent_scale=float(latent_scale), image_size=image_size, settings=settings,
    )  # fmt: skip
    for limit in set(found.limits) - {NO_LAYERS}:
        warnings.warn(f"this prior cannot be used by {limit}", stacklevel=2)
    if out is not None:
        with output_folder(Path(out)) as folder:
            require_no_prior(folder, CHECKPOINT)
            save_wrapped(found, folder, command="gradinv.wrap_prior")
    return found.prior


def learn_prior(
    updates: Sequence[Observation] | str | Path,
    model: nn.Module | Sequence[nn.Module] | None = None,
    *,
    start: Generator | str | Path | None = None,
    base_channels: int = 48,
    latent: int = 128,
    config: LearningConfig = LearningConfig(),  # noqa: B008 -- a frozen value
    device: torch.device | str = "cpu",
    out: str | Path | None = None,
    progress: Progress = None,
) -> Generator:
    """Learns a generator from clients' updates alone (Jeon et al. 2021, Algorithm 2, GIML).

    >>> import gradinv, torch
    >>> from gradinv.metalearning import LearningConfig
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(1024, 3)).eval()
    >>> batches = [(torch.rand(1, 1, 32, 32), torch.tensor([label])) for label in range(3)]
    >>> updates = [gradinv.observe(model, batch) for batch in batches]
    >>> short = LearningConfig(steps=1, tasks=2)
    >>> prior = gradinv.learn_prior(updates, model, base_channels=4, latent=8, config=short)
    >>> prior.image_shape
    (1, 32, 32)

    Args:
        updates: what the server received, or a folder with updates and the weights of each round.
        model: the network with the weights that the updates were made with, or one for each round;
            as the updates in a folder say by default.
        start: the generator to start from; an untrained one by default.
        base_channels: width of an untrained one.
        latent: length of its z.
        config: everything else that changes the result.
        device: where to compute.
        out: folder to write the prior into. The same call continues what was stopped. Nothing is
            left on disk by default.
        progress: as for :func:`gradinv.audit`.

    Raises:
        GradinvError: no update can be used, or the parts do not fit together.
    """
    with _folder(out) as folder, tempfile.TemporaryDirectory() as scratch, one_thread():
        given = [] if model is None else [model] if isinstance(model, nn.Module) else list(model)
        models = [unwrapped_network(network) for network in given]
        source = Path(scratch)
        if isinstance(updates, str | Path):
            source = Path(updates)
        else:
            if not models:
                raise ConfigError(
                    "expected the network that the updates were made with, got None; give model="
                )
            for number, update in enumerate(updates):
                update.to("cpu").save(source / f"update{number:06d}.safetensors")
            for number, network in enumerate(models):
                save_weights(network, source / f"weights{number:06d}.safetensors")
        tasks = open_tasks(source, model=models[0] if models else None)
        begin = _start(start, tasks.image_shape, base_channels, latent, config.seed)
        with _told("learning", progress) as tell:

            def callback(now: LearningProgress) -> None:
                words = f"step {now.step} of {now.steps}, cost {now.cost:.4g}"
                tell(now.step / now.steps, f"{words}, {left_words(now.left)}")

            return learn(
                tasks, begin, out=folder, config=config, device=torch.device(device),
                start_name="untrained" if start is None else str(start),
                command="gradinv.learn_prior", callback=callback,
            )  # fmt: skip


def _start(
    start: Generator | str | Path | None,
    image_shape: tuple[int, int, int],
    base_channels: int,
    latent: int,
    seed: int,
) -> Generator:
    if isinstance(start, Generator):
        return start
    if start is not None:
        return load_prior(start)
    return untrained_dcgan(image_shape, base_channels, latent, seed=seed)


@contextmanager
def _folder(out: str | Path | None) -> Iterator[Path]:
    """Gives the folder that was asked for, or one that is gone afterwards."""
    if out is not None:
        with output_folder(Path(out)) as folder:
            yield folder
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@contextmanager
def _told(what: str, progress: Progress) -> Iterator[Callable[[float, str], None]]:
    """Gives a function that tells how far the work is, as the caller wants it."""
    if callable(progress):
        yield progress
        return
    shown = WorkProgress(what)
    if progress is False or (progress is None and not shows_bars(shown.console)):
        yield lambda _fraction, _text: None
        return
    with shown:
        yield shown.advance
