"""``gradinv prior wrap`` and ``convert``: a network from elsewhere as a prior."""

import hashlib
import json
import tomllib
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from gradinv.cli.prior_options import PriorConvert, PriorWrap
from gradinv.environment import revision, versions
from gradinv.errors import ConfigError
from gradinv.files import output_folder, read_json, write_json
from gradinv.models.weights import fill_weights, unwrapped
from gradinv.priors.checkpoints import read_weights
from gradinv.priors.fitting import save_wrapped, wrapped
from gradinv.priors.foreign import module_named
from gradinv.priors.generator import require_no_prior, save_generator
from gradinv.priors.samples import SAMPLES, save_sample_grid
from gradinv.priors.stylegan2.published import read_published
from gradinv.priors.training import CHECKPOINT
from gradinv.report.text import print_line
from gradinv.seeds import require_seed

CONVERSION = "conversion.json"
"""In the folder of a converted prior: its tensors, and what they were called."""


def wrap(options: PriorWrap, command: str) -> None:
    """Makes the prior's folder.

    Args:
        options: the command line's.
        command: for the card.

    Raises:
        GradinvError: the network cannot be made or does not fit, or the folder holds a prior.
    """
    latent_shape = tuple(_numbers(options.latent, int, "--latent", "whole numbers such as 100,1,1"))
    values = _numbers(options.range, float, "--range", "two numbers such as --range=-1,1")
    if len(values) != 2:
        raise ConfigError(
            f"expected the values of black and white as --range, got {options.range!r}; give two "
            "numbers: --range=-1,1"
        )
    settings = _settings(options)
    require_seed(options.seed, "--seed")
    if options.part is not None and options.weights is None:
        raise ConfigError("expected --weights beside --part, got none; name the file")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        module = module_named(options.network, settings)
    console = Console()
    if options.weights is not None:
        path = Path(options.weights)
        stored, notes = unwrapped(read_weights(path, options.part), module, error=ConfigError)
        fill_weights(module, stored, f"the weights of {type(module).__name__} at {path}")
        for note in notes:
            print_line(console, note)
    found = wrapped(
        module, latent_shape=latent_shape, output_range=(values[0], values[1]),
        method=options.method, latent_scale=options.latent_scale, image_size=options.image_size,
        settings=settings,
    )  # fmt: skip
    with output_folder(Path(options.out)) as out:
        require_no_prior(out, out / CHECKPOINT)
        save_wrapped(found, out, command=command)
    channels, height, width = found.prior.image_shape
    colours = "grey" if channels == 1 else "colour"
    print_line(console, f"{height}x{width} pixels, {colours}; all checks passed")
    if dropped := found.prior.dropped:
        print_line(console, f"left out, because no image depends on it: {', '.join(dropped)}")
    for limit in found.limits:
        print_line(console, f"cannot be used by {limit}")
    print_line(console, f"{out}, samples in {out / SAMPLES}")


def convert(options: PriorConvert, command: str) -> None:
    """Makes the prior's folder of a published checkpoint.

    Args:
        options: the command line's.
        command: for the card.

    Raises:
        GradinvError: the file is missing, broken or of another architecture, or the folder holds a
            prior.
    """
    path = Path(options.checkpoint)
    found = read_published(path, truncation=options.truncation, shown_size=options.image_size)
    card = {
        "state": "converted",
        "network": f"StyleGAN2 in {found.layout}'s names",
        "file": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "command": command,
        "revision": revision(),
        "versions": versions(),
    }
    taken = [
        {"name": name, "in_file": found.names[name], "shape": list(value.shape)}
        for name, value in found.generator.state_dict().items()
    ]
    with output_folder(Path(options.out)) as out:
        require_no_prior(out, out / CHECKPOINT)
        write_json(out / CONVERSION, {"layout": found.layout, "tensors": taken})
        save_sample_grid(found.generator, out / SAMPLES, rows=2)
        save_generator(found.generator, out, card)
    console = Console()
    of_its_own, side = found.generator.image_size, found.generator.image_shape[1]
    shown = "" if side == of_its_own else f", averaged to {side}x{side}"
    print_line(console, f"{card['network']}: {of_its_own}x{of_its_own} pixels{shown}")
    print_line(console, f"{len(taken)} tensors taken over, listed in {out / CONVERSION}")
    print_line(console, f"{out}, samples in {out / SAMPLES}")


def _numbers(text: str, kind: type, option: str, what: str) -> list[Any]:
    try:
        return [kind(word) for word in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"expected {what} as {option}, got {text!r}; mend it") from error


def _settings(options: PriorWrap) -> dict[str, Any]:
    """Returns the keyword arguments of the network: those of the file, then those of --set."""
    settings = {} if options.settings is None else _file(Path(options.settings))
    for word in options.set:
        name, equals, value = word.partition("=")
        if not equals or not name.isidentifier():
            raise ConfigError(
                f"expected a setting as --set NAME=VALUE, got {word!r}; write, for example, "
                "--set width=64"
            )
        try:
            settings[name] = json.loads(value)
        except ValueError:
            settings[name] = value  # a word
    return settings


def _file(path: Path) -> dict[str, Any]:
    if path.suffix == ".toml":
        try:
            return tomllib.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"expected settings as TOML at {path}, got '{error}'; check the file"
            ) from error
    content = read_json(path)
    if not isinstance(content, dict):
        raise ConfigError(
            f"expected an object of settings in {path}, got {type(content).__name__}; write "
            '{"name": value}'
        )
    return content
