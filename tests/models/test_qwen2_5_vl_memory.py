"""Host memory of loading a checkpoint in a process of its own: checkpoint_memory.py, short."""

import json
import os
from pathlib import Path
import subprocess
import sys

ROOT = Path(__file__).resolve().parents[2]


def test_reading_takes_less_than_the_largest_tensor_and_a_half_beyond_the_process_s_share():
  sizes = ("--megabytes=250", "--piece-megabytes=8")
  done = subprocess.run(
    [sys.executable, "-m", "benchmarks.checkpoint_memory", *sizes],
    cwd=ROOT,
    env=os.environ,
    capture_output=True,
    text=True,
    timeout=240,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  result = json.loads(done.stdout.splitlines()[-1])
  (reader,) = result["readers"]
  assert reader["share"] > 1.5 * result["limit"]  # so that a second copy would be seen
  assert reader["beyond_share"] < result["limit"], result
