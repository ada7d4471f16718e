"""Dynamic time warping on matrices of costs, batched: whole sequences, and a reference inside a longer sequence.

    D(i, j) = cost(i, j) + min over (a, b) in moves of D(i - a, j - b)

`dtw` warps all of one sequence onto all of the other. `subsequence_dtw` consumes the reference (rows) whole and leaves
start and end on the generated sequence (columns) free. Both give distances only; the path behind one is traced back in
`alignment.py`.

Tables are filled backwards, from the last valid cell of each pair to the first cell of the matrix: a cell beyond the
lengths is never on a path, so that it stays at +inf without a mask, and all results stand in the first row.

Both scans were shaped by measurement on a CPU with AVX-512. The batch is cut into chunks whose costs and tables stay in
a core's cache. The moves strict and jump have no step within a row: a row depends on shifts of the next, so whole rows of
the chunk are single operations in the layout that the costs come in. The classic moves run over anti-diagonals with the
pairs on the minor axis. On accelerators a chunk is large, since there a loop over chunks only costs parallelism.
"""

from collections.abc import Callable
import dataclasses
import functools
import math
from typing import Literal

import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np

Moves = Literal["strict", "jump", "classic"]

# Rows and columns that a path goes on by.
MOVES: dict[Moves, tuple[tuple[int, int], ...]] = {
  "strict": ((1, 1),),
  "jump": ((1, 1), (1, 2)),
  "classic": ((1, 1), (1, 0), (0, 1)),
}

# Of a chunk, on a CPU. Larger ones leave the cache, and XLA would share each small step between threads.
_ROW = 2048  # cells of a row, pairs x gen
_PAIRS = 32  # pairs on the minor axis of an anti-diagonal
_TRANSPOSED = 16  # pairs transposed at once: as many as there are floats in a cache line
_UNROLLED_ROWS = 32

_ACCELERATOR_PAIRS = 4096

Lengths = Int[Array | np.ndarray, "*batch"]
Cost = Float[Array | np.ndarray, "*batch ref gen"]


@jax.jit
def dtw(cost: Cost, len_a: Lengths, len_b: Lengths) -> Float[Array, "*batch"]:
  """Total cost of the cheapest classic warping path from the first cell to the last.

  Args:
    cost: costs, not negative; what lies beyond the lengths is padding: any finite numbers.
    len_a: number of valid rows.
    len_b: number of valid columns.

  Returns:
    float32; +inf where either sequence is empty.
  """
  return _total(functools.partial(_diagonals, free=False), _PAIRS, cost, len_a, len_b)


@functools.partial(jax.jit, static_argnames="moves")
def subsequence_dtw(
  cost: Cost, ref_len: Lengths, gen_len: Lengths, moves: Moves = "jump"
) -> Float[Array, "*batch"]:
  """Mean cost d = min_j D(ref_len, j) / ref_len of aligning the whole reference anywhere in what was generated.

  Args:
    cost: costs c(i, j) of reference step i against generated step j, not negative; what lies beyond the lengths is
      padding: any finite numbers.
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
    total = _total(functools.partial(_diagonals, free=True), _PAIRS, cost, ref_len, gen_len)
  else:
    scan = functools.partial(_rows, shifts=tuple(columns for _, columns in MOVES[moves]))
    total = _total(scan, max(1, _ROW // max(1, cost.shape[-1])), cost, ref_len, gen_len)
  return total / jnp.maximum(ref_len, 1)


def _total(
  scan: Callable, cpu_chunk: int, cost: Cost, ref_len: Lengths, gen_len: Lengths
) -> Float[Array, "*batch"]:
  """Applies a scan over pairs to the flattened batch, padded to whole chunks; +inf where a length is 0."""
  *batch, ref, gen = cost.shape
  if 0 in cost.shape:
    return jnp.full(batch, jnp.inf)
  pairs = math.prod(batch)
  arrays = (
    jnp.asarray(cost, jnp.float32).reshape(-1, ref, gen),
    jnp.asarray(ref_len, jnp.int32).reshape(-1),
    jnp.asarray(gen_len, jnp.int32).reshape(-1),
  )

  def in_chunks(chunk, *arrays):
    fill = -pairs % chunk
    whole = (jnp.pad(x, ((0, fill),) + ((0, 0),) * (x.ndim - 1)) for x in arrays)
    return scan(chunk, *whole)[:pairs]

  total = lax.platform_dependent(
    *arrays,
    cpu=functools.partial(in_chunks, cpu_chunk),
    default=functools.partial(in_chunks, min(pairs, _ACCELERATOR_PAIRS)),
  ).reshape(batch)
  return jnp.where(jnp.minimum(ref_len, gen_len) > 0, total, jnp.inf)


def _smaller(a: Float[Array, "*shape"], b: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
  """One instruction; jnp.minimum takes four, to carry nan through."""
  return jnp.where(a < b, a, b)


def _rows(
  chunk: int,
  cost: Float[Array, "pairs ref gen"],
  ref_len: Int[Array, "pairs"],
  gen_len: Int[Array, "pairs"],
  *,
  shifts: tuple[int, ...],
) -> Float[Array, "pairs"]:
  """The cheapest path that goes down one row and right by one of `shifts` a move, from any column to any column."""
  chunks = (x.reshape(-1, chunk, *x.shape[1:]) for x in (cost, ref_len, gen_len))
  return lax.map(lambda args: _rows_of(*args, shifts=shifts), tuple(chunks)).reshape(-1)


def _rows_of(
  cost: Float[Array, "chunk ref gen"],
  ref_len: Int[Array, "chunk"],
  gen_len: Int[Array, "chunk"],
  *,
  shifts: tuple[int, ...],
) -> Float[Array, "chunk"]:
  chunk, ref, gen = cost.shape
  column = jnp.arange(gen)
  start = jnp.where(column < gen_len[:, None], 0.0, jnp.inf)
  # The row of zeros is not read: joining it makes XLA copy the chunk, and so read the memory in order. Without, one row
  # of every pair at a time would wait for each cache line.
  rows = jnp.concatenate([cost.swapaxes(0, 1), jnp.zeros((1, chunk, gen))])

  def row(t, below):
    index = ref - 1 - t
    cells = below.reshape(-1)
    # A shift runs over into the row of the next pair; those cells are masked.
    moved = [
      jnp.where(
        column < gen - shift, cells[shift : shift + chunk * gen].reshape(chunk, gen), jnp.inf
      )
      for shift in shifts
      if shift < gen
    ]
    best = functools.reduce(_smaller, moved) if moved else jnp.inf
    best = jnp.where(ref_len[:, None] == index + 1, start, best)
    x = lax.dynamic_index_in_dim(rows, index, keepdims=False)
    return jnp.concatenate([x + best, below[-1:]])

  nowhere = jnp.full((chunk + 1, gen), jnp.inf)
  # Rows that are read once only, those of strict, would be merged into one operation that no vector unit could run.
  unroll = min(ref, _UNROLLED_ROWS) if len(shifts) > 1 else 1
  first = lax.fori_loop(0, ref, row, nowhere, unroll=unroll)
  return first[:chunk].min(axis=1)


def _diagonals(
  chunk: int,
  cost: Float[Array, "pairs ref gen"],
  ref_len: Int[Array, "pairs"],
  gen_len: Int[Array, "pairs"],
  *,
  free: bool,
) -> Float[Array, "pairs"]:
  """The cheapest path of classic moves from the first cell to the last, or if free, from any column to any column."""
  _, ref, gen = cost.shape
  if gen == 1:  # a diagonal is read with a stride of gen - 1
    cost = jnp.pad(cost, ((0, 0), (0, 0), (0, 1)))
    gen = 2
  # If free, a first row that costs nothing lets a path enter at any column.
  table = _Table(rows=ref + free, columns=gen)

  def part(cells, start):
    cells = _transposed(cells, cost, start, begin=table.cell(free, 0))
    lengths = (lax.dynamic_slice_in_dim(x, start, chunk) for x in (ref_len + free, gen_len))
    return cells, _sweep(cells, *lengths, table=table, free=free)

  # Carried, not made anew for each chunk, so that it stays in the cache and its margins are filled once.
  cells = jnp.full((table.size, chunk), jnp.inf)
  cells = cells.at[table.cell(0, 0) : table.cell(free, 0)].set(0)
  _, total = lax.scan(part, cells, jnp.arange(0, len(cost), chunk))
  return total.reshape(-1)


@dataclasses.dataclass(frozen=True)
class _Table:
  """Where the cells of a matrix and of its anti-diagonals stand in memory.

  Diagonal k holds the cells (i, k - i). In its array, row i stands at place i - k // 2 + before: two diagonals further
  down, a cell's diagonal neighbour has the same place, so that a diagonal overwrites the last but one; its other two
  neighbours have the same place and the next one (k even) or the one before (k odd). Places that are no row of the
  matrix read a margin of +inf; those that are no column read another cell, from which no path comes back to the matrix.
  """

  rows: int
  columns: int

  @property
  def halves(self) -> int:
    """Pairs of an even and an odd diagonal."""
    return (self.rows + self.columns) // 2

  @property
  def before(self) -> int:
    """Places, and rows of margin, before the first row."""
    return (self.columns - 1) // 2

  @property
  def places(self) -> int:
    """Of a diagonal."""
    return self.before + self.rows // 2 + 1

  @property
  def span(self) -> int:
    """Cells in memory from the first to the last place of a diagonal."""
    return (self.places - 1) * (self.columns - 1) + 1

  @property
  def size(self) -> int:
    """Cells in memory, margins included."""
    last = 2 * self.halves - 1
    return self.cell(last // 2 - self.before, 0) + last + self.span

  def cell(self, row: int | Array, column: int | Array) -> int | Array:
    """Where a cell stands."""
    return (self.before + row) * self.columns + column


def _transposed(
  cells: Float[Array, "cells chunk"],
  cost: Float[Array, "pairs ref gen"],
  start: Int[Array, ""],
  *,
  begin: int,
) -> Float[Array, "cells chunk"]:
  """Writes the costs of the pairs from `start` on with the pairs on the minor axis, from cell `begin` on.

  A few pairs at a time: a plain transpose of the chunk would load each cache line once for each of its floats.
  """
  _, ref, gen = cost.shape
  group = math.gcd(cells.shape[1], _TRANSPOSED)

  def write(g, cells):
    block = lax.dynamic_slice(cost, (start + g * group, 0, 0), (group, ref, gen))
    return lax.dynamic_update_slice(cells, block.reshape(group, -1).T, (begin, g * group))

  return lax.fori_loop(0, cells.shape[1] // group, write, cells)


def _sweep(
  cells: Float[Array, "cells chunk"],
  ref_len: Int[Array, "chunk"],
  gen_len: Int[Array, "chunk"],
  *,
  table: _Table,
  free: bool,
) -> Float[Array, "chunk"]:
  """Cost of the cheapest path from the first cell to the last valid one, or if free, to any of the last valid row."""
  chunk = cells.shape[1]
  place = jnp.arange(table.places)[:, None]
  final = ref_len + gen_len - 2  # the diagonal of the last valid cell
  last_row = (
    ref_len - 1 + table.before - place
  )  # the k // 2 at which a place holds the last valid row
  # The k at which it holds the last valid cell.
  last_cell = jnp.where(last_row == final // 2, final, -1)

  def diagonal(k, near, far, corner):
    half = k // 2
    begin = table.cell(half - table.before, k - (half - table.before))
    cell = lax.dynamic_slice(cells, (begin, 0), (table.span, chunk))[:: table.columns - 1]
    ends = (last_row == half) & (k <= final) if free else last_cell == k
    return cell + jnp.where(ends, 0.0, _smaller(_smaller(near, far), corner))

  def step(t, state):
    even, odd = state
    k = 2 * (table.halves - 1 - t)
    odd = diagonal(k + 1, even, jnp.concatenate([edge, even])[:-1], odd)
    # Cut after joining: the other way round XLA merges the two diagonals, and computes cells several times over.
    even = diagonal(k, odd, jnp.concatenate([odd, edge])[1:], even)
    return even, odd

  edge = jnp.full((1, chunk), jnp.inf)
  nowhere = jnp.full((table.places, chunk), jnp.inf)
  even, _ = lax.fori_loop(0, table.halves, step, (nowhere, nowhere))
  return even[table.before]
