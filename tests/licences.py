"""Writes docs/licences.md: the licences of what setup.py installs, from the installed packages.

    python -m tests.licences

A package whose licence binds to publish the code of its users (GPL, AGPL) must not be a
requirement; `find_copyleft` says which is.
"""

from collections.abc import Iterable
from importlib import metadata
import pathlib
import re

from packaging import requirements

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "licences.md"
_COPYLEFT = re.compile(r"\bA?GPL|(?<!Lesser )General Public License", re.IGNORECASE)
_LESSER = re.compile(r"\bLGPL|Lesser General Public License|Library General Public", re.IGNORECASE)
_TITLE = """# Licences

Of the packages that `setup.py` names, as the installed ones state them;
`python -m tests.licences` writes this page. vr_jax itself is Apache-2.0. None that is required is
under the GPL or AGPL by its own statement. PyAV's wheels bring a build of FFmpeg that is
under the LGPL, version 3 or later, by its own statement (`av._core.library_meta`): who passes it
on, as in an image, has to keep to that.

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


def direct_dependencies() -> dict[str, str]:
  """Names of the installed packages that setup.py names, and the extras that need each."""
  needed: dict[str, set[str]] = {}
  for line in metadata.requires("vr_jax") or ():
    requirement = requirements.Requirement(line)
    extra = re.search(r'extra == "(\w+)"', str(requirement.marker or ""))
    if not extra or extra[1] == "test":
      needed.setdefault(requirement.name.lower().replace("_", "-"), set()).add(
        "test" if extra else "vr_jax"
      )
  return {name: "vr_jax" if "vr_jax" in by else "test" for name, by in sorted(needed.items())}


def page() -> str:
  """The text of docs/licences.md."""
  rows = (
    f"| {name} | {by} | {licence_of(metadata.metadata(name))} |\n"
    for name, by in direct_dependencies().items()
  )
  return _TITLE + "".join(rows)


def find_copyleft(licences: Iterable[tuple[str, str]]) -> list[str]:
  """Names of packages, given with their licences, that are under the GPL or AGPL alone."""
  return [
    name
    for name, licence in licences
    if _COPYLEFT.search(_LESSER.sub("", licence)) and " OR " not in licence
  ]


if __name__ == "__main__":
  PAGE.write_text(page(), encoding="utf-8")
