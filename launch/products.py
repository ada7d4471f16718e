"""FLOPs of matrix products and convolutions in a compiled program's text."""

import math
import re

import numpy as np

from launch import hlo

# Passes over the matrix units that a product takes; bfloat16 takes one.
_PASSES = {"highest": 6, "high": 3}


def flops(computation: hlo.Computation, instruction: hlo.Instruction) -> tuple[float, float]:
  """FLOPs of a matrix product or convolution, and the same times the passes of its precision."""
  if instruction.operation == "dot":
    left = computation.operand(instruction, 0).shapes[0]
    contracted = hlo.numbers(instruction.attribute("lhs_contracting_dims"))
    inner = math.prod(left.sizes[axis] for axis in contracted)
    count = 2.0 * math.prod(instruction.shapes[0].sizes) * inner
  elif instruction.operation == "convolution":
    count = _convolution_flops(computation, instruction)
  else:
    return 0.0, 0.0
  precision = re.findall(r"\w+", instruction.attribute("operand_precision"))
  return count, count * max((_PASSES.get(word, 1) for word in precision), default=1)


def _convolution_flops(computation: hlo.Computation, instruction: hlo.Instruction) -> float:
  """Two for each multiply-add on an element, none for padding.

  The TPU compiler writes batched products as padded convolutions.
  """
  left, right = (computation.operand(instruction, i).shapes[0].sizes for i in (0, 1))
  labels = re.match(r"(\w+)_(\w+)->(\w+)", instruction.attribute("dim_labels"))
  if labels is None:
    raise ValueError(f"{instruction.name}: a convolution without dim_labels")
  left_axes, right_axes, out_axes = labels.groups()
  window = dict(part.split("=") for part in instruction.attribute("window").strip("{}").split())
  rank = len(left_axes) - 2
  fields = {name: value.split("x") for name, value in window.items()}
  count = 2.0 * left[left_axes.index("b")]
  count *= right[right_axes.index("i")] * right[right_axes.index("o")]
  count /= int(instruction.attribute("batch_group_count") or 1)
  for axis in range(rank):
    label = str(axis)
    count *= _positions(
      size=left[left_axes.index(label)],
      taps=right[right_axes.index(label)],
      outputs=instruction.shapes[0].sizes[out_axes.index(label)],
      low=int(fields["pad"][axis].split("_")[0]) if "pad" in fields else 0,
      stride=int(fields["stride"][axis]) if "stride" in fields else 1,
      spread=int(fields["lhs_dilate"][axis]) if "lhs_dilate" in fields else 1,
      reach=int(fields["rhs_dilate"][axis]) if "rhs_dilate" in fields else 1,
    )
  return count


def _positions(
  *, size: int, taps: int, outputs: int, low: int, stride: int, spread: int, reach: int
) -> int:
  """Pairs of an output and a tap of the window that hit an element, not padding or a gap."""
  place = np.arange(outputs)[:, None] * stride + np.arange(taps) * reach - low
  return int(((place >= 0) & (place % spread == 0) & (place // spread < size)).sum())
