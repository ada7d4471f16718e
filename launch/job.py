"""A training job as one description, for launch.local, launch.tpu_vm and launch.gke.

docs/tpu.md shows a job's file; launch/job_file.py reads it, launch/job_checks.py checks it.
"""

from collections.abc import Mapping
import dataclasses
import re
from typing import Any

MOUNTED = "/gcs/"  # below it hosts see buckets
# A path: a whole value, or a text of a tuple. In the middle of a sentence it is left alone.
_BUCKET = re.compile(r"""(?:^|(?<=['"]))gs://([a-z0-9][-._a-z0-9]*)""")
# Config fields that the table `paths` sets.
PATH_FIELDS = {
  "videos": "data.videos",
  "annotations": "data.annotations",
  "pretrained": "model.pretrained",
}


def _option(default: Any, about: str) -> Any:
  """A field that a file and a flag can set."""
  return dataclasses.field(default=default, metadata={"about": about})


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputPaths:
  """Where a job's data and weights are: on every host, or in a bucket."""

  videos: str = _option("", "config.data.videos")
  annotations: str = _option("", "config.data.annotations")
  pretrained: str = _option("", "config.model.pretrained")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TpuVmOptions:
  """What launch.tpu_vm alone needs."""

  runtime_version: str = _option("", "TPU software version; empty: that of the generation")
  service_account: str = _option("", "e-mail of the machines' account; empty: the default one")
  network: str = _option("", "VPC network; empty: default")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GkeOptions:
  """What launch.gke alone needs."""

  cluster: str = _option("", "name of the GKE cluster")
  location: str = _option("", "region or zone of the cluster; empty: the region of `zone`")
  namespace: str = _option("", "Kubernetes namespace; empty: default")
  queue: str = _option("", "Kueue's LocalQueue, if the cluster has one")
  service_account: str = _option("", "Kubernetes service account; empty: default")
  node_cache: str = _option(
    "/var/lib/vr-jax", "directory of the nodes for compiled programs and copies; empty: the pod's"
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingJob:
  """What to run, where, and what to do when it stops.

  overrides: config fields by name, as text: {"rl.steps": "200"}.
  secrets: environment variables, and the name of the secret that has the value of each.
  """

  name: str = _option("", "of the job and of what it creates; lowercase letters, digits, -")
  recipe: str = _option("", "as in --config: moss_chatv:7b")
  mode: str = _option("all", "as in --mode")
  slice: str = _option("", "Google Cloud's name: v5e-16, v6e-8, v5p-16, tpu7x-64, 2xv5p-64")
  project: str = _option("", "Google Cloud project")
  zone: str = _option("", "zone of the slice: us-east5-a")
  provisioning: str = _option("on_demand", "on_demand, spot, reserved or flex_start")
  reservation: str = _option("", "name of the reservation, for reserved")
  max_run_duration: str = _option("", "for flex_start, at most 7 days: 48h")
  image: str = _option("", "container image with vr-jax")
  install: str = _option("", "what pip installs on TPU VMs without an image")
  bucket: str = _option("", "gs://name")
  workdir: str = _option("", "empty: runs/NAME of the bucket")
  restarts: int = _option(20, "how often a run that was preempted or crashed starts again")
  coordinator_port: int = _option(0, "TCP port of the first host; 0: JAX's own, 8482")
  log_format: str = _option("", "of lines, text or json; empty: json on a pod, text here")
  paths: InputPaths = InputPaths()
  tpu_vm: TpuVmOptions = TpuVmOptions()
  gke: GkeOptions = GkeOptions()
  overrides: Mapping[str, str] = dataclasses.field(default_factory=dict)
  secrets: Mapping[str, str] = dataclasses.field(default_factory=dict)

  @property
  def run_directory(self) -> str:
    """The workdir, without an empty default."""
    return self.workdir or "/".join(filter(None, (self.bucket.rstrip("/"), "runs", self.name)))

  @property
  def fields(self) -> dict[str, str]:
    """All config fields that the job sets, as text, with paths as the job has them."""
    paths = {PATH_FIELDS[key]: path for key, path in vars(self.paths).items() if path}
    return {**paths, **self.overrides}

  def origin(self, name: str) -> str:
    """Which field of the job sets a config field: `paths.videos`, or `overrides.data.videos`."""
    paths = {field: f"paths.{key}" for key, field in PATH_FIELDS.items()}
    return f"overrides.{name}" if name in self.overrides else paths.get(name, f"overrides.{name}")

  @property
  def buckets(self) -> tuple[str, ...]:
    """Names of the buckets that the run reads or writes, sorted."""
    texts = (self.run_directory, self.install, *self.fields.values())
    return tuple(sorted({name for text in texts for name in _BUCKET.findall(text)}))

  def on_host(self, text: str) -> str:
    """A value with the paths that hosts see: buckets are directories there."""
    return _BUCKET.sub(rf"{MOUNTED}\1", text)

  @property
  def flags(self) -> tuple[str, ...]:
    """The flags of vr_jax.main. Each host has its own mounts for addresses (vr_jax/buckets.py)."""
    return (
      f"--config={self.recipe}",
      *(f"--config.{name}={text}" for name, text in self.fields.items()),
      f"--workdir={self.run_directory}",
      f"--mode={self.mode}",
      *([f"--log_format={self.log_format}"] if self.log_format else []),
    )

  def command_on(self, hosts: int) -> tuple[str, ...]:
    """The words that each of so many hosts of a pod runs: the processes find each other.

    A host without libtpu, or one that finds no other, ends with a line instead of running alone.
    Lines are objects with the process's index: Cloud Logging mixes those of all hosts.
    """
    several = (f"--num_processes={hosts}",) if hosts > 1 else ()
    lines = () if self.log_format else ("--log_format=json",)
    return ("vr-jax", *self.flags, "--backend=tpu", *several, *lines)

  @property
  def environment(self) -> dict[str, str]:
    """Variables of the command that are no secrets."""
    port = self.coordinator_port
    return {"JAX_COORDINATOR_PORT": str(port)} if port else {}
