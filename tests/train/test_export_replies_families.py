"""An export of each other family says the same in its reference as here, token for token.

Reference: transformers 5.24 with torchvision 0.28, from the golden files of generation and, where
transformers is installed, live. Qwen3-VL's is AutoProcessor and `generate` with the exported
directory alone (without torchvision, on our prompt); TinyLLaVA-Video's is `generate` of Phi behind
tests/golden/tinyllava_reference.py, on our prompt. Tolerance: none on tokens.
"""

import importlib.util
import json

from golden import qwen2_5_vl_processor as processors
from golden import qwen3_vl_generate, tinyllava_generate
import numpy as np
import pytest

from tests.train import exported_cases
from vr_jax.train import export_stage

SAVED = {
  golden: json.loads(golden.FILE.read_text()) for golden in (qwen3_vl_generate, tinyllava_generate)
}
CASES = [
  pytest.param((golden, case), id=f"{golden.FILE.stem}-{case.name}")
  for golden in SAVED
  for case in golden.CASES
]
HAS_REFERENCE = all(map(importlib.util.find_spec, ("torch", "transformers")))


@pytest.fixture(scope="module", params=CASES)
def golden_case(request):
  return request.param


@pytest.fixture(scope="module")
def made(golden_case, tmp_path_factory):
  _, case = golden_case
  return exported_cases.read(case, tmp_path_factory.mktemp(case.name))


@pytest.fixture(scope="module")
def encoded(made, golden_case):
  return exported_cases.encode(made, golden_case[1])


@pytest.fixture(scope="module")
def said(made, encoded):
  return exported_cases.replies(made, [encoded])[0]


def test_the_reply_is_the_one_that_the_reference_gave(golden_case, made, encoded, said):
  golden, case = golden_case
  saved = SAVED[golden][case.name]
  assert encoded.tokens.tolist() == saved["prompt"]
  assert said == saved["tokens"]
  assert len(set(said)) > 1
  assert len(said) == case.new_tokens or said[-1] in made.context.stop_tokens
  assert saved["margin"] > 5e-3  # so that no rounding decides


@pytest.mark.skipif(not HAS_REFERENCE, reason="torch or transformers missing: golden replies stand")
def test_the_reference_reads_the_export_and_says_the_same_now(golden_case, made, encoded, said):
  golden, case = golden_case
  export_stage.write_model(made.params, made.path, made.context, made.path.parent)
  model = golden.reference_model(made.path)
  inputs = golden.reference_inputs(encoded, model)
  if golden is qwen3_vl_generate and processors.has_torchvision():
    import transformers

    first = made.context.config.model.question_first
    processor = transformers.AutoProcessor.from_pretrained(made.path)
    theirs = golden.case_inputs(processor, case, question_first=first)
    for name, value in inputs.items():
      tolerance = 1e-3 if name.startswith("pixel_values") else 0
      np.testing.assert_allclose(theirs[name], value, rtol=0, atol=tolerance, err_msg=name)
    inputs = theirs
  assert golden.reference_reply(model, inputs)[0] == said
