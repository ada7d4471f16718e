"""The benchmark of a long video, shortened: memory on the device stays the same. No times."""

import json

from benchmarks import sam2_golden, sam2_tracking
from vr_jax.models.sam2 import config as config_lib


def test_tracking_a_longer_video_needs_no_more_memory_on_the_device():
  found = sam2_tracking.measure_long(24, 128, chunk=2)
  assert found["masked_pixels"] > 0
  assert len(found["ms_a_frame"]) == 9
  # The first and the last chunks have one more or one less on its way.
  assert len(set(found["device_bytes"][1:-1])) == 1
  json.dumps(found)


def test_the_published_numbers_are_those_of_all_releases():
  for size, version in sam2_golden.IMAGE_SCORES:
    assert sam2_golden.release_of(config_lib.released(size, version)) == (size, version)
  assert sam2_tracking.A100.keys() == set(config_lib.SIZES)
  assert sam2_golden.main(["--weights=nowhere", "--image=none.png"]) == 2
