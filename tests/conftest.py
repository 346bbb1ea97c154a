"""What holds for every test: annotations are enforced, one thread, the same chance, no litter."""

import os
import signal

import hypothesis
import pytest
import torch
from jaxtyping import install_import_hook

# Before anything imports gradinv: every annotated shape and type is enforced while the tests run.
install_import_hook("gradinv", "beartype.beartype")

# Workers share few cores; the variable is for the commands that tests start.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell that starts the tests in the background has them ignore Ctrl-C, which some of them press.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A slow machine is no failure, and the same commit gives the same answer twice.
hypothesis.settings.register_profile("gradinv", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("gradinv")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    """Whatever writes to a default place (``runs/<time>``) writes below the test's own folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def generator() -> torch.Generator:
    """A seeded source of chance on the CPU."""
    return torch.Generator().manual_seed(0)
