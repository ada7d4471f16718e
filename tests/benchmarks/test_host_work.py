"""The benchmark of the host's work, on two short clips. No times are checked."""

import argparse
import json

import pytest

from benchmarks import host_work


def test_the_hosts_part_of_a_step_is_read_scored_and_logged_at_the_size_that_was_asked_for(
  tmp_path,
):
  options = argparse.Namespace(prompts=2, frames=8, side=112, tokens=64, repeats=1)
  found = host_work.measure_host(tmp_path / "run", options)
  assert (found["prompts"], found["replies"]) == (2, 16)
  patches = 2 * 4 * 8 * 8 * 3 * 2 * 14 * 14  # of two clips of four temporal patches
  assert patches < found["batch_bytes"] < 5 * patches
  assert found["log_bytes"] > 16 * 64
  parts = found["core_seconds"]
  assert all(parts[name] > 0 for name in ("read", "score", "log"))
  assert parts["all"] == pytest.approx(parts["read"] + parts["score"] + parts["log"], abs=1e-3)
  json.dumps(found)
