"""Whether two short texts, such as values of an attribute, may mean the same.

It errs towards "the same": a wrong option that is dropped costs little, one that is true makes the
question wrong.
"""

from collections.abc import Iterable
import functools

from vr_jax.rewards import stemmer, words

_FILL = frozenset(
  (
    *("a", "an", "the", "is", "are", "was", "be", "being", "very", "now", "its", "their", "his"),
    *("her", "of", "and"),
  )
)
# Words that mean about the same. Reconstruction: a short list of what captions say often.
_SAME = (
  ("grey", "gray", "silver"),
  ("large", "big", "huge"),
  ("small", "little", "tiny"),
  ("hidden", "covered", "invisible", "gone"),
  ("visible", "uncovered", "seen"),
  ("centre", "center", "middle"),
  ("violet", "purple"),
  ("moving", "going"),
  ("stationary", "still", "motionless", "parked", "stopped"),
  ("speaking", "talking"),
  ("running", "jogging"),
  ("closed", "shut"),
  ("woman", "lady"),
  ("man", "guy"),
)
_FIRST = {stemmer.stem(word): stemmer.stem(group[0]) for group in _SAME for word in group}


@functools.lru_cache(65536)
def content_words(text: str) -> tuple[str, ...]:
  """The stems of a text's words in order, without words that carry little; synonyms are one word.

  A text that consists of such words alone keeps them.
  """
  every = words.split_words(text)
  content = [word for word in every if word not in _FILL] or every
  stems = [stemmer.stem(word) if word.isascii() and len(word) > 3 else word for word in content]
  return tuple(_FIRST.get(stem, stem) for stem in stems)


def may_be_same(one: str, other: str) -> bool:
  """Whether two values may both be true at once, as far as their words tell.

  So it is if they have the same words, or one has all the words of the other: "red", "dark red".
  """
  first, second = set(content_words(one)), set(content_words(other))
  return not first or not second or first <= second or second <= first


def contains(text: str, phrase: str) -> bool:
  """Whether a text has the content words of a phrase, one behind the other."""
  wanted, found = content_words(phrase), content_words(text)
  length = len(wanted)
  return bool(wanted) and any(
    found[start : start + length] == wanted for start in range(len(found) - length + 1)
  )


def normalize(text: str) -> str:
  """A text's words in lower case with single spaces: what it is compared by."""
  return " ".join(words.split_words(text))


def shingles(texts: Iterable[str], length: int = 3) -> frozenset[tuple[str, ...]]:
  """The runs of `length` words of texts; a shorter text is one run."""
  found = set()
  for text in texts:
    each = words.split_words(text)
    found |= {tuple(each[i : i + length]) for i in range(max(1, len(each) - length + 1))}
  return frozenset(found)
