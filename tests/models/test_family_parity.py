"""Logits, positions and gradients of each family against Hugging Face transformers.

Reference: Qwen2_5_VLForConditionalGeneration of transformers 5.23,
Qwen3VLForConditionalGeneration of 5.24, and SiglipVisionModel and PhiForCausalLM of 5.24 around the
resamplers of tests/golden/tinyllava_reference.py; all with eager attention, float32 on CPU; from
the golden files of the families and, where it is installed, live.
Tolerance: 1e-4 on logits, 1e-4 of the largest on gradients, none on positions.
"""

import importlib.util
import re
import secrets

from flax import nnx
from golden import qwen2_5_vl as golden
import jax
import model_builders as builders
import numpy as np
import pytest

from vr_jax import records
from vr_jax.models.common import language_model, weight_mapping

TOLERANCE = 1e-4
HAS_REFERENCE = all(map(importlib.util.find_spec, ("torch", "transformers")))
# All keys moved alike leave a softmax as it was, unless positions rotate them.
NO_GRADIENT = re.compile(r"tower\.encoder\.layers\.\d+\.self_attn\.k_proj\.bias")
CASES = [
  pytest.param(golden_file, case, id=f"{name}-{case.name}")
  for name, golden_file in builders.GOLDEN.items()
  for case in golden_file.CASES
]


@nnx.jit
def logits_of(network: language_model.DecoderLanguageModel, prompt: records.Prompt) -> jax.Array:
  hidden, _, _ = network.run_prompts(prompt, network.encode_vision(prompt.vision))
  return network.logits(hidden)


def run(case: golden.ModelCase) -> tuple[records.Prompt, np.ndarray]:
  network = builders.load(case)
  prompt = builders.prompt(case, network.config, spare=(3, 1, 2))
  return prompt, np.asarray(logits_of(network, prompt))


@pytest.mark.parametrize(("golden_file", "case"), CASES)
def test_logits_and_positions_are_those_of_transformers(golden_file, case):
  saved = np.load(golden_file.FILE)
  prompt, logits = run(case)
  for index in range(len(case.prompts)):
    expected = saved[f"{case.name}.{index}.positions"]
    length = expected.shape[1]
    np.testing.assert_array_equal(prompt.positions[index, :length].T, expected)
    assert prompt.next_position[index] == saved[f"{case.name}.{index}.next_position"]
    mine = logits[index, :length]
    some = saved[f"{case.name}.{index}.some_logits"]
    np.testing.assert_allclose(mine[:: -golden.EVERY], some, rtol=0, atol=TOLERANCE)
    projected = saved[f"{case.name}.{index}.projected"]
    np.testing.assert_allclose(mine @ golden.projection(), projected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("run_number", range(2))
@pytest.mark.parametrize("family", builders.GOLDEN)
@pytest.mark.skipif(
  not HAS_REFERENCE,
  reason="torch and transformers not installed: golden cases above cover it",
)
def test_transformers_agrees_on_cases_drawn_just_now(run_number, family):
  golden_file, seed = builders.GOLDEN[family], secrets.randbits(31)
  case = golden_file.random_case(seed)
  prompt, logits = run(case)
  reference = golden_file.reference_model(case)
  for index in range(len(case.prompts)):
    expected = golden_file.reference_outputs(case, reference, index)
    length = expected["positions"].shape[1]
    told = f"{family}: random_case({seed}), prompt {index}"
    np.testing.assert_array_equal(
      prompt.positions[index, :length].T, expected["positions"], err_msg=told
    )
    assert prompt.next_position[index] == expected["next_position"], told
    np.testing.assert_allclose(
      logits[index, :length], expected["logits"], rtol=0, atol=TOLERANCE, err_msg=told
    )


@pytest.mark.parametrize(
  ("family", "case"),
  [
    *builders.FIRST_CASES.items(),
    ("tinyllava", builders.GROUPS),
    ("qwen3_vl", builders.golden3.CASES[1]),  # its head is tied
  ],
  ids=lambda value: getattr(value, "name", value),
)
@pytest.mark.skipif(
  not HAS_REFERENCE, reason="torch and transformers not installed: gradients need them"
)
def test_gradients_are_those_of_transformers(family, case):
  import torch

  golden_file = builders.GOLDEN[family]
  network = builders.load(case)
  encoded = builders.encode(case, network.config, 0)
  length = len(encoded.tokens)
  weight = np.random.default_rng(0).standard_normal((length, golden.VOCAB)).astype(np.float32)
  prompt = builders.prompt(case, network.config)
  graphdef, params = nnx.split(network)

  def loss(params):
    logits = logits_of(nnx.merge(graphdef, params), prompt)
    return (logits[0, :length] * weight).sum()

  mine = weight_mapping.flat(jax.jit(jax.grad(loss))(params))
  reference = golden_file.reference_model(case)
  positions = torch.from_numpy(encoded.positions.T).long()[:, None]
  inputs = golden_file.reference_inputs(case, 0)
  logits = reference(**inputs, position_ids=positions).logits[0]
  (logits * torch.from_numpy(weight)).sum().backward()
  weights = builders.family_of(case).weights
  theirs = {
    name: parameter.grad.numpy()
    for full, parameter in reference.named_parameters()
    if not weights.unused(network.config, name := weights.bare(full))
  }
  slots = weights.slots(network.config, mine)
  assert set(weight_mapping.by_tensor(slots)) == set(theirs)
  for name, slot in slots.items():
    stacked = mine[name].get_value() if slot.stacked else mine[name].get_value()[None]
    for tensor, one in zip(slot.names, stacked, strict=True):
      expected = theirs[tensor]
      found = slot.to_file(np.asarray(one))
      scale = np.abs(expected).max()
      assert scale > 0, tensor
      if NO_GRADIENT.match(tensor):  # on both sides it is rounding
        largest = np.abs(theirs[tensor.replace("bias", "weight")]).max()
        assert max(scale, np.abs(found).max()) < 1e-4 * largest, tensor
        continue
      np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * scale, err_msg=tensor)
