"""The launchers use only flags that the references of gcloud and gcluster list.

Sources, read 2026-11: docs.cloud.google.com/sdk/gcloud/reference/compute/tpus and its alpha
variant; cmd/job of GoogleCloudPlatform/cluster-toolkit (Apache-2.0).
"""

import pytest

from launch import gke, tpu_vm

ANY = {"project", "zone", "quiet", "format"}  # of every gcloud command that is used here
CREATE = {
  *("runtime-version", "accelerator-type", "topology", "type", "node-id", "node-count"),
  *("node-prefix", "async", "data-disk", "description", "guaranteed", "internal-ips", "labels"),
  *("metadata", "metadata-from-file", "network", "range", "reserved", "scopes"),
  *("service-account", "shielded-secure-boot", "spot", "subnetwork", "tags"),
  *("valid-after-duration", "valid-after-time", "valid-until-duration", "valid-until-time"),
}
KEYS = {
  *("dry-run", "force-key-file-overwrite", "plain", "ssh-key-file", "strict-host-key-checking"),
  *("ssh-key-expiration", "ssh-key-expire-after", "internal-ip", "worker"),
}
TPUS = {
  "queued-resources create": CREATE,
  "alpha queued-resources create": CREATE
  | {"max-run-duration", "provisioning-model", "reservation", "best-effort", "boot-disk"},
  "queued-resources describe": set(),
  "queued-resources delete": {"async", "force"},
  "queued-resources list": {"filter", "limit", "page-size", "sort-by", "uri"},
  "queued-resources ssh": KEYS | {"node", "batch-size", "command", "output-directory", "ssh-flag"},
  "queued-resources scp": KEYS | {"node", "batch-size", "compress", "recurse", "scp-flag"},
  "tpu-vm ssh": KEYS | {"command", "output-directory", "ssh-flag"},
  "tpu-vm scp": KEYS | {"compress", "recurse", "scp-flag"},
  "tpu-vm list": {"filter", "limit", "page-size", "sort-by", "uri"},
}
GCLUSTER = {
  "submit": {
    *("image", "base-image", "build-context", "command", "compute-type", "dry-run-out", "platform"),
    *("mount", "name", "queue", "num-nodes", "num-slices", "restarts", "gke-ttl-after-finished"),
    *("grace-period", "placement-policy", "node-constraint", "cpu-affinity", "topology"),
    *("restart-on-exit-codes", "image-pull-secret", "service-account", "gke-scheduler"),
    *("await-job-completion", "timeout", "priority", "verbose"),
  },
  "logs": {"follow"},
  "list": set(),
  "cancel": set(),
}
BOUGHT = {
  "on demand": [],
  "spot": ["--provisioning=spot"],
  "reserved": ["--provisioning=reserved", "--reservation=ours"],
  "flex start": ["--provisioning=flex_start", "--max_run_duration=48h"],
}


def flags_of(words):
  return {word[2:].partition("=")[0] for word in words if word.startswith("--")}


def check_tpus(commands):
  """Checks all calls of gcloud; returns the names of the commands that were used."""
  used = set()
  for call in commands.calls():
    words = call["words"]
    if words[0] == "storage":
      assert words[:3] == ["storage", "cp", "--recursive"]
      continue
    track = [words.pop(0)] if words[0] == "alpha" else []
    assert words[:2] == ["compute", "tpus"]
    name = " ".join([*track, *words[2:4]])
    assert flags_of(words) <= TPUS[name] | ANY, name
    used.add(name)
  return used


@pytest.mark.parametrize("bought", BOUGHT)
def test_a_slice_is_asked_for_with_flags_that_exist(job_toml, commands, bought):
  options = ["--tpu_vm.service_account=me", "--tpu_vm.network=ours", *BOUGHT[bought]]
  for slice_ in ("v5e-16", "2xv5p-64"):
    assert tpu_vm.main(["create", job_toml, f"--slice={slice_}", *options]) == 0
  alpha = bought in ("reserved", "flex start")  # gcloud's released track has no flags for them
  assert check_tpus(commands) == {f"{'alpha ' * alpha}queued-resources create"}


@pytest.mark.parametrize(
  ("slice_", "kind"), [("v6e-8", "tpu-vm"), ("2xv5p-64", "queued-resources")]
)
def test_a_slice_is_used_with_flags_that_exist(job_toml, commands, capsys, slice_, kind):
  commands.answer(("describe", 0, "ACTIVE\n", ""))
  for command in ("run", "status", "logs", "fetch", "delete"):
    assert tpu_vm.main([command, job_toml, f"--slice={slice_}"]) == 0
  used = check_tpus(commands)
  assert {f"{kind} ssh", f"{kind} scp", "queued-resources delete", "tpu-vm list"} <= used


@pytest.mark.parametrize("slice_", ["v5p-16", "2xtpu7x-64"])
def test_every_flag_of_gcluster_is_one_that_its_command_has(job_toml, commands, capsys, slice_):
  for command in ("run", "status", "logs", "resume"):
    flags = [f"--slice={slice_}", "--by=gcluster", "--gke.queue=ours"]
    follow = ["--follow"] if command == "logs" else []
    assert gke.main([command, job_toml, *flags, *follow]) == 0
  for call in commands.calls():
    assert call["program"] == "gcluster" and call["words"][0] == "job"
    place = {"cluster", "location", "project"}
    assert flags_of(call["words"]) <= GCLUSTER[call["words"][1]] | place
    assert place <= flags_of(call["words"])
