import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vr_jax.rewards import dtw

MOVES = {
  "strict": ((1, 1),),
  "jump": ((1, 1), (1, 2)),
  "classic": ((1, 1), (1, 0), (0, 1)),
}


def paths(ref, gen, moves, starts):
  """Every path through a matrix from one of the starts to the last row."""
  stack = [[start] for start in starts]
  while stack:
    path = stack.pop()
    i, j = path[-1]
    if i == ref - 1:
      yield path
    stack += [[*path, (i + a, j + b)] for a, b in moves if i + a < ref and j + b < gen]


def cheapest(cost, moves):
  """Mean cost over all paths of a subsequence alignment, by enumeration."""
  ref, gen = cost.shape
  # Paths that move along the first or last row are included: they never cost less.
  every = paths(ref, gen, MOVES[moves], [(0, j) for j in range(gen)]) if ref else ()
  return min((sum(cost[cell] for cell in path) for path in every), default=np.inf) / max(ref, 1)


def cheapest_whole(cost):
  ref, gen = cost.shape
  every = paths(ref, gen, MOVES["classic"], [(0, 0)]) if ref and gen else ()
  ends = (path for path in every if path[-1] == (ref - 1, gen - 1))
  return min((sum(cost[cell] for cell in path) for path in ends), default=np.inf)


def random_batch(shape, pairs, seed=0):
  rng = np.random.default_rng(seed)
  cost = rng.random((pairs, *shape)).astype(np.float32)
  lengths = [rng.integers(0, size + 1, pairs).astype(np.int32) for size in shape]
  return cost, *lengths


SHAPES = [(1, 1), (1, 4), (4, 1), (2, 2), (3, 5), (5, 3), (4, 4)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("moves", MOVES)
def test_subsequence_distances_equal_enumeration(shape, moves):
  cost, ref, gen = random_batch(shape, 40)
  expected = [cheapest(c[:m, :n], moves) for c, m, n in zip(cost, ref, gen, strict=True)]
  np.testing.assert_allclose(dtw.subsequence_dtw(cost, ref, gen, moves), expected, rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_whole_distances_equal_enumeration(shape):
  cost, ref, gen = random_batch(shape, 40)
  expected = [cheapest_whole(c[:m, :n]) for c, m, n in zip(cost, ref, gen, strict=True)]
  np.testing.assert_allclose(dtw.dtw(cost, ref, gen), expected, rtol=1e-5)


def padded_costs(series):
  """|a - b| of pairs of series, padded with a number that would change the results."""
  lengths = np.array([[len(a), len(b)] for a, b in series], np.int32)
  cost = np.full((len(series), *lengths.max(axis=0)), -7, np.float32)
  for row, (a, b) in enumerate(series):
    cost[row, : len(a), : len(b)] = np.abs(np.subtract.outer(a, b))
  return cost, lengths[:, 0], lengths[:, 1]


def test_distances_are_those_of_the_stored_reference(golden):
  a, b, expected = zip(*golden["dtw"], strict=True)
  cost, len_a, len_b = padded_costs(list(zip(a, b, strict=True)))
  whole, part = np.transpose(expected)
  np.testing.assert_allclose(dtw.dtw(cost, len_a, len_b), whole, rtol=1e-5, atol=1e-6)
  found = dtw.subsequence_dtw(cost, len_a, len_b, "classic") * len_a
  np.testing.assert_allclose(found, part, rtol=1e-5, atol=1e-6)


def test_distances_of_fresh_random_series_equal_dtaidistance():
  reference = pytest.importorskip("dtaidistance.dtw", reason="the reference is not installed")
  seed = np.random.SeedSequence().entropy
  rng = np.random.default_rng(seed)
  series = [tuple(rng.random(rng.integers(1, 40)) for _ in range(2)) for _ in range(70)]
  cost, len_a, len_b = padded_costs(series)
  whole = [reference.distance_fast(a, b, inner_dist="euclidean") for a, b in series]
  np.testing.assert_allclose(
    dtw.dtw(cost, len_a, len_b), whole, rtol=1e-4, atol=1e-5, err_msg=str(seed)
  )
  part = [
    reference.distance_fast(a, b, inner_dist="euclidean", psi=(0, 0, len(b), len(b)))
    for a, b in series
  ]
  found = dtw.subsequence_dtw(cost, len_a, len_b, "classic") * len_a
  np.testing.assert_allclose(found, part, rtol=1e-4, atol=1e-5, err_msg=str(seed))


def all_distances(cost, ref, gen):
  return [dtw.dtw(cost, ref, gen), *(dtw.subsequence_dtw(cost, ref, gen, moves) for moves in MOVES)]


def test_what_lies_beyond_the_lengths_is_never_on_a_path():
  cost, ref, gen = random_batch((5, 6), 50)
  valid = (np.arange(5)[:, None] < ref[:, None, None]) & (np.arange(6) < gen[:, None, None])
  wide = np.pad(np.where(valid, cost, -1e6), ((0, 0), (0, 3), (0, 9)), constant_values=-1e6)
  for short, long in zip(
    all_distances(cost, ref, gen), all_distances(wide.astype(np.float32), ref, gen), strict=True
  ):
    np.testing.assert_allclose(short, long, rtol=1e-6)


def test_a_pair_does_not_depend_on_its_place_in_the_batch():
  cost, ref, gen = random_batch((7, 9), 131)
  for together, backwards in zip(
    all_distances(cost, ref, gen), all_distances(cost[::-1], ref[::-1], gen[::-1]), strict=True
  ):
    np.testing.assert_array_equal(together, backwards[::-1])


@pytest.mark.parametrize("batch", [(), (2, 3), (0,)], ids=str)
def test_the_batch_may_have_any_shape(batch):
  cost, ref, gen = random_batch((4, 5), int(np.prod(batch)))
  for flat, shaped in zip(
    all_distances(cost, ref, gen),
    all_distances(cost.reshape(*batch, 4, 5), ref.reshape(batch), gen.reshape(batch)),
    strict=True,
  ):
    assert shaped.shape == batch
    np.testing.assert_array_equal(flat, shaped.reshape(-1))


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)], ids=str)
def test_a_matrix_without_cells_has_no_path(shape):
  cost, lengths = np.zeros((2, *shape), np.float32), np.zeros(2, np.int32)
  for distance in all_distances(cost, lengths, lengths):
    np.testing.assert_array_equal(distance, np.inf)


def test_strict_and_jump_need_as_many_generated_steps_as_reference_steps():
  cost = np.zeros((1, 3, 3), np.float32)
  three, two = np.array([3], np.int32), np.array([2], np.int32)
  assert [float(d[0]) for d in all_distances(cost, three, two)] == [0, np.inf, np.inf, 0]


@pytest.mark.parametrize("free", [True, False])
def test_classic_totals_are_the_same_in_chunks_of_any_size(free):
  cost, ref, gen = map(jnp.asarray, random_batch((5, 6), 48))
  totals = [dtw._diagonals(chunk, cost, ref, gen, free=free) for chunk in (1, 8, 48)]
  np.testing.assert_array_equal(totals[0], totals[1])
  np.testing.assert_array_equal(totals[0], totals[2])


@pytest.mark.parametrize("moves", ["jump", "classic"])
def test_distances_are_the_same_inside_another_jit(moves):
  cost, ref, gen = random_batch((4, 6), 10)
  inside = jax.jit(lambda *args: dtw.subsequence_dtw(*args, moves) + 0)(cost, ref, gen)
  np.testing.assert_array_equal(inside, dtw.subsequence_dtw(cost, ref, gen, moves))


def test_tables_longer_than_one_unrolled_block_are_filled():
  cost, ref, gen = random_batch((70, 90), 3)
  for moves in MOVES:
    total = np.full((3, 70, 90), np.inf)
    for i in range(70):
      for j in range(90):
        before = [total[:, i - a, j - b] for a, b in MOVES[moves] if i >= a and j >= b]
        best = np.min(before, axis=0) if i and before else np.full(3, 0.0 if i == 0 else np.inf)
        total[:, i, j] = cost[:, i, j] + best
    expected = [
      total[p, m - 1, :n].min() / m for p, (m, n) in enumerate(zip(ref, gen, strict=True))
    ]
    np.testing.assert_allclose(dtw.subsequence_dtw(cost, ref, gen, moves), expected, rtol=1e-5)
