"""The data that the tests of this folder share; no test writes to it."""

import pytest

from tests.train import nano


@pytest.fixture(scope="session")
def data(tmp_path_factory):
  return nano.make_data(tmp_path_factory.mktemp("nano"))
