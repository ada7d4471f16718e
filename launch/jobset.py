"""A job as a JobSet, the Kubernetes object that starts, restarts and ends all hosts together.

Sources, read 2026-11:
  JobSet's API jobset.x-k8s.io/v1alpha2 (kubernetes-sigs/jobset, api/jobset/v1alpha2).
  docs.cloud.google.com/kubernetes-engine/docs: "Deploy TPU Multislices in GKE", "Plan TPUs in GKE",
    "About Ironwood (TPU7x) in GKE", "Mount Cloud Storage buckets as ephemeral volumes".
"""

from typing import Any

from launch import job as job_lib
from launch import slices

CONTAINER = "vr-jax"
# Exit codes of vr-jax after which it would end in the same way again: bad input, divergence. Any
# other starts all hosts again, among them 75: a run that was preempted and has saved.
FINAL_CODES = (2, 3)
# Where nodes keep compiled programs and copies of a job's train state: its pods come and go.
_CACHE = "cache"
GRACE = 60  # seconds from SIGTERM to SIGKILL: more than vr_jax.parallel.preemption.GRACE


def manifest(job: job_lib.TrainingJob, slice_: slices.NamedSlice) -> dict[str, Any]:
  """The JobSet of a job, as an object that kubectl takes as JSON."""
  labels = {"vr-jax-job": job.name}
  if job.gke.queue:
    labels["kueue.x-k8s.io/queue-name"] = job.gke.queue
  metadata: dict[str, Any] = {
    "name": job.name,
    "namespace": job.gke.namespace or "default",
    "labels": labels,
  }
  if not _has_own_pool(job):
    metadata["annotations"] = {
      # Each slice gets a node pool of its own.
      "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
    }
  return {
    "apiVersion": "jobset.x-k8s.io/v1alpha2",
    "kind": "JobSet",
    "metadata": metadata,
    "spec": {
      "failurePolicy": {
        "maxRestarts": job.restarts,
        # All hosts of the last attempt are gone before those of the next begin.
        "restartStrategy": "BlockingRecreate",
        "rules": [
          {
            "name": "bad_input_or_divergence",
            "action": "FailJobSet",
            "onJobFailureReasons": ["PodFailurePolicy"],
          }
        ],
      },
      "replicatedJobs": [
        {"name": "slice", "replicas": slice_.count, "template": {"spec": _slice_job(job, slice_)}}
      ],
    },
  }


def _has_own_pool(job: job_lib.TrainingJob) -> bool:
  """Whether hosts name their node pool, because it is empty until they ask for it (flex start).

  Exclusive placement copies the pool of the first host that is placed, and would wait for ever.
  """
  return job.provisioning == "flex_start"


def pool_name(job: job_lib.TrainingJob, index: int) -> str:
  """The node pool of a slice."""
  return f"{job.name}-{index}"


def _slice_job(job: job_lib.TrainingJob, slice_: slices.NamedSlice) -> dict[str, Any]:
  """The Job of one slice: a pod for each host, of which none is replaced alone."""
  pod = {"spec": _pod(job, slice_)}
  if job.buckets:
    pod = {"metadata": {"annotations": {"gke-gcsfuse/volumes": "true"}}, **pod}
  return {
    "parallelism": slice_.hosts,
    "completions": slice_.hosts,
    "completionMode": "Indexed",
    "backoffLimit": 0,
    "podFailurePolicy": {
      "rules": [
        {
          "action": "FailJob",
          "onExitCodes": {
            "containerName": CONTAINER,
            "operator": "In",
            "values": list(FINAL_CODES),
          },
        }
      ]
    },
    "template": pod,
  }


def _pod(job: job_lib.TrainingJob, slice_: slices.NamedSlice) -> dict[str, Any]:
  selector = {
    "cloud.google.com/gke-tpu-accelerator": slice_.kind.label,
    "cloud.google.com/gke-tpu-topology": slice_.topology,
  }
  if _has_own_pool(job):
    selector["cloud.google.com/gke-nodepool"] = pool_name(job, 0)
  pod: dict[str, Any] = {
    # Any other policy contradicts podFailurePolicy: the JobSet would be accepted and start nothing.
    "restartPolicy": "Never",
    "terminationGracePeriodSeconds": GRACE,
    "serviceAccountName": job.gke.service_account or "default",
    "nodeSelector": selector,
    "containers": [_container(job, slice_)],
  }
  cache: dict[str, Any] = {"name": _CACHE, "emptyDir": {}}
  if job.gke.node_cache:
    place = {"path": f"{job.gke.node_cache}/{job.name}", "type": "DirectoryOrCreate"}
    cache = {"name": _CACHE, "hostPath": place}
  pod["volumes"] = [
    cache,
    *(
      {
        "name": _volume(index),
        "csi": {
          "driver": "gcsfuse.csi.storage.gke.io",
          "volumeAttributes": {
            "bucketName": bucket,
            # What another host has written is seen at once.
            "mountOptions": "implicit-dirs,metadata-cache:ttl-secs:0",
          },
        },
      }
      for index, bucket in enumerate(job.buckets)
    ),
  ]
  return pod


def _container(job: job_lib.TrainingJob, slice_: slices.NamedSlice) -> dict[str, Any]:
  tpu = {"google.com/tpu": slice_.chips_per_host}
  container: dict[str, Any] = {
    "name": CONTAINER,
    "image": job.image,
    # Words, not a line for a shell: Kubernetes runs them as they are. It replaces $(NAME) by
    # variables, so a dollar sign is written twice.
    "command": [word.replace("$", "$$") for word in job.command_on(slice_.all_hosts)],
    "ports": [{"containerPort": 8471}, {"containerPort": job.coordinator_port or 8482}],
    "resources": {"requests": tpu, "limits": tpu},
  }
  variables: list[dict[str, Any]] = [
    {"name": name, "value": value}
    for name, value in {"XDG_CACHE_HOME": f"/{_CACHE}", **job.environment}.items()
  ]
  variables += [
    {"name": variable, "valueFrom": {"secretKeyRef": {"name": secret, "key": variable}}}
    for variable, secret in job.secrets.items()
  ]
  container["env"] = variables
  container["volumeMounts"] = [
    {"name": _CACHE, "mountPath": f"/{_CACHE}"},
    *(
      {"name": _volume(index), "mountPath": f"{job_lib.MOUNTED}{bucket}"}
      for index, bucket in enumerate(job.buckets)
    ),
  ]
  return container


def _volume(index: int) -> str:
  return f"bucket-{index}"
