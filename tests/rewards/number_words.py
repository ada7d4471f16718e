"""Random numbers in English words, for tests of how they are read."""

import random

ONES = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEENS = ("ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "seventeen", "nineteen")
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def write(rng: random.Random) -> str:
  """A number in words: up to billions, perhaps negative or a percentage."""
  scales = [scale for scale in (" billion", " million", " thousand", "") if rng.random() < 0.5]
  number = " ".join(f"{_below_thousand(rng)}{scale}" for scale in scales)
  if number in ("", "one"):  # Whisper's normalizer leaves the word "one" as it is
    number = "zero"
  return f"{rng.choice(('', '', 'minus '))}{number}{rng.choice(('', '', ' percent'))}"


def _below_thousand(rng: random.Random) -> str:
  two_words = f"{rng.choice(TENS)} {rng.choice(ONES)}"
  small = rng.choice((rng.choice(ONES), rng.choice(TEENS), rng.choice(TENS), two_words))
  hundreds = f"{rng.choice(ONES)} hundred"
  return rng.choice((small, hundreds, f"{hundreds} and {small}", f"{hundreds} {small}"))
