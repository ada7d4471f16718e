"""Halves of a slice against the whole one, by numbers of plans that are made up here."""

import pytest

from benchmarks import disjoint_meshes


def _plan(slice_name, fsdp, **seconds):
  programs = [
    {
      "name": name.replace("_", " "),
      "runs": runs,
      "parts": [{"seconds": {"compute": value, "memory": value / 2, "network": 0.0}}],
    }
    for name, (runs, value) in seconds.items()
  ]
  mesh = {"data": 2, "fsdp": fsdp, "sequence": 1, "tensor": 1}
  return {
    "topology": slice_name,
    "chip": "TPU v5p",
    "mesh": mesh,
    "programs": programs,
    "fits": True,
  }


def test_the_longer_of_both_halves_is_compared_with_the_sum_on_the_whole_slice():
  whole = _plan("v5p:2x2x2", 4, rollout=(1, 4.0), reference_log_probs=(1, 1.0), train_step=(2, 1.0))
  half = _plan("v5p:2x2x1", 2, rollout=(1, 5.0), reference_log_probs=(1, 1.0), train_step=(2, 2.0))
  found = disjoint_meshes.compare(whole, half, weights=20_000_000_000)
  # Each chip of a half has half of the weights of its copy: 10 GB over a link of 100 GB/s.
  assert found["halves"] == {
    "slice": "v5p:2x2x1",
    "mesh": [2, 2, 1, 1],
    **{"sampling": 5.0, "update": 5.0, "copy": 0.1, "step": 5.1},
  }
  times = {"sampling": 4.0, "update": 3.0, "step": 7.0}
  assert found["whole"] == {"slice": "v5p:2x2x2", "mesh": [2, 4, 1, 1], **times}
  assert found["speedup"] == found["at_best"] == pytest.approx(7 / 5.1, abs=0.005)
  assert found["at_best_update_times"] == 1


def test_what_moves_is_what_is_trained_in_the_dtype_of_passes():
  flags = ["--config=configs/moss_chatv.py:tiny", "--config.model.dtype=bfloat16"]
  whole = disjoint_meshes.moved_bytes(["--config=configs/moss_chatv.py:tiny"])
  assert 0.5 * whole < disjoint_meshes.moved_bytes(flags) < 0.55 * whole
  adapters = [*flags, "--config.model.lora.rank=2"]
  assert disjoint_meshes.moved_bytes(adapters) < 0.2 * whole
