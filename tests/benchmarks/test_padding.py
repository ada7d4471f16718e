"""The simulated long tail of benchmarks.padding, on a few of its batches."""

import json
import subprocess
import sys

from tests.train import nano


def test_replies_with_a_long_tail_leave_little_padding():
  short = "from benchmarks import padding; padding.BATCHES = 2; padding.main()"
  done = subprocess.run(
    [sys.executable, "-c", short], cwd=nano.ROOT, capture_output=True, text=True, check=True
  )
  found = json.loads(done.stdout)
  assert 0 < found["prompts"]["ours"]["padding"] < 0.6 * found["prompts"]["random"]["padding"]
  assert 0 < found["ours"]["whole_step"] < found["goal_whole_step"] < found["padded"]["whole_step"]
