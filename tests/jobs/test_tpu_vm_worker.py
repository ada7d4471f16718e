"""The script of a host, run by bash with stand-ins for docker, sudo and the like."""

import os
from pathlib import Path
import shutil
import subprocess
import sys
import time

import pytest

from launch import job_file, local, tpu_vm
from tests.jobs import recorders, test_job_file
from tests.parallel import test_cluster
from vr_jax.parallel import preemption

# What it starts belongs to root: who called it can signal neither sudo nor its child.
SUDO = """#!{python} -S
import signal, subprocess, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
words = [word for word in sys.argv[1:] if not word.startswith("--preserve-env")]
again = lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL)
sys.exit(subprocess.call(words, start_new_session=True, preexec_fn=again))
"""


ROOT = Path(__file__).resolve().parents[2]


class Host:
  """A host with its own home and commands; `exits` are the codes of vr-jax, run by run."""

  def __init__(self, root: Path, name: str, shared: Path):
    self.home, self.name = root / name, name
    self.shared = shared
    self.tools = recorders.Recorders(self.home / "bin", "docker", "gcloud", "lsof", "mountpoint")
    self.tools.add("sudo", SUDO.format(python=sys.executable))
    self.tools.add("hostname", f"#!/bin/bash\necho {name}\n")

  def answer(self, *answers):
    held = ("lsof", 1, "", "")
    self.tools.answer(*answers, held)

  def write(self, overrides=(), install=""):
    software = {"install": install} if install else {"image": "us-docker.pkg.dev/p/i/vr:1"}
    settings = {"name": "lamps", "recipe": "grpo:3b", **software}
    job = job_file.read("job.toml", settings, overrides).job
    text = tpu_vm.worker_settings(job, 1) + tpu_vm._SCRIPT.read_text()
    # The bucket of this test is a directory that its hosts share.
    text = text.replace("STOPPED=", f"STOPPED={self.shared}")
    (self.home / "job.sh").write_text(text)
    return job

  def run(self, *words, check=True):
    environment = {
      "HOME": str(self.home),
      "PATH": f"{self.tools.directory}{os.pathsep}/usr/bin{os.pathsep}/bin",
      "VR_JAX_PAUSE": "0.05",
    }
    done = subprocess.run(
      ["bash", "job.sh", *words],
      cwd=self.home,
      env=environment,
      capture_output=True,
      text=True,
      stdin=subprocess.DEVNULL,
      timeout=20,
      check=False,
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done

  def start(self):
    self.run("setup")
    return self.run("start")

  def wait(self):
    until, path = time.monotonic() + 10, self.home / ".vr_jax/lamps/ended"
    while not (path.exists() and path.read_text()):  # a shell makes a file, then writes to it
      assert time.monotonic() < until, "the run did not end"
      time.sleep(0.02)
    return path.read_text().strip()

  def stopped(self):
    """The file that ends the other hosts."""
    return Path(f"{self.shared}/gcs/my-bucket/runs/lamps.stopped")

  def runs(self):
    return [
      c["words"] for c in self.tools.calls() if c["program"] == "docker" and "run" in c["words"]
    ]


@pytest.fixture
def host(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "job.toml").write_text("restarts = 2\nbucket = 'gs://my-bucket'\nname = 'x'\n")
  found = Host(tmp_path, "host-0", tmp_path / "shared")
  found.answer()
  return found


def test_a_run_that_is_done_starts_once_with_its_words_unchanged(host):
  job = host.write(overrides=[f"--config.env.instruction={' '.join(test_job_file.NASTY)}"])
  assert host.run("status").stdout == "host-0: has not started\n"
  assert "host-0: started" in host.start().stdout
  assert host.wait() == "0"
  (words,) = host.runs()
  assert tuple(words[words.index("us-docker.pkg.dev/p/i/vr:1") + 1 :]) == job.command_on(1)
  assert "--net=host" in words and "--privileged" in words and "--volume=/gcs:/gcs" in words
  (patience,) = [word for word in words if word.startswith("--stop-timeout=")]
  assert int(patience.partition("=")[2]) > preemption.GRACE
  lines = host.run("status").stdout.splitlines()
  assert lines == [
    "host-0: ended with exit code 0",
    "host-0: vr-jax ended with 0 after 0 restarts",
  ]
  assert host.run("logs", "1").stdout == "host-0: vr-jax ended with 0 after 0 restarts\n"


@pytest.mark.parametrize("code", [75, 1, 137])
def test_a_preempted_or_crashed_run_starts_again_as_often_as_the_job_says(host, code):
  host.write()
  host.answer(("docker run", code, "", ""))
  host.start()
  assert host.wait() == str(code)
  assert len(host.runs()) == 3
  assert "does not start again: 2 restarts are used up" in host.run("logs", "1").stdout
  assert host.stopped().read_text() == "host-0: 2 restarts are used up\n"


@pytest.mark.parametrize("code", [0, 2, 3])
def test_a_host_that_ends_for_good_ends_the_others(host, code, tmp_path):
  other = Host(tmp_path, "host-1", tmp_path / "shared")
  for each, end in ((host, code), (other, 134)):
    each.write()
    each.answer(("docker run", end, "", ""))
    each.run("setup")
  host.run("start")
  assert host.wait() == str(code) and len(host.runs()) == 1
  other.run("start")
  assert other.wait() == "134" and len(other.runs()) == 1
  line = f"host-1: does not start again: host-0: ended with {code}\n"
  assert other.run("logs", "1").stdout == line


def test_setup_fetches_the_image(host):
  host.write()
  assert host.run("setup").stdout == "host-0: is ready\n"
  assert host.tools.lines() == [
    "mountpoint -q /gcs/my-bucket",
    "gcloud auth configure-docker us-docker.pkg.dev --quiet",
    "docker pull --quiet us-docker.pkg.dev/p/i/vr:1",
  ]
  host.answer(("docker pull", 1, "", "denied"))
  done = host.run("setup", check=False)
  assert done.returncode == 1 and "host-0: the software could not be installed" in done.stdout


def test_setup_mounts_buckets_and_installs_where_there_is_no_image(host, tmp_path):
  shutil.copy(host.tools.directory / "docker", host.tools.directory / "gcsfuse")
  shutil.copy(host.tools.directory / "docker", host.tools.directory / "python3")
  host.tools.add(
    "mkdir", '#!/bin/bash\nfor a; do [[ $a == /gcs* ]] && exit 0; done\nexec /bin/mkdir "$@"\n'
  )
  host.write(install="vr_jax[tpu] @ git+https://example.org/vr_jax@1f3")
  host.answer(("mountpoint", 1, "", ""))
  assert host.run("setup").stdout == "host-0: is ready\n"
  lines = [line.replace(str(host.home), "~") for line in host.tools.lines()]
  numbers = f"--uid={os.getuid()} --gid={os.getgid()}"
  assert lines == [
    "mountpoint -q /gcs/my-bucket",
    f"gcsfuse -o allow_other {numbers} --implicit-dirs --metadata-cache-ttl-secs=0 my-bucket "
    "/gcs/my-bucket",
    "python3 -m pip install --quiet --user uv",
    "python3 -m uv venv --quiet --python=3.12 ~/.vr_jax/environment",
    "python3 -m uv pip install --quiet --python=~/.vr_jax/environment/bin/python vr_jax[tpu] @ "
    "git+https://example.org/vr_jax@1f3",
  ]
  # What is installed comes first on PATH of the run.
  vr_jax = host.home / ".vr_jax/environment/bin/vr-jax"
  vr_jax.parent.mkdir(parents=True)
  vr_jax.write_text(f'#!/bin/bash\necho "$@" >{host.home}/words\n')
  vr_jax.chmod(0o755)
  host.run("start")
  assert host.wait() == "0" and not host.runs()
  assert (host.home / "words").read_text().startswith("--config=grpo:3b ")
  host.answer(("mountpoint", 1, "", ""), ("gcsfuse", 1, "", "403 forbidden\n"))
  done = host.run("setup", check=False)
  assert done.returncode == 1
  assert done.stdout == (
    "host-0: gs://my-bucket can't be mounted; may the machines' service account use it? "
    "403 forbidden\n"
  )


def test_a_tpu_that_another_process_holds_is_named(host):
  host.write()
  host.run("setup")
  shutil.copy(host.tools.directory / "docker", host.tools.directory / "ps")
  host.tools.answer(
    ("lsof -t", 0, "41\n42\n43\n", ""),
    ("ps -o comm= -p 41", 0, "python3\n", ""),
    ("ps -o comm= -p 42", 0, "vr-jax\n", ""),
    ("ps -o comm= -p 43", 0, "healthagent\n", ""),
  )
  done = host.run("start", check=False)
  assert done.returncode == 1
  assert done.stdout == (
    "host-0: its TPU is held by process 41 42; end that (sudo kill -9 41 42), or delete the slice "
    "and create it again\n"
  )
  assert not host.runs()


def wait_for_end(pid):
  until = time.monotonic() + 10
  while (path := Path(f"/proc/{pid}/cmdline")).exists() and path.read_bytes():
    assert time.monotonic() < until
    time.sleep(0.01)


def wait_for_file(path):
  until = time.monotonic() + 10
  while not path.exists():
    assert time.monotonic() < until
    time.sleep(0.01)


def test_a_second_start_leaves_the_run_alone_until_it_is_stopped(host):
  host.write()
  # The run says that it saves when it is told to stop.
  host.tools.add(
    "docker",
    f"""#!/bin/bash
    [[ $* != "stop -t 30 lamps" ]] || kill $(cat {host.home}/container)
    [[ $1 == run ]] || exit 0
    trap 'echo saved >>{host.home}/saved; exit 75' TERM
    echo $$ >{host.home}/container
    sleep 30 & wait
    """,
  )
  host.start()
  pid = (host.home / ".vr_jax/lamps/pid").read_text().strip()
  wait_for_file(host.home / "container")
  try:
    host.run("setup")
    again = host.run("start", check=False)
    assert again.returncode == 1
    assert again.stdout.startswith(f"host-0: is running already (process {pid}); wait for its end")
    assert host.run("status").stdout == f"host-0: is running (process {pid}, restarts: 0)\n"
    # Another job's script takes the place of the file while bash runs it.
    (host.home / "job.sh").write_text((host.home / "job.sh").read_text() + "\ntouch replaced\n")
    assert host.run("stop").stdout == "host-0: is told to stop\n"
    wait_for_end(pid)
  finally:
    if Path(f"/proc/{pid}").exists():
      os.killpg(int(pid), 9)
  assert (host.home / "saved").read_text() == "saved\n"
  assert not (host.home / "replaced").exists()
  assert host.run("status").stdout.splitlines() == [
    "host-0: ended with exit code 75",
    "host-0: does not start again: was told to stop",
  ]
  assert host.stopped().read_text() == "host-0: was told to stop\n"
  assert host.run("stop", check=False).returncode == 1


@pytest.mark.parametrize("next_one", ["is set up", "can't be set up", "is refused"])
def test_a_run_that_is_started_beside_does_not_keep_it_from_ending_the_others(host, next_one):
  host.write()
  go_on, broken = host.home / "go_on", host.home / "broken"
  wait = f"until [ -e {go_on} ]; do sleep 0.02; done"
  host.tools.add("docker", f"#!/bin/bash\n[[ $1 == run ]] || exec test ! -e {broken}\n{wait}\n")
  host.start()
  if next_one == "can't be set up":
    broken.touch()
  done = host.run("setup")
  assert "host-0: is running already" in done.stdout and "sets up nothing" in done.stdout
  if next_one == "is refused":
    assert "is running already" in host.run("start", check=False).stdout
  go_on.touch()
  assert host.wait() == "0"
  assert host.stopped().read_text() == "host-0: ended with 0\n"
  # What the machine has is that of the run before.
  assert "is not ready, so it starts nothing" in host.run("start", check=False).stdout
  broken.unlink(missing_ok=True)
  assert "host-0: started" in host.start().stdout


def test_a_start_forgets_how_the_last_run_ended_and_not_how_this_one_does_elsewhere(host, tmp_path):
  other = Host(tmp_path, "host-1", tmp_path / "shared")
  for each in (host, other):
    each.write()
    each.answer()
  host.start()
  assert host.wait() == "0"
  # Others may still have to see it: that all are set up is not yet known.
  host.run("setup")
  other.run("setup")
  assert host.stopped().exists()
  host.run("start")
  assert host.wait() == "0" and host.stopped().exists()  # ended at once
  other.run("start")
  assert other.wait() == "0" and host.stopped().read_text() == "host-0: ended with 0\n"


def test_a_host_that_could_not_be_set_up_starts_nothing(host):
  host.write()
  host.answer(("docker pull", 1, "", "denied"))
  host.run("setup", check=False)
  done = host.run("start", check=False)
  assert done.returncode == 1
  assert done.stdout == (
    "host-0: is not ready, so it starts nothing: setup has failed, or met a run that has ended "
    "since\n"
  )
  assert not host.runs()


def test_secrets_reach_the_run_by_name_and_appear_nowhere(host, tmp_path):
  text = (tmp_path / "job.toml").read_text() + "[secrets]\nWANDB_API_KEY = 'wandb-key'\n"
  (tmp_path / "job.toml").write_text(text.replace("name = 'x'", "project = 'p'\nname = 'x'"))
  host.write(overrides=["--config.rl.steps=1"])
  seen = tmp_path / "seen"
  keep = f'[[ $1 == run ]] && echo "$WANDB_API_KEY" >{seen}'
  host.tools.add("docker", f'#!/bin/bash\necho "$@" >>{seen}.words\n{keep}\nexit 0\n')
  host.answer(("secrets versions access latest --secret=wandb-key --project=p", 0, "canary", ""))
  host.start()
  assert host.wait() == "0"
  assert seen.read_text() == "canary\n"
  assert "--env WANDB_API_KEY" in Path(f"{seen}.words").read_text()
  seen.unlink()
  everything = [path for path in host.home.rglob("*") if path.is_file()] + [Path(f"{seen}.words")]
  kept = [
    path for path in everything if path.name != "answers.json" and "canary" in path.read_text()
  ]
  assert not kept


def test_a_run_without_an_image_is_told_to_stop_and_saves(host):
  host.write(install="vr_jax[tpu]")
  shutil.copy(host.tools.directory / "docker", host.tools.directory / "python3")
  vr_jax = host.home / ".vr_jax/environment/bin/vr-jax"
  vr_jax.parent.mkdir(parents=True)
  saves = f"trap 'echo saved >>{host.home}/saved; exit 75' TERM; touch {host.home}/began"
  vr_jax.write_text(f"#!/bin/bash\n{saves}\nsleep 30 & wait\n")
  vr_jax.chmod(0o755)
  host.start()
  wait_for_file(host.home / "began")
  host.run("stop")
  assert host.wait() == "75"
  assert (host.home / "saved").read_text() == "saved\n"


def test_a_host_that_joins_leaves_when_another_one_is_stopped(host, tmp_path):
  """The first is vr-jax, which waits for the second; that one is told to stop before it joins."""
  other, port = Host(tmp_path, "host-1", tmp_path / "shared"), local.free_port()
  flags = f"--coordinator_address=localhost:{port} --num_processes=2 --process_id=0"
  run = f"--config=grpo:tiny --workdir={tmp_path}/run --mode=data --backend=cpu {flags}"
  python = f"cd {ROOT} && JAX_PLATFORMS=cpu exec {sys.executable} -m vr_jax.main {run}"
  for each, text in ((host, python), (other, "exec sleep 60")):
    each.answer()
    each.write(install="vr_jax[tpu]")
    shutil.copy(each.tools.directory / "docker", each.tools.directory / "python3")
    vr_jax = each.home / ".vr_jax/environment/bin/vr-jax"
    vr_jax.parent.mkdir(parents=True)
    vr_jax.write_text(f"#!/bin/bash\n{text}\n")
    vr_jax.chmod(0o755)
    each.start()
  test_cluster.wait_for_listener(port)
  other.run("stop")
  assert other.wait() == "143"
  assert host.wait() == "75"
  lines = host.run("logs", "9").stdout.splitlines()
  assert any("the job has stopped (host-1: was told to stop); start it again" in s for s in lines)
  assert lines[-1] == "host-0: does not start again: host-1: was told to stop"


def test_copies_and_programs_are_on_the_disk_of_the_host_at_every_restart(host):
  host.write()
  host.tools.add(
    "docker",
    f"""#!/bin/bash
    [[ $1 == run ]] || exit 0
    for word; do
      [[ $word == --volume=*:/cache ]] && mine=${{word#--volume=}} && mine=${{mine%:/cache}}
    done
    [[ $* == *"--env XDG_CACHE_HOME=/cache"* ]] && ls "$mine" >>{host.home}/found
    touch "$mine/copy"
    exit 1
    """,
  )
  host.start()
  assert host.wait() == "1"
  assert (host.home / "found").read_text() == "copy\n" * 2  # after the first of three runs


def test_a_secret_that_can_not_be_read_at_a_restart_is_tried_again(host, tmp_path):
  text = (tmp_path / "job.toml").read_text() + "[secrets]\nWANDB_API_KEY = 'wandb-key'\n"
  (tmp_path / "job.toml").write_text(text)
  host.write()
  host.tools.add(
    "gcloud",
    f"""#!/bin/bash
    [[ $1 == secrets ]] || exit 0
    echo >>{host.home}/asked
    # It can be read at the first start; then the service is away for four calls.
    case $(wc -l <{host.home}/asked) in [2-5]) exit 1 ;; esac
    echo canary
    """,
  )
  host.tools.add(
    "docker",
    f"""#!/bin/bash
    [[ $1 == run ]] || exit 0
    echo >>{host.home}/ran
    [[ $(wc -l <{host.home}/ran) == 2 ]] || exit 75
    """,
  )
  host.start()
  assert host.wait() == "0"
  assert "the secret wandb-key can't be read" in host.run("logs", "9").stdout


def test_a_secret_that_can_not_be_read_ends_the_run_with_a_line(host, tmp_path):
  text = (tmp_path / "job.toml").read_text() + "[secrets]\nWANDB_API_KEY = 'wandb-key'\n"
  (tmp_path / "job.toml").write_text(text)
  host.write()
  host.answer(("secrets", 1, "", "PERMISSION_DENIED"))
  host.start()
  assert host.wait() == "2" and not host.runs()
  assert "the secret wandb-key can't be read" in host.run("logs", "9").stdout
