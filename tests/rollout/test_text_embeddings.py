"""Embeddings of texts: the same in every family as the passes that see each token as a prompt's."""

import dataclasses
from typing import Any, cast

from flax import nnx
import jax
import numpy as np
import pytest

from tests.models import model_builders, toy_vlm
from vr_jax.models import registry
from vr_jax.rollout import text_embeddings

registry.register(toy_vlm.FAMILY)
TIME = 8


def make_toy(layers=2):
  words = toy_vlm.FAMILY.train_tokenizer([], 256 + len(toy_vlm.SPECIAL))
  config = toy_vlm.ToyConfig(
    vocab_size=words.get_vocab_size(),
    image_token_id=cast(int, words.token_to_id("<image>")),
    num_hidden_layers=layers,
  )
  processor = toy_vlm.ToyProcessor(cast(Any, config), words, 1, 10**6)
  return toy_vlm.Toy(config, rngs=nnx.Rngs(0)), processor, toy_vlm.FAMILY


def make(family):
  if family == "toy":
    return make_toy()
  case = model_builders.FIRST_CASES[family]
  model = model_builders.load(case)
  return model, model_builders.make_processor(model.config), model_builders.family_of(case)


def embed(model, processor, family, tokens, layers=1.0):
  """[texts, embed] of lists of token ids."""
  graphdef, params = nnx.split(model)
  selected = text_embeddings.select_params(
    params, family, layers, lambda x, count, is_adapter: x[:count]
  )
  ids = np.full((len(tokens), TIME), processor.pad_token, np.int32)
  for row, each in zip(ids, tokens, strict=True):
    row[: len(each)] = each
  valid = np.arange(TIME) < np.array([[len(each)] for each in tokens])
  prompt = text_embeddings.start_prompt(processor)
  return np.asarray(text_embeddings.make_embed_fn(graphdef)(selected, prompt, ids, valid))


@pytest.mark.parametrize("family", [*model_builders.FIRST_CASES, "toy"])
def test_it_is_the_mean_of_the_states_that_each_token_has_at_the_end_of_a_prompt(family):
  model, processor, made_by = make(family)
  tokens = processor.encode_reply("red")[:-1]
  start = [processor.end_token]
  prefixes = [processor.encode_tokens([*start, *tokens[: n + 1]]) for n in range(len(tokens))]
  prompt = processor.collate(
    prefixes, prefix_buckets=(TIME,), frame_buckets=(0,), patch_buckets=(0,)
  )
  nothing = processor.config.vision_shapes.features(np.zeros, len(tokens), 0)
  prompt = dataclasses.replace(prompt, vision=None, media=nothing)
  expected = np.asarray(jax.jit(lambda model, prompt: model.prefill(prompt).hidden)(model, prompt))
  found = embed(model, processor, made_by, [tokens, tokens[:1], []])
  np.testing.assert_allclose(found[0], expected.mean(axis=0), rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(found[1], expected[0], rtol=1e-4, atol=1e-5)
  np.testing.assert_array_equal(found[2], 0)


def test_a_fraction_of_the_layers_is_a_network_of_the_first_ones():
  model, processor, family = make_toy()
  shallow = make_toy(layers=1)[0]
  nnx.update(
    shallow,
    text_embeddings.select_params(
      nnx.split(model)[1], family, 0.5, lambda x, count, is_adapter: x[:count]
    ),
  )
  tokens = [processor.encode_reply("red")[:-1]]
  half = embed(model, processor, family, tokens, layers=0.3)  # rounded up to one of two
  np.testing.assert_array_equal(half, embed(shallow, processor, family, tokens))
  assert np.abs(half - embed(model, processor, family, tokens)).max() > 1e-3
