"""How far a generated reasoning step is from a reference step: 0 if they are equal, at most 1.

    RougeDistance                 1 - F1 of the steps' words (rouge.reference_f1): MOSS-ChatV's
    EmbeddingDistance             1 - cosine of the steps' embeddings
    claim_distance.ClaimDistance  1 - F1 of what the steps claim of the objects in the video

A distance first turns each trace into one key for each of its steps. Each pair of different keys is
then compared once, since the replies of a group share the reference and many steps. A step and its
copy have the distance 0, but with ROUGE a step without words is at the distance 1 of everything.
"""

from collections.abc import Callable, Hashable, Sequence
import dataclasses
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float, Int
import numpy as np

from vr_jax.rewards import rouge, words

_CHUNK = 4096  # pairs of embeddings that are multiplied at once

# From the numbers of reference keys and of generated keys, pair by pair, to distances in [0, 1].
PairDistances = Callable[
  [Int[np.ndarray, "pairs"], Int[np.ndarray, "pairs"]], Float[np.ndarray, "pairs"]
]


@runtime_checkable
class StepDistance(Protocol):
  """Compares the steps of traces."""

  def keys(self, steps: Sequence[str]) -> Sequence[Hashable]:
    """The key of each step of one trace: what it is compared by."""
    ...

  def prepare(self, keys: Sequence[Any]) -> PairDistances:
    """Returns the function that gives the distances of pairs of these keys, by their numbers."""
    ...


@runtime_checkable
class StepEmbedder(Protocol):
  """A model that embeds texts. It is called on the thread that scores replies."""

  def __call__(self, texts: Sequence[str]) -> Float[np.ndarray, "texts width"]:
    """Returns a vector of length 1 for each text, or 0 where it has nothing of its own."""
    ...


@dataclasses.dataclass(frozen=True)
class RougeDistance:
  """1 - mean F1 of ROUGE-1/2/L; see rouge.reference_f1."""

  def keys(self, steps: Sequence[str]) -> Sequence[str]:
    """The texts."""
    return steps

  def prepare(self, keys: Sequence[str]) -> PairDistances:
    """Splits the texts into words once."""
    vocabulary = words.Vocabulary()
    texts = [vocabulary.ids(text) for text in keys]

    def distances(
      reference: Int[np.ndarray, "pairs"], generated: Int[np.ndarray, "pairs"]
    ) -> Float[np.ndarray, "pairs"]:
      return np.clip(1 - rouge.reference_f1(texts, generated, reference), 0, 1)

    return distances


@dataclasses.dataclass(frozen=True)
class EmbeddingDistance:
  """1 - cosine of the embeddings, at most 1: vectors that point apart are as far as can be."""

  embedder: StepEmbedder

  def keys(self, steps: Sequence[str]) -> Sequence[str]:
    """The texts."""
    return steps

  def prepare(self, keys: Sequence[str]) -> PairDistances:
    """Embeds all texts in one call."""
    vectors = self.embedder(keys) if keys else np.zeros((0, 0), np.float32)

    def distances(
      reference: Int[np.ndarray, "pairs"], generated: Int[np.ndarray, "pairs"]
    ) -> Float[np.ndarray, "pairs"]:
      cosine = np.zeros(len(reference), np.float32)
      for start in range(0, len(reference), _CHUNK):
        part = slice(start, start + _CHUNK)
        cosine[part] = (vectors[reference[part]] * vectors[generated[part]]).sum(axis=-1)
      # Exactly 0 for equal texts, whose cosine is 1 only up to rounding.
      return np.where(reference == generated, 0, np.clip(1 - cosine, 0, 1)).astype(np.float32)

    return distances
