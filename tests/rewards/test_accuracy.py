import random
import unicodedata

import numpy as np
import pytest

from tests.rewards import scripts
from vr_jax import errors, records
from vr_jax.rewards import accuracy

OPTIONS = ("A. blue", "B. Dark red", "C. green")


def score(given, answer, problem_type, options=()):
  return accuracy.accuracy(
    f"<think>…</think>\n<answer>{given}</answer>", answer, problem_type, options
  )


@pytest.mark.parametrize(
  ("reply", "answer"),
  [
    ("<think>x</think><answer> B\n</answer>", "B"),
    ("<answer>A</answer> no, <answer>B</answer>", "B"),
    ("<answer>A<answer>B</answer>", "B"),
    ("<answer>A</answer><answer>B", "A"),
    ("<answer></answer>", ""),
    ("</answer>B<answer>", None),
    ("B", None),
    ("", None),
  ],
)
def test_the_answer_is_what_the_last_complete_block_holds(reply, answer):
  assert accuracy.answer_text(reply) == answer


@pytest.mark.parametrize(
  "given",
  [
    "B",
    "b",
    "B.",
    "(B)",
    "(b).",
    "B)",
    "B:",
    "B. Dark red",
    "(B) anything",
    "dark  RED",
    "Dark red.",
  ],
)
def test_a_choice_is_named_by_its_letter_or_its_text(given):
  assert score(given, "B", "multiple choice", OPTIONS) == 1
  assert score(given, "B. Dark red", "multiple choice", OPTIONS) == 1


@pytest.mark.parametrize(
  "given", ["A", "D", "AB", "B or C", "A dark red", "the dark red one", "red", "", "B red"]
)
def test_a_choice_that_is_not_named_so_earns_nothing(given):
  assert score(given, "B", "multiple choice", OPTIONS) == 0


def test_options_without_letters_are_lettered_in_order():
  assert accuracy.option_letter("green", ("red", "green")) == "B"
  assert accuracy.option_letter("b.", ("red", "green")) == "B"
  assert accuracy.option_letter("C", ("red", "green")) is None


def test_options_keep_their_own_letters():
  assert accuracy.option_letter("green", ("F) red", "G) green")) == "G"
  assert accuracy.option_letter("A", ("F) red", "G) green")) is None


def test_a_text_that_two_options_share_names_neither():
  assert accuracy.option_letter("red", ("A. red", "B. red")) is None


def test_without_options_any_letter_is_a_letter():
  assert accuracy.option_letter("(d)") == "D"
  assert accuracy.option_letter("red") is None


@pytest.mark.parametrize(
  ("given", "answer", "expected"),
  [
    ("3", "3", 1),
    ("3.", "3", 1),
    ("+3", "3", 1),
    ("1,234", "1234", 1),
    ("1,234.50", "1234.5", 1),
    ("0.333", "0.33", 1),
    (".5", "0.50", 1),
    ("1e2", "100", 1),
    ("0.34", "0.33", 0),
    ("3.0", "3", 0),
    ("3", "3.0", 0),
    ("12,34", "1234", 0),
    ("three", "3", 1),
    ("3 balls", "3", 0),
    ("3 balls", "3 balls", 1),
    ("4 balls", "3 balls", 0),
    ("3 kg", "3 m", 0),
    ("٣", "3", 1),
    ("９", "9", 1),
    ("50%", "50 percent", 1),
    ("50%", "0.5", 1),
    ("0.5", "1/2", 1),
    ("60%", "50%", 0),
    ("50", "50%", 0),
    ("12.4%", "12.3%", 0),
    ("$5", "$5", 1),
    ("€5", "$5", 0),
    ("3,5", "3.5", 0),
    ("9007199254740993", "9007199254740992", 0),
    ("nan", "nan", 0),
    ("1e9999", "1e9999", 0),
    ("e5", "1", 0),
    ("3", "N/A", 0),
    ("N/A", "N/A", 0),
  ],
)
def test_numbers_are_equal_at_two_decimals(given, answer, expected):
  assert score(given, answer, "numerical") == expected


@pytest.mark.parametrize(
  ("given", "answer", "expected"),
  [
    ("10", "10", 1),
    ("9", "10", 0.9),
    ("-10", "10", 0),
    ("12.5", "-10", 0),
    ("0", "0", 1),
    ("1", "0", 0),
    ("x", "1", 0),
    ("9 kg", "10 kg", 0.9),
    ("9 kg", "10 m", 0),
    ("45%", "50%", 0.9),
    ("0.45", "50%", 0.9),
  ],
)
def test_regression_pays_by_relative_error(given, answer, expected):
  assert score(given, answer, "regression") == pytest.approx(expected)


@pytest.mark.parametrize(
  ("given", "answer", "expected"),
  [
    ("exit to  the left", "exit to the left", 1),
    ("exit the left", "exit to the left", 0.75),
    ("exit to the right now", "exit to the left", 0.5),
    ("Exit", "exit", 0),
    ("a b c d e f", "exit now", 0),
    ("x", "", 0),
    ("小心地滑", "小心地滑", 1),
    ("小心地板", "小心地滑", 0.75),
    ("Ausgang １２", "Ausgang 12", 1),
    ("Cafe\u0301", "Caf\u00e9", 1),
  ],
)
def test_ocr_pays_by_word_error_rate(given, answer, expected):
  assert score(given, answer, "OCR") == pytest.approx(expected)


def test_word_edits_equal_the_textbook_table():
  rng = random.Random(0)
  for _ in range(200):
    a, b = ([rng.choice("xyz") for _ in range(rng.randint(1, 9))] for _ in range(2))
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    table[:, 0], table[0] = range(len(a) + 1), range(len(b) + 1)
    for i, j in np.ndindex(len(a), len(b)):
      table[i + 1, j + 1] = min(
        table[i, j] + (a[i] != b[j]), table[i, j + 1] + 1, table[i + 1, j] + 1
      )
    expected = max(0, 1 - table[-1, -1] / len(a))
    assert score(" ".join(b), " ".join(a), "OCR") == pytest.approx(expected), (a, b)


def test_a_free_form_answer_of_one_word_is_worth_all_or_its_share():
  assert score("Red.", "red", "free-form") == 1
  assert score("blue", "red", "free-form") == 0
  assert score("red circle", "red", "free-form") == pytest.approx(2 / 3)


def test_free_form_pays_the_mean_of_three_rouge_scores():
  one, two, in_order = 2 * 2 / 5, 2 * 1 / 3, 2 * 2 / 5
  expected = (one + two + in_order) / 3
  assert score("Red circle", "red circles moving", "free-form") == pytest.approx(expected)
  assert score("red circle", "red circle", "free-form") == 1


@pytest.mark.parametrize(
  ("given", "answer", "expected"),
  [
    ("红色 3", "红色 3", 1),
    ("红色 3", "蓝色 3", (2 / 3 + 1 / 2 + 2 / 3) / 3),
    ("красный круг", "синий круг", (1 / 2 + 0 + 1 / 2) / 3),
    ("КРАСНЫЙ", "красный.", 1),
    ("красный", "синий", 0),
    ("caf\u00e9", "cafe\u0301", 1),
    ("café", "cafe", 0),
    ("１２", "12", 1),
    ("👍", "👍", 0),
  ],
)
def test_free_form_answers_in_other_scripts_are_compared_by_their_words(given, answer, expected):
  assert score(given, answer, "free-form") == pytest.approx(expected)


@pytest.mark.parametrize("language", scripts.SENTENCES)
@pytest.mark.parametrize("problem_type", ["free-form", "OCR"])
def test_in_every_language_the_right_answer_earns_one_and_another_less(language, problem_type):
  right, wrong = scripts.SENTENCES[language]
  for form in ("NFC", "NFD"):
    assert score(unicodedata.normalize(form, right), right, problem_type) == 1
  assert score(wrong, right, problem_type) < 0.7
  assert score(f"{right} {wrong}", right, problem_type) < 1


def test_letters_of_options_may_be_wide_and_stand_before_a_chinese_comma():
  assert accuracy.option_letter("Ｂ", ("A、红", "B、蓝")) == "B"
  assert accuracy.option_letter("蓝", ("A、红", "B、蓝")) == "B"
  assert accuracy.option_letter("B、蓝", ("Ａ．红", "Ｂ．蓝")) == "B"


def test_without_an_answer_block_nothing_is_earned():
  assert accuracy.accuracy("B", "B", "multiple choice", OPTIONS) == 0


def test_an_unknown_problem_type_is_named():
  with pytest.raises(
    errors.InputError, match="problem type 'essay': unknown; use one of multiple choice"
  ):
    score("B", "B", "essay")


def test_replies_earn_together_what_each_earns_alone_and_texts_are_compared_in_one_go(monkeypatch):
  compared, mean = [], accuracy.rouge._mean
  monkeypatch.setattr(accuracy.rouge, "_mean", lambda *texts: compared.append(1) or mean(*texts))
  answers = {"multiple choice": "B", "numerical": "12", "OCR": "exit 4", "free-form": "dark red"}
  examples, replies = [], []
  for kind, right in answers.items():
    for given in (right, "a red door", "red", "", "12.0", None):
      replies.append("none" if given is None else f"<think>…</think>\n<answer>{given}</answer>")
      examples.append(_example(kind, right))
  examples.append(_example("free-form", "red"))
  replies.append("<answer>the red one</answer>")
  together = accuracy.accuracies(replies, examples)
  assert len(compared) == 1
  alone = [
    accuracy.accuracy(reply, example.answer, example.problem_type, example.options)
    for reply, example in zip(replies, examples, strict=True)
  ]
  np.testing.assert_array_equal(together, alone)
  assert 0 < together[-1] < 1 == together[0]
  assert accuracy.accuracies([], []).shape == (0,)


def _example(kind, answer):
  shown = records.Span(start=0.0, end=1.0)
  options = OPTIONS if kind == "multiple choice" else ()
  fields = {"answer": answer, "problem_type": kind, "options": options}
  return records.Example(id="e", video="v", question="q", shown=shown, **fields)
