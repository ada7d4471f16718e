"""Dynamic time warping on matrices of costs, batched: whole sequences, and a reference inside a longer sequence.

    D(i, j) = cost(i, j) + min over (a, b) in moves of D(i - a, j - b)

`dtw` warps all of one sequence onto all of the other. `subsequence_dtw` consumes the reference (rows) whole and leaves
start and end on the generated sequence (columns) free.

The classic moves run over anti-diagonals, whose cells don't depend on each other; strict and jump have no move within a
row and run over rows. The batch is cut into chunks whose tables stay in a core's cache.
"""

import functools
import math
from typing import Literal

import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np

Moves = Literal["strict", "jump", "classic"]

_SHIFTS = {"strict": (1,), "jump": (1, 2)}
_CHUNK = 64  # pairs of one chunk: measured

Lengths = Int[Array | np.ndarray, "*batch"]
Cost = Float[Array | np.ndarray, "*batch ref gen"]


@jax.jit
def dtw(cost: Cost, len_a: Lengths, len_b: Lengths) -> Float[Array, "*batch"]:
  """Total cost of the cheapest classic warping path from the first cell to the last.

  Args:
    cost: costs, not negative; rows from len_a and columns from len_b on are padding and are not read.
    len_a: number of valid rows.
    len_b: number of valid columns.

  Returns:
    float32; +inf where either sequence is empty.
  """
  return _in_chunks(functools.partial(_classic, free=False), cost, len_a, len_b)


@functools.partial(jax.jit, static_argnames="moves")
def subsequence_dtw(
  cost: Cost, ref_len: Lengths, gen_len: Lengths, moves: Moves = "jump"
) -> Float[Array, "*batch"]:
  """Mean cost d = min_j D(ref_len, j) / ref_len of aligning the whole reference anywhere in what was generated.

  Args:
    cost: costs c(i, j) of reference step i against generated step j, not negative; what lies beyond the lengths is
      padding and is not read.
    ref_len: number of valid rows M.
    gen_len: number of valid columns.
    moves: strict {(1,1)}, jump {(1,1), (1,2)} or classic {(1,1), (1,0), (0,1)}.

  Returns:
    float32; +inf where no alignment exists: either sequence is empty, or strict and jump have fewer generated than
    reference steps.

  Source: MOSS-ChatV, arXiv 2509.21113, section on the process reasoning reward. Reconstruction: the moves, the
  normalisation by M and the default.
  """
  if moves == "classic":
    total = _in_chunks(functools.partial(_classic, free=True), cost, ref_len, gen_len)
  else:
    total = _in_chunks(functools.partial(_rows, shifts=_SHIFTS[moves]), cost, ref_len, gen_len)
  return total / jnp.maximum(ref_len, 1)


def _in_chunks(scan, cost: Cost, ref_len: Lengths, gen_len: Lengths) -> Float[Array, "*batch"]:
  """Applies a scan over [pairs, ref, gen] to cache-sized chunks of the flattened batch; +inf where a length is 0."""
  *batch, ref, gen = cost.shape
  if 0 in cost.shape:
    return jnp.full(batch, jnp.inf)
  pairs = math.prod(batch)
  chunk = min(pairs, _CHUNK)
  arrays = (
    jnp.asarray(cost, jnp.float32).reshape(pairs, ref, gen),
    jnp.broadcast_to(ref_len, batch).reshape(pairs),
    jnp.broadcast_to(gen_len, batch).reshape(pairs),
  )
  fill = -pairs % chunk
  chunks = (jnp.pad(x, ((0, fill),) + ((0, 0),) * (x.ndim - 1)) for x in arrays)
  chunks = tuple(x.reshape(-1, chunk, *x.shape[1:]) for x in chunks)
  total = lax.map(lambda args: scan(*args), chunks).reshape(-1)[:pairs].reshape(batch)
  return jnp.where((jnp.minimum(ref_len, gen_len) > 0), total, jnp.inf)


def _classic(
  cost: Float[Array, "pairs ref gen"],
  ref_len: Int[Array, "pairs"],
  gen_len: Int[Array, "pairs"],
  *,
  free: bool,
) -> Float[Array, "pairs"]:
  """Cheapest path of moves (1,1), (1,0), (0,1) from the last valid cell to the first, anti-diagonal by anti-diagonal.

  Backwards, so that every pair ends in the same cell, whatever its lengths. Pairs lie on the minor axis.
  """
  pairs, ref, gen = cost.shape
  gen = max(gen, 2)
  cost = jnp.pad(cost, ((0, 0), (0, 0), (0, gen - cost.shape[2])))

  def outside(row, column):
    """Cells beyond the lengths: paths begin at 0 behind the last valid cell (if free, below the last row)."""
    return jnp.where((ref_len <= row) & (free | (gen_len <= column)), 0.0, jnp.inf)

  row, column = jnp.arange(ref)[:, None, None], jnp.arange(gen)[None, :, None]
  valid = (row < ref_len) & (column < gen_len)
  cells = jnp.where(valid, cost.transpose(1, 2, 0), outside(row, column))
  cells = jnp.pad(cells.reshape(ref * gen, pairs), ((0, gen - 1), (0, 0)))
  row = jnp.arange(ref)[:, None]

  def diagonal(carry, k):
    following, corner, best = carry
    # Cell (i, k - i) stands at i gen + k - i: a stride of gen - 1 from k.
    cell = lax.dynamic_slice(cells, (k, 0), (ref * (gen - 1), pairs))
    cell = cell.reshape(ref, gen - 1, pairs)[:, 0]
    cell += jnp.minimum(jnp.minimum(following[:-1], following[1:]), corner[1:])
    cell = jnp.where(row + gen > k, cell, outside(row, gen))
    best = jnp.where(k < gen, jnp.minimum(best, cell[0]), best)
    return (jnp.concatenate([cell, outside(ref, k - ref)[None]]), following, best), None

  every = jnp.arange(ref + 1)[:, None]
  last = ref + gen - 1
  start = outside(every, last - every), outside(every, last + 1 - every), jnp.full(pairs, jnp.inf)
  (first, _, best), _ = lax.scan(diagonal, start, jnp.arange(last), reverse=True)
  return best if free else first[0]


def _rows(
  cost: Float[Array, "pairs ref gen"],
  ref_len: Int[Array, "pairs"],
  gen_len: Int[Array, "pairs"],
  *,
  shifts: tuple[int, ...],
) -> Float[Array, "pairs"]:
  """Cheapest path that goes down one row and right by one of `shifts` a move, from any column to any column."""
  gen = cost.shape[2]
  room = max(shifts)

  def row(below, x):
    index, cells = x
    cells += functools.reduce(jnp.minimum, (below[:, s : s + gen] for s in shifts))
    cells = jnp.where(jnp.arange(gen) < gen_len[:, None], cells, jnp.inf)
    cells = jnp.pad(cells, ((0, 0), (0, room)), constant_values=jnp.inf)
    return jnp.where(index < ref_len[:, None], cells, 0.0), None

  start = jnp.zeros((cost.shape[0], gen + room))
  rows = (jnp.arange(cost.shape[1]), cost.swapaxes(0, 1))
  first, _ = lax.scan(row, start, rows, reverse=True)
  return first.min(axis=1)
