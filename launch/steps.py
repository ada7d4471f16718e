"""Commands that a launcher runs, one after the other, or prints as a shell script (--dry-run)."""

from collections.abc import Iterable, Iterator
import contextlib
import dataclasses
from pathlib import Path
import shlex
import subprocess
import sys
import threading
from typing import IO

from vr_jax import errors

_END = "END_OF_FILE"
_WIDTH = 96  # characters of a printed line
_INSTALL = {
  "gcloud": "install the Google Cloud CLI",
  "kubectl": "gcloud components install kubectl",
  "gcluster": "build it from Google's Cluster Toolkit, or use --by=kubectl",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CommandStep:
  """One command."""

  words: tuple[str, ...]
  stdin: str = ""

  def as_shell(self) -> str:
    """The command as a shell would need it."""
    line = _broken(shlex.quote(word) for word in self.words)
    return f"{line} {_heredoc(self.stdin)}" if self.stdin else line


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileStep:
  """A file that is written on this machine: a text, and behind it the contents of another file."""

  path: Path
  text: str
  behind: Path

  def as_shell(self) -> str:
    """What a shell would do to write the same file."""
    path, parent, behind = (
      shlex.quote(str(each)) for each in (self.path, self.path.parent, _from_here(self.behind))
    )
    return f"mkdir -p {parent} && cat - {behind} > {path} {_heredoc(self.text)}"

  def write(self) -> None:
    """Writes the file."""
    self.path.parent.mkdir(parents=True, exist_ok=True)
    text = self.text + self.behind.read_text(encoding="utf-8")
    self.path.write_text(text, encoding="utf-8")


class StepFailed(Exception):
  """A command ended with an error.

  code: its exit code.
  """

  def __init__(self, program: str, code: int, line: str):
    super().__init__(f"{program} ended with {code}" + (f": {line}" if line else ""))
    self.code = code


class Runner:
  """Runs steps, or puts them into a script for bash that does the same."""

  def __init__(self, *, dry_run: bool):
    self.dry_run = dry_run
    self._script: list[str] = []

  def script(self) -> str:
    """What a dry run has found so far; it ends at the first command that fails, as a run does."""
    first = ["set -e"] if len(self._script) > 1 else []
    return "".join(f"{line}\n" for line in [*first, *self._script])

  def show(self, *lines: str) -> None:
    """Adds lines to the script of a dry run."""
    if self.dry_run:
      self._script += lines

  @contextlib.contextmanager
  def when(self, condition: str) -> Iterator[None]:
    """The script of a dry run has what is run within it under a condition of bash."""
    self.show(f"if {condition}; then")
    yield
    self.show("fi")

  def run(self, *steps: CommandStep | FileStep) -> None:
    """Runs the steps in turn. Raises StepFailed at the first that fails."""
    for step in steps:
      if self.dry_run:
        self.show(step.as_shell())
      elif isinstance(step, FileStep):
        step.write()
      else:
        _execute(step, keep_output=False)

  def run_all(self, *steps: CommandStep) -> None:
    """Runs all steps, also after one that fails; then raises StepFailed for the first that did."""
    if self.dry_run:
      self.show("code=0")
      self.show(*(f"{step.as_shell()} || code=$((code ? code : $?))" for step in steps))
      self.show('exit "$code"')
      return
    failures = []
    for step in steps:
      try:
        self.run(step)
      except StepFailed as failure:
        failures.append(failure)
    if failures:
      raise failures[0]

  def ask(self, step: CommandStep) -> str:
    """Runs a step and returns what it prints. Not for dry runs. Raises StepFailed if it fails."""
    return _execute(step, keep_output=True).strip()


def _execute(step: CommandStep, *, keep_output: bool) -> str:
  """Runs a command, passes its messages on as they come, and returns its output if it is kept."""
  program = step.words[0]
  sys.stdout.flush()  # what was printed here comes before what the command prints
  try:
    process = subprocess.Popen(
      step.words,
      stdin=subprocess.PIPE if step.stdin else None,
      stdout=subprocess.PIPE if keep_output else None,
      stderr=subprocess.PIPE,
      text=True,
      errors="replace",
    )
  except OSError as error:
    advice = _INSTALL.get(program, "it has to be on PATH")
    reason = "not found" if isinstance(error, FileNotFoundError) else str(error.strerror)
    raise errors.InputError(f"{program}: {reason}; {advice}") from error
  last = [""]

  def pass_on() -> None:
    assert process.stderr is not None
    for line in process.stderr:
      last[0] = line.strip() or last[0]
      sys.stderr.write(line)
      sys.stderr.flush()

  reader = threading.Thread(target=pass_on, daemon=True)
  reader.start()
  try:
    if step.stdin:
      assert process.stdin is not None
      _write_all(process.stdin, step.stdin)
    output = process.stdout.read() if process.stdout is not None else ""
    code = process.wait()
  except BaseException:
    process.terminate()
    process.wait()
    raise
  reader.join()
  if code:
    raise StepFailed(program, code if code > 0 else 128 - code, last[0])
  return output


def _write_all(stream: IO[str], text: str) -> None:
  try:
    stream.write(text)
    stream.close()
  except BrokenPipeError:
    pass  # the command ended early; its exit code says why


def _from_here(path: Path) -> Path:
  """A path relative to the working directory, if it is below it."""
  here = Path.cwd()
  return path.relative_to(here) if path.is_relative_to(here) else path


def _broken(words: Iterable[str]) -> str:
  """A command line, with a backslash where the page ends."""
  lines = [""]
  for word in words:
    if lines[-1] and len(lines[-1]) + len(word) > _WIDTH:
      lines.append("")
    lines[-1] += f" {word}" if lines[-1] else word
  return " \\\n  ".join(lines)


def _heredoc(text: str) -> str:
  """The redirection that gives a command this text."""
  end = _END
  while end in text.splitlines():
    end += "_"
  body = text if text.endswith("\n") else f"{text}\n"
  return f"<<'{end}'\n{body}{end}"
