"""ROUGE-1, ROUGE-2 and ROUGE-L of many pairs of texts at once, on padded word ids.

All three are computed from one set of bit masks. For each word of text a, a mask marks the
positions of that word in text b, 32 positions in a uint32:

    ROUGE-1  each word of a takes the first free position in b; the number of taken positions is
             the clipped count
    ROUGE-2  the same with the masks of word pairs: mask[t] & (mask[t + 1] >> 1)
    ROUGE-L  the longest common subsequence, one addition a word (Hyyro 2004):
             V <- (V + (V & mask)) | (V & ~mask)

A pair of texts costs |a| x |b| comparisons and |a| x |b| / 32 steps. Pairs are on the minor axis:
each step is an elementwise operation over thousands of pairs, which suits the vector units of CPUs
and TPUs.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32
import numpy as np

from vr_jax.rewards import ragged_batches

_BITS = 32
# Mask words (4 bytes each) in a chunk of pairs. They are read once for each word of a, so a chunk
# should fit in the cache.
_CHUNK_MASK_WORDS = 1 << 17

# `mean_f1` pads to these numbers of pairs, and to at least this many words. The loop over words
# ends at the longest text, not at the padding.
_PAIRS = (64, 1024, 8192)
_WORDS = 32

Masks = UInt32[Array, "limbs pairs"]


class Rouge(NamedTuple):
  """F1 scores in [0, 1]. A text without words (for ROUGE-2: without two words) scores 0."""

  rouge1: Float[Array, "*batch"]
  rouge2: Float[Array, "*batch"]
  rouge_l: Float[Array, "*batch"]


@jax.jit
def rouge(
  a: Int[Array | np.ndarray, "*batch_a words_a"], b: Int[Array | np.ndarray, "*batch_b words_b"]
) -> Rouge:
  """Scores texts a against texts b, float32.

  a, b: word ids, padded on the right with buckets.PAD; leading axes broadcast.

  Symmetric in a and b, but faster if the longer texts are in a. For all pairs of two sets of steps,
  see `step_pairs`.

  Source: C.-Y. Lin, "ROUGE", 2004. Equal to the rouge-score package with use_stemmer=True on the
  same texts.
  """
  batch = jnp.broadcast_shapes(a.shape[:-1], b.shape[:-1])
  a = jnp.broadcast_to(a, (*batch, a.shape[-1])).reshape(-1, a.shape[-1])
  b = jnp.broadcast_to(b, (*batch, b.shape[-1])).reshape(-1, b.shape[-1])
  pairs = len(a)
  limbs = -(-b.shape[-1] // _BITS)
  chunk = max(1, min(pairs, _CHUNK_MASK_WORDS // max(1, a.shape[-1] * limbs)))
  fill = ((0, -pairs % chunk), (0, 0))
  a, b = (jnp.pad(x, fill, constant_values=ragged_batches.PAD) for x in (a, b))
  scores = lax.map(
    lambda chunks: _score(*chunks),
    (a.reshape(-1, chunk, a.shape[-1]), b.reshape(-1, chunk, b.shape[-1])),
  )
  return Rouge(*(score.reshape(-1)[:pairs].reshape(batch) for score in scores))


def step_pairs(
  reference: Int[Array | np.ndarray, "*batch ref words_ref"],
  generated: Int[Array | np.ndarray, "*batch gen words_gen"],
) -> Rouge:
  """Scores every generated step against every reference step, [*batch, ref, gen]."""
  return rouge(generated[..., None, :, :], reference[..., :, None, :])


def mean_f1(
  texts: Sequence[Int[np.ndarray, "_"]],
  first: Int[np.ndarray, "pairs"],
  second: Int[np.ndarray, "pairs"],
) -> Float[np.ndarray, "pairs"]:
  """Mean of the three F1 scores of texts[first] against texts[second], float32.

  texts: word ids, of any lengths.

  Pairs of similar lengths are scored together, padded to one of a few shapes, so that compilation
  stops after a few batches.
  """
  rows = ragged_batches.RaggedRows(texts)
  swap = rows.lengths[first] < rows.lengths[second]
  first, second = np.where(swap, second, first), np.where(swap, first, second)
  lengths = np.stack([rows.lengths[first], rows.lengths[second]], axis=1)
  scores = [
    (
      chosen,
      _mean(rows.pad(first[chosen], words_a, pairs), rows.pad(second[chosen], words_b, pairs)),
    )
    for chosen, pairs, (words_a, words_b) in ragged_batches.group_by_shape(
      ragged_batches.bucket_size(lengths, _WORDS), _PAIRS
    )
  ]
  result = np.zeros(len(first), np.float32)
  for chosen, mean in scores:
    result[chosen] = np.asarray(mean)[: len(chosen)]
  return result


def reference_f1(
  texts: Sequence[Int[np.ndarray, "_"]],
  given: Int[np.ndarray, "pairs"],
  reference: Int[np.ndarray, "pairs"],
) -> Float[np.ndarray, "pairs"]:
  """`mean_f1` of texts[given] against texts[reference], without ROUGE-2 where it means nothing.

  Reconstruction: a reference of one word has no pair of words, so its ROUGE-2 is always 0. It is
  left out of the mean, so that the right word scores 1 and not 2/3.
  """
  mean = mean_f1(texts, given, reference)
  one_word = np.array([len(text) == 1 for text in texts], bool)[reference]
  return np.where(one_word, np.minimum(1, np.float32(1.5) * mean), mean)


@jax.jit
def _mean(a: Int[Array, "pairs words_a"], b: Int[Array, "pairs words_b"]) -> Float[Array, "pairs"]:
  rouge1, rouge2, rouge_l = rouge(a, b)
  return (rouge1 + rouge2 + rouge_l) / 3


def _score(a: Int[Array, "pairs words_a"], b: Int[Array, "pairs words_b"]) -> Rouge:
  length_a, length_b = ((x != ragged_batches.PAD).sum(axis=1) for x in (a, b))
  common1, common2, common_l = _common(_masks(a, b), length_a.max(initial=0))

  def f1(common, shorter_by):
    total = jnp.maximum(length_a - shorter_by, 0) + jnp.maximum(length_b - shorter_by, 0)
    return 2 * common / jnp.maximum(total, 1).astype(jnp.float32)

  return Rouge(f1(common1, 0), f1(common2, 1), f1(common_l, 0))


def _masks(
  a: Int[Array, "pairs words_a"], b: Int[Array, "pairs words_b"]
) -> UInt32[Array, "words_a limbs pairs"]:
  """Bit i of limb n is set if word 32 n + i of b is the word of a. Padding sets no bit."""
  b = jnp.pad(b, ((0, 0), (0, -b.shape[1] % _BITS)), constant_values=ragged_batches.PAD)
  b = jnp.where(b == ragged_batches.PAD, ragged_batches.PAD - 1, b).T.reshape(-1, _BITS, len(b))
  a = a.T[:, None]
  masks = jnp.zeros((len(a), len(b), a.shape[-1]), jnp.uint32)
  for bit in range(_BITS):
    masks |= jnp.where(a == b[:, bit], jnp.uint32(1 << bit), jnp.uint32(0))
  return masks


def _common(
  masks: UInt32[Array, "words_a limbs pairs"], length: Int[Array, ""]
) -> tuple[Int[Array, "pairs"], Int[Array, "pairs"], Int[Array, "pairs"]]:
  """Counts the common words, common word pairs and the longest common subsequence.

  length: how many masks to read.
  """
  none = jnp.zeros(masks.shape[1:], jnp.uint32)

  def word(t, state):
    taken1, taken2, unmatched, previous = state
    mask = masks[t]
    return (
      _take_lowest(taken1, mask),
      _take_lowest(taken2, previous & _shift_right(mask)),
      _advance(unmatched, mask),
      mask,
    )

  taken1, taken2, unmatched, _ = lax.fori_loop(0, length, word, (none, none, ~none, none))
  return _count_bits(taken1), _count_bits(taken2), _count_bits(~unmatched)


def _count_bits(bits: Masks) -> Int[Array, "pairs"]:
  return lax.population_count(bits).sum(axis=0).astype(jnp.int32)


def _shift_right(mask: Masks) -> Masks:
  """Shifts the masks by one position; the lowest bit of a limb moves to the limb before."""
  following = jnp.concatenate([mask[1:], jnp.zeros_like(mask[:1])])
  return (mask >> 1) | (following << (_BITS - 1))


def _take_lowest(taken: Masks, mask: Masks) -> Masks:
  """Takes the lowest free position of the mask, if there is one."""
  free = mask & ~taken

  def limb(found: Bool[Array, "pairs"], free: UInt32[Array, "pairs"]):
    return found | (free != 0), jnp.where(found, 0, free & -free)

  _, lowest = lax.scan(limb, jnp.zeros(mask.shape[1], bool), free, unroll=_unroll(mask))
  return taken | lowest


def _advance(unmatched: Masks, mask: Masks) -> Masks:
  """V <- (V + (V & mask)) | (V & ~mask), with the carry passed through the limbs."""

  def limb(carry: UInt32[Array, "pairs"], operands: tuple[Array, Array]):
    value, matched = operands
    partial = value + matched
    total = partial + carry
    overflow = (partial < value) | (total < partial)
    return overflow.astype(jnp.uint32), total | (value & ~matched)

  operands = (unmatched, unmatched & mask)
  _, advanced = lax.scan(limb, jnp.zeros_like(mask[0]), operands, unroll=_unroll(mask))
  return advanced


def _unroll(mask: Masks) -> int:
  return max(1, min(len(mask), 4))
