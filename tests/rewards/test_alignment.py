import itertools

import numpy as np
import pytest

from vr_jax.rewards import alignment, dtw


def lengths(cost):
  return (np.array(size, np.int32) for size in cost.shape)


def assert_steps_are_moves(path, moves):
  for (i, j), (row, column) in itertools.pairwise(path):
    assert (row - i, column - j) in dtw.MOVES[moves]


@pytest.mark.parametrize("moves", dtw.MOVES)
@pytest.mark.parametrize("seed", range(5))
def test_a_subsequence_path_costs_its_distance(moves, seed):
  cost = np.random.default_rng(seed).random((4, 7)).astype(np.float32)
  result = alignment.subsequence_path(cost, moves)
  assert [result.path[0][0], result.path[-1][0]] == [0, 3]
  assert_steps_are_moves(result.path, moves)
  assert sum(cost[cell] for cell in result.path) / 4 == pytest.approx(result.distance, rel=1e-6)
  distance = dtw.subsequence_dtw(cost, *lengths(cost), moves)
  assert result.distance == pytest.approx(float(distance), rel=1e-6)


@pytest.mark.parametrize("shape", [(4, 7), (7, 4), (1, 3), (3, 1)], ids=str)
def test_a_whole_path_costs_its_distance_and_joins_the_corners(shape):
  cost = np.random.default_rng(0).random(shape).astype(np.float32)
  result = alignment.whole_path(cost)
  assert result.path[0] == (0, 0) and result.path[-1] == (shape[0] - 1, shape[1] - 1)
  assert_steps_are_moves(result.path, "classic")
  assert sum(cost[cell] for cell in result.path) == pytest.approx(result.distance, rel=1e-6)
  assert result.distance == pytest.approx(float(dtw.dtw(cost, *lengths(cost))), rel=1e-6)


def test_where_no_alignment_exists_the_path_is_empty():
  for cost in (np.zeros((2, 0)), np.zeros((0, 2)), np.zeros((3, 2))):
    assert alignment.subsequence_path(cost, "jump") == alignment.Alignment(distance=np.inf, path=())
  assert alignment.whole_path(np.zeros((0, 2))).path == ()
