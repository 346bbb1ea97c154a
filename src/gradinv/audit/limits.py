"""Whether an audit can fit into memory, told before its first step."""

import math

from gradinv.attacks.footprint import attack_bytes, require_attack_fits
from gradinv.audit.plan import cells_of
from gradinv.audit.setup import Setup
from gradinv.errors import ConfigError
from gradinv.evaluation.candidates import search_bytes
from gradinv.models.footprint import memory_of
from gradinv.room import require_room


def require_audit_fits(setup: Setup) -> None:
    """Checks that every attack and the candidate search fit into memory; lower bounds.

    Raises:
        ConfigError: one of them cannot, or not in as many processes as were asked for.
    """
    config = setup.config
    workers = min(config.workers or 1, len(cells_of(config)))
    shape = (config.batch_size, *setup.client.images.image_shape)
    for number in dict.fromkeys((1, workers)):  # one process first: it decides what to lower
        for attack in setup.server.attacks.values():
            require_attack_fits(
                attack,
                setup.model,
                shape,
                classes=setup.client.images.num_classes,
                prior=setup.server.prior,
                protocol=setup.protocol,
                workers=number,
            )
    lower = "--candidates, --batch-size or --image-size"
    require_room(_search_bytes(setup), "a candidate search", lower, ConfigError)


def processes_that_fit(setup: Setup) -> int | float:
    """Returns how many processes fit into memory side by side, by the dearest attack; 1 or more."""
    config, images = setup.config, setup.client.images
    shape = (config.batch_size, *images.image_shape)
    dearest = max(
        attack_bytes(
            attack,
            setup.model,
            shape,
            classes=images.num_classes,
            prior=setup.server.prior,
            protocol=setup.protocol,
        )
        for attack in setup.server.attacks.values()
    )
    there, _ = memory_of(setup.device)
    return math.inf if math.isinf(there) else max(1, there // max(1, dearest))


def _search_bytes(setup: Setup) -> int:
    images, batch = setup.client.images, setup.client.batches[0]
    of_label = images.labels.bincount(minlength=images.num_classes)[batch.labels]
    counts = [min(setup.judge.candidates, int(number)) for number in of_label]
    return search_bytes(setup.model, images.image_shape, counts)
