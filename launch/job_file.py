"""Reads a job: a TOML file, and flags that go before what the file says."""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import difflib
from pathlib import Path
import tomllib
from typing import Any

from launch import job as job_lib
from launch import job_checks
from vr_jax import errors

_TABLES = {"paths": job_lib.InputPaths, "tpu_vm": job_lib.TpuVmOptions, "gke": job_lib.GkeOptions}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadJob:
  """A job, and where each of its fields was written.

  file: empty where flags say everything.
  flags: names of the fields that flags set.
  """

  job: job_lib.TrainingJob
  file: str
  flags: frozenset[str]

  def where(self, field: str) -> str:
    """How the user wrote a field: `job.toml: zone`, `--zone`, or `--config.rl.steps`."""
    if field.startswith("secrets.") and (field in self.flags or not self.file):
      return f"--secret={field.removeprefix('secrets.')}"
    if field in self.flags or not self.file:
      return f"--{'config.' if field.startswith('overrides.') else ''}{_flag(field)}"
    return f"{self.file}: {field}"

  def require(self, launcher: str, *fields: str) -> None:
    """Raises InputError for the first of these fields that is empty."""
    job_checks.require(self.job, self.where, launcher, *fields)

  def check_shared(self) -> None:
    """Raises InputError if the workdir is on a disk of one host."""
    job_checks.check_shared(self.job, self.where)


def options() -> Iterator[tuple[str, Any, str]]:
  """Name, default and meaning of each field that a flag can set, with dots before a table's."""
  for field in dataclasses.fields(job_lib.TrainingJob):
    if field.name in _TABLES:
      for inner in dataclasses.fields(_TABLES[field.name]):
        yield f"{field.name}.{inner.name}", inner.default, inner.metadata["about"]
    elif "about" in field.metadata:
      yield field.name, field.default, field.metadata["about"]


def read(
  file: str, flags: Mapping[str, str], overrides: Sequence[str], secret_flags: Sequence[str] = ()
) -> ReadJob:
  """Reads and checks a job.

  file: path of a TOML file, or nothing.
  flags: text of job fields by name.
  overrides: words of the form --config.field=value.
  secret_flags: texts of the form VARIABLE=name.

  Raises InputError for the first mistake, on one line that names file and field, or the flag.
  """
  tables = _load(file) if file else {}
  values, secrets, changed = {}, {}, {}
  for key, value in _flatten(tables):
    table, _, rest = key.partition(".")
    if table == "overrides":
      changed[rest] = _as_flag(value, f"{file}: {key}")
    elif table == "secrets":
      secrets[rest] = _typed(value, "", f"{file}: {key}", is_secret=True)
    else:
      values[key] = _typed(value, _default(key, f"{file}: {key}"), f"{file}: {key}")
  for key, text in flags.items():
    values[key] = _from_text(text, _default(key, f"--{key}"), f"--{key}")
  set_by_flag = set(flags)
  for word in overrides:
    name, equals, text = word.removeprefix("--config.").partition("=")
    if not equals:
      raise errors.InputError(f"{word}: needs =value")
    changed[name] = text
    set_by_flag.add(f"overrides.{name}")
    path = next((key for key, field in job_lib.PATH_FIELDS.items() if field == name), "")
    if f"paths.{path}" not in flags:
      values.pop(f"paths.{path}", None)  # a flag goes before the file
  for text in secret_flags:
    variable, _, secret = text.partition("=")
    secrets[variable] = secret
    set_by_flag.add(f"secrets.{variable}")
  found = ReadJob(job=_build(values, changed, secrets), file=file, flags=frozenset(set_by_flag))
  job_checks.check(found.job, found.where)
  return found


def _load(file: str) -> dict[str, Any]:
  try:
    return tomllib.loads(Path(file).read_text(encoding="utf-8"))
  except OSError as error:
    raise errors.InputError(f"{file}: {error.strerror}") from error
  except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
    raise errors.InputError(f"{file}: is not TOML: {error}") from error


def _flatten(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
  for key, value in table.items():
    if isinstance(value, Mapping):
      yield from _flatten(value, f"{prefix}{key}.")
    else:
      yield f"{prefix}{key}", value


def _default(key: str, where: str) -> Any:
  known = {name: default for name, default, _ in options()}
  if key not in known:
    tables = ["overrides", "secrets"]
    (near,) = difflib.get_close_matches(key, [*known, *tables], n=1, cutoff=0)
    raise errors.InputError(f"{where}: a job has no such field; the nearest is {near}")
  return known[key]


def _typed(value: Any, default: Any, where: str, *, is_secret: bool = False) -> Any:
  """A value of a file, if it is of the default's type."""
  if type(value) is type(default):
    return value
  wanted = {str: "text in quotes", int: "a whole number"}[type(default)]
  # What stands at a secret's place may be the secret.
  raise errors.InputError(f"{where}: needs {wanted}" + ("" if is_secret else f", is {value!r}"))


def _from_text(text: str, default: Any, where: str) -> Any:
  """A flag's text, as a value of the default's type."""
  if isinstance(default, int):
    if not text.removeprefix("-").isdecimal():
      raise errors.InputError(f"{where}={text}: needs a whole number")
    return int(text)
  return text


def _as_flag(value: Any, where: str) -> str:
  """What --config.field= needs for a value: a list becomes a tuple, a text stays as it is."""
  if isinstance(value, str):
    return value
  if isinstance(value, bool | int | float):
    return repr(value)
  if isinstance(value, list):
    return repr(_as_tuple(value, where))
  raise errors.InputError(f"{where}: needs text, a number, true, false, or a list of these")


def _as_tuple(values: list[Any], where: str) -> tuple[Any, ...]:
  if not all(isinstance(value, str | bool | int | float | list) for value in values):
    raise errors.InputError(f"{where}: a list may have text, numbers, true, false and lists")
  return tuple(_as_tuple(v, where) if isinstance(v, list) else v for v in values)


def _build(
  values: Mapping[str, Any], overrides: Mapping[str, str], secrets: Mapping[str, str]
) -> job_lib.TrainingJob:
  tables: dict[str, Any] = {}
  for name, kind in _TABLES.items():
    inner = {f.name for f in dataclasses.fields(kind) if f"{name}.{f.name}" in values}
    tables[name] = kind(**{key: values[f"{name}.{key}"] for key in inner})
  plain = {key: value for key, value in values.items() if "." not in key}
  return job_lib.TrainingJob(**plain, **tables, overrides=dict(overrides), secrets=dict(secrets))


def _flag(field: str) -> str:
  return field.removeprefix("overrides.")
