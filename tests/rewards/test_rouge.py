import random

import jax.numpy as jnp
import numpy as np
import pytest

from vr_jax.rewards import ragged_batches, rouge, words


def padded(texts, length=None):
  rows = ragged_batches.RaggedRows(texts)
  width = int(rows.lengths.max(initial=0)) if length is None else length
  return rows.pad(np.arange(len(texts)), width, len(texts))


def ids(texts, length=None):
  vocabulary = words.Vocabulary()
  return padded([vocabulary.ids(text) for text in texts], length)


def scores(first, second):
  rows = ids([*first, *second])
  return np.stack(rouge.rouge(rows[: len(first)], rows[len(first) :]), axis=-1)


def test_scores_are_those_of_the_stored_reference(golden):
  first, second, expected = zip(*golden["rouge"], strict=True)
  np.testing.assert_allclose(scores(first, second), expected, atol=1e-6)


def test_scores_of_other_scripts_are_those_of_rouge_score_with_berts_words(golden):
  first, second, expected = zip(*golden["rouge_of_other_scripts"], strict=True)
  np.testing.assert_allclose(scores(first, second), expected, atol=1e-6)


def test_scores_of_fresh_random_texts_equal_rouge_score():
  scorer_lib = pytest.importorskip(
    "rouge_score.rouge_scorer", reason="the reference is not installed"
  )
  scorer = scorer_lib.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
  rng = random.Random()
  vocabulary = [
    f"{root}{end}" for root in ("mov", "turn", "x", "grow") for end in ("", "ing", "ed", "s")
  ]
  texts = [
    " ".join(rng.choices(vocabulary, k=rng.choice((0, 1, 3, 20, 32, 70)))) for _ in range(128)
  ]
  expected = [
    [score.fmeasure for score in scorer.score(a, b).values()]
    for a, b in zip(texts[:64], texts[64:], strict=True)
  ]
  np.testing.assert_allclose(
    scores(texts[:64], texts[64:]), expected, atol=1e-6, err_msg=str(texts)
  )


def test_a_text_against_itself_scores_one_and_against_other_words_zero():
  np.testing.assert_array_equal(
    scores(["red blue", "red"], ["red blue", "blue"]), [[1, 1, 1], [0, 0, 0]]
  )


def test_counts_are_clipped_and_order_matters_to_the_subsequence():
  one, two, in_order = scores(["red red red blue"], ["blue red"])[0]
  assert (one, two, in_order) == pytest.approx((4 / 6, 0, 2 / 6))


def test_a_text_without_words_scores_zero():
  np.testing.assert_array_equal(scores(["", "", "..."], ["", "red", "red"]), 0)


def test_more_padding_changes_nothing():
  texts = ["red red blue", "blue red", "green", "red blue green red"]
  narrow, wide = ids(texts), ids(texts, 80)
  for a, b in zip(
    rouge.rouge(narrow[:2], narrow[2:]), rouge.rouge(wide[:2], wide[2:]), strict=True
  ):
    np.testing.assert_array_equal(a, b)


def test_leading_axes_broadcast_and_may_be_absent():
  rows = ids(["red blue", "blue", "green red", "red", "blue green"])
  single = rouge.rouge(rows[0], rows[1])
  assert single.rouge1.shape == () and single.rouge1 == pytest.approx(2 / 3)
  assert rouge.rouge(rows[None, :2], rows[2:, None]).rouge_l.shape == (3, 2)
  assert rouge.rouge(rows[:0], rows[:0]).rouge2.shape == (0,)


def test_step_pairs_score_every_reference_step_against_every_generated_step():
  rows = jnp.asarray(ids(["red blue", "blue", "green red", "red", "blue green"]))
  pairs = rouge.step_pairs(rows[None, :2], rows[None, 2:])
  assert pairs.rouge1.shape == (1, 2, 3)
  for i in range(2):
    for j in range(3):
      assert pairs.rouge1[0, i, j] == rouge.rouge(rows[i], rows[2 + j]).rouge1


def test_mean_f1_of_texts_of_all_lengths_is_the_mean_of_the_three():
  rng = random.Random(0)
  lengths = [0, 1, 5, 40, 40, 200, 700]
  texts = [np.array(rng.choices(range(9), k=length), np.int32) for length in lengths]
  first, second = (index.ravel() for index in np.meshgrid(range(7), range(7)))
  together = rouge.rouge(padded(texts)[first], padded(texts)[second])
  np.testing.assert_allclose(
    rouge.mean_f1(texts, first, second), np.mean(together, axis=0), atol=1e-6
  )


def test_after_warm_up_batches_of_other_sizes_compile_nothing():
  rng = np.random.default_rng(0)

  def score(pairs, longest):
    texts = [rng.integers(0, 9, rng.integers(0, longest)).astype(np.int32) for _ in range(20)]
    index = rng.integers(0, 20, (2, pairs))
    rouge.mean_f1(texts, index[0], index[1])

  for pairs in (1, 60):
    score(pairs, 30)
  compiled = rouge._mean._cache_size()
  for pairs, longest in ((1, 5), (2, 9), (33, 32), (64, 17)):
    score(pairs, longest)
  assert rouge._mean._cache_size() == compiled


def test_a_reference_of_one_word_is_scored_without_its_pairs():
  texts = [words.Vocabulary().ids("红")] * 2 + [np.array([0, 1], np.int32)]
  compared = rouge.reference_f1(texts, np.array([1, 2, 0]), np.array([0, 0, 2]))
  np.testing.assert_allclose(compared, [1, 2 / 3, (2 / 3 + 0 + 2 / 3) / 3], atol=1e-6)
