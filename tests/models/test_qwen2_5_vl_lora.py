"""LoRA: adapters give the same output as merged weights, and the same as in PEFT.

Reference: peft 0.21 on transformers 5.23 with eager attention, float32 on CPU.
Tolerance: 1e-4 on logits.
"""

import functools
import importlib.util
import json

from flax import nnx
from golden import qwen2_5_vl as golden
import jax
import numpy as np
import pytest
import qwen2_5_vl_builders as builders
from safetensors import numpy as safetensors

from vr_jax import errors, records
from vr_jax.models import qwen2_5_vl
from vr_jax.models.common import layers, lora, weight_mapping
from vr_jax.models.qwen2_5_vl import model
from vr_jax.parallel import mesh as mesh_lib

CASE = golden.CASES[0]
TOLERANCE = 1e-4
SPARE = (1,) * (len(mesh_lib.AXES) - 3)
BOTH = lora.Adapters(rank=3, alpha=5.0, text=lora.Targets.text, vision=lora.Targets.vision)
SOME = lora.Adapters(rank=2, alpha=8.0, text=("query", "out"), vision=())
HAS_REFERENCE = all(map(importlib.util.find_spec, ("torch", "transformers", "peft")))


@nnx.jit
def logits_of(network: model.Qwen2_5_VL, prompt: records.Prompt) -> jax.Array:
  x = network.embed(prompt, network.encode_vision(prompt.vision))
  hidden, _, _ = network.text.prefill(x, prompt.positions, prompt.kind != records.Kind.PAD)
  return network.logits(hidden)


def adapted(adapters, *, trained=True):
  """The case's model with adapters; `trained` ones do something."""
  network = lora.add(builders.load(CASE), adapters, rngs=nnx.Rngs(1))
  graphdef, params = nnx.split(network)
  key = jax.random.key(2)

  def move(path, x):
    if not trained or not jax.tree_util.keystr(path).count(layers.LORA_B):
      return x
    return 0.1 * jax.random.normal(jax.random.fold_in(key, x.size), x.shape)

  return nnx.merge(graphdef, jax.tree.map_with_path(move, params))


def prompt():
  return builders.prompt(CASE, builders.load(CASE).config)


def test_fresh_adapters_change_nothing():
  expected = logits_of(builders.load(CASE), prompt())
  np.testing.assert_array_equal(logits_of(adapted(BOTH, trained=False), prompt()), expected)
  assert np.abs(logits_of(adapted(BOTH), prompt()) - expected).max() > 0.01


@pytest.mark.parametrize("adapters", [BOTH, SOME], ids=["all", "some"])
def test_the_two_paths_say_what_the_merged_weight_says(tmp_path, adapters):
  network = adapted(adapters)
  params = nnx.state(network)
  qwen2_5_vl.save_pretrained(params, tmp_path / "merged", config=network.config, adapters=adapters)
  config, state = qwen2_5_vl.from_pretrained(tmp_path / "merged")
  plain = nnx.eval_shape(lambda: model.Qwen2_5_VL(config, rngs=nnx.Rngs(0)))
  merged = nnx.merge(nnx.graphdef(plain), state)
  np.testing.assert_allclose(
    logits_of(network, prompt()), logits_of(merged, prompt()), rtol=0, atol=TOLERANCE
  )
  touched = {n for n, v in weight_mapping.flat(state).items() if (v[...] != base()[n][...]).any()}
  assert touched == set(adapters.parameters)


@functools.cache
def base():
  return weight_mapping.flat(nnx.state(builders.load(CASE)))


@pytest.mark.skipif(
  not HAS_REFERENCE,
  reason="torch, transformers or peft not installed: the merged weight stands in above",
)
@pytest.mark.parametrize("adapters", [BOTH, SOME], ids=["all", "some"])
def test_peft_loads_the_adapter_onto_transformers_model_with_equal_logits(tmp_path, adapters):
  import peft

  network = adapted(adapters)
  target = tmp_path / "adapter"
  qwen2_5_vl.save_adapter(nnx.state(network), target, adapters=adapters, base="somewhere")
  theirs = peft.PeftModel.from_pretrained(golden.reference_model(CASE), target)
  loaded = {name for name, _ in theirs.named_parameters() if "lora_" in name}
  assert len(loaded) == len(safetensors.load_file(target / "adapter_model.safetensors"))
  length = len(CASE.prompt(0)[0])
  expected = golden.reference_outputs(CASE, theirs.get_base_model(), 0)["logits"]
  ours = np.asarray(logits_of(network, prompt()))[0, :length]
  np.testing.assert_allclose(ours, expected, rtol=0, atol=TOLERANCE)
  plain = golden.reference_outputs(CASE, golden.reference_model(CASE), 0)["logits"]
  assert np.abs(plain - expected).max() > 100 * TOLERANCE


def test_an_adapter_is_the_same_file_from_any_mesh(tmp_path):
  params = nnx.state(adapted(BOTH))
  mesh = mesh_lib.make_mesh((2, 2, *SPARE, 2))
  sharded = jax.tree.map(jax.device_put, params, mesh_lib.param_shardings(params, mesh))
  for name, state in (("one", params), ("all", sharded)):
    qwen2_5_vl.save_adapter(state, tmp_path / name, adapters=BOTH, base="x")
  one, other = (tmp_path / n / "adapter_model.safetensors" for n in ("one", "all"))
  assert one.read_bytes() == other.read_bytes()


def test_an_adapter_s_names_and_shapes_are_those_of_peft(tmp_path):
  qwen2_5_vl.save_adapter(nnx.state(adapted(SOME)), tmp_path / "a", adapters=SOME, base="x")
  held = safetensors.load_file(tmp_path / "a" / "adapter_model.safetensors")
  layer = "base_model.model.model.language_model.layers.2.self_attn"
  assert held[f"{layer}.q_proj.lora_A.weight"].shape == (2, 32)
  assert held[f"{layer}.o_proj.lora_B.weight"].shape == (32, 2)
  assert len(held) == 2 * 2 * 3
  fields = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
  assert (fields["peft_type"], fields["r"], fields["lora_alpha"]) == ("LORA", 2, 8.0)


@pytest.mark.parametrize(
  ("fields", "says"),
  [
    ({"rank": 0}, "lora.rank=0: must be 1 or more"),
    ({"text": ("quary",)}, "lora.text: 'quary' is none of query, key"),
    ({"vision": ("query",)}, "lora.vision: 'query' is none of qkv, out"),
    ({"text": (), "vision": ()}, "lora.text, lora.vision: both are empty"),
  ],
)
def test_adapters_that_cannot_be_are_refused_by_the_field(fields, says):
  with pytest.raises(errors.InputError, match=says):
    lora.Adapters(**{"rank": 2, "alpha": 4.0, **fields})
