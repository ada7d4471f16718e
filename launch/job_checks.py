"""Finds what is wrong with a job before anything is rented."""

import ast
from collections.abc import Callable, Iterator, Mapping
import math
import os
import re

from launch import job as job_lib
from launch import slices
from vr_jax import errors, recipe_config
from vr_jax import main as vr_jax
from vr_jax.parallel import cluster_flags

PROVISIONING = ("on_demand", "spot", "reserved", "flex_start")
# A node pool of GKE has at most 40 characters, and its number behind the name.
_NAME = re.compile(r"[a-z]([-a-z0-9]{0,33}[a-z0-9])?")
_ZONE = re.compile(r"[a-z]+(-[a-z]+)+\d+-[a-z0-9]+")
_BUCKET = re.compile(r"gs://[a-z0-9][-._a-z0-9]{1,220}[a-z0-9]")
_DURATION = re.compile(r"([1-9]\d{0,6})([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_LONGEST = 7 * 86400  # seconds of flex start
# Also what a Kubernetes Secret may be called; few passwords and keys look like this.
_SECRET = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]*")
_SHORTEST_SECRET = 6  # characters: a shorter value may be part of any word

Where = Callable[[str], str]


def check(job: job_lib.TrainingJob, where: Where) -> None:
  """Checks all that does not depend on the launcher.

  where: names a field of the job as the user wrote it: `job.toml: zone`, or `--zone`.

  Raises InputError for the first mistake.
  """
  for field, problem in _problems(job):
    if problem:
      raise errors.InputError(f"{where(field)}: {problem}")
  if job.slice:
    _check_mesh(job, slices.parse(job.slice, where("slice")), where)
  _check_fields(job, where)
  _check_secrets(job, where)


def _problems(job: job_lib.TrainingJob) -> Iterator[tuple[str, str]]:
  """Pairs of a field and what is wrong with it; nothing where it is right."""
  yield (
    "name",
    ""
    if _NAME.fullmatch(job.name)
    else _needs(job.name, "at most 35 lowercase letters, digits and -, beginning with a letter"),
  )
  yield "recipe", "" if job.recipe else "needs a recipe, such as moss_chatv:7b"
  yield "mode", "" if job.mode in vr_jax.MODES else _one_of(job.mode, vr_jax.MODES)
  known = job.provisioning in PROVISIONING
  yield "provisioning", "" if known else _one_of(job.provisioning, PROVISIONING)
  yield "reservation", _reservation(job)
  yield "max_run_duration", _duration(job)
  wrong = job.zone and not _ZONE.fullmatch(job.zone)
  yield "zone", _needs(job.zone, "the name of a zone, such as us-east5-a") if wrong else ""
  wrong = job.bucket and not _BUCKET.fullmatch(job.bucket)
  yield "bucket", _needs(job.bucket, "gs:// and the bucket's name, no more") if wrong else ""
  both = job.image and job.install
  yield "install", "has no effect with an image; leave one of them out" if both else ""
  yield "restarts", _range(job.restarts, 0, 1000)
  yield (
    "coordinator_port",
    _range(job.coordinator_port, 1024, 65535) if job.coordinator_port else "",
  )
  known = job.log_format in ("", *cluster_flags.LOG_FORMATS)
  yield "log_format", "" if known else _one_of(job.log_format, cluster_flags.LOG_FORMATS)
  twice = [name for name in job_lib.PATH_FIELDS.values() if name in job.overrides]
  set_twice = [name for name in twice if getattr(job.paths, name.rpartition(".")[2])]
  yield "paths", f"sets config.{set_twice[0]}, as the overrides do" if set_twice else ""


def _needs(value: str, what: str) -> str:
  return f"{value!r} is not {what}" if value else f"is missing; it is {what}"


def _one_of(value: str, choices: tuple[str, ...]) -> str:
  return f"{value!r} is none of {', '.join(choices)}"


def _range(value: int, lowest: int, highest: int) -> str:
  return "" if lowest <= value <= highest else f"{value} is not between {lowest} and {highest}"


def _reservation(job: job_lib.TrainingJob) -> str:
  if job.provisioning == "reserved" and not job.reservation:
    return "provisioning=reserved needs the reservation's name"
  if job.reservation and job.provisioning != "reserved":
    return f"has no effect with provisioning={job.provisioning}; set reserved, or leave it out"
  return ""


def _duration(job: job_lib.TrainingJob) -> str:
  if job.provisioning != "flex_start":
    idle = f"has no effect with provisioning={job.provisioning}; set flex_start, or leave it out"
    return idle if job.max_run_duration else ""
  if not _DURATION.fullmatch(job.max_run_duration):
    return _needs(job.max_run_duration, "a duration with its unit, such as 48h or 7d")
  if duration_seconds(job.max_run_duration) > _LONGEST:
    return f"{job.max_run_duration} is more than the 7 days that flex start gives"
  return ""


def duration_seconds(text: str) -> int:
  """Seconds of a duration: 90s, 30m, 48h or 7d."""
  match = _DURATION.fullmatch(text)
  assert match is not None, text
  return int(match[1]) * _SECONDS[match[2]]


def _check_mesh(job: job_lib.TrainingJob, slice_: slices.NamedSlice, where: Where) -> None:
  """The devices of the slice have to be those of config.mesh, and data goes over the slices."""
  text = job.overrides.get("mesh")
  try:
    mesh = ast.literal_eval(text) if text else recipe_config.read(job.recipe)[0].mesh
    sizes = [int(size) for size in mesh]
  except (ValueError, TypeError, SyntaxError, errors.InputError):
    return  # a mistake of the recipe or the field, which has its own line
  product = math.prod(size for size in sizes if size != -1)
  if product < 1:
    return
  fits = slice_.devices % product == 0 if -1 in sizes else slice_.devices == product
  if not fits:
    raise errors.InputError(
      f"{where('overrides.mesh' if text else 'slice')}: config.mesh={tuple(sizes)} needs "
      f"{'a multiple of ' if -1 in sizes else ''}{product} devices, {job.slice} has "
      f"{slice_.devices}"
    )
  data = sizes[0] if sizes[0] != -1 else slice_.devices // product
  if data % slice_.count:
    advised = (slice_.count, *(sizes[1:] if -1 in sizes[1:] else (-1, 1, 1)))
    raise errors.InputError(
      f"{where('overrides.mesh' if text else 'slice')}: config.mesh={tuple(sizes)}: data={data} "
      f"can't be split over the {slice_.count} slices of {job.slice}; data has to be a multiple of "
      f'{slice_.count}, as in --config.mesh="({",".join(map(str, advised))})"'
    )


def _check_fields(job: job_lib.TrainingJob, where: Where) -> None:
  """The recipe has to exist, and have the fields that are overridden.

  Fields of config.env, which the environment knows, and values are checked by the run itself:
  they need JAX.
  """
  try:
    config, _ = recipe_config.read(job.recipe)
  except errors.InputError as error:
    raise errors.InputError(f"{where('recipe')}: {error}") from error
  for name, text in job.fields.items():
    if "\0" in text:
      raise errors.InputError(f"{where(job.origin(name))}: no value may have a NUL character")
    if name.startswith("env."):
      continue
    try:
      vr_jax.check_fields([f"--config.{name}={text}"], config)
    except errors.InputError as error:
      place = where(job.origin(name))
      line = str(error)
      raise errors.InputError(line if place in line else f"{place}: {line}") from error


def _check_secrets(job: job_lib.TrainingJob, where: Where) -> None:
  """Secrets have names here, never values: neither as their name nor in any other text."""
  for variable, name in job.secrets.items():
    place = where(f"secrets.{variable}")
    if not _VARIABLE.fullmatch(variable):
      raise errors.InputError(f"{place}: secrets are named after environment variables: API_KEY")
    if not _SECRET.fullmatch(name):  # the text may be the secret itself: it is not printed
      raise errors.InputError(
        f"{place}: needs the name of a secret (lowercase letters, digits, -), not its value"
      )
  words = [*job.flags, job.install, job.image, *job.secrets.values()]
  for variable, value in _values_here(job.secrets).items():
    if any(value in word for word in words):
      raise errors.InputError(
        f"{where(f'secrets.{variable}')}: the value of {variable} is written in the job; "
        "take it out, and revoke the key if the file was shared"
      )


def _values_here(secrets: Mapping[str, str]) -> dict[str, str]:
  """Values that the secrets have in this process's environment, if they have any."""
  values = {variable: os.environ.get(variable, "") for variable in secrets}
  return {name: value for name, value in values.items() if len(value) >= _SHORTEST_SECRET}


def check_shared(job: job_lib.TrainingJob, where: Where) -> None:
  """Raises InputError if the workdir is on a disk of one host."""
  if not job.run_directory.startswith("gs://"):
    raise errors.InputError(
      f"{where('workdir')}: {job.run_directory} is on the disk of one host, and gone with it; "
      "give gs://BUCKET/…, or leave it out"
    )


def require(job: job_lib.TrainingJob, where: Where, launcher: str, *fields: str) -> None:
  """Raises InputError for the first of these fields that is empty."""
  for field in fields:
    value: object = job
    for part in field.split("."):
      value = getattr(value, part)
    if not value:
      raise errors.InputError(f"{where(field)}: {launcher} needs it")
