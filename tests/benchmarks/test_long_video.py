"""The benchmark of long videos, shortened: the bytes read do not grow with the video.

No times are checked.
"""

import json

from benchmarks import long_video


def test_an_episode_reads_as_much_of_a_video_ten_times_as_long():
  found = long_video.compare((1, 10), side=112, repeats=2)
  for kind in ("cold", "warm"):
    assert found[kind]["bytes"]["1 min"] > 16 * 1000
    assert 0.9 < found[kind]["bytes_ratio"] < long_video.GOAL
    assert found[kind]["seconds_ratio"] > 0
  assert found["opening"]["bytes_ratio"] > 1
  json.dumps(found)
