"""Rotary scaling (linear, YaRN) and the context that it allows.

Reference: `ROPE_INIT_FUNCTIONS` and the models of transformers 5.24, float32 on CPU, where they are
installed. Tolerance: 1e-6 relative on frequencies, 1e-4 on logits.
"""

import dataclasses
import importlib.util
import json

import jax.numpy as jnp
import model_builders as builders
import numpy as np
import pytest
import test_family_parity as parity

from tests.train import nano
from vr_jax import errors
from vr_jax.models import registry
from vr_jax.models.common import rotary_scaling
from vr_jax.train import model_setup

needs_reference = pytest.mark.skipif(
  not all(map(importlib.util.find_spec, ("torch", "transformers"))),
  reason="torch and transformers not installed: the rules below cover frequencies",
)
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}


def fields_of(case, scaling):
  """The text fields of a case with a scaling, as transformers 5 nests them."""
  rotary = {"rope_theta": 1e4, **case.text.get("rope_parameters", {}), **scaling}
  if "partial_rotary_factor" in case.text:
    rotary["partial_rotary_factor"] = case.text["partial_rotary_factor"]
  return {**case.text, "rope_parameters": rotary}


def scaled(family, scaling):
  case = builders.FIRST_CASES[family]
  return dataclasses.replace(case, text=fields_of(case, scaling))


@needs_reference
@pytest.mark.parametrize("seed", range(8))
def test_frequencies_are_those_of_transformers(seed):
  from transformers import LlamaConfig
  from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

  rng = np.random.default_rng(seed)
  head_dim, kind = int(2 * rng.integers(2, 65)), ("linear", "yarn")[seed % 4 > 0]
  fields = {
    "rope_type": kind,
    "rope_theta": float(10 ** rng.uniform(2, 7)),
    "factor": float(rng.choice([1.0, 2.0, 4.0, 37.5])),
    "original_max_position_embeddings": int(rng.integers(64, 300000)),
  }
  optional = {"beta_fast": 20.0, "beta_slow": 2, "truncate": False, "attention_factor": 0.7}
  optional |= {"mscale": 0.8, "mscale_all_dim": 1.2}
  if kind == "yarn":
    fields |= {k: v for k, v in optional.items() if rng.random() < 0.4}
  config = LlamaConfig(head_dim=head_dim, rope_parameters=fields, max_position_embeddings=2**20)
  expected, factor = ROPE_INIT_FUNCTIONS[kind](config)
  scaling = rotary_scaling.read(fields, kind, 2**20)
  assert scaling is not None and scaling.attention_factor == pytest.approx(factor, rel=1e-12)
  found = rotary_scaling.frequencies(head_dim, fields["rope_theta"], scaling)
  np.testing.assert_allclose(found, expected, rtol=2e-6)


def test_yarn_keeps_fast_frequencies_and_divides_slow_ones():
  scaling = rotary_scaling.read({**YARN, "original_max_position_embeddings": 4096}, "yarn", 0)
  plain = rotary_scaling.frequencies(128, 1e6, None)
  ratio = np.asarray(plain / rotary_scaling.frequencies(128, 1e6, scaling))
  assert ratio[0] == 1 and ratio[-1] == pytest.approx(4)
  assert np.all(np.diff(ratio) >= -1e-6) and np.sum((ratio > 1.01) & (ratio < 3.99)) > 3
  cos, sin = rotary_scaling.cosines_and_sines(jnp.zeros((1, 64)), scaling)
  np.testing.assert_allclose(cos, 1 + 0.1 * np.log(4), rtol=1e-6)
  assert not sin.any()


@needs_reference
@pytest.mark.parametrize(
  ("family", "scaling"),
  [
    *((family, YARN) for family in builders.GOLDEN),
    ("qwen2_5_vl", {"rope_type": "linear", "factor": 2.5}),
  ],
)
def test_logits_of_a_scaled_model_are_those_of_transformers(family, scaling):
  case = scaled(family, scaling)
  prompt, logits = parity.run(case)
  _, plain = parity.run(builders.FIRST_CASES[family])
  golden_file = builders.GOLDEN[family]
  expected = golden_file.reference_outputs(case, golden_file.reference_model(case), 0)["logits"]
  length = len(expected)
  np.testing.assert_allclose(logits[0, :length], expected, rtol=0, atol=parity.TOLERANCE)
  assert np.abs(plain[0, :length] - expected).max() > 100 * parity.TOLERANCE
  assert prompt.next_position[0] > 0


@pytest.mark.parametrize("family", builders.GOLDEN)
@pytest.mark.parametrize("kind", rotary_scaling.KINDS)
def test_a_scaled_context_is_longer_and_an_export_keeps_it(family, kind):
  case = builders.FIRST_CASES[family]
  plain = registry.family_of_fields(case.config()).make_config(case.config())
  original = 2 * plain.max_position_embeddings
  fields = {"rope_type": kind, "factor": 4, "original_max_position_embeddings": original}
  case = scaled(family, fields)
  made = registry.family_of_fields(case.config())
  config = made.make_config(case.config())
  assert config.max_position_embeddings == 4 * original
  again = made.make_config(json.loads(json.dumps(made.model_files(config, None)[0])))
  assert again.text == config.text
  assert again.max_position_embeddings == config.max_position_embeddings
  assert config.architecture["text.rope_scaling"]["factor"] == 4
  assert "text.rope_scaling" not in plain.architecture


@pytest.mark.parametrize(
  ("scaling", "says"),
  [
    ({"rope_type": "yarn"}, "rope_scaling factor: is None, but must be a number above 0"),
    ({"type": "linear", "factor": -2}, "rope_scaling factor: is -2, but must be a number above 0"),
    ({"rope_type": "yarn", "factor": 2, "beta_fast": "x"}, "rope_scaling beta_fast: is 'x'"),
    ({"rope_type": "dynamic", "factor": 2}, "rope_type: is 'dynamic', but only .*linear, yarn"),
  ],
)
@pytest.mark.parametrize("family", builders.GOLDEN)
def test_a_scaling_that_cannot_be_read_is_refused(family, scaling, says):
  fields = scaled(family, {"rope_type": None, **scaling}).config()
  rotary = fields["text_config"]["rope_parameters"]
  fields["text_config"]["rope_parameters"] = {k: v for k, v in rotary.items() if v is not None}
  with pytest.raises(errors.InputError, match=says):
    registry.family_of_fields(fields).make_config(fields)


def test_a_reply_beyond_the_context_is_refused_and_a_scaling_allows_it():
  config = nano.config(model__prefix_buckets=(2000,), rl__max_new_tokens=100)
  with pytest.raises(errors.InputError) as refused:
    model_setup.check_context(config, model_setup.model_of(config))
  assert str(refused.value) == (
    "--config.rl.max_new_tokens=100: with prompts of up to 2000 tokens "
    "(config.model.prefix_buckets) this passes the model's context of 2048; only rope_scaling "
    "(linear or yarn) in its config.json raises that"
  )
  with config.unlocked():
    config.model.architecture.text_config.rope_scaling.update({"type": "yarn", "factor": 2.0})
  model_setup.check_context(config, model_setup.model_of(config))
