"""Logits and positions against Hugging Face's Qwen2_5_VLForConditionalGeneration.

Reference: transformers 5.23 with eager attention, float32 on CPU; from tests/golden/qwen2_5_vl.npz
and, where it is installed, live.
Tolerance: 1e-4 on logits, none on positions.
"""

import importlib.util
import secrets

from flax import nnx
from golden import qwen2_5_vl as golden
import jax
import numpy as np
import pytest
import qwen2_5_vl_builders as builders

from vr_jax import records
from vr_jax.models.qwen2_5_vl import model

TOLERANCE = 1e-4
HAS_REFERENCE = all(map(importlib.util.find_spec, ("torch", "transformers")))
CASES = [pytest.param(case, id=case.name) for case in golden.CASES]


@nnx.jit
def logits_of(network: model.Qwen2_5_VL, prompt: records.Prompt) -> jax.Array:
  x = network.embed(prompt, network.encode_vision(prompt.vision))
  hidden, _, _ = network.text.prefill(x, prompt.positions, prompt.kind != records.Kind.PAD)
  return network.logits(hidden)


def run(case: golden.ModelCase) -> tuple[records.Prompt, np.ndarray]:
  network = builders.load(case)
  prompt = builders.prompt(case, network.config, spare=(3, 1, 2))
  return prompt, np.asarray(logits_of(network, prompt))


@pytest.mark.parametrize("case", CASES)
def test_logits_and_positions_are_those_of_transformers(case):
  saved = np.load(golden.FILE)
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


@pytest.mark.parametrize("run_number", range(3))
@pytest.mark.skipif(
  not HAS_REFERENCE,
  reason="torch and transformers not installed: golden cases above cover it",
)
def test_transformers_agrees_on_cases_drawn_just_now(run_number):
  seed = secrets.randbits(31)
  case = golden.random_case(seed)
  prompt, logits = run(case)
  reference = golden.reference_model(case)
  for index in range(len(case.prompts)):
    expected = golden.reference_outputs(case, reference, index)
    length = expected["positions"].shape[1]
    told = f"golden.random_case({seed}), prompt {index}"
    np.testing.assert_array_equal(
      prompt.positions[index, :length].T, expected["positions"], err_msg=told
    )
    assert prompt.next_position[index] == expected["next_position"], told
    np.testing.assert_allclose(
      logits[index, :length], expected["logits"], rtol=0, atol=TOLERANCE, err_msg=told
    )
