"""The benchmark of J and F, shortened: both sides find the same, and ours in time."""

from benchmarks import segmentation_metrics


def test_j_and_f_are_those_of_whole_pictures_and_take_at_most_three_times_as_long():
  found = segmentation_metrics.compare(frames=6, rounds=1)
  assert len(found) == len(segmentation_metrics.SIZES)
  for times in found.values():
    assert times["times_faster"] > segmentation_metrics.GOAL
