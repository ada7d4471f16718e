import random

import pytest

from vr_jax.rewards import stemmer


def test_stems_are_those_of_the_stored_reference(golden):
  assert [(word, stemmer.stem(word)) for word, _ in golden["stems"]] == [
    (word, stem) for word, stem in golden["stems"]
  ]


def test_stems_of_fresh_random_words_equal_nltk():
  porter = pytest.importorskip("nltk.stem.porter", reason="the reference is not installed")
  reference = porter.PorterStemmer()
  rng = random.Random()
  ends = [
    "",
    "ed",
    "ing",
    "ies",
    "ational",
    "fulness",
    "logi",
    "alli",
    "ement",
    "ion",
    "ll",
    "eed",
    "y",
  ]
  for _ in range(5000):
    root = "".join(rng.choice("aeiouybcdlstwxz0") for _ in range(rng.randint(0, 7)))
    word = root + rng.choice(ends) + rng.choice(ends)
    assert stemmer.stem(word) == reference.stem(word), word


def test_a_word_of_a_hundred_thousand_letters_is_stemmed():
  assert stemmer.stem("y" * 100_000 + "ing")
