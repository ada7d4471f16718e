"""An exported model says the same in transformers as here, token for token, about a video.

Greedy replies of transformers' AutoProcessor and `generate`, with what the directory holds and
nothing else. Networks have random weights: that of the size tiny, and one of two layers with the
widths of the 3b size.

Reference: transformers 5.24 with torchvision 0.28, from tests/golden/qwen2_5_vl_generate.json and,
where transformers is installed, live. Tolerance: none on tokens, 1e-3 on normalised pixels.
"""

import importlib.util
import json
import pathlib
import runpy
import sys
from typing import Any

from golden import qwen2_5_vl_generate as golden
from golden import qwen2_5_vl_processor as processors
import numpy as np
import pytest

from tests import own_code
from tests.train import exported_cases
from vr_jax.models.common import conversation
from vr_jax.models.qwen2_5_vl import pixels as pixels_lib
from vr_jax.train import export_stage

SAVED = json.loads(golden.FILE.read_text())
BY_NAME = {case.name: case for case in golden.CASES}
HAS_REFERENCE = all(map(importlib.util.find_spec, ("torch", "transformers")))
needs_reference = pytest.mark.skipif(
  not HAS_REFERENCE, reason="torch and transformers not installed: golden replies stand in"
)


@pytest.fixture(scope="module", params=list(BY_NAME))
def case(request):
  return BY_NAME[request.param]


@pytest.fixture(scope="module")
def made(case, tmp_path_factory):
  return exported_cases.read(case, tmp_path_factory.mktemp(case.name))


@pytest.fixture(scope="module")
def encoded(made, case):
  return exported_cases.encode(made, case)


@pytest.fixture(scope="module")
def said(made, encoded):
  return exported_cases.replies(made, [encoded])[0]


@pytest.fixture(scope="module")
def modules(tmp_path_factory):
  """Where transformers copies code that comes with weights."""
  from transformers import dynamic_module_utils

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
    patch.setattr(sys, "path", list(sys.path))
    yield


def export(made: exported_cases.Exported) -> None:
  if not made.path.exists():
    export_stage.write_model(made.params, made.path, made.context, made.path.parent)


def reference_positions(model: Any, inputs: Any) -> np.ndarray:
  """Positions [batch, prefix, 3]."""
  names = ("mm_token_type_ids", "image_grid_thw", "video_grid_thw", "second_per_grid_ts")
  given = {name: inputs[name] for name in (*names, "attention_mask") if name in inputs}
  return model.model.get_rope_index(inputs["input_ids"], **given)[0].permute(1, 2, 0).numpy()


def test_the_reply_is_the_one_that_transformers_gave(case, made, encoded, said):
  saved = SAVED[case.name]
  assert encoded.tokens.tolist() == saved["prompt"]
  assert said == saved["tokens"]
  assert len(said) == case.new_tokens or said[-1] in made.context.stop_tokens
  assert saved["margin"] > 5e-3  # so that no rounding decides


@needs_reference
@pytest.mark.usefixtures("modules")
def test_transformers_sees_and_says_the_same_now(case, made, encoded, said):
  export(made)
  first = made.context.config.model.question_first
  inputs = golden.case_inputs(golden.reference_processor(made.path), case, question_first=first)
  assert inputs["input_ids"][0].tolist() == encoded.tokens.tolist()
  levels = np.concatenate([frame.vision.patches for frame in encoded.frames])
  pixels = pixels_lib.normalise(levels, np.float32)
  np.testing.assert_allclose(inputs["pixel_values_videos"], pixels, rtol=0, atol=1e-3)
  model = golden.reference_model(made.path)
  assert golden.reference_reply(model, inputs)[0] == said
  positions = reference_positions(model, inputs)[0]
  np.testing.assert_array_equal(positions, encoded.positions)
  assert encoded.next_position == positions[-1, 0] + 1


def conversations(rng: np.random.Generator) -> tuple[list[Any], list[dict], list[tuple]]:
  """Two conversations for transformers, the metadata of their videos, and their parts for us."""
  shapes = {"image": (70, 90), "video": (6, 60, 60), "again": (3, 56, 84)}
  drawn = {name: rng.integers(0, 256, (*shape, 3), np.uint8) for name, shape in shapes.items()}
  seconds = {"video": 1.3, "again": 4.0}
  ours = (
    ("First ", "image", "then ", "video", "and", "again", "?"),
    ("again", "Where?"),
  )
  theirs, metadata, parts = [], [], []
  for turn in ours:
    content, mine = [], []
    for part in turn:
      if part not in drawn:
        content.append({"type": "text", "text": part})
        mine.append(part)
      elif part == "image":
        content.append({"type": "image", "image": drawn[part]})
        mine.append(conversation.Image(pixels=drawn[part]))
      else:
        frames, every = drawn[part], seconds[part]
        content.append({"type": "video", "video": frames})
        metadata.append({"total_num_frames": len(frames), "fps": 1 / every})
        times = np.arange(len(frames)) * every
        mine.append(conversation.VideoFrames(frames=frames, timestamps=times))
    theirs.append([{"role": "user", "content": content}])
    parts.append(tuple(mine))
  return theirs, metadata, parts


@needs_reference
@pytest.mark.usefixtures("modules")
@pytest.mark.parametrize("case", ["tiny", "long_time"], indirect=True)
def test_a_padded_batch_with_images_and_several_videos_gets_the_replies_of_each_alone(case, made):
  export(made)
  theirs, metadata, parts = conversations(np.random.default_rng(0))
  processor = golden.reference_processor(made.path)
  inputs = golden.reference_inputs(processor, theirs, metadata, do_sample_frames=False)
  padding = (inputs["attention_mask"] == 0).numpy()
  assert padding[1, 0]
  assert not padding[:, -1].any()
  model = golden.reference_model(made.path)
  positions = reference_positions(model, inputs)
  encoded = [
    made.context.processor.encode_conversation([conversation.Message(role="user", parts=content)])
    for content in parts
  ]
  for row, one in enumerate(encoded):
    assert inputs["input_ids"][row][~padding[row]].tolist() == one.tokens.tolist()
    np.testing.assert_array_equal(positions[row][~padding[row]], one.positions)
  if case.name == "tiny":
    return  # one compilation is enough
  replies = model.generate(**inputs)[:, padding.shape[1] :]
  assert replies.tolist() == exported_cases.replies(made, encoded)


@needs_reference
@pytest.mark.usefixtures("modules")
@pytest.mark.parametrize("case", ["adapters"], indirect=True)
def test_the_example_of_the_docs_asks_as_our_processor_does(
  case, made, tmp_path, monkeypatch, capsys
):
  import transformers

  if not processors.has_torchvision():
    load = staticmethod(lambda path: golden.reference_processor(pathlib.Path(path)))
    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", load)
  export(made)
  (example,) = own_code.blocks("checkpoints.md", "python")[:1]
  (tmp_path / "example.py").write_text(example)
  monkeypatch.chdir(made.path.parent)
  ran = runpy.run_path(str(tmp_path / "example.py"), {"frames": case.frames()})
  frames, times = case.frames(), np.arange(case.shape[0], dtype=float)
  encoded = made.context.processor.encode(ran["question"], frames, times)
  assert ran["inputs"]["input_ids"][0].tolist() == encoded.tokens.tolist()
  positions = reference_positions(ran["model"], ran["inputs"])[0]
  np.testing.assert_array_equal(positions, encoded.positions)
  replied = made.context.processor.decode(ran["reply"].numpy())
  assert capsys.readouterr().out == f"{replied}\n"


@needs_reference
@pytest.mark.skipif(not processors.has_torchvision(), reason="AutoProcessor needs torchvision")
@pytest.mark.parametrize("case", ["tiny"], indirect=True)
def test_of_a_whole_video_transformers_takes_the_frames_that_training_takes(made, case, encoded):
  export(made)
  whole = case.frames().repeat(8, axis=0)  # 8 frames a second, where the case has one
  content = [{"type": "text", "text": golden.QUESTION}, {"type": "video", "video": whole}]
  inputs = golden.reference_inputs(
    golden.reference_processor(made.path),
    [[{"role": "user", "content": content}]],
    [{"total_num_frames": len(whole), "fps": 8.0}],
  )
  assert inputs["second_per_grid_ts"] == 2.0
  levels = np.concatenate([frame.vision.patches for frame in encoded.frames])
  pixels = pixels_lib.normalise(levels, np.float32)
  np.testing.assert_allclose(inputs["pixel_values_videos"], pixels, rtol=0, atol=1e-3)
