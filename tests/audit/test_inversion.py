import torch

from gradinv.audit.inversion import digest_of
from gradinv.federated import Observation


def sent(*values):
    gradient = {str(index): value for index, value in enumerate(values)}
    return Observation(gradient, 1, (1, 8, 8), 4)


def test_updates_of_all_types_and_of_single_numbers_have_a_digest_of_their_own():
    ones = torch.ones(2)
    updates = [
        sent(ones), sent(ones.bfloat16()), sent(ones.half()), sent(ones.double()),
        sent(torch.tensor(1.0)), sent(torch.tensor(2.0)),
    ]  # fmt: skip
    assert len({digest_of(update) for update in updates}) == len(updates)
    assert digest_of(sent(ones)) == digest_of(sent(torch.ones(3)[1:]))
