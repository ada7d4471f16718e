"""Writes docs/licences.md: the licences of all packages that vr_jax and its tests bring along.

    python -m tests.licences

Those of requirements/cpu.lock are read from the installed packages. What the extras cuda and wandb
bring besides, and what other systems need, is not installed where tests run: licences_elsewhere.tsv
has it as PyPI states it, from `pip install --dry-run --ignore-installed --report=FILE
"vr_jax[wandb]"`, read 2026-11. The extra tpu brings nothing that the tests have not, too.

A package whose licence binds to publish the code of its users (GPL, AGPL) must not be a
requirement; `find_copyleft` says which is.
"""

from collections.abc import Iterable
from importlib import metadata
import pathlib
import re

from packaging import requirements

ROOT = pathlib.Path(__file__).parents[1]
PAGE = ROOT / "docs" / "licences.md"
_ELSEWHERE = pathlib.Path(__file__).with_name("licences_elsewhere.tsv")
_COPYLEFT = re.compile(r"\bA?GPL|(?<!Lesser )General Public License", re.IGNORECASE)
_LESSER = re.compile(r"\bLGPL|Lesser General Public License|Library General Public", re.IGNORECASE)
_TITLE = """# Licences

Of all packages that vr_jax brings along, directly or through others, as they state them themselves;
`python -m tests.licences` writes this page. vr_jax itself is Apache-2.0. None that it requires is
under the GPL or AGPL by its own statement. PyAV's wheels bring a build of FFmpeg that is
under the LGPL, version 3 or later, by its own statement (`av._core.library_meta`): who passes it
on, as in an image, has to keep to that; and to Google's terms for libtpu and NVIDIA's for CUDA.

## Locked

What `requirements/cpu.lock` has, on Linux: everything that vr_jax (`setup.py`) and its tests need,
and libtpu, which the extra `tpu` adds.

| package | needed by | licence |
|---|---|---|
"""
_EXTRAS = """
## Besides

What the extras `cuda` and `wandb` add, and what other systems need, as PyPI states it.

| package | needed by | licence |
|---|---|---|
"""


def licence_of(about: metadata.PackageMetadata) -> str:
  """The licence that a package states: an expression, else its classifiers, else its text.

  Raises:
    ValueError: it states none.
  """
  classifiers = about.get_all("Classifier") or []
  named = [each.rpartition(" :: ")[2] for each in classifiers if each.startswith("License :: ")]
  text = (about.get("License") or "").strip().partition("\n")[0]
  if licence := about.get("License-Expression") or ", ".join(named) or text:
    return licence
  raise ValueError(f"{about['Name']}: states no licence")


def locked() -> dict[str, str]:
  """Names of the installed packages of the lock, and what needs each, maybe through others."""
  text = (ROOT / "requirements" / "cpu.lock").read_text(encoding="utf-8")
  names = re.findall(r"^([a-z0-9.-]+)==", text, flags=re.MULTILINE)
  direct, own = needed_by("", {"vr_jax"}, depth=1), needed_by("", {"vr_jax"})
  tests = needed_by("test", {"vr_jax"}, depth=1)
  found = {}
  for name in sorted({*names} - {row[1] for row in elsewhere()}):
    who = "vr_jax" if name in own else "test"
    found[name] = who if name in direct | tests else f"{who}, through others"
  return found


def needed_by(extra: str, names: set[str], *, depth: int = 1000) -> set[str]:
  """Names of the packages that these need here, with an extra of theirs, to a depth of others."""
  found: set[str] = set()
  wanted = {(name, extra) for name in names}
  seen = set(wanted)
  while wanted and depth:
    following: set[tuple[str, str]] = set()
    for name, its_extra in wanted:
      for line in metadata.requires(name) or ():
        requirement = requirements.Requirement(line)
        if requirement.marker and not requirement.marker.evaluate({"extra": its_extra}):
          continue
        needed = re.sub(r"[-_.]+", "-", requirement.name).lower()
        found.add(needed)
        following |= {(needed, each) for each in ("", *requirement.extras)}
    wanted, depth = following - seen, depth - 1
    seen |= wanted
  return found


def elsewhere() -> list[tuple[str, str, str]]:
  """The packages that are not installed here: (what needs it, name, licence)."""
  lines = _ELSEWHERE.read_text(encoding="utf-8").splitlines()
  return [(who, name, licence) for who, name, licence in (line.split("\t") for line in lines)]


def page() -> str:
  """The text of docs/licences.md."""
  here = (
    f"| {name} | {by} | {licence_of(metadata.metadata(name))} |\n" for name, by in locked().items()
  )
  besides = (f"| {name} | {who} | {licence} |\n" for who, name, licence in elsewhere())
  return _TITLE + "".join(here) + _EXTRAS + "".join(besides)


def find_copyleft(licences: Iterable[tuple[str, str]]) -> list[str]:
  """Names of packages, given with their licences, that are under the GPL or AGPL alone."""
  return [
    name
    for name, licence in licences
    if _COPYLEFT.search(_LESSER.sub("", licence)) and " OR " not in licence
  ]


if __name__ == "__main__":
  PAGE.write_text(page(), encoding="utf-8")
