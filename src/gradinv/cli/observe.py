"""``gradinv observe``: the client's side, which ends in a file."""

from pathlib import Path

from rich.console import Console

from gradinv.attacks import preset
from gradinv.attacks.preflight import preflight_derivative
from gradinv.audit.cell import observe_cell
from gradinv.audit.inputs import images_and_network, model_info
from gradinv.audit.plan import AuditConfig, derive_seed
from gradinv.audit.protocol import protocol_of, reveal_of
from gradinv.audit.runner import one_thread
from gradinv.cli.options import Observe
from gradinv.errors import ConfigError
from gradinv.federated import parse_defense
from gradinv.models import save_weights
from gradinv.report.text import print_line


def observe_update(options: Observe) -> None:
    """Makes the update of one batch and saves what the server sees.

    Raises:
        GradinvError: wrong settings or inputs, or a file that cannot be written.
    """
    if options.batch < 0:
        raise ConfigError(f"expected --batch of at least 0, got {options.batch}; count from 0")
    weights = options.save_weights
    if weights is not None and Path(weights).resolve() == Path(options.out).resolve():
        raise ConfigError(
            f"expected another file for --save-weights than for --out, got {weights} for both; "
            "the weights would take the update's place: name another"
        )
    config = AuditConfig(
        data=options.data,
        image_size=options.image_size,
        channels=options.channels,
        classes=options.classes,
        model=options.model,
        weights=options.weights,
        mean=options.mean,
        std=options.std,
        batch_size=options.batch_size,
        batches=options.batch + 1,
        mode=options.mode,
        protocol=options.protocol,
        local_epochs=options.local_epochs,
        local_batch_size=options.local_batch_size,
        local_lr=options.local_lr,
        local_momentum=options.local_momentum,
        optimizer=options.optimizer,
        loss=options.loss,
        reveal_order=options.reveal_order,
        defense=(options.defense,),
        reveal_bn=options.reveal_bn,
        hide_labels=options.hide_labels,
        seed=options.seed,
        device=options.device,
    )
    # One thread, as in an audit: sums depend on the number of threads.
    with one_thread():
        defenses = parse_defense(options.defense)
        notes: list[str] = []
        images, model = images_and_network(config, config.data, note=notes.append)
        batches = images.batches(
            batch_size=config.batch_size, count=config.batches, seed=config.seed
        )
        observation = observe_cell(
            model,
            batches[options.batch],
            protocol=protocol_of(config),
            defenses=defenses,
            reveal=reveal_of(config),
            seed=derive_seed(config.seed, "defense", options.batch),
            model_info=model_info(config),
        )
        found = preflight_derivative(observation, model, [preset("gi-x")], seed=config.seed)
    observation.save(Path(options.out))
    console = Console(stderr=True)
    for line in [*notes, *found.lines()]:
        print_line(console, f"gradinv: {line}")
    if weights is not None:
        save_weights(model, Path(weights))
    print(options.out if weights is None else f"{options.out} {weights}")
