"""Asks a finished run the questions of its report again, by the commands that the report prints.

    python -m benchmarks.asked_again --workdir=runs/demo

Each command runs as a user runs it, and its reply is compared with that of the evaluation. Then
come the commands of README.md and of the docs that ask the same workdir; the answer has to be that
of the data. Prints one line for each question that differs, and at the end one JSON line. Exit
code: 0 if all of them agree, else 1.
"""

import argparse
from collections.abc import Sequence
import contextlib
import io
import json
from pathlib import Path
import re
import shlex
import sys
from typing import Any

from vr_jax import errors
from vr_jax import main as vr_jax
from vr_jax.eval import ask_command

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "docs/*.md")
FIELDS = ("video", "question", "options", "problem_type")


def main(argv: Sequence[str] | None = None) -> int:
  """Compares, and prints the result."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--workdir", type=Path, required=True, help="of a finished run")
  parser.add_argument("--questions", type=int, default=8, help="of each evaluation")
  parsed = parser.parse_args(argv)
  counts = {"asked": 0, "same_reply": 0, "documented": 0, "documented_right": 0}
  for name in ("before_rl", "after_rl"):
    for sample in read_replies(parsed.workdir, name)[: parsed.questions]:
      command = ask_command.make(parsed.workdir, name, **{field: sample[field] for field in FIELDS})
      assert command is not None
      counts["asked"] += 1
      counts["same_reply"] += _agrees(command, errors.printable(sample["reply"]))
  for command in documented_commands(str(parsed.workdir)):
    counts["documented"] += 1
    counts["documented_right"] += is_right(run(command))
  print(json.dumps({"benchmark": "asked_again", "workdir": str(parsed.workdir), **counts}))
  same = counts["asked"] == counts["same_reply"]
  return 0 if same and counts["documented"] == counts["documented_right"] else 1


def read_replies(workdir: Path, evaluation: str) -> list[dict[str, Any]]:
  """The replies of an evaluation, in the order of the test split."""
  text = (workdir / "eval" / f"{evaluation}.jsonl").read_text(encoding="utf-8")
  return [json.loads(line) for line in text.split("\n") if line]


def documented_commands(workdir: str) -> list[str]:
  """The commands of README.md and the docs that ask this workdir, as they stand there."""
  commands = []
  for page in (path for pattern in PAGES for path in sorted(ROOT.glob(pattern))):
    lines = page.read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    commands += [line for line in lines if re.match(r"(\S*/)?vr-jax ask ", line)]
  return [command for command in commands if f"--checkpoint={workdir}" in shlex.split(command)]


def run(command: str) -> str:
  """Runs a command in this process; returns what it prints."""
  printed = io.StringIO()
  with contextlib.redirect_stdout(printed):
    code = vr_jax.cli(["vr-jax", *shlex.split(command)[1:]])
  if code:
    raise RuntimeError(f"{command}: exit code {code}")
  return printed.getvalue()


def is_right(printed: str) -> bool:
  """Whether the answer is the data's."""
  found = re.search(r"^Answer: (.*)\nThe data's answer: (.*)$", printed, re.MULTILINE)
  return found is not None and found[1] == found[2]


def _agrees(command: str, reply: str) -> bool:
  same = reply in run(command)
  if not same:
    print(f"another reply: {command}")
  return same


if __name__ == "__main__":
  sys.exit(main())
