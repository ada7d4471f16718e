import json

from hypothesis import given, strategies
from hypothesis.extra import numpy as arrays
import numpy as np
from pycocotools import mask as coco
import pytest

from vr_jax import run_length
from vr_jax.errors import InputError

masks = strategies.tuples(strategies.integers(1, 40), strategies.integers(1, 40)).flatmap(
  lambda shape: arrays.arrays(bool, shape)
)


@given(masks)
def test_a_mask_survives_its_runs_and_json(mask):
  height, width = mask.shape
  value = json.loads(json.dumps(run_length.encode(mask)))
  run_length.check(value, height, width, "here")
  np.testing.assert_array_equal(run_length.decode(value, height, width), mask)
  if value is not None:
    assert run_length._count_pixels(value["counts"]) == mask.size
    runs = coco.decode(run_length._as_bytes(value)).ravel(order="F")
    edges = np.flatnonzero(np.diff(runs, prepend=0, append=-1))
    counts = np.diff(edges, prepend=0).tolist()
    plain = {"size": [height, width], "counts": counts}
    run_length.check(plain, height, width, "here")
    np.testing.assert_array_equal(run_length.decode(plain, height, width), mask)


@given(strategies.lists(masks, min_size=1, max_size=3))
def test_union_and_box_are_those_of_the_pixels(found):
  shape = np.max([mask.shape for mask in found], axis=0)
  found = [np.pad(mask, [(0, side - own) for side, own in zip(shape, mask.shape, strict=True)])
           for mask in found]  # fmt: skip
  either = np.any(found, axis=0)
  union = run_length.union([run_length.encode(mask) for mask in found])
  np.testing.assert_array_equal(run_length.decode(union, *either.shape), either)
  box = run_length.box(union)
  rows, columns = np.nonzero(either)
  if not len(rows):
    assert np.isnan(box).all()
  else:
    edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert box.tolist() == edges


ONE = run_length.encode(np.eye(4, 6, dtype=bool))
assert ONE is not None


@pytest.mark.parametrize(
  ("value", "problem"),
  [
    ([], "is no run-length mask"),
    ({"size": [4, 6]}, "is no run-length mask"),
    ({**ONE, "size": [6, 4]}, r"the mask is of \[6, 4\] pixels .* the frames of \[4, 6\]"),
    ({**ONE, "counts": ONE["counts"][:-1]}, "damaged"),
    ({**ONE, "counts": ONE["counts"] + "1"}, "its runs hold"),
    ({**ONE, "counts": "é"}, "damaged"),
    ({**ONE, "counts": ""}, "damaged"),
    ({**ONE, "counts": "zzzzzzzzz"}, "damaged"),
    ({**ONE, "counts": 7}, "neither a text nor a list"),
    ({**ONE, "counts": [3, 1]}, "its runs hold 4 pixels of 24"),
    ({**ONE, "counts": [25, -1]}, "a run is no number of pixels"),
  ],
)
def test_a_mask_that_the_library_would_read_wrongly_is_named(value, problem):
  with pytest.raises(InputError, match=f"^a.json: .*{problem}"):
    run_length.check(value, 4, 6, "a.json")
  run_length.check(None, 4, 6, "a.json")


@given(strategies.binary(min_size=1, max_size=12).map(lambda data: data.decode("latin-1")))
def test_counts_that_pass_the_check_can_be_read(counts):
  value = {"size": [3, 5], "counts": counts}
  try:
    run_length.check(value, 3, 5, "a.json")
  except InputError:
    return
  assert run_length.decode(value, 3, 5).shape == (3, 5)
