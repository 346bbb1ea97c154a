"""The matching cost of FedAvg: the attacker trains as the client did, and differentiates that."""

from collections.abc import Sequence

from jaxtyping import Float, Int
from torch import Tensor, nn

from gradinv.engine.distances import Distance, Target
from gradinv.engine.plain import PlainDoubleBackward
from gradinv.engine.terms import Regularizer
from gradinv.errors import AttackError
from gradinv.federated.client import local_update, logits
from gradinv.federated.observation import Observation
from gradinv.federated.protocol import FedAvg


class SimulatedTraining(PlainDoubleBackward):
    """c = d(u(x), u) + regularisers, where u(x) is the update of local training on x.

    All T local steps are done on the trial images and differentiated through, as by Dimitrov et
    al. 2022. So time and memory are about T times those of one gradient. *Deviation:* they search
    copies of the images for each epoch and pull the means of the epochs together, because they do
    not fix an order; here one set of images goes through one order.

    Args:
        model: f_theta in the observation's mode.
        observation: u and what is known beside it: the labels, and the order of the local steps
            (revealed, or guessed).
        distance: d.
        regularizers: those on images and on batch-norm statistics are used here.
        target: what to compare with; the observation's update when None.
        soft_labels: as in :class:`PlainDoubleBackward`.

    Raises:
        AttackError: the update is a single gradient, or labels, order or statistics are missing.
    """

    way = "simulated"

    def __init__(
        self,
        model: nn.Module,
        observation: Observation,
        *,
        distance: Distance,
        regularizers: Sequence[Regularizer] = (),
        target: Target | None = None,
        soft_labels: bool = False,
    ) -> None:
        super().__init__(
            model,
            observation,
            distance=distance,
            regularizers=regularizers,
            target=target,
            reason="several local steps",
            soft_labels=soft_labels,
        )
        if not isinstance(observation.protocol, FedAvg):
            raise AttackError(
                "expected an update of FedAvg to simulate, got one of FedSGD; "
                "match its gradient with an engine for gradients"
            )
        if observation.order is None:
            raise AttackError(
                "expected an order of the local steps to simulate, got none; "
                "reveal it, or guess one with protocol.order"
            )
        self.protocol = observation.protocol
        self.order = observation.order

    def _trial(
        self,
        images: Float[Tensor, "batch channel height width"],
        labels: Int[Tensor, " batch"] | Float[Tensor, "batch class"],
        *,
        create_graph: bool,
    ) -> dict[str, Tensor]:
        """Returns what a client with these images would send."""
        model = self.problem.model
        update = local_update(
            model, images, labels, self.protocol, self.order, create_graph=create_graph
        )
        if self.problem.statistics_terms and create_graph:
            # Statistics are revealed of one pass of the whole batch at theta_0: this pass comes
            # last, and the recorder keeps the last.
            logits(model, images)
        return update
