"""What the tests check on every function of the package: axes that differ, and plain types."""

import jaxtyping
import numpy as np
import pytest

from vr_jax.data import sampling
from vr_jax.rewards import boxes


def test_axes_of_one_name_must_agree():
  with pytest.raises(jaxtyping.TypeCheckError, match="parameters"):
    boxes.box_iou(np.zeros((3, 4), np.float32), np.zeros((2, 4), np.float32))


def test_a_function_without_arrays_is_checked_too():
  with pytest.raises(Exception, match="violates type hint"):
    sampling.check_rate(sampling.RateRule(fps=2.0), "fast")
