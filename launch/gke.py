"""Runs a job on Google Kubernetes Engine, as a JobSet: v5e, v5p, v6e, TPU7x, one slice or several.

    python -m launch.gke COMMAND JOB.toml [--dry-run] [--by=gcluster] [--config.rl.steps=200]

docs/tpu.md goes through all commands. `create` adds node pools to a cluster that is there;
launch/jobset.py says how the run is started and restarted. With --by=gcluster, Google's Cluster
Toolkit writes and submits the JobSet. Exit codes: 0 done; 2 bad input; otherwise that of gcloud,
kubectl or gcluster.

Sources, read 2026-11:
  docs.cloud.google.com/kubernetes-engine/docs: "Deploy TPU Multislices in GKE", "About Ironwood
    (TPU7x) in GKE"; docs.cloud.google.com/sdk/gcloud/reference: container node-pools create,
    compute resource-policies create workload-policy.
  docs.cloud.google.com/cluster-toolkit/docs/reference/gcluster-job-submit, and cmd/job of
    GoogleCloudPlatform/cluster-toolkit. Not confirmed: that --compute-type takes the machine types
    of TPU7x as it takes those of other chips.
"""

import argparse
from collections.abc import Sequence
import json
import shlex
import sys

from launch import commands, job_checks, jobset, slices, steps
from vr_jax import errors

# With --by=gcluster every exit code that is not listed ends the job: these are a crash, a preempted
# run that saved, and the signals ABRT, BUS, KILL, SEGV and TERM.
_RESTARTED_CODES = (1, 75, 134, 135, 137, 139, 143)


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
  return commands.main("gke", __doc__ or "", actions, _prepare, argv)


def _prepare(parser: argparse.ArgumentParser) -> None:
  commands.add_log_options(parser)
  parser.add_argument(
    "--by", choices=("kubectl", "gcluster"), default="kubectl", help="what submits the job"
  )


def _slice(call: commands.Call) -> slices.NamedSlice:
  """Checks what every command needs, and returns the job's slice."""
  call.read.require("launch.gke", "slice", "project", "zone", "bucket", "gke.cluster", "image")
  call.read.check_shared()
  job, found = call.job, slices.parse(call.job.slice, call.read.where("slice"))
  if found.count > 1 and found.hosts == 1:
    raise errors.InputError(
      f"{call.read.where('slice')}: {job.slice} has slices of one host; several slices need "
      "several hosts each"
    )
  if found.count > 1 and job.provisioning == "flex_start":
    raise errors.InputError(
      f"{call.read.where('provisioning')}: flex_start gives one slice, not {found.count}"
    )
  if call.options.by == "gcluster" and job.secrets:
    raise errors.InputError(
      f"{call.read.where('secrets')}: gcluster passes variables by value; use --by=kubectl"
    )
  return found


def _region(call: commands.Call) -> str:
  return call.job.zone.rpartition("-")[0]


def _in_cluster(call: commands.Call) -> tuple[str, ...]:
  location = call.job.gke.location or _region(call)
  return (f"--location={location}", f"--project={call.job.project}")


def _connect(call: commands.Call) -> steps.CommandStep:
  """Makes kubectl talk to the job's cluster."""
  words = ("gcloud", "container", "clusters", "get-credentials", call.job.gke.cluster)
  return steps.CommandStep(words=(*words, *_in_cluster(call)))


def _kubectl(call: commands.Call, *words: str, stdin: str = "") -> steps.CommandStep:
  namespace = f"--namespace={call.job.gke.namespace or 'default'}"
  return steps.CommandStep(words=("kubectl", namespace, *words), stdin=stdin)


def _create(call: commands.Call) -> None:
  """Adds a node pool for each slice; one of several TPU7x hosts needs a placement policy."""
  slice_ = _slice(call)
  policy = _needs_policy(slice_)
  if policy:
    words = ("gcloud", "compute", "resource-policies", "create", "workload-policy", call.job.name)
    kind = ("--type=HIGH_THROUGHPUT", f"--accelerator-topology={slice_.topology}")
    place = (f"--region={_region(call)}", f"--project={call.job.project}")
    call.runner.run(steps.CommandStep(words=(*words, *kind, *place)))
  if policy:
    shape = (f"--placement-policy={call.job.name}",)
  else:
    # A node pool of one host has its topology from the machine type.
    shape = (f"--tpu-topology={slice_.topology}",) if slice_.hosts > 1 else ()
  for index in range(slice_.count):
    words = ("gcloud", "container", "node-pools", "create", jobset.pool_name(call.job, index))
    call.runner.run(
      steps.CommandStep(
        words=(
          *(*words, f"--cluster={call.job.gke.cluster}", *_in_cluster(call)),
          f"--node-locations={call.job.zone}",
          *(f"--machine-type={slice_.machine_type}", *shape, *_bought(call, slice_)),
          *("--scopes=cloud-platform", "--workload-metadata=GKE_METADATA"),
        )
      )
    )


def _needs_policy(slice_: slices.NamedSlice) -> bool:
  """TPU7x hosts of a slice are placed by a workload policy instead of --tpu-topology."""
  return slice_.generation == "tpu7x" and slice_.hosts > 1


def _bought(call: commands.Call, slice_: slices.NamedSlice) -> tuple[str, ...]:
  """Flags of the ways to buy nodes."""
  job, nodes = call.job, f"--num-nodes={slice_.hosts}"
  if job.provisioning == "flex_start":
    # The nodes come when the job asks for them, and go after their time.
    scaling = ("--enable-autoscaling", "--min-nodes=0", f"--max-nodes={slice_.hosts}")
    seconds = job_checks.duration_seconds(job.max_run_duration)
    limits = (f"--max-run-duration={seconds}s", "--reservation-affinity=none")
    return ("--flex-start", "--num-nodes=0", *scaling, *limits)
  return {
    "on_demand": (nodes,),
    "spot": (nodes, "--spot"),
    "reserved": (nodes, "--reservation-affinity=specific", f"--reservation={job.reservation}"),
  }[job.provisioning]


def _run(call: commands.Call) -> None:
  slice_ = _slice(call)
  if call.options.by == "gcluster":
    call.runner.run(_submit(call, slice_))
    return
  call.runner.run(_connect(call), _apply(call, slice_))


def _apply(call: commands.Call, slice_: slices.NamedSlice) -> steps.CommandStep:
  text = json.dumps(jobset.manifest(call.job, slice_), indent=2) + "\n"
  return _kubectl(call, "apply", "--filename=-", stdin=text)


def _submit(call: commands.Call, slice_: slices.NamedSlice) -> steps.CommandStep:
  """Lets gcluster write the JobSet. The command goes through a shell there."""
  job = call.job
  words = shlex.join(job.command_on(slice_.all_hosts))
  if job.environment:
    settings = " ".join(f"{name}={value}" for name, value in job.environment.items())
    words = f"{settings} {words}"
  return steps.CommandStep(
    words=(
      *("gcluster", "job", "submit", f"--name={job.name}", *_gcluster_place(call)),
      f"--image={job.image}",
      f"--compute-type={slice_.machine_type}",
      f"--topology={slice_.topology}",
      f"--num-slices={slice_.count}",
      f"--restarts={job.restarts}",
      f"--restart-on-exit-codes={','.join(map(str, _RESTARTED_CODES))}",
      f"--grace-period={jobset.GRACE}s",
      *([f"--queue={job.gke.queue}"] if job.gke.queue else []),
      *([f"--placement-policy={job.name}"] if _needs_policy(slice_) else []),
      f"--service-account={job.gke.service_account or 'default'}",
      *(f"--mount=gs://{name}:/gcs/{name}:rw" for name in job.buckets),
      f"--command={words}",
    )
  )


def _gcluster_place(call: commands.Call) -> tuple[str, ...]:
  return (f"--cluster={call.job.gke.cluster}", *_in_cluster(call))


def _gcluster(call: commands.Call, *words: str) -> steps.CommandStep:
  return steps.CommandStep(words=("gcluster", "job", *words, *_gcluster_place(call)))


def _pods(call: commands.Call) -> str:
  return f"jobset.sigs.k8s.io/jobset-name={call.job.name}"


def _status(call: commands.Call) -> None:
  _slice(call)
  if call.options.by == "gcluster":
    call.runner.run(_gcluster(call, "list"))
    return
  call.runner.run(
    _connect(call),
    _kubectl(call, "get", "jobset", call.job.name),
    _kubectl(call, "get", "pods", f"--selector={_pods(call)}", "--output=wide"),
  )


def _logs(call: commands.Call) -> None:
  """Shows the output of one host, counted over all slices, or of all."""
  slice_, options = _slice(call), call.options
  commands.check_log_options(options)
  follow = ("--follow",) if options.follow else ()
  if options.by == "gcluster":
    call.runner.run(_gcluster(call, "logs", call.job.name, *follow))
    return
  hosts = slice_.all_hosts
  selector, every = _pods(call), ()
  if options.worker == "all":
    every = ("--prefix", f"--max-log-requests={hosts}")
  elif int(options.worker) >= hosts:
    raise errors.InputError(f"--worker={options.worker}: there are hosts 0 to {hosts - 1}")
  else:
    index, host = divmod(int(options.worker), slice_.hosts)
    selector += f",jobset.sigs.k8s.io/job-index={index}"
    selector += f",batch.kubernetes.io/job-completion-index={host}"
  call.runner.run(
    _connect(call),
    _kubectl(
      call,
      *("logs", f"--selector={selector}", f"--container={jobset.CONTAINER}"),
      *(f"--tail={options.lines}", *every, *follow),
    ),
  )


def _resume(call: commands.Call) -> None:
  """Submits the job again: what is there of it is deleted first, as a JobSet can't be changed."""
  slice_ = _slice(call)
  if call.options.by == "gcluster":
    call.runner.run(_gcluster(call, "cancel", call.job.name), _submit(call, slice_))
    return
  call.runner.run(_connect(call), _delete_jobset(call), _apply(call, slice_))


def _delete_jobset(call: commands.Call) -> steps.CommandStep:
  return _kubectl(call, "delete", "jobset", call.job.name, "--ignore-not-found", "--wait")


def _delete(call: commands.Call) -> None:
  """Deletes the run, its node pools and its policy, and lists the pools that are left.

  It goes on where one of them can't be deleted: the others cost money, too.
  """
  slice_ = _slice(call)
  if call.options.by == "gcluster":
    found = [_gcluster(call, "cancel", call.job.name)]
  else:
    found = [_connect(call), _delete_jobset(call)]
  cluster = (f"--cluster={call.job.gke.cluster}", *_in_cluster(call))
  for index in range(slice_.count):
    words = ("gcloud", "container", "node-pools", "delete", jobset.pool_name(call.job, index))
    found.append(steps.CommandStep(words=(*words, *cluster, "--quiet")))
  if _needs_policy(slice_):
    words = ("gcloud", "compute", "resource-policies", "delete", call.job.name)
    place = (f"--region={_region(call)}", f"--project={call.job.project}")
    found.append(steps.CommandStep(words=(*words, *place, "--quiet")))
  listing = ("gcloud", "container", "node-pools", "list", *cluster)
  call.runner.run_all(*found, steps.CommandStep(words=listing))


if __name__ == "__main__":
  sys.exit(main())
