"""What the server sees of a client: the barrier between the data and the attack.

An :class:`Observation` has no field that could hold an image. Everything on the server's side
starts from it alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from gradinv.errors import ConfigError, GradinvError, ObservationError
from gradinv.federated.checks import (
    check_clients,
    check_counts,
    check_floats,
    check_labels,
    check_order,
    differences,
)
from gradinv.federated.defense import Defense, check_defenses, survivors_of
from gradinv.federated.defenses import format_defenses, parse_defense
from gradinv.federated.protocol import (
    PROTOCOLS,
    FedSGD,
    Order,
    Protocol,
    read,
    written,
)
from gradinv.files import load_tensors, save_tensors
from gradinv.memory import owned
from gradinv.models.batchnorm import (
    BatchStatistics,
    batch_norm_layers,
)
from gradinv.models.weights import fingerprint

_SCHEMA = 1
_GRADIENT, _MEAN, _VAR = "gradient/", "bn_mean/", "bn_var/"


@dataclass(frozen=True, eq=False)
class Observation:
    """One update, with everything that the server knows about it.

    Its tensors have memory of their own (:mod:`gradinv.memory`); views are copied.

    Attributes:
        gradient: parameter name -> what the client sent for it, after its defences: the gradient
            of FedSGD, or (theta_0 - theta_T) / lr of FedAvg.
        batch_size: number of images in the client's batch.
        image_shape: (channels, height, width) of one image.
        num_classes: number of logits of the network.
        labels: classes of the batch in the client's order, when revealed.
        bn_statistics: batch-norm layer name -> statistics of its input, when revealed.
        protocol: what the client computed.
        defenses: what the client is publicly known to have done to the update.
        clients: number of clients whose updates are summed in this one.
        model: free text about the network, such as "spec" and "seed"; "fingerprint" tells which
            weights the update was made with.
        order: which images of the batch made which local step of FedAvg, when revealed.

    Raises:
        ObservationError: NaN or infinity in a tensor (all such tensors are named), no gradient, a
            batch size, shape, number of classes or of clients that is no whole number above 0,
            labels that do not fit the batch or the classes, or an order that does not fit the
            protocol.
        ConfigError: a defence that does not say what it leaves.
    """

    gradient: Mapping[str, Tensor]
    batch_size: int
    image_shape: tuple[int, int, int]
    num_classes: int
    labels: Int[Tensor, " batch"] | None = None
    bn_statistics: Mapping[str, BatchStatistics] | None = None
    protocol: Protocol = field(default_factory=FedSGD)
    defenses: tuple[Defense, ...] = ()
    clients: int = 1
    model: Mapping[str, str] = field(default_factory=dict)
    order: Order | None = None

    def __post_init__(self) -> None:
        if not self.gradient:
            raise ObservationError(
                "expected at least one gradient in the update, got none; observe it again"
            )
        check_defenses(self.defenses)
        self._own()
        check_floats(self._floats())
        check_counts(self.image_shape, self.batch_size, self.num_classes, self.clients)
        if self.labels is not None:
            check_labels(self.labels, self.batch_size, self.num_classes)
        if self.order is not None:
            check_order(self.order, self.batch_size, self.protocol)

    @property
    def sparsity_mask(self) -> Mapping[str, Tensor] | None:
        """Which coordinates survived, when the client is publicly known to send a part of them.

        Parameter name -> bool tensor of the parameter's shape; computed at each access.
        """
        return survivors_of(self.defenses, self.gradient)

    def as_one_gradient(self) -> "Observation":
        """Returns the update as if the client had sent one gradient of its whole batch.

        All gradients are taken to be those at theta_0, so the update and its defences are divided
        by their number. It is exact for a single local step, and right to first order in the step
        size where every image weighs the same (docs/methods.md, Updates of FedAvg). An observation
        of FedSGD is returned as it is.
        """
        if isinstance(self.protocol, FedSGD):
            return self
        number = self.protocol.gradients(self.batch_size)
        return replace(
            self,
            gradient={name: value / number for name, value in self.gradient.items()},
            protocol=FedSGD(self.protocol.mode, self.protocol.loss),
            defenses=tuple(defense.scaled(1 / number) for defense in self.defenses),
            order=None,
        )

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> "Observation":
        """Returns the observation on ``device``, its floating-point tensors as ``dtype``."""
        statistics = self.bn_statistics
        if statistics is not None:
            statistics = {
                name: BatchStatistics(
                    value.mean.to(device=device, dtype=dtype),
                    value.var.to(device=device, dtype=dtype),
                )
                for name, value in statistics.items()
            }
        return replace(
            self,
            gradient={
                name: value.to(device=device, dtype=dtype) for name, value in self.gradient.items()
            },
            labels=None if self.labels is None else self.labels.to(device=device),
            bn_statistics=statistics,
        )

    def save(self, path: Path) -> None:
        """Saves the observation as safetensors, everything but tensors as JSON in the header.

        Raises:
            StorageError: the file cannot be written.
            ConfigError: a defence whose spec does not name it.
        """
        defenses = format_defenses(self.defenses)
        if (read := format_defenses(parse_defense(defenses))) != defenses:
            raise ConfigError(
                f"expected defences whose specs name them, got {defenses!r}, which reads as "
                f"{read!r}; make them with gradinv.federated.defense.spec_of"
            )
        tensors = dict(self._floats())
        if self.labels is not None:
            tensors["labels"] = self.labels
        header = {
            "kind": "observation",
            "schema": _SCHEMA,
            "parameters": list(self.gradient),  # safetensors does not keep the order
            "bn_layers": None if self.bn_statistics is None else list(self.bn_statistics),
            "batch_size": self.batch_size,
            "image_shape": list(self.image_shape),
            "num_classes": self.num_classes,
            "protocol": {"name": _protocol_name(self.protocol), **written(self.protocol)},
            "order": self.order,
            "defenses": defenses,
            "clients": self.clients,
            "model": dict(self.model),
        }
        save_tensors(path, tensors, header)

    @classmethod
    def load(cls, path: Path) -> "Observation":
        """Loads what :meth:`save` wrote.

        Raises:
            StorageError: the file is missing, a pickle, truncated, or not gradinv's.
            ObservationError: it is no update, one of a newer version, incomplete, or not finite.
        """
        tensors, header = load_tensors(path, what="an update")
        if header.get("kind") != "observation":
            raise ObservationError(
                f"expected an update at {path}, got {header.get('kind', 'no kind')!r} in its "
                "header; make one with gradinv observe"
            )
        if header.get("schema") != _SCHEMA:
            raise ObservationError(
                f"expected schema {_SCHEMA} in the update at {path}, got {header.get('schema')!r}; "
                "use the version of gradinv that wrote it"
            )
        try:
            return cls(**_fields(tensors, header))
        except KeyError as error:
            raise ObservationError(
                f"expected a whole update at {path}, got one without {error}; observe it again"
            ) from error
        except (TypeError, ValueError, AttributeError) as error:
            raise ObservationError(
                f"expected a readable header in the update at {path}, got '{error}'; "
                "observe it again"
            ) from error
        except GradinvError as error:
            raise ObservationError(f"{path}: {error}") from error

    def _own(self) -> None:
        """Copies what lies in memory of others, so that where it lay decides nothing."""
        gradient = {name: owned(value) for name, value in self.gradient.items()}
        object.__setattr__(self, "gradient", gradient)
        if self.labels is not None:
            object.__setattr__(self, "labels", owned(self.labels))
        if self.bn_statistics is not None:
            statistics = {
                name: BatchStatistics(owned(value.mean), owned(value.var))
                for name, value in self.bn_statistics.items()
            }
            object.__setattr__(self, "bn_statistics", statistics)

    def _floats(self) -> list[tuple[str, Tensor]]:
        named = [(f"{_GRADIENT}{name}", value) for name, value in self.gradient.items()]
        for name, statistics in (self.bn_statistics or {}).items():
            named += [(f"{_MEAN}{name}", statistics.mean), (f"{_VAR}{name}", statistics.var)]
        return named


def check_fits(observation: Observation, model: nn.Module) -> None:
    """Checks that an update is of one client and was made with this network and these weights.

    Raises:
        ObservationError: it sums several clients; or listing every parameter and batch-norm layer
            that is missing, unexpected or of another shape; or saying that the weights differ.
    """
    check_clients(observation.clients)
    parameters = {
        name: tuple(value.shape) for name, value in model.named_parameters() if value.requires_grad
    }
    observed = {name: tuple(value.shape) for name, value in observation.gradient.items()}
    problems = differences(parameters, observed, "parameter")
    if observation.bn_statistics is not None:
        layers = {name: _features(layer) for name, layer in batch_norm_layers(model).items()}
        revealed = {
            name: tuple(value.mean.shape) for name, value in observation.bn_statistics.items()
        }
        problems += differences(layers, revealed, "batch-norm layer")
    if problems:
        raise ObservationError(
            f"expected an update of this network, got one where {'; '.join(problems)}; "
            "give the network that the update was made with"
        )
    theirs = observation.model.get("fingerprint")
    if theirs is not None and theirs != (ours := fingerprint(model)):
        raise ObservationError(
            f"expected an update of these weights ({ours}), got one that was made with other "
            f"weights ({theirs}); give the weights, or the seed, that the client had"
        )


def _features(layer: nn.Module) -> tuple[int, ...]:
    features = layer.num_features
    assert isinstance(features, int)  # every batch-norm layer has it
    return (features,)


def _fields(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> dict[str, Any]:
    protocol = dict(header["protocol"])
    if (name := protocol.pop("name")) not in PROTOCOLS:
        raise ValueError(f"unknown protocol {name!r}")
    order = header.get("order")  # updates of FedSGD from before FedAvg have none
    layers = header["bn_layers"]
    return {
        "gradient": {name: tensors[f"{_GRADIENT}{name}"] for name in header["parameters"]},
        "batch_size": header["batch_size"],
        "image_shape": tuple(header["image_shape"]),
        "num_classes": header["num_classes"],
        "labels": tensors.get("labels"),
        "bn_statistics": None
        if layers is None
        else {
            name: BatchStatistics(tensors[f"{_MEAN}{name}"], tensors[f"{_VAR}{name}"])
            for name in layers
        },
        "protocol": read(name, protocol),
        "defenses": parse_defense(header["defenses"]),
        "clients": header["clients"],
        "model": {str(key): str(value) for key, value in header["model"].items()},
        "order": None if order is None else tuple(tuple(map(int, step)) for step in order),
    }


def _protocol_name(protocol: Protocol) -> str:
    return next(name for name, kind in PROTOCOLS.items() if type(protocol) is kind)
