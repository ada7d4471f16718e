"""Runs a job on Cloud TPU VMs: v5e, v5p and v6e, asked for as queued resources.

    python -m launch.tpu_vm COMMAND JOB.toml [--dry-run] [--zone=…] [--config.rl.steps=200]

docs/tpu.md goes through all commands. Every host of the slice runs the same script
(launch/tpu_vm_worker.sh): it starts vr-jax again after a preemption or a crash, but not after bad
input (exit code 2) or divergence (3). Exit codes: 0 done; 2 bad input; otherwise gcloud's.

Sources, read 2026-11:
  gcloud compute tpus queued-resources create, delete, describe, ssh, scp; gcloud compute tpus
    tpu-vm ssh, scp (docs.cloud.google.com/sdk/gcloud/reference/compute/tpus).
  docs.cloud.google.com/tpu/docs/queued-resources, consume-reservation and
    request-using-flex-start: a reservation by name and flex start are flags of `gcloud alpha` only.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
import shlex
import sys
import time

from launch import commands, slices, steps
from launch import job as job_lib
from vr_jax import errors
from vr_jax.parallel import cluster_flags

_SCRIPT = Path(__file__).with_name("tpu_vm_worker.sh")
_GCLOUD = ("gcloud", "compute", "tpus")
_ALPHA = ("gcloud", "alpha", "compute", "tpus")
_LOST = ("SUSPENDED", "FAILED")  # states from which a queued resource does not come back
_NONE = "NOT_FOUND"  # what gcloud says of one that there is not
_POLL = 30.0  # seconds


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a command line (default: this process's) and returns its exit code."""
  actions = {
    "create": _create,
    "run": _run,
    "status": _status,
    "logs": _logs,
    "resume": _resume,
    "fetch": commands.fetch,
    "delete": _delete,
  }
  return commands.main("tpu_vm", __doc__ or "", actions, _prepare, argv)


def _prepare(parser: argparse.ArgumentParser) -> None:
  commands.add_log_options(parser)
  parser.add_argument(
    "--wait", action="store_true", help="run, resume: wait until the slice is there"
  )


def _slice(call: commands.Call) -> slices.NamedSlice:
  """Checks what every command needs, and returns the job's slice."""
  call.read.require("launch.tpu_vm", "slice", "project", "zone", "bucket")
  call.read.check_shared()
  found = slices.parse(call.job.slice, call.read.where("slice"))
  if not found.kind.accelerator:
    raise errors.InputError(
      f"{call.read.where('slice')}: there are no TPU VMs of {found.generation}; use launch.gke"
    )
  if not (call.job.image or call.job.install):
    raise errors.InputError(
      f"{call.read.where('image')}: launch.tpu_vm needs an image, or what to install: "
      'install = "vr_jax[tpu] @ git+https://…@REVISION"'
    )
  return found


def _place(job: job_lib.TrainingJob) -> tuple[str, ...]:
  return (f"--project={job.project}", f"--zone={job.zone}")


def _create(call: commands.Call) -> None:
  call.runner.run(_create_step(call))


def _create_step(call: commands.Call) -> steps.CommandStep:
  """Asks for the slice; it comes when there is room."""
  job, slice_ = call.job, _slice(call)
  bought, gcloud = {
    "on_demand": ((), _GCLOUD),
    "spot": (("--spot",), _GCLOUD),
    "reserved": ((f"--reservation={job.reservation}",), _ALPHA),
    "flex_start": (
      ("--provisioning-model=flex-start", f"--max-run-duration={job.max_run_duration}"),
      _ALPHA,
    ),
  }[job.provisioning]
  if slice_.count == 1:
    nodes = (f"--node-id={job.name}",)
  else:
    nodes = (f"--node-count={slice_.count}", f"--node-prefix={job.name}")
  options = job.tpu_vm
  return steps.CommandStep(
    words=(
      *(*gcloud, "queued-resources", "create", job.name, *_place(job), *nodes),
      f"--accelerator-type={slice_.accelerator_type}",
      f"--runtime-version={options.runtime_version or slice_.kind.runtime}",
      *bought,
      *([f"--service-account={options.service_account}"] if options.service_account else []),
      "--scopes=https://www.googleapis.com/auth/cloud-platform",
      *([f"--network={options.network}"] if options.network else []),
      f"--labels=vr-jax-job={job.name}",
    )
  )


def _describe(call: commands.Call) -> steps.CommandStep:
  """Prints the state of the queued resource: ACTIVE if the slice is there."""
  words = (*_GCLOUD, "queued-resources", "describe", call.job.name, *_place(call.job))
  return steps.CommandStep(words=(*words, "--format=value(state.state)"))


def _is(*states: str) -> str:
  """A condition of bash: $state is one of these."""
  return f"[[ {' || '.join(f'$state == {state}' for state in states)} ]]"


def _wait(call: commands.Call) -> None:
  """Returns when the slice is there. Raises InputError if it is not, or will not be."""
  name = call.job.name
  if call.runner.dry_run:
    asked = f"state=$({_describe(call).as_shell()})"
    lost = f'if {_is(*_LOST)}; then echo "{name}: is $state" >&2; exit 2; fi'
    if call.options.wait:
      again = f'echo "{name}: $state" >&2; sleep {_POLL:g}'
      lines = ("while true; do", asked, f"{_is('ACTIVE')} && break", lost, again, "done")
    else:
      lines = (asked, f'{_is("ACTIVE")} || {{ echo "{name}: is $state" >&2; exit 2; }}')
    call.runner.show(*lines)
    return
  while True:
    state = call.runner.ask(_describe(call))
    if state == "ACTIVE":
      return
    if state in _LOST:
      raise errors.InputError(f"{call.job.name}: is {state}; resume asks for it again")
    if not call.options.wait:
      raise errors.InputError(f"{call.job.name}: is {state}, not yet ACTIVE; --wait waits for it")
    print(f"{call.job.name}: {state}", file=sys.stderr, flush=True)
    time.sleep(_POLL)


def _run(call: commands.Call) -> None:
  _wait(call)
  _start(call)


def _start(call: commands.Call) -> None:
  """Copies the script to all hosts, installs, and starts the run on all."""
  file = Path("runs") / "launch" / f"{call.job.name}.sh"
  several = _slice(call).count > 1
  kind = ("queued-resources", "scp") if several else ("tpu-vm", "scp")
  copy = (*_GCLOUD, *kind, str(file), f"{call.job.name}:{_remote(call.job)}")
  everywhere = ("--worker=all", *(["--node=all"] if several else []))
  call.runner.run(
    steps.FileStep(
      path=file, text=worker_settings(call.job, _slice(call).all_hosts), behind=_SCRIPT
    ),
    steps.CommandStep(words=(*copy, *_place(call.job), *everywhere)),
    _on_hosts(call, "setup"),
    _on_hosts(call, "start"),
  )


def worker_settings(job: job_lib.TrainingJob, hosts: int) -> str:
  """What stands before launch/tpu_vm_worker.sh in the script of every host, of so many."""
  stopped = f"{job.on_host(job.run_directory)}.stopped"
  variables = {**job.environment, cluster_flags.STOPPED: stopped}
  settings = {
    "NAME": job.name,
    "PROJECT": job.project,
    "IMAGE": job.image,
    "INSTALL": job.on_host(job.install),
    "STOPPED": stopped,
    "RESTARTS": str(job.restarts),
  }
  lists = {
    "BUCKETS": job.buckets,
    "SECRETS": [f"{variable}={name}" for variable, name in job.secrets.items()],
    "SETTINGS": [f"{name}={value}" for name, value in variables.items()],
    "COMMAND": job.command_on(hosts),
  }
  lines = [f"{name}={shlex.quote(value)}" for name, value in settings.items()]
  lines += [f"{name}=({shlex.join(words)})" for name, words in lists.items()]
  return "\n".join(["#!/bin/bash", *lines, ""])


def _remote(job: job_lib.TrainingJob) -> str:
  return f"vr_jax_{job.name}.sh"


def _on_hosts(call: commands.Call, words: str, *, worker: str = "all") -> steps.CommandStep:
  """Runs a command of the script on all hosts, or on one.

  worker: of several slices they are counted through, one slice after the other.
  Raises InputError if there is no such worker.
  """
  slice_ = _slice(call)
  several, hosts, node = slice_.count > 1, slice_.hosts, "all"
  if several and worker != "all":
    number = int(worker)
    if number >= slice_.all_hosts:
      raise errors.InputError(f"--worker={worker}: the hosts are 0 to {slice_.all_hosts - 1}")
    node, worker = str(number // hosts), str(number % hosts)
  kind = ("queued-resources", "ssh") if several else ("tpu-vm", "ssh")
  nodes = [f"--node={node}"] if several else []
  return steps.CommandStep(
    words=(
      *(*_GCLOUD, *kind, call.job.name, *_place(call.job), f"--worker={worker}", *nodes),
      f"--command=bash {_remote(call.job)} {words}",
    )
  )


def _status(call: commands.Call) -> None:
  _slice(call)
  on_hosts = _on_hosts(call, "status")
  if call.runner.dry_run:
    call.runner.show(f"state=$({_describe(call).as_shell()})", f'echo "{call.job.name}: $state"')
    with call.runner.when(_is("ACTIVE")):
      call.runner.run(on_hosts)
    return
  state = call.runner.ask(_describe(call))
  print(f"{call.job.name}: {state}")
  if state == "ACTIVE":
    call.runner.run(on_hosts)


def _logs(call: commands.Call) -> None:
  commands.check_log_options(call.options)
  words = f"logs {call.options.lines}{' follow' if call.options.follow else ''}"
  call.runner.run(_on_hosts(call, words, worker=call.options.worker))


def _resume(call: commands.Call) -> None:
  """Replaces a slice that was lost; starts the run where the slice is there."""
  asked = f"{call.job.name}: asked for again; resume goes on once it is ACTIVE, --wait waits"
  if call.runner.dry_run:
    _show_state_or_none(call)
    with call.runner.when(_is(*_LOST)):
      call.runner.run(_delete_step(call))
    with call.runner.when(_is(*_LOST, _NONE)):
      call.runner.run(_create_step(call))
      if not call.options.wait:
        call.runner.show(f"echo {shlex.quote(asked)}", "exit")
  else:
    state = _state_or_none(call)
    if state in _LOST:
      call.runner.run(_delete_step(call))
    if state in (*_LOST, _NONE):
      call.runner.run(_create_step(call))
      if not call.options.wait:
        print(asked)
        return
  _wait(call)
  _start(call)


def _state_or_none(call: commands.Call) -> str:
  try:
    return call.runner.ask(_describe(call))
  except steps.StepFailed as error:
    if _NONE not in str(error):
      raise
    return _NONE


def _show_state_or_none(call: commands.Call) -> None:
  """The same in a shell, as $state."""
  call.runner.show(
    "errors=$(mktemp)",
    f'state=$({_describe(call).as_shell()} 2>"$errors") || {{',
    f'code=$?; grep -q {_NONE} "$errors" || {{ cat "$errors" >&2; exit $code; }}; state={_NONE}',
    "}",
  )


def _delete_step(call: commands.Call) -> steps.CommandStep:
  words = (*_GCLOUD, "queued-resources", "delete", call.job.name, *_place(call.job))
  return steps.CommandStep(words=(*words, "--force", "--quiet"))


def _delete(call: commands.Call) -> None:
  """Deletes the slice, and lists what is left in the zone."""
  _slice(call)
  call.runner.run_all(
    _delete_step(call),
    steps.CommandStep(words=(*_GCLOUD, "queued-resources", "list", *_place(call.job))),
    steps.CommandStep(words=(*_GCLOUD, "tpu-vm", "list", *_place(call.job))),
  )


if __name__ == "__main__":
  sys.exit(main())
