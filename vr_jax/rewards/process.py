"""The process reasoning reward (PRR): do a reply's steps follow the reference steps in order?

    steps      split each text into steps
    distance   costs [ref, gen] of every reference step against every generated step: ROUGE of
               their words, or another of step_distance.py
    DTW        distance d of the best alignment
    reward     exp(-alpha d)

The reference is split like a reply, so the reward of its exact copy is 1.

Source: MOSS-ChatV, arXiv 2509.21113. Reconstruction: the split into steps, cost = 1 - mean F1 of
ROUGE-1/2/L (see rouge.reference_f1), the moves, the normalisation by the reference's length,
alpha = 1.
"""

from collections.abc import Hashable, Sequence
import dataclasses
import functools
import math
from typing import Any, Literal, cast, get_args

from jaxtyping import Float, Int
import numpy as np

from vr_jax import errors
from vr_jax.rewards import alignment as alignment_lib
from vr_jax.rewards import dtw, ragged_batches, step_distance, words
from vr_jax.rewards import steps as steps_lib

# Costs are padded to these numbers of replies, and to at least this many steps on either side.
_REPLIES = (32, 256, 1024)
_STEPS = 16

Alignments = Literal["subsequence", "naive"]
ROUGE = step_distance.RougeDistance()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProcessReward:
  """The rewards of a batch of replies, with what they were computed from.

  reward: in [0, 1], float32.
  distance: mean cost of a reference step, float32; +inf if no alignment exists.
  references: the steps of each reference, split like replies.
  steps: the steps of each reply.
  costs: of each reply, [ref, gen] in [0, 1], float32.
  """

  reward: Float[np.ndarray, "replies"]
  distance: Float[np.ndarray, "replies"]
  references: tuple[tuple[str, ...], ...]
  steps: tuple[tuple[str, ...], ...]
  costs: tuple[Float[np.ndarray, "_ _"], ...]
  moves: dtw.Moves
  kind: Alignments

  def alignment(self, reply: int) -> dict[str, Any]:
    """One reply's {"cost", "path", "distance"}, ready for JSON.

    If no alignment exists the path is empty and the distance None.
    """
    cost = self.costs[reply]
    if self.kind == "naive":
      alignment = alignment_lib.whole_path(cost)
    else:
      alignment = alignment_lib.subsequence_path(cost, self.moves)
    distance = float(self.distance[reply])
    return {
      "cost": cost.tolist(),
      "path": [list(cell) for cell in alignment.path],
      "distance": distance if np.isfinite(distance) else None,
    }


def process_reward(
  replies: Sequence[str],
  references: Sequence[Sequence[str]],
  *,
  alpha: float = 1.0,
  moves: str = "jump",
  alignment: str = "subsequence",
  distance: step_distance.StepDistance = ROUGE,
) -> ProcessReward:
  """Scores the <think> trace of each reply against the reference steps at the same index.

  Args:
    replies: whole replies, any text.
    references: the texts of each reply's reference in order, each one step or several.
    alpha: how fast the reward falls with the distance; above 0 and finite.
    moves: "strict", "jump" or "classic", for the subsequence alignment; see dtw.subsequence_dtw.
    alignment: "subsequence", or "naive" for the ablation. The latter is classic DTW of the whole
      trace: its total cost divided by the longer of the two lengths. Reconstruction: the divisor.
      A path has at least that many cells, and exactly that many if the sequences are equal.
    distance: how far two steps are apart; by default the paper's, 1 - mean F1 of ROUGE-1/2/L.

  Returns:
    Rewards exp(-alpha distance). The reward is 0 if the trace or the reference is empty, or if no
    alignment exists.

  Raises:
    InputError: replies and references differ in number, alpha is not above 0, or moves or alignment
      are unknown.
  """
  if len(replies) != len(references):
    raise errors.InputError(
      f"process reward: {len(replies)} replies but {len(references)} references; "
      "give one reference for each reply"
    )
  if not 0 < alpha < math.inf:
    raise errors.InputError(f"process reward: alpha is {alpha}; it must be above 0 and finite")
  for name, value, known in (("moves", moves, dtw.Moves), ("alignment", alignment, Alignments)):
    if value not in get_args(known):
      names = ", ".join(get_args(known))
      raise errors.InputError(f"process reward: {name} {value!r} is unknown; use one of {names}")
  steps = tuple(tuple(steps_lib.split_steps(steps_lib.think_text(reply))) for reply in replies)
  split_references = tuple(tuple(split_reference(texts)) for texts in references)
  known_moves, kind = cast(dtw.Moves, moves), cast(Alignments, alignment)  # as checked above
  costs, mean_cost = _align(split_references, steps, known_moves, kind, distance)
  reward = np.exp(-np.float32(alpha) * mean_cost)
  return ProcessReward(
    reward=reward,
    distance=mean_cost,
    references=split_references,
    steps=steps,
    costs=costs,
    moves=known_moves,
    kind=kind,
  )


def split_reference(texts: Sequence[str]) -> list[str]:
  """The steps of a reference: those that its exact copy in a reply has."""
  return [step for text in texts for step in steps_lib.split_steps(text)]


def find_reference_problem(reply: str, texts: Sequence[str]) -> str:
  """Why a reply that copies these reference texts has a reward below 1; "" if it is 1."""
  reference = split_reference(texts)
  if steps_lib.split_steps(steps_lib.think_text(reply)) != reference:
    return "its copy in a reply is split into other steps; leave out <think>, </think> and <answer>"
  wordless = [step for step in reference if not words.split_words(step)]
  if wordless or not reference:
    return (
      f"{next(iter((*wordless, *texts)), '')!r} has no word; write what happens, or leave it out"
    )
  return ""


def _align(
  references: Sequence[Sequence[str]],
  generated: Sequence[Sequence[str]],
  moves: dtw.Moves,
  kind: Alignments,
  step_distance_fn: step_distance.StepDistance,
) -> tuple[tuple[Float[np.ndarray, "_ _"], ...], Float[np.ndarray, "replies"]]:
  """Computes each reply's costs, and its distance: +inf if no alignment exists."""
  numbers: dict[Hashable, int] = {}
  read = functools.cache(step_distance_fn.keys)  # replies of a group share the reference
  ref, gen = (
    ragged_batches.RaggedRows(
      [[numbers.setdefault(key, len(numbers)) for key in read(tuple(steps))] for steps in side]
    )
    for side in (references, generated)
  )
  pair_distances = step_distance_fn.prepare(list(numbers))
  shapes = np.stack([ref.lengths, gen.lengths], axis=1)
  costs = [np.zeros((0, 0), np.float32)] * len(references)
  distance = np.full(len(references), np.inf, np.float32)
  for chosen, rows, shape in ragged_batches.group_by_shape(
    ragged_batches.bucket_size(shapes, _STEPS), _REPLIES
  ):
    cost = _costs(pair_distances, ref.pad(chosen, shape[0], rows), gen.pad(chosen, shape[1], rows))
    lengths = np.zeros((rows, 2), np.int32)
    lengths[: len(chosen)] = shapes[chosen]
    for index, padded_cost in zip(chosen, cost, strict=False):
      costs[index] = padded_cost[: ref.lengths[index], : gen.lengths[index]]
    distance[chosen] = _distance(cost, lengths, moves, kind)[: len(chosen)]
  return tuple(costs), distance


def _costs(
  pair_distances: step_distance.PairDistances,
  reference: Int[np.ndarray, "replies ref"],
  generated: Int[np.ndarray, "replies gen"],
) -> Float[np.ndarray, "replies ref gen"]:
  """Distances of the steps whose keys have these numbers; 0 if either is padding.

  Each pair of keys is compared once.
  """
  first, second = np.broadcast_arrays(reference[:, :, None], generated[:, None])
  valid = (first != ragged_batches.PAD) & (second != ragged_batches.PAD)
  pairs = first[valid].astype(np.int64) << 32 | second[valid]
  pairs, inverse = np.unique(pairs, return_inverse=True)
  cost = np.zeros(valid.shape, np.float32)
  cost[valid] = pair_distances(pairs >> 32, pairs & 0xFFFFFFFF)[inverse]
  return cost


def _distance(
  cost: Float[np.ndarray, "pairs ref gen"],
  lengths: Int[np.ndarray, "pairs 2"],
  moves: dtw.Moves,
  kind: Alignments,
) -> Float[np.ndarray, "pairs"]:
  if kind == "naive":
    total = np.asarray(dtw.dtw(cost, lengths[:, 0], lengths[:, 1]))
    return total / np.maximum(lengths.max(axis=1), 1).astype(np.float32)
  return np.asarray(dtw.subsequence_dtw(cost, lengths[:, 0], lengths[:, 1], moves))
