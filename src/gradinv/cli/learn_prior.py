"""``gradinv learn-prior``: a prior from updates alone."""

import dataclasses
import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from gradinv.api.progress import WorkProgress, left_words
from gradinv.audit.inputs import (
    check_prior_fits,
    client_images,
    load_model,
    load_prior,
    resolve_device,
)
from gradinv.audit.interruption import ignore_signals, signals_held
from gradinv.audit.runner import one_thread
from gradinv.cli.listening import listening
from gradinv.cli.prior_options import LearnPrior
from gradinv.cli.stopping import stop_if
from gradinv.errors import ConfigError
from gradinv.federated import Federation, Reveal, parse_defense, simulate
from gradinv.files import output_folder, read_json
from gradinv.metalearning import (
    PAPER,
    LearningConfig,
    LearningProgress,
    learn_prior,
    open_tasks,
)
from gradinv.metalearning.costs import Executor
from gradinv.metalearning.learning import LOG
from gradinv.models.footprint import require_fits
from gradinv.priors import Generator
from gradinv.priors.dcgan import require_generator_fits, untrained_dcgan
from gradinv.report.curve import write_curve
from gradinv.report.text import print_line

UPDATES = "updates"
_CURVE_SECONDS = 60.0


def show_simulation(shown: WorkProgress, done: int, total: int) -> None:
    """Shows how far a simulated federation is."""
    shown.advance(done / total, f"update {done} of {total}")
    if done == total:
        shown.say(f"federation simulated: {total} updates")


def show_learning(shown: WorkProgress, progress: LearningProgress) -> None:
    """Shows how far a learning is."""
    detail = (
        f"step {progress.step} of {progress.steps}, cost {progress.cost:.4g}, "
        f"{left_words(progress.left)}"
    )
    shown.advance(progress.step / progress.steps, detail)


class _Curve:
    """Draws the cost over the outer steps beside the prior, now and then."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.drawn = time.monotonic()

    def show(self) -> None:
        """Draws it if the last time was long ago."""
        if time.monotonic() - self.drawn >= _CURVE_SECONDS:
            self.draw()

    def draw(self) -> None:
        """Draws what the log holds."""
        self.drawn = time.monotonic()
        if (self.out / LOG).is_file():
            write_curve(
                self.out / "cost.svg",
                [(entry["step"], entry["cost"]) for entry in read_json(self.out / LOG)],
                title="Matching cost of the updates of each outer step",
                across="outer step",
                up="cost",
                logarithmic=True,
            )


def learn(options: LearnPrior, command: str) -> None:
    """Learns a prior, or continues to.

    Args:
        options: the command line's.
        command: for the card.

    Raises:
        Stopped: by Ctrl-C; the folder holds a checkpoint, or a federation that begins again.
        GradinvError: wrong settings, no updates, other ones in the folder, a full disk.
    """
    if (options.updates is None) == (options.simulate is None):
        given = "both" if options.simulate else "neither"
        raise ConfigError(
            f"expected a folder of updates or --simulate IMAGES, got {given}; give one of them"
        )
    for name in ("base_channels", "latent", "workers", "rounds_watched"):
        got = getattr(options, name)
        if got is not None and got < 1:
            raise ConfigError(
                f"expected --{name.replace('_', '-')} of at least 1, got {got}; raise it"
            )
    config = config_of(options)
    device = resolve_device(options.device)
    start = load_prior(options.start, device=torch.device("cpu"), embedded=False)
    shape = None if start is None else start.image_shape
    with (
        output_folder(Path(options.out)) as out,
        one_thread(),
        WorkProgress("learning") as display,
        listening(display, options.out) as interrupted,
    ):
        check = partial(stop_if, interrupted, options.out)
        if options.simulate is not None:
            _simulate(options, out / UPDATES, device, check, start, display.say)
        folder = out / UPDATES if options.updates is None else Path(options.updates)
        tasks = open_tasks(
            folder,
            model=options.model,
            image_shape=shape,
            rounds=options.rounds_watched,
            callback=check,
        )
        curve = _Curve(out)
        with _executor(options.workers) as executor:
            for sentence in tasks.broken:
                display.say(f"left out: {sentence}")
            display.say(
                f"{len(tasks.tasks)} updates of {tasks.images} images, made with "
                f"{len(tasks.networks)} networks"
            )

            def callback(progress: LearningProgress) -> None:
                show_learning(display, progress)
                curve.show()
                check()

            learn_prior(
                tasks,
                start
                or untrained_dcgan(
                    tasks.image_shape, options.base_channels, options.latent, seed=options.seed
                ),
                out=out,
                config=config,
                device=device,
                executor=executor,
                start_name=options.start or "untrained",
                command=command,
                snapshot_every=options.snapshot_every,
                callback=callback,
            )
        curve.draw()
    print_line(Console(), f"{out}, samples in {out / 'samples.png'}")


def config_of(options: LearnPrior) -> LearningConfig:
    """Returns how to learn, the paper's numbers in place of ours where they are asked for."""
    names = {field.name for field in dataclasses.fields(LearningConfig)}
    given = {name: getattr(options, name) for name in names}
    if not options.paper:
        return LearningConfig(**given)
    return LearningConfig(**{**given, **PAPER})


def _simulate(
    options: LearnPrior,
    folder: Path,
    device: torch.device,
    check: Callable[[], None],
    start: Generator | None,
    note: Callable[[str], None],
) -> None:
    assert options.simulate is not None
    images = client_images(
        options.simulate, image_size=options.image_size, channels=options.channels
    )
    if start is not None:
        check_prior_fits(start, images.image_shape)
    else:
        require_generator_fits(
            images.image_shape, base_channels=options.base_channels, latent_dim=options.latent
        )
    spec = options.model or "convnet"
    model = load_model(
        spec,
        num_classes=images.num_classes,
        image_shape=images.image_shape,
        seed=options.seed,
        weights=options.weights,
        mode="eval",
        device=device,
        note=note,
    )
    require_fits(
        model,
        (options.batch_size, *images.image_shape),
        lower="--image-size or --batch-size",
        error=ConfigError,
    )
    with WorkProgress("federation") as shown:

        def callback(done: int, total: int) -> None:
            show_simulation(shown, done, total)
            check()

        simulate(
            model,
            images,
            Federation(
                clients=options.clients,
                rounds=options.rounds,
                batch_size=options.batch_size,
                lr=options.server_lr,
                seed=options.seed,
            ),
            folder,
            defenses=parse_defense(options.defense),
            reveal=Reveal(labels=not options.hide_labels),
            model_info={"spec": spec, "seed": str(options.seed), "mode": "eval"},
            callback=callback,
        )


@contextmanager
def _executor(workers: int) -> Iterator[Executor | None]:
    """Gives a pool of processes, deaf to Ctrl-C; none for one worker."""
    if workers == 1:
        yield None
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=ignore_signals) as pool:
        with signals_held():
            pool.submit(int)  # all of them start with the first piece of work
        yield pool
