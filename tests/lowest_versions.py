"""Prints the lower bound of each requirement of vr_jax and its tests, as constraints for pip.

`make lowest` runs it, and then the tests with these versions.
"""

from collections.abc import Iterable
from importlib import metadata

from packaging import requirements


def list_constraints(lines: Iterable[str]) -> list[str]:
  """`name==version` for each requirement that holds here, without extras, once, sorted.

  Raises:
    ValueError: a requirement has not exactly one lower bound, or two that differ.
  """
  bounds: dict[str, str] = {}
  for line in lines:
    requirement = requirements.Requirement(line)
    if requirement.marker is not None and not requirement.marker.evaluate({"extra": "test"}):
      continue
    lower = [each.version for each in requirement.specifier if each.operator == ">="]
    if len(lower) != 1 or bounds.setdefault(requirement.name, lower[0]) != lower[0]:
      raise ValueError(f"{line}: needs one lower bound, the same wherever it is required")
  return [f"{name}=={version}" for name, version in sorted(bounds.items())]


if __name__ == "__main__":
  print(*list_constraints(metadata.requires("vr_jax") or ()), sep="\n")
