"""Porter's stemmer with the extensions of NLTK, which the rouge-score package takes its stems from.

Written here rather than imported: NLTK is a large tree that takes most of a second to import, for this one page of
rules; other packages' Porter stemmers know the published rules only and disagree on such words as "dying" or "enjoy".

Source: M. F. Porter, "An algorithm for suffix stripping", Program 14(3), 1980; NLTK's deviations, named where they are.
"""

import functools

_VOWELS = frozenset("aeiou")

_IRREGULAR = {  # NLTK
  "skies": "sky",
  "dying": "die",
  "lying": "lie",
  "tying": "tie",
  "innings": "inning",
  "outings": "outing",
  "cannings": "canning",
} | {
  word: word
  for word in ("sky", "news", "inning", "outing", "canning", "howe", "proceed", "exceed", "succeed")
}

_STEP_2 = {
  "ational": "ate",
  "tional": "tion",
  "enci": "ence",
  "anci": "ance",
  "izer": "ize",
  "bli": "ble",
  "alli": "al",
  "entli": "ent",
  "eli": "e",
  "ousli": "ous",
  "ization": "ize",
  "ation": "ate",
  "ator": "ate",
  "alism": "al",
  "iveness": "ive",
  "fulness": "ful",
  "ousness": "ous",
  "aliti": "al",
  "iviti": "ive",
  "biliti": "ble",
  "fulli": "ful",
}
_STEP_3 = {
  "icate": "ic",
  "ative": "",
  "alize": "al",
  "iciti": "ic",
  "ical": "ic",
  "ful": "",
  "ness": "",
}
_STEP_4 = dict.fromkeys(
  [
    "al",
    "ance",
    "ence",
    "er",
    "ic",
    "able",
    "ible",
    "ant",
    "ement",
    "ment",
    "ent",
    "ion",
    "ou",
    "ism",
    "ate",
    "iti",
    "ous",
    "ive",
    "ize",
  ],
  "",
)


@functools.lru_cache(maxsize=1 << 17)
def stem(word: str) -> str:
  """The stem of a lower-case word; total, linear in the word's length."""
  if word in _IRREGULAR:
    return _IRREGULAR[word]
  if len(word) <= 2:
    return word
  word = _final_y(_past(_plural(word)))
  word = _derivational(word)
  word = _replace_suffix(word, _STEP_3, above=0)
  if not word.endswith("ion") or word.endswith(("sion", "tion")):
    word = _replace_suffix(word, _STEP_4, above=1)
  return _tidy(word)


def _shape(word: str) -> str:
  """One "c" or "v" a letter; y is a consonant at the start and after a vowel."""
  shape = []
  previous = "v"
  for letter in word:
    if letter == "y":
      previous = "c" if previous == "v" else "v"
    else:
      previous = "v" if letter in _VOWELS else "c"
    shape.append(previous)
  return "".join(shape)


def _measure(word: str) -> int:
  """Porter's m: how many times a run of vowels is followed by consonants."""
  return _shape(word).count("vc")


def _ends_short(word: str) -> bool:
  """Consonant, vowel, consonant other than w, x, y; in NLTK also a word of just a vowel and a consonant."""
  shape = _shape(word)
  return (shape.endswith("cvc") and word[-1] not in "wxy") or shape == "vc"


def _replace_suffix(word: str, suffixes: dict[str, str], *, above: int) -> str:
  """Replaces the longest suffix that is known, if what stands before it measures more than `above`."""
  for length in range(7, 1, -1):
    suffix = word[-length:]
    if suffix in suffixes and len(word) >= length:
      rest = word[:-length]
      return rest + suffixes[suffix] if _measure(rest) > above else word
  return word


def _plural(word: str) -> str:
  """Step 1a."""
  if word.endswith("ies"):
    return word[:-1] if len(word) == 4 else word[:-2]  # NLTK: dies -> die, but flies -> fli
  if word.endswith("sses"):
    return word[:-2]
  if word.endswith("s") and not word.endswith("ss"):
    return word[:-1]
  return word


def _past(word: str) -> str:
  """Step 1b."""
  if word.endswith("ied"):
    return word[:-1] if len(word) == 4 else word[:-2]  # NLTK: died -> die, but spied -> spi
  if word.endswith("eed"):
    return word[:-1] if _measure(word[:-3]) > 0 else word
  for suffix in ("ed", "ing"):
    if word.endswith(suffix) and "v" in _shape(word[: -len(suffix)]):
      return _mend(word[: -len(suffix)])
  return word


def _mend(word: str) -> str:
  """What step 1b does to a word that has lost its -ed or -ing."""
  if word.endswith(("at", "bl", "iz")):
    return word + "e"
  shape = _shape(word)
  if shape.endswith("c") and word[-1:] == word[-2:-1]:
    return word if word[-1] in "lsz" else word[:-1]
  return word + "e" if shape.count("vc") == 1 and _ends_short(word) else word


def _final_y(word: str) -> str:
  """Step 1c, as NLTK has it: happy -> happi, but enjoy stays."""
  if word.endswith("y") and len(word) > 2 and _shape(word)[-2] == "c":
    return word[:-1] + "i"
  return word


def _derivational(word: str) -> str:
  """Step 2; NLTK treats -alli first and starts over, and measures -logi together with its l."""
  if word.endswith("alli") and _measure(word[:-4]) > 0:
    return _derivational(word[:-2])
  if word.endswith("logi"):
    return word[:-1] if _measure(word[:-3]) > 0 else word
  return _replace_suffix(word, _STEP_2, above=0)


def _tidy(word: str) -> str:
  """Step 5."""
  if word.endswith("e"):
    rest = word[:-1]
    measure = _measure(rest)
    if measure > 1 or (measure == 1 and not _ends_short(rest)):
      word = rest
  if word.endswith("ll") and _measure(word[:-1]) > 1:
    word = word[:-1]
  return word
