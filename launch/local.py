"""Runs a recipe in several processes on this host's CPU, as a pod of several hosts would.

    python -m launch.local --processes=2 -- --config=configs/moss_chatv.py:tiny \\
      --workdir=runs/two --mode=rl

    python -m launch.local COMMAND JOB.toml [--processes=2] [--dry-run] [--workdir=runs/two]

In the first form the flags of `vr_jax.main` follow `--`; in the second a job has them, as for
launch.tpu_vm and launch.gke (docs/tpu.md). Each process has one CPU device, or `--devices` of them;
they connect over localhost. The first process that fails ends the others, and its exit code becomes
that of the launch. A job starts again after a crash or a preemption, as it would on a pod. SIGTERM
is passed on to the processes, which save the step; then the launch ends, too.
"""

import argparse
import codecs
from collections.abc import Iterator, Mapping, Sequence
import contextlib
import os
from pathlib import Path
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time

from launch import commands, jobset, steps
from vr_jax import errors, status

POLL = 0.1  # seconds
_PAUSE = 1.0  # seconds before a restart
_PATIENCE = 5.0  # seconds for the last words of a process that has ended
_INTERRUPTED = 130
_FREE_PORT = "from launch import local; print(local.free_port())"
_WORKER = (sys.executable, "-m", "vr_jax.main")


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a command line (default: this process's) and returns its exit code."""
  words = list(sys.argv[1:] if argv is None else argv)
  if words[:1] and words[0] in commands.COMMANDS:
    actions = {
      "create": _create,
      "run": _run,
      "status": _status,
      "logs": _logs,
      "resume": _run,
      "fetch": _fetch,
      "delete": _delete,
    }
    return commands.main("local", __doc__ or "", actions, _prepare, words)
  parser = argparse.ArgumentParser(
    prog="python -m launch.local",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  _add_sizes(parser)
  parser.add_argument("flags", nargs="+", help="-- and the flags of vr_jax.main")
  options = parser.parse_args(words)
  with _stopped_by_sigterm() as stopped:
    sizes = {"processes": options.processes, "devices": options.devices}
    return launch(options.flags, **sizes, stopped=stopped)


def _add_sizes(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--processes", type=int, default=2)
  parser.add_argument("--devices", type=int, default=1, help="CPU devices of each process")


def launch(
  flags: Sequence[str],
  *,
  processes: int,
  devices: int,
  logs: Path | None = None,
  stopped: threading.Event,
) -> int:
  """Starts the processes, waits, and returns the exit code.

  flags: of vr_jax.main.
  logs: directory that gets what each process prints; the terminal gets the first one's. Without
    it the terminal gets all.
  stopped: once it is set, the processes are told to save the step and end.
  """
  address = f"localhost:{free_port()}"  # a port of its own: the last attempt's may still be held
  started, readers = [], []
  try:
    for index in range(processes):
      started.append(
        subprocess.Popen(
          [*_WORKER, *flags, *_place(address, processes, index)],
          env={**os.environ, **_platform(devices)},
          stdout=subprocess.PIPE if logs else None,
          stderr=subprocess.STDOUT if logs else None,
        )
      )
      if logs:
        path = logs / f"process-{index}.log"
        readers.append(_keep(started[-1], path, shown=index == 0))
    return _wait(started, stopped)
  finally:
    for process in started:
      process.kill()
      process.wait()
    for reader in readers:  # a process that outlives its parent may hold the pipe
      reader.join(timeout=_PATIENCE)


def _place(address: str, processes: int, index: int) -> tuple[str, ...]:
  """Flags that say which process of how many this is."""
  count = f"--num_processes={processes}"
  return (f"--coordinator_address={address}", count, f"--process_id={index}")


def _platform(devices: int) -> Mapping[str, str]:
  flags = os.environ.get("XLA_FLAGS", "")  # of a flag that is there twice, XLA takes the last
  return {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={devices}".strip(),
  }


def _keep(process: subprocess.Popen, path: Path, *, shown: bool) -> threading.Thread:
  """Appends what a process prints to a file, and shows it, on a thread that ends with it."""
  path.parent.mkdir(parents=True, exist_ok=True)
  decoder = codecs.getincrementaldecoder("utf-8")("replace")

  def copy() -> None:
    assert process.stdout is not None
    with path.open("ab", buffering=0) as file:
      while chunk := os.read(process.stdout.fileno(), 1 << 16):
        file.write(chunk)
        if shown:
          sys.stdout.write(decoder.decode(chunk))
          sys.stdout.flush()

  thread = threading.Thread(target=copy, daemon=True)
  thread.start()
  return thread


def _wait(started: Sequence[subprocess.Popen], stopped: threading.Event) -> int:
  """Waits for all, or the first that fails; returns 0, or the exit code of one that failed."""
  told = False
  while True:
    if stopped.is_set() and not told:
      told = True
      for process in started:
        process.terminate()
    codes = [process.poll() for process in started]
    failed = [code for code in codes if code]
    if None not in codes or (failed and not told):
      return failed[0] if failed else 0
    time.sleep(POLL)


@contextlib.contextmanager
def _stopped_by_sigterm() -> Iterator[threading.Event]:
  """An event that SIGTERM sets, in place of ending this process."""
  stopped = threading.Event()
  before = signal.signal(signal.SIGTERM, lambda *_: stopped.set())
  try:
    yield stopped
  finally:
    signal.signal(signal.SIGTERM, before)


def free_port() -> int:
  """A free TCP port of this host."""
  with socket.socket() as probe:
    probe.bind(("localhost", 0))
    return probe.getsockname()[1]


def _prepare(parser: argparse.ArgumentParser) -> None:
  _add_sizes(parser)
  commands.add_log_options(parser)


def _flags(call: commands.Call) -> tuple[str, ...]:
  """The flags of a job's run on this machine. Raises InputError for what only a pod has."""
  if call.options.processes < 1 or call.options.devices < 1:
    raise errors.InputError("--processes, --devices: need numbers above 0")
  job = call.job
  texts = {"workdir": job.run_directory}
  texts |= {job.origin(name): text for name, text in job.fields.items()}
  for field, text in texts.items():
    if job.on_host(text) != text:
      flag = field.removeprefix("overrides.") if field.startswith("overrides.") else field
      prefix = "config." if field.startswith("overrides.") else ""
      raise errors.InputError(
        f"{call.read.where(field)}: {text} is in a bucket, launch.local has files of this machine; "
        f"add --{prefix}{flag}=…"
      )
  for variable in job.secrets:
    if variable not in os.environ:
      place = call.read.where(f"secrets.{variable}")
      raise errors.InputError(f"{place}: {variable} is not set here; export it")
  return job.flags


def _log_directory(call: commands.Call) -> Path:
  return Path("runs") / "launch" / call.job.name


def _create(call: commands.Call) -> None:
  _flags(call)
  _say(call, f"{call.job.name}: nothing to create; its processes run on this machine")


def _say(call: commands.Call, text: str) -> None:
  """Prints a line; in the script of a dry run it is a comment."""
  if call.runner.dry_run:
    call.runner.show(f"# {text}")
  else:
    print(text)


def _run(call: commands.Call) -> int:
  """Runs the job until it is done, and again after a crash or a preemption."""
  flags, options = _flags(call), call.options
  if call.runner.dry_run:
    call.runner.show(*_script(call, flags))
    return 0
  code, sizes = 0, {"processes": options.processes, "devices": options.devices}
  with _stopped_by_sigterm() as stopped:
    for restarts in range(call.job.restarts + 1):
      code = launch(flags, **sizes, logs=_log_directory(call), stopped=stopped)
      if code in (0, *jobset.FINAL_CODES, _INTERRUPTED) or stopped.is_set():
        break
      print(
        f"local: {call.job.name} ended with {code} after {restarts} restarts",
        file=sys.stderr,
        flush=True,
      )
      stopped.wait(_PAUSE)
      if stopped.is_set():
        break
  return code if code >= 0 else 128 - code  # a negative code is the signal that ended a process


def _script(call: commands.Call, flags: Sequence[str]) -> Iterator[str]:
  """The lines of a shell that does the same as `_run` and `launch`."""
  options, job = call.options, call.job
  settings = [f"{name}={shlex.quote(text)}" for name, text in _platform(options.devices).items()]
  logs = shlex.quote(str(_log_directory(call)))
  # A shell's background jobs ignore Ctrl-C.
  yield "trap 'kill -KILL $(jobs -p) 2>/dev/null || true' EXIT"
  yield "told=; trap 'told=1; kill -TERM $(jobs -p) 2>/dev/null || true' TERM"
  yield f"mkdir -p {logs}"
  yield f'code=0; for restarts in $(seq 0 {job.restarts}); do pids=(); [ -z "$told" ] || exit $code'
  yield f"address=localhost:$({shlex.join((sys.executable, '-c', _FREE_PORT))})"
  for index in range(options.processes):
    words = shlex.join((*_WORKER, *flags, *_place("ADDRESS", options.processes, index)))
    log = f"{logs}/process-{index}.log"
    output = f">>{log} 2>&1" if index else f"> >(tee -a {log}) 2>&1"
    place = words.replace("ADDRESS", '"$address"', 1)
    yield " ".join([*settings, place, output, "&", "pids+=($!)"])
  yield '[ -z "$told" ] || kill -TERM "${pids[@]}" 2>/dev/null || true'
  # The first one that fails ends the others. `wait -n` forgets those that ended before it began.
  yield 'code=0; running="${pids[*]}"'
  yield 'while [ "$running" ] && { [ $code = 0 ] || [ "$told" ]; }; do left=; sleep 0.2 || true'
  yield "  for pid in $running; do"
  yield '    if kill -0 "$pid" 2>/dev/null; then left="$left $pid"'
  yield '    elif [ $code = 0 ]; then wait "$pid" || code=$?; fi'
  yield "  done; running=$left"
  yield "done"
  yield "kill -KILL $(jobs -p) 2>/dev/null || true; wait || true"
  final = "|".join(map(str, (0, *jobset.FINAL_CODES, _INTERRUPTED)))
  yield f'[ -z "$told" ] || exit $code; case $code in {final}) exit $code ;; esac'
  yield f'echo "local: {job.name} ended with $code after $restarts restarts" >&2; sleep {_PAUSE:g}'
  yield "done"
  yield "exit $code"


def _status(call: commands.Call) -> None:
  """Prints the last line of the run's metrics."""
  _flags(call)
  workdir = Path(call.job.run_directory)
  done = status.read_steps(workdir)
  if not done:
    started = (workdir / "config.json").is_file()
    _say(call, f"{workdir}: {'has started, no step yet' if started else 'has not started'}")
    return
  _say(call, f"{workdir}: step {done[-1]['step']} of {done[-1]['stage']}")


def _logs(call: commands.Call) -> None:
  commands.check_log_options(call.options)
  name = "*" if call.options.worker == "all" else call.options.worker
  files = sorted(_log_directory(call).glob(f"process-{name}.log"))
  if not files and not call.runner.dry_run:
    raise errors.InputError(f"{_log_directory(call)}: has no output of process {name}; run the job")
  follow = ("-F",) if call.options.follow else ()
  shown = map(str, files or [_log_directory(call) / f"process-{name}.log"])
  call.runner.run(steps.CommandStep(words=("tail", "-n", str(call.options.lines), *follow, *shown)))


def _fetch(call: commands.Call) -> None:
  _flags(call)
  source = Path(call.job.run_directory) / commands.path_in_workdir(call.options)
  call.runner.run(steps.CommandStep(words=("cp", "-R", str(source), call.options.to)))


def _delete(call: commands.Call) -> None:
  _flags(call)
  _say(call, f"{call.job.name}: nothing to delete; results stay in {call.job.run_directory}")


if __name__ == "__main__":
  sys.exit(main())
