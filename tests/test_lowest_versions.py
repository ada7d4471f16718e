"""What `make lowest` pins."""

import pytest

from tests import lowest_versions


def test_each_requirement_that_holds_here_is_pinned_once_to_its_lower_bound():
  lines = [
    "jax<0.12,>=0.10",
    'jax[tpu]<0.12,>=0.10 ; extra == "test"',
    'pytest>=9 ; extra == "test"',
    'torch>=2.10 ; extra == "parity"',
    'old>=1 ; python_version < "3"',
  ]
  assert lowest_versions.list_constraints(lines) == ["jax==0.10", "pytest==9"]


@pytest.mark.parametrize(
  "lines", [["rich"], ["rich<15"], ["rich>=14", 'rich>=15 ; extra == "test"']]
)
def test_a_requirement_without_one_lower_bound_is_named(lines):
  with pytest.raises(ValueError, match=r"rich.*: needs one lower bound"):
    lowest_versions.list_constraints(lines)
