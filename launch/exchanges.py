"""Exchanges between slices, which the TPU compiler makes of collectives that span several.

It splits such a collective into a part within each slice, over the links, and an instruction `send`
over the network of the data centre. That one names what is exchanged, and who with.
"""

import re

from launch import hlo

_KINDS = {
  "ALL_REDUCE": "all-reduce",
  "ALL_GATHER": "all-gather",
  "REDUCE_SCATTER": "reduce-scatter",
  "ALL_TO_ALL": "all-to-all",
  "ONE_TO_ONE": "collective-permute",
}
_KIND = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
# Slices, and the devices of each of them: "{1,2}x{0:3}".
_ALL_SLICES = re.compile(r'_xla_megascale_target="\{([\d,]+)\}x')
# Groups of devices: {{100000,200000},{100001,200001}}.
_GROUPS = re.compile(r"_xla_megascale_target=\{\{([\d,]+)\}")
_SLICE = 100_000  # the id of a device is this times the number of its slice, plus its own number


def read(instruction: hlo.Instruction) -> tuple[str, int] | None:
  """The kind of collective that goes from slice to slice here, and how many slices exchange.

  None for other instructions. Raises ValueError where the text has an unknown form.
  """
  found = _KIND.search(instruction.attributes)
  if instruction.operation != "send" or found is None:
    return None
  kind = _KINDS.get(found.group(1), "")
  everyone = _ALL_SLICES.search(instruction.attributes)
  group = _GROUPS.search(instruction.attributes)
  slices = 0
  if kind == "collective-permute":
    slices = 2  # source and target
  elif everyone:
    slices = len(everyone.group(1).split(","))
  elif group:
    slices = len({int(device) // _SLICE for device in group.group(1).split(",")})
  if not kind or not slices:
    raise ValueError(
      f"{instruction.name}: unknown exchange between slices: {instruction.attributes[:300]}"
    )
  return kind, slices
