import pytest

from vr_jax.rewards import words

TEXTS = [
  "The Circle's moving!",
  "naïve Straße ＡＢ İK",
  "",
  "a_b-c\x00d 2.5s",
  "\ud800x",
  "ﬁ ﬂag ſky",
]


def test_words_are_lower_case_letters_and_digits():
  assert words.split_words("At 2.5s, the Circle's RED") == [
    b"at",
    b"2",
    b"5s",
    b"the",
    b"circle",
    b"s",
    b"red",
  ]


def test_words_with_one_stem_share_an_id_and_others_do_not():
  ids = words.Vocabulary().ids("moving moves moved mover")
  assert ids[0] == ids[1] == ids[2] != ids[3]


def test_a_word_of_three_letters_is_not_stemmed():
  assert len(set(words.Vocabulary().ids("his hi"))) == 2


@pytest.mark.parametrize("text", TEXTS)
def test_words_of_odd_texts_equal_rouge_score(text):
  tokenize = pytest.importorskip("rouge_score.tokenize", reason="the reference is not installed")
  assert [word.decode() for word in words.split_words(text)] == tokenize.tokenize(text, None)
