"""The tiny world, for every test of the command line."""

import pytest

from tests.audit.world import build


@pytest.fixture(autouse=True)
def _world(_in_a_folder_of_its_own, tmp_path):
    build(tmp_path)
