"""Takes files and commands out of the docs and runs them from another directory, as users do."""

import os
from pathlib import Path
import re
import shlex
import subprocess
import sys

from tests.train import nano

# Smaller still than the smallest run, and what the commands say themselves stays.
FLAGS = {
  **nano.OVERRIDES,
  "sft.steps": 2,
  "sft.checkpoint_every": 2,
  "rl.steps": 2,
  "eval.examples": 2,
  "eval.blind": False,
  "eval.shuffled_frames": False,
}


def blocks(page: str, language: str) -> list[str]:
  """The code blocks of a page of docs, in one language."""
  text = (nano.ROOT / "docs" / page).read_text(encoding="utf-8")
  return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(page: str) -> list[list[str]]:
  """The commands of a page."""
  text = "".join(blocks(page, "bash")).replace("\\\n", " ")
  return [shlex.split(line) for line in text.splitlines()]


def run(words: list[str], where: Path) -> subprocess.CompletedProcess:
  """A command of the docs, in a directory that is not the project's; trains a nano network."""
  assert words[0] == "vr-jax"
  given = {word.partition("=")[0] for word in words}
  if "--config.data.videos" in given:  # then nothing is simulated, without a flag that says so
    given.add("--config.data.simulate.videos")
  small = [f"--config.{name}={x}" for name, x in FLAGS.items() if f"--config.{name}" not in given]
  added = small if "--config" in given else []  # a workdir that was started has its config
  flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=1"
  return subprocess.run(
    [sys.executable, "-m", "vr_jax.main", *words[1:], *added],
    cwd=where,
    env={**os.environ, "PYTHONPATH": str(nano.ROOT), "XLA_FLAGS": flags},
    capture_output=True,
    text=True,
    check=False,
  )


def succeed(words: list[str], where: Path) -> str:
  """What a command prints."""
  done = run(words, where)
  assert done.returncode == 0, done.stderr[-2000:]
  return done.stdout
