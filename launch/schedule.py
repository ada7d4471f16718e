"""Cycles that the TPU compiler's own cost model gives to instructions, as its schedule has them.

It states them for fusions, copies and the like, memory traffic included (at about 75 to 80 % of the
peak bandwidth). It states none for collectives, Pallas kernels and sorts; sorts are estimated here.
"""

import math
import re

from launch import hlo

_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
# Elements of a vector instruction times the vector instructions of a cycle. Source: "How to Scale
# Your Model" (jax-ml.github.io/scaling-book), part 2.
_LANES = 8 * 128 * 4


def cycles(instruction: hlo.Instruction) -> float:
  """Cycles of one run of an instruction; 0 where the compiler states none."""
  if instruction.operation == "sort":
    return _sort_cycles(instruction)
  found = _CYCLES.search(instruction.attributes)
  return float(found.group(1)) if found else 0.0


def _sort_cycles(instruction: hlo.Instruction) -> float:
  """Cycles of a bitonic network, if each stage took one instruction a pass and array.

  n elements, filled up to a power of two, take L (L + 1) / 2 stages with L = log2 n. It is a lower
  bound: moves between lanes are free here.
  """
  sizes = instruction.shapes[0].sizes
  axis = int(re.findall(r"\d+", instruction.attribute("dimensions") or "0")[0])
  levels = math.ceil(math.log2(max(sizes[axis], 2)))
  elements = math.prod(sizes) // max(sizes[axis], 1) * 2**levels
  compared = len(instruction.shapes) + 1  # the comparison, and a selection for each array
  return elements * levels * (levels + 1) / 2 * compared / _LANES
