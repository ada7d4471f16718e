"""The step embedder: vectors by text alone, on every mesh; and runs that reward with it."""

import dataclasses
import json
import math
from typing import Any, cast

import jax
import numpy as np
import pytest

from tests.models import toy_vlm
from tests.train import nano
from vr_jax import main, records
from vr_jax.models import registry
from vr_jax.models.common import weight_mapping
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.train import initialization, metrics, model_setup, run_context, step_embedder

registry.register(toy_vlm.FAMILY)
TEXTS = ("At 0s, the circle is red.", "It turns green.", "At 0s, the circle is blue.", "A" * 90)
EMPTY = {"steps": (), "id": "e", "video": "v", "question": "?", "answer": "a"}
EXAMPLE = records.Example(**EMPTY, problem_type="free-form", shown=records.Span(start=0.0, end=1.0))
EXAMPLES = [
  dataclasses.replace(EXAMPLE, steps=(records.Step(text=text, start=0.0, end=1.0),))
  for text in (*TEXTS[:2], TEXTS[0])
]


def make(mesh=(1, 1, 1, 1), **fields):
  """An embedder with the parameters of a network on a mesh, which are deleted afterwards."""
  words = toy_vlm.FAMILY.train_tokenizer([], 256 + len(toy_vlm.SPECIAL))
  model = toy_vlm.ToyConfig(vocab_size=264, image_token_id=cast(int, words.token_to_id("<image>")))
  net = model_setup.ModelSetup(
    config=nano.config(mesh=mesh, **fields),
    mesh=mesh_lib.make_mesh(mesh, devices=jax.devices()[: math.prod(mesh)]),
    model=cast(Any, model),
    allowed_tokens=jax.numpy.ones(model.vocab_size, bool),
    stop_tokens=(1,),
  )
  processor = toy_vlm.ToyProcessor(cast(Any, model), words, 1, 10**6)
  embedder = step_embedder.FrozenStepEmbedder(cast(Any, processor), cast(Any, model), layers=1.0)
  params = net.draw_params()
  embedder.freeze(net, params, EXAMPLES)
  for variable in weight_mapping.flat(params).values():  # as the first update does
    variable.get_value().delete()
  return embedder


@pytest.fixture(scope="module")
def embedder():
  return make()


def test_vectors_have_length_1_and_are_centred_on_the_reference_steps(embedder):
  found = embedder(TEXTS)
  np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
  # Of two texts the centre is in the middle.
  np.testing.assert_allclose(found[0], -found[1], atol=1e-3)
  assert found[0] @ found[2] > found[0] @ found[1]


def test_a_vector_depends_on_its_text_alone(embedder):
  whole = embedder(TEXTS)
  embedder._cache.clear()
  for text, vector in zip(TEXTS[::-1], whole[::-1], strict=True):
    np.testing.assert_array_equal(embedder([text])[0], vector)
  np.testing.assert_array_equal(embedder([TEXTS[1], *TEXTS, TEXTS[1]])[1:5], whole)
  assert embedder([]).shape == (0, whole.shape[1])


def test_a_cache_that_is_full_forgets_what_was_asked_longest_ago(embedder, monkeypatch):
  whole = embedder(TEXTS)
  monkeypatch.setattr(step_embedder, "_CACHE_BYTES", 2 * whole[0].nbytes)
  np.testing.assert_array_equal(embedder(TEXTS), whole)
  assert list(embedder._cache) == list(TEXTS[2:])


def test_without_parameters_it_embeds_nothing(embedder):
  bare = step_embedder.FrozenStepEmbedder(embedder._processor, embedder._model, layers=1.0)
  assert not bare.is_frozen and embedder.is_frozen
  with pytest.raises(ValueError, match="call freeze first"):
    bare(TEXTS)


def test_parameters_that_are_split_over_a_mesh_give_the_same_vectors(embedder):
  split = make(mesh=(1, 4, 1, 2))
  np.testing.assert_allclose(split(TEXTS), embedder(TEXTS), atol=1e-5)


def test_fresh_adapters_change_no_vector(embedder):
  adapted = make(model__lora__rank=2, model__lora__base_dtype="float32")
  np.testing.assert_allclose(adapted(TEXTS), embedder(TEXTS), atol=1e-5)


def test_a_run_is_rewarded_and_evaluated_with_the_parameters_that_rl_starts_from(
  tmp_path, monkeypatch
):
  nano.use_devices(monkeypatch, 1)
  frozen, freeze = [], step_embedder.FrozenStepEmbedder.freeze

  def note(self, net, params, examples):
    frozen.append(embedding(params))
    freeze(self, net, params, examples)

  def embedding(params):
    return np.asarray(weight_mapping.flat(params)["text.embedding"].get_value())

  monkeypatch.setattr(step_embedder.FrozenStepEmbedder, "freeze", note)
  config = nano.config(
    mesh=(1, 1, 1, 1),
    cpu_devices=0,
    sft__steps=0,
    rl__steps=1,
    env__step_distance="embeddings",
    eval__blind=False,
    eval__shuffled_frames=False,
  )
  main.run(config, tmp_path, "all")
  (line,) = [m["values"] for m in metrics.read(tmp_path / "metrics.jsonl") if m["stage"] == "rl"]
  assert 0 <= line["rewards/process/mean"] <= 1
  assert len(frozen) == 2  # by RL, and once for both evaluations
  np.testing.assert_array_equal(*frozen)
  context = run_context.make_run_context(config, tmp_path)
  trained = initialization.load_params(context, tmp_path / "checkpoints" / "rl")
  assert np.abs(embedding(trained) - frozen[0]).max() > 0
  for name in ("before_rl", "after_rl"):
    replies = (tmp_path / "eval" / f"{name}.jsonl").read_text().splitlines()
    assert len(replies) == config.eval.examples
    for reply in map(json.loads, replies):
      assert np.all(np.array(reply["alignment"]["cost"]) >= 0)
      assert 0 <= reply["rewards"]["process"] <= 1
