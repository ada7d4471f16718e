"""Costs of Pallas kernels: a compiled program's text has only their calls, not their operations.

A kernel may state what a call costs, as that of decoding does
(vr_jax/models/common/attention_decode_kernel.py). Splash attention does not. It goes over blocks of
queries and keys, and skips blocks that are masked out as a whole.
Source: jax.experimental.pallas.ops.tpu.splash_attention, for the matrix products of a block.
"""

import math
import re

from launch import hlo, loops

_PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4, "fused": 5}
_BLOCKS = {"fwd": ("block_q", "block_kv"), "dq": ("block_q_dq", "block_kv_dq")} | {
  "dkv": ("block_q_dkv", "block_kv_dkv")
}


def is_kernel(instruction: hlo.Instruction) -> bool:
  """Whether an instruction calls a kernel."""
  return 'custom_call_target="tpu_custom_call"' in instruction.attributes


def flops(module: hlo.Module, scope: loops.Scope, instruction: hlo.Instruction) -> float:
  """FLOPs of the matrix products of one call.

  Of splash attention, all blocks count where the text omits the mask.
  Raises ValueError for an unknown kernel, or one with unknown results.
  """
  stated = _stated(instruction, "flops")
  if stated is not None:
    return stated
  kind = re.search(r"splash_mha_(fwd|dq|dkv)", instruction.name + instruction.op_name)
  if not kind:
    raise ValueError(
      f"{instruction.name}: a kernel whose FLOPs are not known ({instruction.op_name})"
    )
  operands = [scope.computation.by_name[name].shapes[0] for name in instruction.operands]
  arrays = [i for i, shape in enumerate(operands) if shape.dtype in ("bf16", "f32") and shape.sizes]
  query, key = (operands[i].sizes for i in arrays[:2])
  *heads, queries, head_dim = query
  phase = kind.group(1)
  rows, columns = (_block(instruction, name) for name in _BLOCKS[phase])
  blocks = -(-key[-2] // columns)
  is_fused = phase == "dkv" and _is_fused(instruction, query, key, blocks)
  count = head_dim * _PRODUCTS["fused" if is_fused else phase] * 2.0
  for size in heads:
    count *= size
  every = -(-queries // rows) * blocks
  # The first operand has the order of the keys, the second the blocks that are not masked out.
  mask = loops.origin(module, scope, instruction.operands[1])
  return count * rows * columns * _let_through(mask, operands[1], every)


def stated_bytes(instruction: hlo.Instruction) -> float | None:
  """Bytes of main memory that a kernel says it reads and writes; None where it doesn't say.

  They may be fewer than those of its operands, of which it may read parts.
  """
  return _stated(instruction, "bytes_accessed") if is_kernel(instruction) else None


def _stated(instruction: hlo.Instruction, name: str) -> float | None:
  estimate = re.search(r'"cost_estimate":\{([^}]*)\}', instruction.attributes)
  number = re.search(rf'"{name}":"?(\d+)', estimate.group(1)) if estimate else None
  return float(number.group(1)) if number else None


def _is_fused(
  instruction: hlo.Instruction, query: tuple[int, ...], key: tuple[int, ...], blocks: int
) -> bool:
  """Whether a backward kernel also returns gradients of queries, for each block of keys.

  That is not stated beside its blocks. Its results are sums of one block, such gradients if there
  are any, and gradients of keys and values.
  """
  *others, of_keys, _ = (tuple(shape.sizes) for shape in instruction.shapes)
  if of_keys == tuple(key):
    if all(len(sizes) < len(query) for sizes in others):
      return False
    if sorted(others[-1]) == sorted((*query, blocks)):
      return True
  raise ValueError(
    f"{instruction.name}: whether it is fused is not known from its results: "
    f"{', '.join(map(str, instruction.shapes))}"
  )


def _block(instruction: hlo.Instruction, name: str) -> int:
  match = re.search(rf'{name}\\*": (\d+)', instruction.attributes)
  if not match:
    raise ValueError(f"{instruction.name}: the kernel does not state its {name}")
  return int(match.group(1))


def _let_through(mask: hlo.Instruction, blocks: hlo.Shape, every: int) -> float:
  """Number of computed blocks of a head: not 0 in the mask. Without a full mask, all of them.

  Of a mask with the blocks of several devices, one of which each looks up, the most of any.
  """
  entries = re.findall(r"\d+", mask.argument) if mask.operation == "constant" else []
  if len(entries) <= 1 or "..." in mask.argument:
    return every
  size = math.prod(blocks.sizes)
  starts = range(0, len(entries), size)
  most = max(sum(entry != "0" for entry in entries[start : start + size]) for start in starts)
  return most / blocks.sizes[0]
