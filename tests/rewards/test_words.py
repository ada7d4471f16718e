import unicodedata

import pytest

from tests.rewards import scripts
from vr_jax.rewards import words

TEXTS = ["The Circle's moving!", "", "a_b-c\x00d 2.5s", "\ud800x", "“red” — it’s ±3°"]


def test_words_are_lower_case_letters_and_digits():
  assert words.split_words("At 2.5s, the Circle's RED") == [
    "at",
    "2",
    "5s",
    "the",
    "circle",
    "s",
    "red",
  ]


def test_words_with_one_stem_share_an_id_and_others_do_not():
  ids = words.Vocabulary().ids("moving moves moved mover")
  assert ids[0] == ids[1] == ids[2] != ids[3]


def test_a_word_of_three_letters_is_not_stemmed():
  assert len(set(words.Vocabulary().ids("his hi"))) == 2


@pytest.mark.parametrize("text", TEXTS)
def test_words_of_texts_with_ascii_letters_equal_rouge_score(text):
  tokenize = pytest.importorskip("rouge_score.tokenize", reason="the reference is not installed")
  assert words.split_words(text) == tokenize.tokenize(text, None)


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("红色 3", "红 色 3"),
    ("红a1色b", "红 a1 色 b"),
    ("Может быть, ДА!", "может быть да"),
    ("STRASSE Straße", "strasse strasse"),
    ("لون أحمر، ٣", "لون أحمر ٣"),
    ("日本語のテスト。", "日 本 語 の テ ス ト"),
    ("ｶﾞﾗｽ", "ガ ラ ス"),
    ("ที่นี่", "ที่ นี่"),
    ("मैं हिन्दी में", "मैं हिन्दी में"),
    ("한국어 텍스트", "한국어 텍스트"),
    ("ＡＢ１２", "ab12"),
    ("ﬁ ﬂag ſky m²", "fi flag sky m2"),
    ("می\u200cخواهم", "میخواهم"),
    ("re\u00admove \u200b\ufeffit", "remove it"),
    ("👍 → !", ""),
  ],
)
def test_words_of_other_scripts_are_words_and_characters_where_there_are_no_spaces(text, expected):
  assert words.split_words(text) == unicodedata.normalize("NFKC", expected).split()


@pytest.mark.parametrize("language", ["Chinese", "Russian", "Arabic", "Hindi", "French", "Korean"])
def test_words_of_other_scripts_equal_those_of_bert(language):
  for text in scripts.SENTENCES[language]:
    assert words.split_words(text) == scripts.BertWords().tokenize(text)


def test_words_of_japanese_are_its_graphemes():
  regex = pytest.importorskip("regex", reason="the reference is not installed")
  for text in scripts.SENTENCES["Japanese"]:
    expected = [each for each in regex.findall(r"\X", text) if each.isalnum()]
    assert words.split_words(text) == expected


def test_words_as_written_keep_case_and_punctuation():
  written = words.split_written_words("Exit ４: 出口，左。 Ｅxit")
  assert written == ["Exit", "4:", "出", "口", ",", "左", "。", "Exit"]
