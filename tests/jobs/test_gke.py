"""launch.gke: JobSets that the API server accepts, and the commands around them."""

import copy
import json
from pathlib import Path
import re
import subprocess

import jsonschema
import pytest

from launch import gke, job_file, jobset, slices
from tests.jobs import test_job_file

SCHEMA = json.loads(Path(__file__).with_name("jobset_schema.json").read_text())
PLACE = "--location=us-east5 --project=my-project"
CONNECT = f"gcloud container clusters get-credentials my-cluster {PLACE}"
POOL = f"--cluster=my-cluster {PLACE} --node-locations=us-east5-a"
SCOPES = "--scopes=cloud-platform --workload-metadata=GKE_METADATA"
APPLY = "kubectl --namespace=default apply --filename=-"
DELETE = "kubectl --namespace=default delete jobset lamps --ignore-not-found --wait"


# The schema that JobSet publishes, of the fields that are written; and the rules that servers add.
PUBLISHED = json.loads(Path(__file__).with_name("jobset_crd.json").read_text())


def check(manifest):
  for schema in (PUBLISHED, SCHEMA):
    jsonschema.Draft202012Validator(schema).validate(manifest)


def manifest_of(job_toml, flags=None, overrides=()):
  job = job_file.read(job_toml, flags or {}, list(overrides)).job
  return jobset.manifest(job, slices.parse(job.slice))


def job_of(manifest):
  (replicated,) = manifest["spec"]["replicatedJobs"]
  return replicated["template"]["spec"]


def pod_of(manifest):
  return job_of(manifest)["template"]["spec"]


def expand(word):
  """What Kubernetes makes of a word of `command`: $$ is $, and $(NAME) a variable."""
  return re.sub(r"\$\$|\$\((\w+)\)", lambda m: "$" if m[0] == "$$" else f"<{m[1]}>", word)


@pytest.mark.parametrize(
  ("name", "replicas", "hosts", "chips", "label", "topology"),
  [
    ("v5e-16", 1, 4, 4, "tpu-v5-lite-podslice", "4x4"),
    ("v6e-8", 1, 1, 8, "tpu-v6e-slice", "2x4"),
    ("v5p-16", 1, 2, 4, "tpu-v5p-slice", "2x2x2"),
    ("2xv5p-64", 2, 8, 4, "tpu-v5p-slice", "2x4x4"),
    ("tpu7x-64", 1, 8, 4, "tpu7x", "2x4x4"),
    ("4xtpu7x-128", 4, 16, 4, "tpu7x", "4x4x4"),
  ],
)
def test_a_manifest_has_a_pod_for_each_host_of_each_slice(
  job_toml, name, replicas, hosts, chips, label, topology
):
  manifest = manifest_of(job_toml, {"slice": name})
  check(manifest)
  assert manifest["spec"]["replicatedJobs"][0]["replicas"] == replicas
  job, pod = job_of(manifest), pod_of(manifest)
  assert (job["parallelism"], job["completions"], job["backoffLimit"]) == (hosts, hosts, 0)
  assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": chips}
  assert pod["nodeSelector"] == {
    "cloud.google.com/gke-tpu-accelerator": label,
    "cloud.google.com/gke-tpu-topology": topology,
  }


def test_bad_input_and_divergence_fail_the_jobset_and_all_else_restarts_it(job_toml):
  manifest = manifest_of(job_toml, {"restarts": "7"})
  policy = manifest["spec"]["failurePolicy"]
  assert policy["maxRestarts"] == 7
  (rule,) = policy["rules"]
  assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
  (rule,) = job_of(manifest)["podFailurePolicy"]["rules"]
  pod = pod_of(manifest)
  # Only a rule of the pods leads to FailJobSet; 75, a crash and a signal match none.
  assert rule["action"] == "FailJob"
  assert rule["onExitCodes"] == {
    "containerName": pod["containers"][0]["name"],
    "operator": "In",
    "values": [2, 3],
  }
  assert pod["restartPolicy"] == "Never"


def test_the_schemas_are_schemas():
  for schema in (PUBLISHED, SCHEMA):
    jsonschema.Draft202012Validator.check_schema(schema)


def test_the_published_schema_refuses_fields_and_values_that_jobset_has_not(job_toml):
  def spoil(change):
    bad = manifest_of(job_toml)
    change(bad)
    with pytest.raises(jsonschema.ValidationError):
      jsonschema.Draft202012Validator(PUBLISHED).validate(bad)

  spoil(lambda m: m["spec"]["failurePolicy"].update(restartStrategy="OnFailure"))
  spoil(lambda m: m["spec"]["failurePolicy"]["rules"][0].pop("name"))
  spoil(lambda m: m["spec"].update(replicatedJob=[]))
  spoil(lambda m: m["spec"]["replicatedJobs"][0].update(replicas="2"))
  spoil(lambda m: job_of(m)["podFailurePolicy"]["rules"][0]["onExitCodes"].pop("operator"))
  spoil(lambda m: pod_of(m)["volumes"][0]["hostPath"].pop("path"))
  spoil(lambda m: pod_of(m)["containers"][0]["volumeMounts"][0].update(mountpath="/x"))


def test_the_schema_refuses_what_a_cluster_would_silently_ignore(job_toml):
  good = manifest_of(job_toml)
  check(good)

  def spoil(change):
    bad = copy.deepcopy(good)
    change(bad)
    with pytest.raises(jsonschema.ValidationError) as caught:
      check(bad)
    return caught.value

  error = spoil(lambda m: pod_of(m).update(restartPolicy="OnFailure"))
  assert list(error.absolute_path)[-1] == "restartPolicy" and error.validator == "const"
  spoil(lambda m: pod_of(m).pop("restartPolicy"))  # Always, which no Job may have
  spoil(lambda m: m["spec"]["failurePolicy"].update(maxRestart=3))
  spoil(lambda m: m["spec"]["failurePolicy"]["rules"][0].update(onJobFailureReasons=["ExitCode"]))
  spoil(lambda m: m["spec"]["failurePolicy"]["rules"][0].update(action="Fail"))
  spoil(lambda m: job_of(m)["podFailurePolicy"]["rules"][0]["onExitCodes"].update(values=[300]))
  spoil(lambda m: job_of(m).update(backofLimit=0))
  spoil(lambda m: pod_of(m)["containers"][0].update(environment=[]))
  spoil(lambda m: m["metadata"].update(name="Lamps"))
  spoil(lambda m: m.update(apiVersion="jobset.x-k8s.io/v1"))
  # Without podFailurePolicy, OnFailure is allowed: the two contradict each other only together.
  other = copy.deepcopy(good)
  job_of(other).pop("podFailurePolicy")
  pod_of(other)["restartPolicy"] = "OnFailure"
  check(other)


def test_words_arrive_unchanged_through_kubernetes(job_toml):
  for text in test_job_file.NASTY:
    override = f"--config.env.instruction={text}$(HOME)$$"
    manifest = manifest_of(job_toml, overrides=[override])
    check(manifest)
    words = pod_of(manifest)["containers"][0]["command"]
    assert override in [expand(word) for word in words]


def test_a_secret_is_a_reference_and_its_value_nowhere(
  job_toml, commands, capfd, tmp_path, monkeypatch
):
  with (tmp_path / "job.toml").open("a") as file:
    file.write('[secrets]\nWANDB_API_KEY = "wandb-key"\n')
  monkeypatch.setenv("WANDB_API_KEY", "canary-8fK2")
  commands.answer(("kubectl", 0, "", ""), ("gcloud", 0, "", ""))
  for command in ("create", "run", "status", "logs", "resume", "fetch", "delete"):
    assert gke.main([command, job_toml, "--dry-run"]) == 0
    assert gke.main([command, job_toml]) == 0
  printed = capfd.readouterr()
  recorded = json.dumps(commands.calls())
  assert "canary" not in printed.out + printed.err + recorded
  cache, env = pod_of(manifest_of(job_toml))["containers"][0]["env"]
  assert cache == {"name": "XDG_CACHE_HOME", "value": "/cache"}
  assert env == {
    "name": "WANDB_API_KEY",
    "valueFrom": {"secretKeyRef": {"name": "wandb-key", "key": "WANDB_API_KEY"}},
  }
  check(manifest_of(job_toml))


def test_buckets_are_mounted_where_the_words_say(job_toml):
  manifest = manifest_of(job_toml, {"paths.videos": "gs://third-bucket/videos"})
  check(manifest)
  template, pod = job_of(manifest)["template"], pod_of(manifest)
  assert template["metadata"]["annotations"] == {"gke-gcsfuse/volumes": "true"}
  mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
  cache, *found = pod["volumes"]
  volumes = {v["name"]: v["csi"]["volumeAttributes"]["bucketName"] for v in found}
  assert mounts.pop("cache") == "/cache"
  assert mounts == {"bucket-0": "/gcs/my-bucket", "bucket-1": "/gcs/third-bucket"}
  # Pods of a restart are new ones: what they leave has to be on the node.
  place = {"path": "/var/lib/vr-jax/lamps", "type": "DirectoryOrCreate"}
  assert cache == {"name": "cache", "hostPath": place}
  assert volumes == {"bucket-0": "my-bucket", "bucket-1": "third-bucket"}


def test_a_cluster_that_admits_no_directory_of_a_node_gets_one_of_the_pod(job_toml):
  manifest = manifest_of(job_toml, {"gke.node_cache": ""})
  check(manifest)
  assert pod_of(manifest)["volumes"][0] == {"name": "cache", "emptyDir": {}}


def test_a_port_of_the_coordinator_and_a_queue_are_passed_on(job_toml):
  manifest = manifest_of(job_toml, {"coordinator_port": "9000", "gke.queue": "ours"})
  check(manifest)
  (container,) = pod_of(manifest)["containers"]
  assert {"name": "JAX_COORDINATOR_PORT", "value": "9000"} in container["env"]
  assert {"containerPort": 9000} in container["ports"]
  assert manifest["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "ours"


@pytest.mark.parametrize(
  ("flags", "lines"),
  [
    (
      [],
      [f"lamps-0 {POOL} --machine-type=ct5p-hightpu-4t --tpu-topology=2x2x2 --num-nodes=2"],
    ),
    (
      ["--slice=v6e-8", "--provisioning=spot"],
      [f"lamps-0 {POOL} --machine-type=ct6e-standard-8t --num-nodes=1 --spot"],
    ),
    (
      ["--slice=2xv5e-16", "--provisioning=reserved", "--reservation=ours"],
      [
        f"lamps-{index} {POOL} --machine-type=ct5lp-hightpu-4t --tpu-topology=4x4 --num-nodes=4 "
        "--reservation-affinity=specific --reservation=ours"
        for index in (0, 1)
      ],
    ),
    (
      ["--provisioning=flex_start", "--max_run_duration=2d"],
      [
        f"lamps-0 {POOL} --machine-type=ct5p-hightpu-4t --tpu-topology=2x2x2 --flex-start "
        "--num-nodes=0 --enable-autoscaling --min-nodes=0 --max-nodes=2 "
        "--max-run-duration=172800s --reservation-affinity=none"
      ],
    ),
    (
      ["--slice=tpu7x-8"],
      [f"lamps-0 {POOL} --machine-type=tpu7x-standard-4t --num-nodes=1"],
    ),
  ],
)
def test_create_adds_a_node_pool_for_each_slice(job_toml, commands, flags, lines):
  assert gke.main(["create", job_toml, *flags]) == 0
  create = "gcloud container node-pools create"
  assert commands.lines() == [f"{create} {line} {SCOPES}" for line in lines]


def test_hosts_of_tpu7x_are_placed_by_a_policy_instead_of_a_topology(job_toml, commands):
  assert gke.main(["create", job_toml, "--slice=tpu7x-64"]) == 0
  policy = "gcloud compute resource-policies"
  region = "--region=us-east5 --project=my-project"
  assert commands.lines() == [
    f"{policy} create workload-policy lamps --type=HIGH_THROUGHPUT "
    f"--accelerator-topology=2x4x4 {region}",
    f"gcloud container node-pools create lamps-0 {POOL} --machine-type=tpu7x-standard-4t "
    f"--placement-policy=lamps --num-nodes=8 {SCOPES}",
  ]
  assert gke.main(["delete", job_toml, "--slice=tpu7x-64"]) == 0
  assert commands.lines()[2:] == [
    CONNECT,
    DELETE,
    f"gcloud container node-pools delete lamps-0 --cluster=my-cluster {PLACE} --quiet",
    f"{policy} delete lamps {region} --quiet",
    f"gcloud container node-pools list --cluster=my-cluster {PLACE}",
  ]


def test_flex_start_names_its_pool_as_it_is_empty_at_first(job_toml):
  flags = {"provisioning": "flex_start", "max_run_duration": "1h"}
  manifest = manifest_of(job_toml, flags)
  check(manifest)
  assert pod_of(manifest)["nodeSelector"]["cloud.google.com/gke-nodepool"] == "lamps-0"
  assert "annotations" not in manifest["metadata"]
  assert "annotations" in manifest_of(job_toml)["metadata"]


def test_run_applies_the_manifest_and_resume_replaces_it(job_toml, commands):
  assert gke.main(["run", job_toml]) == 0
  assert commands.lines() == [CONNECT, APPLY]
  manifest = json.loads(commands.calls()[1]["stdin"])
  assert manifest == manifest_of(job_toml)
  assert gke.main(["resume", job_toml]) == 0
  assert commands.lines()[2:] == [CONNECT, DELETE, APPLY]
  assert json.loads(commands.calls()[-1]["stdin"]) == manifest


def test_status_and_logs_select_the_pods_of_the_job(job_toml, commands, capsys):
  pods = "jobset.sigs.k8s.io/jobset-name=lamps"
  assert gke.main(["status", job_toml]) == 0
  assert commands.lines() == [
    CONNECT,
    "kubectl --namespace=default get jobset lamps",
    f"kubectl --namespace=default get pods --selector={pods} --output=wide",
  ]
  assert gke.main(["logs", job_toml, "--slice=2xv5p-32", "--worker=6", "--follow"]) == 0
  index = "jobset.sigs.k8s.io/job-index=1,batch.kubernetes.io/job-completion-index=2"
  logs = f"kubectl --namespace=default logs --selector={pods}"
  assert commands.lines()[-1] == f"{logs},{index} --container=vr-jax --tail=100 --follow"
  assert gke.main(["logs", job_toml, "--worker=all", "--lines=5"]) == 0
  all_hosts = "--container=vr-jax --tail=5 --prefix --max-log-requests=2"
  assert commands.lines()[-1] == f"{logs} {all_hosts}"
  assert gke.main(["logs", job_toml, "--worker=2"]) == 2
  assert capsys.readouterr().err == "gke: --worker=2: there are hosts 0 to 1\n"


def test_gcluster_submits_the_same_words(job_toml, commands, tmp_path):
  override = '--config.env.instruction=it\'s "$HOME", twice'
  flags = ["--by=gcluster", "--slice=2xtpu7x-64", "--coordinator_port=9000", override]
  assert gke.main(["run", job_toml, *flags]) == 0
  (call,) = commands.calls()
  assert call["program"] == "gcluster" and call["words"][:2] == ["job", "submit"]
  command = call["words"][-1]
  assert call["words"][2:-1] == [
    *("--name=lamps", "--cluster=my-cluster", "--location=us-east5", "--project=my-project"),
    "--image=us-docker.pkg.dev/my-project/images/vr-jax:1",
    *("--compute-type=tpu7x-standard-4t", "--topology=2x4x4", "--num-slices=2", "--restarts=5"),
    *("--restart-on-exit-codes=1,75,134,135,137,139,143", "--grace-period=60s"),
    *("--placement-policy=lamps", "--service-account=default"),
    "--mount=gs://my-bucket:/gcs/my-bucket:rw",
  ]
  # gcluster gives the line to a shell of the container.
  commands.add("vr-jax", (commands.directory / "gcloud").read_text())
  line = command.removeprefix("--command=")
  subprocess.run(["bash", "-c", line], check=True, stdin=subprocess.DEVNULL)
  job = job_file.read(job_toml, {}, [override]).job
  assert commands.calls()[-1]["words"] == list(job.command_on(16)[1:])
  for action, words in [
    ("status", "list"),
    ("logs", "logs lamps"),
    ("resume", "cancel lamps"),
  ]:
    before = len(commands.calls())
    assert gke.main([action, job_toml, "--by=gcluster"]) == 0
    assert commands.lines()[before] == f"gcluster job {words} --cluster=my-cluster {PLACE}"


@pytest.mark.parametrize(
  ("flags", "line"),
  [
    (["--gke.cluster="], "--gke.cluster: launch.gke needs it"),
    (["--image="], "--image: launch.gke needs it"),
    (["--workdir=runs/a"], "--workdir: runs/a is on the disk of one host, and gone with it; "),
    (["--slice=2xv6e-8"], "--slice: 2xv6e-8 has slices of one host; several slices need several"),
    (
      ["--slice=2xv5p-16", "--provisioning=flex_start", "--max_run_duration=1h"],
      "--provisioning: flex_start gives one slice, not 2",
    ),
    (["--by=xpk"], "argument --by: invalid choice: 'xpk'"),
  ],
)
def test_what_gke_can_not_do_is_refused_before_anything_runs(
  job_toml, commands, capsys, flags, line
):
  assert gke.main(["create", job_toml, *flags]) == 2
  error = capsys.readouterr().err
  assert error.startswith(f"gke: {line}") and error.count("\n") == 1
  assert not commands.calls()


def test_delete_goes_on_where_something_can_not_be_deleted(job_toml, commands, capsys):
  commands.answer(
    ("kubectl", 1, "", "error: the server has no resource type jobset\n"),
    ("pools delete lamps-0", 3, "", "not found\n"),
  )
  assert gke.main(["delete", job_toml, "--slice=2xv5p-16"]) == 1
  assert [line.split()[:5] for line in commands.lines()[2:]] == [
    ["gcloud", "container", "node-pools", "delete", "lamps-0"],
    ["gcloud", "container", "node-pools", "delete", "lamps-1"],
    ["gcloud", "container", "node-pools", "list", "--cluster=my-cluster"],
  ]
  last = capsys.readouterr().err.splitlines()[-1]
  assert last == "gke: kubectl ended with 1: error: the server has no resource type jobset"


def test_gcluster_gets_no_secrets(job_toml, commands, tmp_path, capsys):
  with (tmp_path / "job.toml").open("a") as file:
    file.write('[secrets]\nWANDB_API_KEY = "wandb-key"\n')
  assert gke.main(["run", job_toml, "--by=gcluster"]) == 2
  assert "gcluster passes variables by value; use --by=kubectl" in capsys.readouterr().err
  assert not commands.calls()


@pytest.mark.parametrize("command", ["create", "run", "status", "logs", "resume", "delete"])
def test_an_exit_code_is_passed_on_with_the_last_line(job_toml, commands, capsys, command):
  commands.answer(
    ("kubectl", 4, "", "error: x\nerror: no matches for kind JobSet\n"),
    ("node-pools create", 4, "", "error: no matches for kind JobSet\n"),
  )
  assert gke.main([command, job_toml]) == 4
  last = capsys.readouterr().err.splitlines()[-1]
  assert last.endswith(" ended with 4: error: no matches for kind JobSet")


@pytest.mark.parametrize("by", ["kubectl", "gcluster"])
@pytest.mark.parametrize(
  "command", ["create", "run", "status", "logs", "resume", "fetch", "delete"]
)
@pytest.mark.parametrize("fails", [False, True])
def test_a_dry_run_does_in_a_shell_what_the_command_does(
  job_toml, commands, same_in_a_shell, command, by, fails
):
  override = '--config.env.instruction=it\'s "$HOME"\nand `date`'
  if fails:
    commands.answer(("gcloud", 4, "", "failed\n"), ("cancel", 3, "", "failed\n"))
  words = [command, job_toml, f"--by={by}", "--slice=2xtpu7x-64", override]
  code, calls = same_in_a_shell(gke, words)
  assert calls and (code == 0 or fails)
