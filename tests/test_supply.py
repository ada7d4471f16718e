"""What is installed: locked with hashes, and under licences that a user can live with."""

from importlib import metadata
import pathlib
import re

from packaging import markers, requirements
import pytest

from tests import licences

LOCK = pathlib.Path(__file__).parents[1] / "requirements" / "cpu.lock"


def locked() -> dict[str, list[tuple[str, str, int]]]:
  """Version, marker and number of hashes of each locked package, by name."""
  found: dict[str, list[tuple[str, str, int]]] = {}
  for entry in re.split(r"\n(?=\S)", LOCK.read_text(encoding="utf-8")):
    if entry.startswith("#"):
      continue
    head, *hashes = entry.replace("\\\n", "\n").split("\n")
    spec, _, marker = head.partition(" ; ")
    name, version = spec.strip().split("==")
    count = sum(bool(re.fullmatch(r"\s*--hash=sha256:[0-9a-f]{64}\s*", each)) for each in hashes)
    assert count == sum(bool(each.strip()) for each in hashes), f"{name}: a line is no hash"
    found.setdefault(name, []).append((version, marker.strip(), count))
  return found


def test_every_direct_dependency_is_locked_at_a_version_that_setup_admits():
  entries = locked()
  for line in metadata.requires("vr_jax") or ():
    requirement = requirements.Requirement(line)
    if requirement.marker and not requirement.marker.evaluate({"extra": "test"}):
      continue
    name = requirement.name.lower().replace("_", "-").replace(".", "-")
    assert name in entries, f"{name} is not locked; make lock"
    for version, _, _ in entries[name]:
      assert version in requirement.specifier, f"{name}=={version} is not {requirement.specifier}"
    here = [m for _, m, _ in entries[name] if not m or markers.Marker(m).evaluate()]
    assert len(here) == 1, f"{name}: {len(here)} versions for this Python"


def test_every_locked_package_has_hashes_and_the_lock_names_no_place():
  entries = locked()
  assert len(entries) > 100
  assert all(count for versions in entries.values() for _, _, count in versions)
  assert not re.search(r"https?://|file:|--index|--find-links", LOCK.read_text(encoding="utf-8"))


def test_the_page_lists_the_licence_of_every_locked_package_and_of_the_extras():
  rows = re.findall(r"^\| (\S+) \| (.+) \| (.+) \|$", licences.PAGE.read_text(), re.MULTILINE)
  listed = {name: by for name, by, _ in rows if name not in ("package", "---")}
  besides = {name: who for who, name, _ in licences.elsewhere()}
  assert listed == {**licences.locked(), **besides}
  assert all(licence.strip(" -") for _, _, licence in rows)
  assert listed["jax"] == "vr_jax" and listed["jaxlib"] == "vr_jax, through others"
  for line in metadata.requires("vr_jax") or ():
    requirement = requirements.Requirement(line)
    if re.search(r"extra == .(cuda|wandb|tpu).", str(requirement.marker)):
      extras = {"jax": {"tpu": "libtpu", "cuda12": "jax-cuda12-plugin"}}.get(requirement.name, {})
      assert all(extras[each] in listed for each in requirement.extras)
      assert requirement.name in listed


def test_nothing_that_vr_jax_needs_is_under_the_gpl():
  stated = [(name, licences.licence_of(metadata.metadata(name))) for name in licences.locked()]
  stated += [(name, licence) for _, name, licence in licences.elsewhere()]
  assert len(stated) > 180
  assert licences.find_copyleft(stated) == []


@pytest.mark.parametrize(
  ("licence", "is_copyleft"),
  [
    ("GPL-3.0-or-later", True),
    ("GNU Affero General Public License v3", True),
    ("AGPL-3.0-only", True),
    ("GNU General Public License v2 (GPLv2)", True),
    ("LGPL-2.1-or-later", False),
    ("GNU Lesser General Public License v3 (LGPLv3)", False),
    ("MIT OR GPL-2.0-only", False),
    ("Apache-2.0", False),
  ],
)
def test_the_gpl_is_recognised(licence, is_copyleft):
  assert bool(licences.find_copyleft([("x", licence)])) == is_copyleft
