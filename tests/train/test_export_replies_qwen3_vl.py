"""An exported Qwen3-VL says the same in transformers as here, token for token, about a video.

Reference: transformers 5.24 with torchvision 0.28, from tests/golden/qwen3_vl_generate.json (its
AutoProcessor and `generate`, with the exported directory alone) and, where transformers is
installed, live; without torchvision, on our prompt. Tolerance: none on tokens.
"""

import importlib.util
import json

from golden import qwen2_5_vl_generate as shared
from golden import qwen2_5_vl_processor as processors
from golden import qwen3_vl_generate as golden
import numpy as np
import pytest

from tests.train import exported_cases
from vr_jax.train import export_stage

SAVED = json.loads(golden.FILE.read_text())
HAS_REFERENCE = all(map(importlib.util.find_spec, ("torch", "transformers")))


@pytest.fixture(scope="module", params=golden.CASES, ids=lambda case: case.name)
def case(request):
  return request.param


@pytest.fixture(scope="module")
def made(case, tmp_path_factory):
  return exported_cases.read(case, tmp_path_factory.mktemp(case.name))


@pytest.fixture(scope="module")
def encoded(made, case):
  return exported_cases.encode(made, case)


@pytest.fixture(scope="module")
def said(made, encoded):
  return exported_cases.replies(made, [encoded])[0]


def test_the_reply_is_the_one_that_transformers_gave(case, made, encoded, said):
  saved = SAVED[case.name]
  assert encoded.tokens.tolist() == saved["prompt"]
  assert said == saved["tokens"]
  assert len(said) == case.new_tokens or said[-1] in made.context.stop_tokens
  assert saved["margin"] > 5e-3  # so that no rounding decides


@pytest.mark.skipif(not HAS_REFERENCE, reason="torch or transformers missing: golden replies stand")
def test_transformers_reads_the_export_and_says_the_same_now(case, made, encoded, said):
  export_stage.write_model(made.params, made.path, made.context, made.path.parent)
  inputs = golden.encoded_inputs(encoded)
  if processors.has_torchvision():
    import transformers

    first = made.context.config.model.question_first
    processor = transformers.AutoProcessor.from_pretrained(made.path)
    theirs = golden.case_inputs(processor, case, question_first=first)
    for name in ("input_ids", "mm_token_type_ids", "video_grid_thw"):
      np.testing.assert_array_equal(theirs[name], inputs[name], err_msg=name)
    np.testing.assert_allclose(
      theirs["pixel_values_videos"], inputs["pixel_values_videos"], rtol=0, atol=1e-3
    )
    inputs = theirs
  model = shared.reference_model(made.path, trust_remote_code=False)
  assert shared.reference_reply(model, inputs)[0] == said
