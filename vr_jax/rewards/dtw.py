"""Dynamic time warping (DTW) of batches of cost matrices.

    D(i, j) = cost(i, j) + min over (a, b) in moves of D(i - a, j - b)

`dtw` aligns two whole sequences. `subsequence_dtw` aligns the whole reference (rows) with any part
of the generated sequence (columns). Both return distances only; `alignment.py` computes paths.

Tables are filled backwards, from the last valid cell of each pair to the first cell of the matrix.
So cells beyond the lengths are never on a path and stay at +inf without a mask, and all results are
in the first row.

Both scans were tuned on a CPU with AVX-512:

- The batch is split into chunks whose costs and tables stay in a core's cache. On accelerators
  chunks are large, since a loop over chunks would only cost parallelism.
- The moves strict and jump have no step within a row. A row depends on shifts of the next row, so
  each row of a chunk is one operation, in the layout of the costs.
- The classic moves run over anti-diagonals, with the pairs on the minor axis.
"""

from collections.abc import Callable
import dataclasses
import functools
import math
from typing import Literal, TypeVar

import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np

Moves = Literal["strict", "jump", "classic"]

# (rows, columns) of each allowed step of a path.
MOVES: dict[Moves, tuple[tuple[int, int], ...]] = {
  "strict": ((1, 1),),
  "jump": ((1, 1), (1, 2)),
  "classic": ((1, 1), (1, 0), (0, 1)),
}

# Sizes of a chunk on a CPU. Larger chunks leave the cache, and XLA would split each small step
# between threads.
_ROW_CELLS = 2048  # cells of a row: pairs x gen
_PAIRS = 32  # pairs on the minor axis of an anti-diagonal
_TRANSPOSED_PAIRS = 16  # transposed at once: the number of floats in a cache line
_UNROLLED_ROWS = 32

_ACCELERATOR_PAIRS = 4096

Lengths = Int[Array | np.ndarray, "*batch"]
Cost = Float[Array | np.ndarray, "*batch ref gen"]
Index = TypeVar("Index", int, Array)


@jax.jit
def dtw(cost: Cost, len_a: Lengths, len_b: Lengths) -> Float[Array, "*batch"]:
  """Total cost of the cheapest classic warping path from the first cell to the last.

  Args:
    cost: costs, not negative. Beyond the lengths: padding, any finite numbers.
    len_a: number of valid rows.
    len_b: number of valid columns.

  Returns:
    float32; +inf if either sequence is empty.
  """
  return _total(functools.partial(_diagonals, free=False), _PAIRS, cost, len_a, len_b)


@functools.partial(jax.jit, static_argnames="moves")
def subsequence_dtw(
  cost: Cost, ref_len: Lengths, gen_len: Lengths, moves: Moves = "jump"
) -> Float[Array, "*batch"]:
  """Mean cost d = min_j D(ref_len, j) / ref_len of the best alignment of the whole reference.

  The alignment may start and end anywhere in the generated sequence.

  Args:
    cost: costs c(i, j) of reference step i against generated step j, not negative. Beyond the
      lengths: padding, any finite numbers.
    ref_len: number of valid rows M.
    gen_len: number of valid columns.
    moves: strict {(1,1)}, jump {(1,1), (1,2)} or classic {(1,1), (1,0), (0,1)}.

  Returns:
    float32; +inf if no alignment exists: either sequence is empty or, with strict and jump, there
    are fewer generated than reference steps.

  Source: MOSS-ChatV, arXiv 2509.21113, section on the process reasoning reward. Reconstruction: the
  moves, the normalisation by M and the default.
  """
  if moves == "classic":
    total = _total(functools.partial(_diagonals, free=True), _PAIRS, cost, ref_len, gen_len)
  else:
    scan = functools.partial(_rows, shifts=tuple(columns for _, columns in MOVES[moves]))
    total = _total(scan, max(1, _ROW_CELLS // max(1, cost.shape[-1])), cost, ref_len, gen_len)
  return total / jnp.maximum(ref_len, 1)


def _total(
  scan: Callable, cpu_chunk: int, cost: Cost, ref_len: Lengths, gen_len: Lengths
) -> Float[Array, "*batch"]:
  """Runs a scan over the flattened batch, padded to whole chunks. +inf if a length is 0."""
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
    padded = (jnp.pad(x, ((0, fill),) + ((0, 0),) * (x.ndim - 1)) for x in arrays)
    return scan(chunk, *padded)[:pairs]

  total = lax.platform_dependent(
    *arrays,
    cpu=functools.partial(in_chunks, cpu_chunk),
    default=functools.partial(in_chunks, min(pairs, _ACCELERATOR_PAIRS)),
  ).reshape(batch)
  return jnp.where(jnp.minimum(ref_len, gen_len) > 0, total, jnp.inf)


def _minimum(a: Float[Array, "*shape"], b: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
  """The minimum in one instruction. jnp.minimum takes four, since it propagates nan."""
  return jnp.where(a < b, a, b)


def _rows(
  chunk: int,
  cost: Float[Array, "pairs ref gen"],
  ref_len: Int[Array, "pairs"],
  gen_len: Int[Array, "pairs"],
  *,
  shifts: tuple[int, ...],
) -> Float[Array, "pairs"]:
  """Cost of the cheapest path from any column of the first row to any column of the last.

  Each move goes down one row and right by one of `shifts`.
  """
  chunks = (x.reshape(-1, chunk, *x.shape[1:]) for x in (cost, ref_len, gen_len))
  return lax.map(lambda args: _chunk_rows(*args, shifts=shifts), tuple(chunks)).reshape(-1)


def _chunk_rows(
  cost: Float[Array, "chunk ref gen"],
  ref_len: Int[Array, "chunk"],
  gen_len: Int[Array, "chunk"],
  *,
  shifts: tuple[int, ...],
) -> Float[Array, "chunk"]:
  chunk, ref, gen = cost.shape
  column = jnp.arange(gen)
  start = jnp.where(column < gen_len[:, None], 0.0, jnp.inf)
  # The row of zeros is never read. Concatenating it makes XLA copy the chunk, which reads memory in
  # order. Without it, reading one row of every pair would wait for each cache line.
  rows = jnp.concatenate([cost.swapaxes(0, 1), jnp.zeros((1, chunk, gen))])

  def row(t, below):
    index = ref - 1 - t
    cells = below.reshape(-1)
    # A shift reaches into the row of the next pair; those cells are masked.
    shifted = [
      jnp.where(
        column < gen - shift, cells[shift : shift + chunk * gen].reshape(chunk, gen), jnp.inf
      )
      for shift in shifts
      if shift < gen
    ]
    best = functools.reduce(_minimum, shifted) if shifted else jnp.inf
    best = jnp.where(ref_len[:, None] == index + 1, start, best)
    x = lax.dynamic_index_in_dim(rows, index, keepdims=False)
    return jnp.concatenate([x + best, below[-1:]])

  unreachable = jnp.full((chunk + 1, gen), jnp.inf)
  # Not unrolled for strict: XLA would fuse rows that are read only once into one operation that
  # does not vectorize.
  unroll = min(ref, _UNROLLED_ROWS) if len(shifts) > 1 else 1
  first = lax.fori_loop(0, ref, row, unreachable, unroll=unroll)
  return first[:chunk].min(axis=1)


def _diagonals(
  chunk: int,
  cost: Float[Array, "pairs ref gen"],
  ref_len: Int[Array, "pairs"],
  gen_len: Int[Array, "pairs"],
  *,
  free: bool,
) -> Float[Array, "pairs"]:
  """Cost of the cheapest path of classic moves.

  free: the path goes from any column of the first row to any column of the last. Else it goes from
    the first cell to the last.
  """
  _, ref, gen = cost.shape
  if gen == 1:  # a diagonal is read with a stride of gen - 1
    cost = jnp.pad(cost, ((0, 0), (0, 0), (0, 1)))
    gen = 2
  # If free, an extra first row of zero costs lets a path enter at any column.
  table = _Table(rows=ref + free, columns=gen)

  def chunk_total(cells, start):
    cells = _write_transposed(cells, cost, start, begin=table.cell(free, 0))
    lengths = (lax.dynamic_slice_in_dim(x, start, chunk) for x in (ref_len + free, gen_len))
    return cells, _sweep(cells, *lengths, table=table, free=free)

  # The cells are carried from chunk to chunk, so that they stay in the cache and the margins are
  # filled once.
  cells = jnp.full((table.size, chunk), jnp.inf)
  cells = cells.at[table.cell(0, 0) : table.cell(free, 0)].set(0)
  _, total = lax.scan(chunk_total, cells, jnp.arange(0, len(cost), chunk))
  return total.reshape(-1)


@dataclasses.dataclass(frozen=True)
class _Table:
  """The memory layout of a matrix and of its anti-diagonals.

  - Diagonal k has the cells (i, k - i). In its array, row i is at place i - k // 2 + before.
  - A cell's diagonal neighbour, in diagonal k + 2, has the same place. So the array of a diagonal
    can overwrite that of the last but one.
  - The other two neighbours, in diagonal k + 1, have the same place and the next one (k even) or
    the one before (k odd).
  - A place outside the rows of the matrix reads +inf from a margin. A place outside the columns
    reads another cell, from which no path leads back into the matrix.
  """

  rows: int
  columns: int

  @property
  def halves(self) -> int:
    """Number of pairs of an even and an odd diagonal."""
    return (self.rows + self.columns) // 2

  @property
  def before(self) -> int:
    """Number of places, and of margin rows, before the first row."""
    return (self.columns - 1) // 2

  @property
  def places(self) -> int:
    """Number of places in a diagonal."""
    return self.before + self.rows // 2 + 1

  @property
  def span(self) -> int:
    """Number of cells in memory from the first to the last place of a diagonal."""
    return (self.places - 1) * (self.columns - 1) + 1

  @property
  def size(self) -> int:
    """Number of cells in memory, margins included."""
    last = 2 * self.halves - 1
    return self.cell(last // 2 - self.before, 0) + last + self.span

  def cell(self, row: Index, column: Index) -> Index:
    """The index of a cell in memory."""
    return (self.before + row) * self.columns + column


def _write_transposed(
  cells: Float[Array, "cells chunk"],
  cost: Float[Array, "pairs ref gen"],
  start: Int[Array, ""],
  *,
  begin: int,
) -> Float[Array, "cells chunk"]:
  """Writes the costs of a chunk of pairs into `cells`, with the pairs on the minor axis.

  start: the first pair of the chunk.
  begin: the first cell to write.

  A few pairs are transposed at a time: a plain transpose of the chunk would load each cache line
  once for each of its floats.
  """
  _, ref, gen = cost.shape
  group = math.gcd(cells.shape[1], _TRANSPOSED_PAIRS)

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
  """Cost of the cheapest path from the first cell to the last valid cell.

  free: to any cell of the last valid row.
  """
  chunk = cells.shape[1]
  place = jnp.arange(table.places)[:, None]
  final = ref_len + gen_len - 2  # the diagonal of the last valid cell
  # The k // 2 at which a place holds the last valid row, and the k at which it holds the last valid
  # cell.
  last_row = ref_len - 1 + table.before - place
  last_cell = jnp.where(last_row == final // 2, final, -1)

  def diagonal(k, near, far, corner):
    half = k // 2
    begin = table.cell(half - table.before, k - (half - table.before))
    cell = lax.dynamic_slice(cells, (begin, 0), (table.span, chunk))[:: table.columns - 1]
    ends = (last_row == half) & (k <= final) if free else last_cell == k
    return cell + jnp.where(ends, 0.0, _minimum(_minimum(near, far), corner))

  def step(t, state):
    even, odd = state
    k = 2 * (table.halves - 1 - t)
    odd = diagonal(k + 1, even, jnp.concatenate([edge, even])[:-1], odd)
    # Concatenate, then slice. The other way round XLA fuses the two diagonals and computes cells
    # several times.
    even = diagonal(k, odd, jnp.concatenate([odd, edge])[1:], even)
    return even, odd

  edge = jnp.full((1, chunk), jnp.inf)
  unreachable = jnp.full((table.places, chunk), jnp.inf)
  even, _ = lax.fori_loop(0, table.halves, step, (unreachable, unreachable))
  return even[table.before]
