import json
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def golden():
  """The stored results of the reference packages, see tests/golden/rewards.py."""
  return json.loads((Path(__file__).parents[1] / "golden" / "rewards.json").read_text())
