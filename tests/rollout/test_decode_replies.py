"""Which segment each token of a reply belongs to."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.train import nano
from vr_jax import records
from vr_jax.envs import registry, videop2r
from vr_jax.rollout import decode_replies, dialogue

SEEN = "<observation>the star is blué 日本</observation>"
TEXTS = [
  f"{SEEN}\n<think>so</think>\n<answer>B</answer>",
  "<think>no observation</think>",
  f"{SEEN}<think>😀",
  "",
]


@pytest.fixture(scope="module")
def context(data):
  made = nano.build(data)
  recipe = nano.recipe("tiny", "configs/videop2r.py")
  return dataclasses.replace(made, environment=registry.make_environment(recipe))


def rollout(context, texts):
  encoded = [context.processor.encode_reply(text) for text in texts]
  time = max(map(len, encoded)) + 2
  tokens = np.zeros((1, len(texts), time), np.int32)
  kind = np.full(tokens.shape, records.Kind.PAD, np.int32)
  for row, ids in enumerate(encoded):
    tokens[0, row, : len(ids)], kind[0, row, : len(ids)] = ids, records.Kind.MODEL
  zero = np.zeros(tokens.shape, np.float32)
  arrays = {"tokens": tokens, "log_probs": zero, "kind": kind, "turn": np.zeros_like(tokens)}
  return records.Rollout(**jax.tree.map(jnp.asarray, arrays))


def test_tokens_of_the_observation_are_perception_those_behind_it_reasoning_and_padding_nothing(
  context,
):
  made = rollout(context, TEXTS)
  item = next(context.builder.read("train", 1)).items[0]
  host = dialogue.Dialogue(
    environment=context.environment,
    processor=context.processor,
    scenes=[dialogue.EpisodeScene(example=item.example, pool=item.clip)],
  )
  replies = decode_replies.decode_replies(host, made)
  assert replies.texts == [TEXTS]
  np.testing.assert_array_equal(replies.segment >= 0, made.kind == records.Kind.MODEL)
  for row, text in enumerate(TEXTS):
    seen = np.asarray(made.tokens)[0, row][replies.segment[0, row] == videop2r.PERCEPTION]
    said = context.processor.decode(seen)
    assert said == (SEEN[:-1] if text.startswith(SEEN) else "")
  assert replies.segment[0, 3, 0] == videop2r.REASONING  # the end of an empty reply
  lengths = replies.lengths(2)
  np.testing.assert_array_equal(
    lengths.sum(-1), (np.asarray(made.kind) == records.Kind.MODEL).sum(-1)
  )


def test_ends_of_tokens_count_the_characters_of_the_text_before_them(context):
  for text in TEXTS:
    ids = context.processor.encode_reply(text)
    ends = context.processor.ends(ids)
    assert ends == [
      len(context.processor.decode(ids[: n + 1]).rstrip("�")) for n in range(len(ids))
    ]
