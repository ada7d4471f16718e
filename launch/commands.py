"""The command line that launch.local, launch.tpu_vm and launch.gke share.

    python -m launch.LAUNCHER COMMAND JOB.toml [--dry-run] [--FIELD=VALUE] [--config.FIELD=VALUE]

A launcher gives an action for each command; flags that are fields of a job go before its file.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
import dataclasses
import os
from pathlib import Path
import signal
import sys

from launch import job as job_lib
from launch import job_cost, job_file, steps
from vr_jax import errors

COMMANDS: Mapping[str, str] = {
  "create": "asks for the machines",
  "run": "starts the job on machines that are there",
  "status": "says what the machines and the run do",
  "logs": "shows what the run prints",
  "resume": "replaces machines that were lost, and goes on from the last checkpoint",
  "fetch": "copies results here",
  "delete": "deletes the machines, not the results, and lists what still costs money",
  "cost": "chips x hours x your price",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Call:
  """What an action gets: the job, the launcher's options, and what runs or prints its steps."""

  read: job_file.ReadJob
  options: argparse.Namespace
  runner: steps.Runner

  @property
  def job(self) -> job_lib.TrainingJob:
    """The job."""
    return self.read.job


Action = Callable[[Call], int | None]
Prepare = Callable[[argparse.ArgumentParser], None]


def main(
  launcher: str,
  about: str,
  actions: Mapping[str, Action],
  prepare: Prepare,
  argv: Sequence[str] | None = None,
) -> int:
  """Runs a command line (default: this process's) and returns its exit code.

  actions: what each command does; `cost` is the same for all. An action may return an exit code.
  prepare: adds the launcher's own options to a parser.

  Exit codes: 0 done; 2 bad input; otherwise that of the command that failed.
  """
  words = list(sys.argv[1:] if argv is None else argv)
  try:
    call, command = _parse(launcher, about, prepare, words)
    if command == "cost":
      return job_cost.print_cost(call.read, call.options)
    code = actions[command](call) or 0
    sys.stdout.write(call.runner.script())
    sys.stdout.flush()
    return code
  except errors.InputError as error:
    print(errors.printable(f"{launcher}: {error}"), file=sys.stderr)
    return 2
  except steps.StepFailed as error:
    print(errors.printable(f"{launcher}: {error}"), file=sys.stderr)
    return error.code
  except BrokenPipeError:  # what reads the output has ended, as `| head` does
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + signal.SIGPIPE
  except KeyboardInterrupt:
    print(f"{launcher}: interrupted", file=sys.stderr)
    return 130


def _parse(launcher: str, about: str, prepare: Prepare, words: list[str]) -> tuple[Call, str]:
  parser = argparse.ArgumentParser(
    prog=f"python -m launch.{launcher}",
    description=about,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
    exit_on_error=False,
    usage=f"python -m launch.{launcher} COMMAND JOB.toml [flags] [--config.FIELD=VALUE …]",
    epilog="commands:\n" + "\n".join(f"  {name:8}{what}" for name, what in COMMANDS.items()),
  )
  parser.add_argument("command", nargs="?", help=argparse.SUPPRESS)
  parser.add_argument("file", nargs="?", default="", help=argparse.SUPPRESS)
  parser.add_argument("--dry-run", "--dry_run", action="store_true", help="print, and run nothing")
  job_cost.add_options(parser)
  prepare(parser)
  fields = parser.add_argument_group("fields of a job, which go before those of its file")
  for name, default, meaning in job_file.options():
    shown = f"{meaning}; default {default}" if default not in ("", 0) else meaning
    fields.add_argument(f"--{name}", help=shown.replace("%", "%%"), metavar="VALUE")
  fields.add_argument(
    "--secret",
    action="append",
    default=[],
    metavar="VARIABLE=NAME",
    help="an environment variable, and the name of the secret that has its value",
  )
  overrides = [word for word in words if word.startswith("--config.")]
  try:
    options, rest = parser.parse_known_args([word for word in words if word not in overrides])
  except argparse.ArgumentError as error:
    raise errors.InputError(str(error)) from error
  if options.command not in COMMANDS:
    given = f"{options.command}: no such command" if options.command else "needs a command"
    raise errors.InputError(f"{given}; one of {', '.join(COMMANDS)}")
  if rest:
    raise errors.InputError(f"{rest[0]}: not a flag; --help lists them")
  values = vars(options)
  flags = {name: values[name] for name, _, _ in job_file.options() if values[name] is not None}
  read = job_file.read(options.file, flags, overrides, options.secret)
  return Call(
    read=read, options=options, runner=steps.Runner(dry_run=options.dry_run)
  ), options.command


def add_log_options(parser: argparse.ArgumentParser) -> None:
  """Options of `logs` and `fetch`, which all launchers have."""
  parser.add_argument("--lines", type=int, default=100, help="logs: how many lines at the end")
  parser.add_argument("--follow", action="store_true", help="logs: go on until Ctrl-C")
  parser.add_argument("--worker", default="0", help="logs: number of a host, or all")
  parser.add_argument(
    "--path", default="export", help="fetch: file or directory of the workdir; default export"
  )
  parser.add_argument("--to", default=".", help="fetch: directory here that gets it")


def fetch(call: Call) -> None:
  """Copies a file or directory of the workdir from the bucket."""
  job, path = call.job, path_in_workdir(call.options)
  call.read.check_shared()
  source = f"{job.run_directory.rstrip('/')}/{path}"
  project = (f"--project={job.project}",) if job.project else ()
  words = ("gcloud", "storage", "cp", "--recursive", source, call.options.to, *project)
  call.runner.run(steps.CommandStep(words=words))


def path_in_workdir(options: argparse.Namespace) -> Path:
  """The path that `fetch` copies. Raises InputError if it is not below the workdir."""
  path = Path(options.path)
  if path.is_absolute() or ".." in path.parts:
    raise errors.InputError(f"--path={path}: needs a path below the workdir, such as export")
  return path


def check_log_options(options: argparse.Namespace) -> None:
  """Raises InputError if --lines or --worker can't be meant."""
  if options.lines < 1:
    raise errors.InputError(f"--lines={options.lines}: needs a number above 0")
  if options.worker != "all" and not options.worker.isdecimal():
    raise errors.InputError(f"--worker={options.worker}: needs a number, or all")
