"""A job is read from a file and flags; each mistake is one line; its words arrive unchanged."""

from pathlib import Path
import re
import shlex
import subprocess
import sys

import pytest

from launch import job_checks, job_file, jobset, slices
from tests.jobs import recorders
from vr_jax import errors

NASTY = (
  "two words",
  "it's",
  'say "hello"',
  "$HOME and $(date) and `date`",
  "back\\slash \\n",
  "('accuracy', \"format\", 'my_rewards.py:brevity*0.1')",
  "(8448,)",
  "a;b|c&d>e<f",
  "*?[a]{1,2}~!#",
  "line\nbreak\ttab",
  "",
  " -- ",
  "naïve ✓",
)


def read(file="", flags=None, overrides=()):
  return job_file.read(file, flags or {}, list(overrides))


def problem(*arguments, **named):
  with pytest.raises(errors.InputError) as caught:
    read(*arguments, **named)
  assert "\n" not in str(caught.value)
  return str(caught.value)


def test_a_file_gives_the_words_that_a_host_runs(job_toml):
  assert read(job_toml).job.command_on(2) == (
    "vr-jax",
    "--config=moss_chatv:7b",
    "--config.data.videos=gs://my-bucket/videos",
    "--config.data.annotations=gs://my-bucket/lamps.jsonl",
    "--config.model.pretrained=gs://my-bucket/Qwen2.5-VL-7B-Instruct",
    "--config.rl.steps=200",
    "--config.rl.microbatches=2",
    "--config.mesh=(4,-1,1,1)",
    "--workdir=gs://my-bucket/runs/lamps",
    "--mode=rl",
    "--backend=tpu",
    "--num_processes=2",
    "--log_format=json",
  )
  assert read(job_toml, {"log_format": "text"}).job.command_on(1)[-3:] == (
    "--mode=rl",
    "--log_format=text",
    "--backend=tpu",
  )


def test_flags_go_before_the_file_also_for_data_paths(job_toml):
  flags = {"workdir": "gs://other-bucket/a", "mode": "sft", "restarts": "0"}
  overrides = ["--config.rl.steps=3", "--config.data.videos=gs://third-bucket/v"]
  job = read(job_toml, flags, overrides).job
  assert job.restarts == 0
  assert job.buckets == ("my-bucket", "other-bucket", "third-bucket")
  assert "--config.rl.steps=3" in job.command_on(
    2
  ) and "--config.rl.steps=200" not in job.command_on(2)
  assert "--config.data.videos=gs://third-bucket/v" in job.command_on(2)
  assert not any("my-bucket/videos" in word for word in job.command_on(2))


def test_flags_alone_are_a_job():
  flags = {"name": "a", "recipe": "grpo:3b", "bucket": "gs://my-bucket"}
  job = read(flags=flags).job
  assert job.command_on(1)[1:3] == ("--config=grpo:3b", "--workdir=gs://my-bucket/runs/a")
  assert read(flags={"name": "a", "recipe": "grpo:3b"}).job.run_directory == "runs/a"


def test_addresses_are_carried_as_they_are_and_sentences_name_no_bucket():
  values = {
    "gs://b-1/x": {"b-1"},
    "('gs://b-2/x', \"gs://b-3/y\", 'see gs://b-4')": {"b-2", "b-3"},
    "Files are in gs://b-5, it's true.": set(),
  }
  for value, names in values.items():
    word = f"--config.env.instruction={value}"
    job = read(flags={"name": "a", "recipe": "moss_chatv:7b"}, overrides=[word]).job
    assert word in job.command_on(2)
    assert set(job.buckets) == names


def test_secrets_are_flags_as_well(job_toml):
  job = job_file.read(job_toml, {}, [], ["WANDB_API_KEY=wandb-key", "API_KEY=other"]).job
  assert job.secrets == {"WANDB_API_KEY": "wandb-key", "API_KEY": "other"}
  for text in ("WANDB_API_KEY", "WANDB_API_KEY=Canary_1"):
    with pytest.raises(errors.InputError) as caught:
      job_file.read(job_toml, {}, [], [text])
    assert str(caught.value).startswith("--secret=WANDB_API_KEY: needs the name of a secret")
    assert "Canary" not in str(caught.value)


def test_values_of_a_file_become_what_flags_need(job_toml, tmp_path):
  text = """
name = "a"
recipe = "moss_chatv:7b"
[overrides]
data.frames = 64
"rl.learning_rate" = 2e-6
model.freeze_vision = false
model.prefix_buckets = [8448]
env.rewards = ["accuracy", "it's $HOME"]
"""
  (tmp_path / "other.toml").write_text(text)
  assert read("other.toml").job.overrides == {
    "data.frames": "64",
    "rl.learning_rate": "2e-06",
    "model.freeze_vision": "False",
    "model.prefix_buckets": "(8448,)",
    "env.rewards": "('accuracy', \"it's $HOME\")",
  }


def test_words_arrive_unchanged_through_a_shell(tmp_path):
  found = recorders.Recorders(tmp_path, "vr-jax")
  overrides = [f"--config.env.instruction={text}" for text in NASTY]
  for word in overrides:
    command = read(flags={"name": "a", "recipe": "moss_chatv:7b"}, overrides=[word]).job.command_on(
      1
    )
    line = shlex.join([str(tmp_path / "vr-jax"), *command[1:]])
    subprocess.run(["bash", "-c", line], check=True, stdin=subprocess.DEVNULL)
  words = [call["words"][1] for call in found.calls()]
  assert words == overrides


@pytest.mark.parametrize(
  ("flags", "line"),
  [
    ({"name": "Lamps"}, "--name: 'Lamps' is not at most 35 lowercase letters, digits and -"),
    ({"name": "a" * 36}, "--name: 'aaaa"),
    ({"recipe": "mos:7b"}, "--recipe: --config=mos: no such recipe; one of grpo, "),
    ({"recipe": "grpo:8b"}, "--recipe: --config=grpo:8b: 8b: no such size; one of "),
    ({"mode": "train"}, "--mode: 'train' is none of data, sft, rl, "),
    ({"slice": "v5p-12"}, "--slice: there is no v5p-12; there are v5p-8, v5p-16, "),
    ({"slice": "a100-8"}, "--slice: a100-8 is no name of a TPU slice; write v5e-16, "),
    ({"slice": "0xv5p-8"}, "--slice: 0xv5p-8 is no name of a TPU slice; "),
    ({"provisioning": "cheap"}, "--provisioning: 'cheap' is none of on_demand, spot, "),
    (
      {"provisioning": "reserved"},
      "job.toml: reservation: provisioning=reserved needs the reservation",
    ),
    ({"reservation": "mine"}, "--reservation: has no effect with provisioning=on_demand; "),
    (
      {"provisioning": "flex_start"},
      "job.toml: max_run_duration: is missing; it is a duration with",
    ),
    (
      {"provisioning": "flex_start", "max_run_duration": "169h"},
      "--max_run_duration: 169h is more than the 7 days that flex start gives",
    ),
    ({"max_run_duration": "1h"}, "--max_run_duration: has no effect with provisioning=on_demand"),
    ({"zone": "us-east5"}, "--zone: 'us-east5' is not the name of a zone, such as us-east5-a"),
    ({"bucket": "my-bucket"}, "--bucket: 'my-bucket' is not gs:// and the bucket's name, no more"),
    ({"bucket": "gs://b/runs"}, "--bucket: 'gs://b/runs' is not gs:// and "),
    ({"install": "vr_jax"}, "--install: has no effect with an image; leave one of them out"),
    ({"restarts": "-1"}, "--restarts: -1 is not between 0 and 1000"),
    ({"restarts": "many"}, "--restarts=many: needs a whole number"),
    ({"coordinator_port": "80"}, "--coordinator_port: 80 is not between 1024 and 65535"),
    ({"log_format": "xml"}, "--log_format: 'xml' is none of text, json"),
    ({"gke.clusters": "a"}, "--gke.clusters: a job has no such field; the nearest is gke.cluster"),
  ],
)
def test_a_wrong_flag_is_one_line(job_toml, flags, line):
  assert problem(job_toml, flags).startswith(line)


@pytest.mark.parametrize(
  ("text", "line"),
  [
    ("name = 3", "job.toml: name: needs text in quotes, is 3"),
    ("name = 'a'\nrestarts = true", "job.toml: restarts: needs a whole number, is True"),
    ("name = ", "job.toml: is not TOML: "),
    ("nmae = 'a'", "job.toml: nmae: a job has no such field; the nearest is name"),
    ("name = 'a'", "job.toml: recipe: needs a recipe, such as moss_chatv:7b"),
    ("recipe = 'grpo:3b'", "job.toml: name: is missing; it is at most 35 lowercase letters"),
    (
      "name='a'\nrecipe='grpo:3b'\n[overrides]\nrl.stepz = 3",
      "job.toml: overrides.rl.stepz: --config.rl.stepz: no such field; the nearest is "
      "config.rl.steps",
    ),
    (
      "name='a'\nrecipe='grpo:3b'\n[overrides]\nrl.steps = 2020-01-01",
      "job.toml: overrides.rl.steps: needs text, a number, true, false, or a list of these",
    ),
    (
      "name='a'\nrecipe='grpo:3b'\n[paths]\nvideos='v'\n[overrides]\ndata.videos='w'",
      "job.toml: paths: sets config.data.videos, as the overrides do",
    ),
    (
      "name='a'\nrecipe='grpo:3b'\n[secrets]\nwandb='wandb-key'",
      "job.toml: secrets.wandb: secrets are named after environment variables: API_KEY",
    ),
  ],
)
def test_a_wrong_file_is_one_line(tmp_path, monkeypatch, text, line):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "job.toml").write_text(text)
  assert problem("job.toml").startswith(line)


def test_a_file_that_is_not_there_and_one_that_is_no_text(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert problem("job.toml") == "job.toml: No such file or directory"
  (tmp_path / "job.toml").write_bytes(b"name = '\xff'")
  assert problem("job.toml").startswith("job.toml: is not TOML: ")


def test_a_mesh_that_is_not_the_slice_is_named_before_it_is_rented(job_toml):
  line = "--config.mesh: config.mesh=(1, 16, 2, 1) needs 32 devices, v5p-16 has 8"
  assert problem(job_toml, overrides=["--config.mesh=(1,16,2,1)"]) == line
  line = "--config.mesh: config.mesh=(3, -1, 1, 1) needs a multiple of 3 devices, v5p-16 has 8"
  assert problem(job_toml, overrides=["--config.mesh=(3,-1,1,1)"]) == line
  assert read(job_toml, {"slice": "v6e-32"}, ["--config.mesh=(1,16,2,1)"])
  assert read(job_toml, {"slice": "2xtpu7x-16"}, ["--config.mesh=(2,8,2,1)"])
  line = problem(job_toml, {"slice": "2xtpu7x-16"}, ["--config.mesh=(1,16,2,1)"])
  assert line.startswith("--config.mesh: config.mesh=(1, 16, 2, 1): data=1 can't be split over")


def test_a_value_in_place_of_a_secrets_name_is_refused_and_not_shown(job_toml, tmp_path):
  with (tmp_path / "job.toml").open("a") as file:
    file.write('[secrets]\nWANDB_API_KEY = "Canary_8fK"\n')
  line = problem(job_toml)
  assert line.startswith("job.toml: secrets.WANDB_API_KEY: needs the name of a secret")
  assert "Canary" not in line


def test_a_secrets_value_anywhere_in_the_job_is_refused_and_not_shown(
  job_toml, tmp_path, monkeypatch
):
  with (tmp_path / "job.toml").open("a") as file:
    file.write('[secrets]\nWANDB_API_KEY = "wandb-key"\n')
  assert read(job_toml)
  monkeypatch.setenv("WANDB_API_KEY", "canary8fk")
  for override in ("--config.log.wandb=xcanary8fkx", "--config.env.instruction=canary8fk"):
    line = problem(job_toml, overrides=[override])
    assert "the value of WANDB_API_KEY is written in the job" in line
    assert "canary" not in line


@pytest.mark.parametrize(
  ("name", "chips", "devices", "topology", "hosts", "machine", "accelerator"),
  [
    ("v5e-1", 1, 1, "1x1", 1, "ct5lp-hightpu-1t", "v5litepod-1"),
    ("v5e-8", 8, 8, "2x4", 1, "ct5lp-hightpu-8t", "v5litepod-8"),
    ("v5e-16", 16, 16, "4x4", 4, "ct5lp-hightpu-4t", "v5litepod-16"),
    ("v5litepod-16", 16, 16, "4x4", 4, "ct5lp-hightpu-4t", "v5litepod-16"),
    ("v6e-8", 8, 8, "2x4", 1, "ct6e-standard-8t", "v6e-8"),
    ("v6e-32", 32, 32, "4x8", 8, "ct6e-standard-4t", "v6e-32"),
    ("v5p-8", 4, 4, "2x2x1", 1, "ct5p-hightpu-4t", "v5p-8"),
    ("v5p-16", 8, 8, "2x2x2", 2, "ct5p-hightpu-4t", "v5p-16"),
    ("2xv5p-64", 64, 64, "2x4x4", 8, "ct5p-hightpu-4t", "v5p-64"),
    ("tpu7x-64", 32, 64, "2x4x4", 8, "tpu7x-standard-4t", None),
  ],
)
def test_a_slice_has_what_its_name_says(
  name, chips, devices, topology, hosts, machine, accelerator
):
  found = slices.parse(name)
  assert (found.chips, found.devices, found.topology) == (chips, devices, topology)
  assert (found.hosts, found.machine_type) == (hosts, machine)
  assert accelerator is None or found.accelerator_type == accelerator


def test_slices_of_the_pages_on_pods_are_those_that_are_planned_there():
  for name, topology in [("v5e-16", "4x4"), ("v6e-8", "2x4"), ("v5p-256", "4x4x8")]:
    assert slices.parse(name).topology == topology


def test_no_job_needs_jax():
  """Launchers answer at once, also on a laptop that can't compute."""
  code = (
    "import sys; from launch import gke, local, tpu_vm; "
    "tpu_vm.main(['cost', '--name=a', '--recipe=grpo:3b', '--slice=v5e-8', '--hours=1', "
    "'--price_per_chip_hour=1']); print('jax' in sys.modules)"
  )
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  assert done.stdout.splitlines()[-1] == "False"


def test_a_pod_is_given_longer_than_a_run_needs_to_save():
  text = Path(job_checks.__file__).parents[1] / "vr_jax" / "parallel" / "preemption.py"
  (seconds,) = re.findall(r"^GRACE = ([0-9.]+)", text.read_text(), flags=re.MULTILINE)
  assert float(seconds) + 20 < jobset.GRACE
