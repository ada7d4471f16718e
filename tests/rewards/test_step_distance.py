"""Distances of steps by embeddings, and the default's bits."""

import numpy as np

from vr_jax.rewards import process, rouge, step_distance, words

VECTORS = {"a": [1, 0, 0], "b": [0, 1, 0], "c": [0.6, 0.8, 0], "d": [-1, 0, 0], "z": [0, 0, 0]}


class Table:
  """An embedder that knows a few texts, and notes what it is asked."""

  def __init__(self):
    self.asked = []

  def __call__(self, texts):
    self.asked.append(list(texts))
    return np.array([VECTORS[text[0]] for text in texts], np.float32)


def test_embeddings_are_apart_by_their_cosine_and_a_copy_is_at_0():
  distances = step_distance.EmbeddingDistance(Table()).prepare(["a", "b", "c", "d", "z"])
  found = distances(np.array([0, 0, 0, 0, 0, 4]), np.array([0, 1, 2, 3, 4, 4]))
  np.testing.assert_allclose(found, [0, 1, 0.4, 1, 1, 0], atol=1e-6)


def test_many_pairs_are_those_of_few():
  distances = step_distance.EmbeddingDistance(Table()).prepare(["a", "c"])
  count = step_distance._CHUNK + 3
  found = distances(np.zeros(count, int), np.arange(count) % 2)
  np.testing.assert_allclose(found, 0.4 * (np.arange(count) % 2), atol=1e-6)


def test_a_batch_asks_the_embedder_once_with_each_text_once():
  table = Table()
  replies = ["<think>a. b.</think>", "<think>a. c.</think>", "no trace"]
  scored = process.process_reward(
    replies, [["a.", "b."]] * 3, distance=step_distance.EmbeddingDistance(table)
  )
  (asked,) = table.asked
  assert sorted(asked) == ["a.", "b.", "c."]
  np.testing.assert_allclose(scored.reward, [1, np.exp(-(1 - 0.8) / 2), 0], rtol=1e-6)


def test_the_default_costs_are_those_of_rouge_to_the_bit():
  texts = ["At 0s, the circle is red.", "The circle turns green at 2s.", "red", "…", "So it goes."]
  vocabulary = words.Vocabulary()
  ids = [vocabulary.ids(text) for text in texts]
  first, second = (x.reshape(-1) for x in np.mgrid[: len(texts), : len(texts)])
  expected = np.clip(1 - rouge.reference_f1(ids, second, first), 0, 1)
  found = process.ROUGE.prepare(texts)(first, second)
  np.testing.assert_array_equal(found, expected)
  assert found.dtype == np.float32
