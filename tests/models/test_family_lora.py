"""LoRA: adapters give the same output as merged weights, and the same as in PEFT.

Reference: peft 0.21 on transformers 5.23 with eager attention, float32 on CPU.
Tolerance: 1e-4 on logits.
"""

import functools
import importlib.util
import json

from flax import nnx
import jax
import model_builders as builders
import numpy as np
import pytest
from safetensors import numpy as safetensors

from vr_jax import errors, records
from vr_jax.models import registry
from vr_jax.models.common import export, language_model, layers, lora, weight_mapping
from vr_jax.parallel import mesh as mesh_lib

TOLERANCE = 1e-4
SPARE = (1,) * (len(mesh_lib.AXES) - 3)
SOME = lora.Adapters(rank=2, alpha=8.0, text=("query", "out"), vision=())
HAS_REFERENCE = all(map(importlib.util.find_spec, ("torch", "transformers", "peft")))


@pytest.fixture(params=list(builders.FIRST_CASES))
def family(request):
  return request.param


@nnx.jit
def logits_of(network: language_model.DecoderLanguageModel, prompt: records.Prompt) -> jax.Array:
  hidden, _, _ = network.run_prompts(prompt, network.encode_vision(prompt.vision))
  return network.logits(hidden)


def both(family):
  """Adapters on all projections of the text model and of the vision tower."""
  targets = registry.family(family).lora_targets
  halves = {"text": targets.text, "vision": targets.vision}
  return lora.Adapters(rank=3, alpha=5.0, targets=targets, **halves)


def adapted(family, adapters, *, trained=True):
  """The case's model with adapters; `trained` ones do something."""
  network = lora.add(builders.load(builders.FIRST_CASES[family]), adapters, rngs=nnx.Rngs(1))
  graphdef, params = nnx.split(network)
  key = jax.random.key(2)

  def move(path, x):
    if not trained or not jax.tree_util.keystr(path).count(layers.LORA_B):
      return x
    return 0.1 * jax.random.normal(jax.random.fold_in(key, x.size), x.shape)

  return nnx.merge(graphdef, jax.tree.map_with_path(move, params))


@functools.cache
def base(family):
  return builders.load(builders.FIRST_CASES[family])


def prompt(family):
  return builders.prompt(builders.FIRST_CASES[family], base(family).config)


def test_fresh_adapters_change_nothing(family):
  expected = logits_of(base(family), prompt(family))
  fresh = adapted(family, both(family), trained=False)
  np.testing.assert_array_equal(logits_of(fresh, prompt(family)), expected)
  changed = logits_of(adapted(family, both(family)), prompt(family))
  assert np.abs(changed - expected).max() > 0.01


@pytest.mark.parametrize("adapters", ["all", "some"])
def test_the_two_paths_say_what_the_merged_weight_says(tmp_path, family, adapters):
  adapters = both(family) if adapters == "all" else SOME
  network = adapted(family, adapters)
  export.save_pretrained(
    nnx.state(network),
    tmp_path / "merged",
    config=network.config,
    adapters=adapters,
    family=registry.family(family),
  )
  config, state = registry.from_pretrained(tmp_path / "merged")
  merged = nnx.merge(builders.graphdef(config), state)
  np.testing.assert_allclose(
    logits_of(network, prompt(family)), logits_of(merged, prompt(family)), rtol=0, atol=TOLERANCE
  )
  before = weight_mapping.flat(nnx.state(base(family)))
  flat = weight_mapping.flat(state)
  assert {n for n, v in flat.items() if (v[...] != before[n][...]).any()} == set(
    adapters.parameters
  )


@pytest.mark.skipif(
  not HAS_REFERENCE,
  reason="torch, transformers or peft not installed: the merged weight stands in above",
)
@pytest.mark.parametrize("adapters", ["all", "some"])
def test_peft_loads_the_adapter_onto_transformers_model_with_equal_logits(
  tmp_path, family, adapters
):
  import peft

  case, golden_file = builders.FIRST_CASES[family], builders.GOLDEN[family]
  adapters = both(family) if adapters == "all" else SOME
  network = adapted(family, adapters)
  save_adapter(family, network, tmp_path / "adapter", adapters)
  theirs = peft.PeftModel.from_pretrained(golden_file.reference_model(case), tmp_path / "adapter")
  loaded = {name for name, _ in theirs.named_parameters() if "lora_" in name}
  file = tmp_path / "adapter" / "adapter_model.safetensors"
  assert len(loaded) == len(safetensors.load_file(file))
  length = len(case.prompt(0)[0])
  expected = golden_file.reference_outputs(case, theirs.get_base_model(), 0)["logits"]
  ours = np.asarray(logits_of(network, prompt(family)))[0, :length]
  np.testing.assert_allclose(ours, expected, rtol=0, atol=TOLERANCE)
  plain = golden_file.reference_outputs(case, golden_file.reference_model(case), 0)["logits"]
  assert np.abs(plain - expected).max() > 100 * TOLERANCE


def save_adapter(family, network, target, adapters):
  params, found = nnx.state(network), registry.family(family)
  export.save_adapter(params, target, adapters=adapters, base="x", family=found)


def test_an_adapter_is_the_same_file_from_any_mesh(tmp_path, family):
  params = nnx.state(adapted(family, both(family)))
  mesh = mesh_lib.make_mesh((2, 2, *SPARE, 2))
  sharded = jax.tree.map(jax.device_put, params, mesh_lib.param_shardings(params, mesh))
  for name, state in (("one", params), ("all", sharded)):
    export.save_adapter(
      state,
      tmp_path / name,
      adapters=both(family),
      base="x",
      family=registry.family(family),
    )
  one, other = (tmp_path / n / "adapter_model.safetensors" for n in ("one", "all"))
  assert one.read_bytes() == other.read_bytes()


def test_an_adapter_s_names_and_shapes_are_those_of_peft(tmp_path, family):
  save_adapter(family, adapted(family, SOME), tmp_path / "a", SOME)
  held = safetensors.load_file(tmp_path / "a" / "adapter_model.safetensors")
  layer, out = "base_model.model.model.language_model.layers.2.self_attn", "o_proj"
  if family == "tinyllava":
    layer, out = "base_model.model.language_model.model.layers.2.self_attn", "dense"
  assert held[f"{layer}.q_proj.lora_A.weight"].shape == (2, 32)
  assert held[f"{layer}.{out}.lora_B.weight"].shape == (32, 2)
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
