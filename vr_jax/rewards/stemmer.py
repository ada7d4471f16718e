"""Porter's stemmer with NLTK's extensions, as the rouge-score package uses it.

It is not imported from NLTK, since NLTK is large and takes most of a second to import. Other
packages have the published rules only and disagree on words such as "dying" or "enjoy".

Source: M. F. Porter, "An algorithm for suffix stripping", Program 14(3), 1980. NLTK's deviations
are marked in the code.
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
  """Returns the stem of a lower-case word. Accepts any string; linear in its length."""
  if word in _IRREGULAR:
    return _IRREGULAR[word]
  if len(word) <= 2:
    return word
  word = _final_y(_past(_plural(word)))
  word = _derivational(word)
  word = _replace_suffix(word, _STEP_3, above=0)
  if not word.endswith("ion") or word.endswith(("sion", "tion")):
    word = _replace_suffix(word, _STEP_4, above=1)
  return _final_e_and_l(word)


def _shape(word: str) -> str:
  """Marks each letter as consonant "c" or vowel "v"; y is a consonant first and after a vowel."""
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
  """Whether a word ends in consonant, vowel, consonant other than w, x, y.

  In NLTK a word of just a vowel and a consonant counts too.
  """
  shape = _shape(word)
  return (shape.endswith("cvc") and word[-1] not in "wxy") or shape == "vc"


def _replace_suffix(word: str, suffixes: dict[str, str], *, above: int) -> str:
  """Replaces the longest known suffix, if the measure of the rest is greater than `above`."""
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
      return _restore_ending(word[: -len(suffix)])
  return word


def _restore_ending(word: str) -> str:
  """The second half of step 1b: adjusts a word whose -ed or -ing was removed."""
  if word.endswith(("at", "bl", "iz")):
    return word + "e"
  shape = _shape(word)
  if shape.endswith("c") and word[-1:] == word[-2:-1]:
    return word if word[-1] in "lsz" else word[:-1]
  return word + "e" if shape.count("vc") == 1 and _ends_short(word) else word


def _final_y(word: str) -> str:
  """Step 1c in NLTK's version: happy -> happi, but enjoy stays."""
  if word.endswith("y") and len(word) > 2 and _shape(word)[-2] == "c":
    return word[:-1] + "i"
  return word


def _derivational(word: str) -> str:
  """Step 2. NLTK handles -alli first and starts again; for -logi it counts the l to the stem."""
  if word.endswith("alli") and _measure(word[:-4]) > 0:
    return _derivational(word[:-2])
  if word.endswith("logi"):
    return word[:-1] if _measure(word[:-3]) > 0 else word
  return _replace_suffix(word, _STEP_2, above=0)


def _final_e_and_l(word: str) -> str:
  """Step 5."""
  if word.endswith("e"):
    rest = word[:-1]
    measure = _measure(rest)
    if measure > 1 or (measure == 1 and not _ends_short(rest)):
      word = rest
  if word.endswith("ll") and _measure(word[:-1]) > 1:
    word = word[:-1]
  return word
