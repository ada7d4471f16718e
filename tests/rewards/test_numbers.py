"""How the numbers of answers are read; the reference for words is Whisper's normalizer."""

from fractions import Fraction
import random

import pytest

from tests.rewards import number_words
from vr_jax.rewards import numbers


@pytest.mark.parametrize(
  ("text", "value", "unit"),
  [
    ("3", 3, ""),
    (" 3. ", 3, ""),
    ("-2.50", "-2.5", ""),
    ("−5", -5, ""),
    (".5", "0.5", ""),
    ("1e3", 1000, ""),
    ("1,000", 1000, ""),
    ("1,234,567.5", "1234567.5", ""),
    ("12,34,567", 1234567, ""),
    ("1 000 000", 1000000, ""),
    ("1\u202f000", 1000, ""),
    ("1'000", 1000, ""),
    ("1.234", "1.234", ""),
    ("1/2", "1/2", ""),
    ("1 1/2", "3/2", ""),
    ("½", "1/2", ""),
    ("1½", "3/2", ""),
    ("-3/4", "-3/4", ""),
    ("50%", 50, "%"),
    ("50 ％", 50, "%"),
    ("fifty per cent", 50, "%"),
    ("$5", 5, "$"),
    ("-$5.50", "-5.5", "$"),
    ("5 $", 5, "$"),
    ("US$5", 5, "US$"),
    ("USD 5", 5, "USD"),
    ("$2.5 million", 2500000, "$"),
    ("€1,000", 1000, "€"),
    ("three", 3, ""),
    ("Three.", 3, ""),
    ("minus twenty-one", -21, ""),
    ("one hundred and five kg", 105, "kg"),
    ("three point one four", "3.14", ""),
    ("two million three hundred thousand", 2300000, ""),
    ("3 balls", 3, "balls"),
    ("3 Balls", 3, "balls"),
    ("5 m²", 5, "m²"),
    ("20°C", 20, "°C"),
    ("10 km/h", 10, "km/h"),
    ("3rd", 3, "rd"),
    ("5 fluid ounces", 5, "fluid ounces"),
    ("٣٫٥", "3.5", ""),
    ("१२", 12, ""),
    ("๑๒", 12, ""),
    ("１２", 12, ""),
    ("3个", 3, "个"),
    ("\u200f12\u200e", 12, ""),
    ("0", 0, ""),
    ("zero", 0, ""),
  ],
)
def test_forms_with_one_meaning_are_read(text, value, unit):
  found = numbers.read_number(text)
  assert found is not None and (found.value, found.unit) == (Fraction(value), unit)


@pytest.mark.parametrize(
  "text",
  [
    *("", "N/A", "none", "unknown", "x", "third", "nan", "inf", "e5", "hundred", "a dozen"),
    *("3,5", "1.000,50", "0,500", "12,34", "1,0000", "1.000.000", "1,00", "1 00"),
    *("1/0", "1/2/3", "5²", "12:30", "2-3", "1.2.3", "5..", "5!", "1_0", "0x10", "3 + 4"),
    *("3 or 4", "3 or four", "three or four", "one two", "twenty thirty", "two thirds", "3 to 5"),
    *("three million two million", "three point", "one hundred and", "about 5", "~5", "≈5"),
    *("1e9999", "9" * 350, "9" * 500_000, "1" + " " * 500_000, "5 of the twelve red balls here"),
    "$5 kg",
  ],
)
def test_forms_with_no_or_several_meanings_are_not_read(text):
  assert numbers.read_number(text) is None


@pytest.mark.parametrize("text", ["3.0", "0.5", "1/2", "2.50%", "3.00 kg", "3.5 million kg"])
def test_decimals_are_numbers_with_a_point_or_that_are_not_whole(text):
  found = numbers.read_number(text)
  assert found is not None and found.is_decimal == ("million" not in text)


def test_every_number_in_words_is_read_as_it_was_stored(golden):
  for text, digits in golden["numbers"]:
    found = numbers.read_number(text)
    assert found is not None and found.value == Fraction(digits), text


def test_fresh_numbers_in_words_are_read_as_by_whisper():
  reference = pytest.importorskip(
    "transformers.models.whisper.english_normalizer", reason="the reference is not installed"
  )
  normalizer, rng = reference.EnglishNumberNormalizer(), random.Random()
  for _ in range(300):
    text = number_words.write(rng)
    found = numbers.read_number(text)
    assert found is not None and found.value == Fraction(normalizer(text).rstrip("%")), text
