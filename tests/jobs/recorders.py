"""Stand-ins for gcloud, kubectl and other commands on PATH, which record how they are called."""

import json
from pathlib import Path
import sys

# Appends {"program", "words", "stdin"} to calls.jsonl of its directory, and answers with the first
# entry of answers.json whose text is in the command line: [text, exit code, stdout, stderr].
_RECORDER = """#!{python} -S
import json, os, stat, sys
directory, program = os.path.split(os.path.abspath(sys.argv[0]))
kind = os.fstat(0).st_mode
stdin = sys.stdin.read() if stat.S_ISFIFO(kind) or stat.S_ISREG(kind) else ""
with open(os.path.join(directory, "calls.jsonl"), "a") as file:
  file.write(json.dumps({{"program": program, "words": sys.argv[1:], "stdin": stdin}}) + "\\n")
answers = os.path.join(directory, "answers.json")
line = " ".join([program, *sys.argv[1:]])
for text, code, out, err in json.load(open(answers)) if os.path.exists(answers) else []:
  if text in line:
    sys.stdout.write(out)
    sys.stderr.write(err)
    sys.exit(code)
"""


class Recorders:
  """Recording commands in one directory, which belongs on PATH."""

  def __init__(self, directory: Path, *programs: str):
    self.directory = directory
    directory.mkdir(parents=True, exist_ok=True)
    for program in programs:
      self.add(program, _RECORDER.format(python=sys.executable))

  def add(self, program: str, text: str) -> None:
    """Adds a program with this text."""
    path = self.directory / program
    path.write_text(text)
    path.chmod(0o755)

  def answer(self, *answers: tuple[str, int, str, str]) -> None:
    """Says how calls are answered: (text of the command line, exit code, stdout, stderr)."""
    (self.directory / "answers.json").write_text(json.dumps(answers))

  def calls(self) -> list[dict]:
    """What was called, in order."""
    path = self.directory / "calls.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

  def lines(self) -> list[str]:
    """The command lines that were called, in order."""
    return [" ".join([call["program"], *call["words"]]) for call in self.calls()]
