"""The command that asks a question of a report again: `vr-jax ask …`, to be copied."""

from collections.abc import Sequence
import csv
import io
from pathlib import Path
import shlex


def make(
  workdir: Path,
  evaluation: str,
  *,
  video: str,
  question: str,
  options: Sequence[str],
  problem_type: str,
) -> str | None:
  """Makes the command that gives the reply of an evaluation again, up to rounding.

  workdir: of the run, as the command names it.
  evaluation: its name.
  video: its name in the run's data.
  options: with their letters; () if the question is not multiple choice.

  Returns None for an evaluation that is neither that of the policy before RL nor that after RL:
  `vr-jax ask` knows these alone.
  """
  flags = {"before_rl": ["--before_rl"], "after_rl": []}.get(evaluation)
  if flags is None:
    return None
  if options:
    flags = [f"--options={_comma_separated(options)}", *flags]
  else:
    flags = [f"--problem_type={problem_type}", *flags]
  return shlex.join(["vr-jax", "ask", video, question, f"--checkpoint={workdir}", *flags])


def _comma_separated(options: Sequence[str]) -> str:
  """The options in one text; those with a comma stand in double quotes."""
  line = io.StringIO()
  csv.writer(line, lineterminator="").writerow(options)
  return line.getvalue()
