"""Finds duplicates and near-duplicates among questions, by normalized text.

A text is the set of its runs of three words. Two texts are similar if the Jaccard similarity of
these sets, |both| / |either|, reaches a threshold. Questions are near-duplicates if they are
similar as a whole and step by step: one value that differs makes another question. Candidates come
from MinHash with bands, so not every pair is compared; those found are compared exactly.

Source: Broder, "On the resemblance and containment of documents", 1997.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import hashlib
from typing import Any

from jaxtyping import UInt64
import numpy as np

from vr_jax.traces.construct import equivalence

# A pair of similarity 0.9 shares a band with probability 1 - (1 - 0.9^4)^32 > 1 - 1e-14; at 0.7
# still 0.9999.
_BANDS, _ROWS = 32, 4
_FACTORS = np.random.default_rng(0).integers(1, 2**63, (2, _BANDS * _ROWS), dtype=np.uint64)

Record = Mapping[str, Any]  # a line of our annotations


def find(
  questions: Sequence[Record], video_of: Callable[[str], str], threshold: float
) -> Iterator[tuple[int, str, str]]:
  """Yields (index, reason, detail) of each question that repeats an earlier one that is kept.

  A duplicate has the same question, options in any order, and steps, but for case and punctuation.
  Of one video a near-duplicate has a similar question and answer, whatever its trace; elsewhere the
  question with its options has to be similar, and each step.

  video_of: maps a video to the one that it is a copy of.
  threshold: least Jaccard similarity of near-duplicates, in [0, 1].
  """
  exact: dict[str, str] = {}
  near_texts = _SimilarTexts(threshold)
  of_video: dict[str, list[tuple[str, frozenset]]] = {}
  for index, question in enumerate(questions):
    key = _exact_key(question)
    if key in exact:
      yield index, "duplicate", f"as {exact[key]}"
      continue
    asked = equivalence.shingles([f"{question['question']} {_right(question)}"])
    others = of_video.setdefault(video_of(question["video"]), [])
    similar = next((name for name, other in others if _jaccard(asked, other) >= threshold), None)
    text = _Text(
      name=question["id"],
      whole=equivalence.shingles(_texts(question)),
      steps=tuple(equivalence.shingles([step["text"]]) for step in question["steps"]),
    )
    similar = similar or near_texts.find(text)
    if similar:
      yield index, "near-duplicate", f"as {similar}"
      continue
    exact[key] = question["id"]
    others.append((question["id"], asked))
    near_texts.add(text)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Text:
  """Runs of words of a question: of all of it, and of each step."""

  name: str
  whole: frozenset
  steps: tuple[frozenset, ...]


class _SimilarTexts:
  """Texts, to find one that is similar to another."""

  def __init__(self, threshold: float):
    self._threshold = threshold
    self._bands: dict[bytes, list[int]] = {}
    self._kept: list[_Text] = []

  def find(self, text: _Text) -> str | None:
    """The name of the first similar text; None if there is none."""
    candidates = {place for band in _bands(text.whole) for place in self._bands.get(band, ())}
    for place in sorted(candidates):
      if self._is_similar(text, self._kept[place]):
        return self._kept[place].name
    return None

  def add(self, text: _Text) -> None:
    """Adds a text."""
    for band in _bands(text.whole):
      self._bands.setdefault(band, []).append(len(self._kept))
    self._kept.append(text)

  def _is_similar(self, one: _Text, other: _Text) -> bool:
    pairs = [(one.whole, other.whole), *zip(one.steps, other.steps, strict=False)]
    return len(one.steps) == len(other.steps) and all(
      _jaccard(*pair) >= self._threshold for pair in pairs
    )


def _bands(shingles: frozenset) -> list[bytes]:
  """Keys that similar sets are likely to share."""
  hashes = np.array(sorted(map(_hash, shingles)), np.uint64)
  least = _least_hashes(hashes).reshape(_BANDS, _ROWS)
  return [bytes([number]) + band.tobytes() for number, band in enumerate(least)]


def _least_hashes(hashes: UInt64[np.ndarray, "shingles"]) -> UInt64[np.ndarray, "functions"]:
  """The least value of each of several hash functions over a set."""
  factors, offsets = _FACTORS
  mixed = hashes[:, None] * (factors | np.uint64(1)) + offsets  # modulo 2^64
  mixed ^= mixed >> np.uint64(29)
  return (mixed * np.uint64(0xBF58476D1CE4E5B9)).min(axis=0)


def _hash(shingle: tuple[str, ...]) -> int:
  digest = hashlib.blake2b(" ".join(shingle).encode("utf-8", "surrogatepass"), digest_size=8)
  return int.from_bytes(digest.digest(), "little")


def _jaccard(one: frozenset, other: frozenset) -> float:
  return len(one & other) / (len(one | other) or 1)


def _exact_key(question: Record) -> str:
  options = sorted(equivalence.normalize(option[3:]) for option in question["options"])
  steps = [equivalence.normalize(step["text"]) for step in question["steps"]]
  return repr((equivalence.normalize(question["question"]), options, steps))


def _right(question: Record) -> str:
  return next(o[3:] for o in question["options"] if o.startswith(f"{question['answer']}."))


def _texts(question: Record) -> list[str]:
  options = sorted(option[3:] for option in question["options"])
  return [question["question"], " ".join(options), *(step["text"] for step in question["steps"])]
