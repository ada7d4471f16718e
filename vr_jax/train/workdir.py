"""The directory of a run: the config that it belongs to, and a record of every start.

config.json      the resolved config, with gs:// addresses of what is in buckets; versions, git
                 revision and device of the last start, and in `history` those of every start,
                 with the fields that it changed
data/            frame store and examples (unless config.data.directory says where)
checkpoints/     one directory a stage
metrics.jsonl    one object a line: stage, step, values
tensorboard/     the same for TensorBoard
health/          what each process is doing, for `vr-jax status`; stacks of one that hung
rollouts/        one file a step of RL: prompts, replies, rewards, advantages
profile/         traces of the steps of log.profile_steps
eval/            an evaluation: metrics in a JSON file, replies in a file of JSON lines
report.html      the report
"""

from collections.abc import Iterator
import datetime
import functools
import hashlib
from importlib import metadata
import itertools
import json
import os
from pathlib import Path
import platform
import subprocess
from typing import Any

import jax
import ml_collections

import vr_jax
from vr_jax import atomic, buckets, config_fields, errors, optional_sections, plain_json, schema
from vr_jax.train import config_changes

_NO_RESULTS = ("config.json", "compilations", "health")
PACKAGES = (
  "jax",
  "jaxlib",
  "flax",
  "optax",
  "orbax-checkpoint",
  "grain",
  "tensorflow-datasets",
  "numpy",
)


def claim(workdir: Path, config: ml_collections.ConfigDict, mode: str) -> None:
  """Writes config.json and records this start in its history; prints what has changed.

  mode: the stages that this start runs. The history has it with time (UTC), versions and git
    revision.

  Raises InputError if the workdir has results of another config, but for fields that may change, or
  can't be written.
  """
  path = workdir / "config.json"
  resolved = json.loads(json.dumps(config.to_dict()))
  history, changes = [], []
  if path.exists():
    written, history = _written(path)
    if _made_anything(workdir, written):
      changes = _check_changes(workdir, written, resolved)
  made_by = provenance()
  now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
  changed = {"changed": {each.name: [each.old, each.new] for each in changes}} if changes else {}
  history.append({"time": now, "mode": mode, **made_by, **changed})
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    content = {"config": resolved, **made_by, "history": history}
    text = buckets.as_addresses(json.dumps(content, indent=2))
    with atomic.file(path) as partial:
      partial.write_text(text + "\n")
  except OSError as error:
    raise errors.InputError(f"--workdir={workdir}: can't be written: {error.strerror}") from error


def problems(workdir: Path, config: ml_collections.ConfigDict) -> Iterator[errors.InputError]:
  """Yields an error for each field that the workdir does not let change; writes nothing."""
  path = workdir / "config.json"
  if not path.exists():
    return
  try:
    written = _written(path)[0]
  except errors.InputError as error:
    yield error
    return
  if _made_anything(workdir, written):
    wanted = config_changes.flatten(json.loads(json.dumps(config.to_dict())))
    changes = config_changes.find_changes(config_changes.flatten(written), wanted)
    yield from map(errors.InputError, config_changes.refusals(workdir, wanted, changes))


def _check_changes(
  workdir: Path, written: dict[str, Any], wanted: dict[str, Any]
) -> list[config_changes.Change]:
  """Returns the fields that change. Raises InputError if one of them must not."""
  from vr_jax.train import console  # here, because it imports JAX

  before, now = config_changes.flatten(written), config_changes.flatten(wanted)
  changes = config_changes.find_changes(before, now)
  config_changes.check(workdir, now, changes)
  for line in config_changes.describe(workdir, before, now, changes):
    console.print_line(line)
  return changes


def _made_anything(workdir: Path, written: dict[str, Any]) -> bool:
  """Whether a stage has written a file, here or in config.data.directory.

  If not, the config may still be changed: perhaps its first start failed on bad input.
  """
  elsewhere = config_changes.flatten(written).get("data.directory")
  places = [path for path in workdir.iterdir() if path.name not in _NO_RESULTS]
  places += [Path(elsewhere)] if elsewhere and isinstance(elsewhere, str) else []
  # The search ends at the first file, and does not list a whole frame store at each start.
  return any(
    path.is_file() for place in places for path in itertools.chain([place], place.rglob("*"))
  )


def config_of(workdir: Path) -> ml_collections.ConfigDict:
  """Reads the config of a workdir.

  Fields that it lacks get their defaults, with which a new field leaves everything as it was.

  Raises InputError if there is none, or it is damaged.
  """
  path = workdir / "config.json"
  if not path.is_file():
    raise errors.InputError(f"{path}: no such file; give the workdir of a run")
  written = _written(path)[0]
  try:
    return _completed(written)
  except (ValueError, TypeError, AttributeError, KeyError) as error:  # a section that is none
    raise errors.InputError(f"{path}: damaged; delete it or choose another --workdir") from error


def _completed(written: dict[str, Any]) -> ml_collections.ConfigDict:
  """The config that a file holds, with the defaults of fields that it lacks."""
  config = ml_collections.ConfigDict(_with_tuples(written))
  sections = {name: cls for name, cls in optional_sections.OPTIONAL.items() if name in written}
  for prefix, cls in {"": config_fields.RunConfig, **sections}.items():
    schema.fill_in(config[prefix] if prefix else config, cls)
  return config


def _with_tuples(value: Any) -> Any:
  """Turns lists into tuples: JSON has lists where a config has tuples."""
  if isinstance(value, dict):
    return {name: _with_tuples(each) for name, each in value.items()}
  return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


def _written(path: Path) -> tuple[dict[str, Any], list[Any]]:
  """Reads the config, in the names of this version, and the history, which may be empty."""
  try:
    content = plain_json.parse(path.read_bytes())
    config, history = content["config"], content.get("history", [])
    if isinstance(config, dict) and isinstance(history, list):
      return _renamed(buckets.as_paths(config)), history
  except (ValueError, KeyError, TypeError):
    pass  # raised below, as for a config that is not an object
  if b'"model_type"' in path.read_bytes():
    raise errors.InputError(
      f"{path}: is a model's, not a run's; to use a model directory, give --config=<recipe>:<size> "
      "as well"
    )
  raise errors.InputError(f"{path}: damaged; delete it or choose another --workdir")


def _renamed(config: dict[str, Any]) -> dict[str, Any]:
  """Puts a value of an older version under the name that it has now."""
  rl = config.get("rl")
  if isinstance(rl, dict) and not rl.pop("replicate_weights_for_decode", True):
    rl["decode_layout"] = "training"
  return config


def provenance() -> dict[str, Any]:
  """Versions of packages, Python and this project, git revision of the sources, and the device."""
  packages = {name: metadata.version(name) for name in PACKAGES}
  versions = {"python": platform.python_version(), "vr_jax": vr_jax.__version__, **packages}
  return {"versions": versions, "git_revision": _git_revision(), "device": device()}


def device() -> str:
  """Names the devices of all processes: "8 x TPU v5e" or "2 x cpu (Intel Xeon, 2 cores)"."""
  devices = jax.devices()
  name = devices[0].device_kind
  if devices[0].platform == "cpu":
    name = f"{name} ({_processor()}, {os.cpu_count()} cores)"
  return f"{len(devices)} x {name}"


def _processor() -> str:
  """The model of this host's processor."""
  try:
    about = Path("/proc/cpuinfo").read_text()
  except OSError:  # not Linux
    return platform.processor() or platform.machine()
  models = [line.partition(":")[2] for line in about.splitlines() if line.startswith("model name")]
  return models[0].strip() if models else platform.machine()


@functools.cache
def source_digest() -> str:
  """What tells the sources of this package from others, also where no git says so."""
  root, digest = Path(vr_jax.__file__).parent, hashlib.sha256()
  for path in sorted(root.rglob("*.py")):
    digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
  return digest.hexdigest()[:12]


@functools.cache
def _git_revision() -> str | None:
  source = Path(vr_jax.__file__).parent
  try:
    described = subprocess.run(
      ["git", "-C", str(source), "describe", "--always", "--dirty", "--abbrev=40"],
      capture_output=True,
      text=True,
      timeout=10,
      check=False,
    )
  except (OSError, subprocess.TimeoutExpired):
    return None
  return described.stdout.strip() or None
