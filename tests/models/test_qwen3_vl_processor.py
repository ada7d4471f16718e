"""Qwen3-VL's processor: sizes over a whole video, times in the text, and what it refuses.

Reference: transformers 5.24 with torchvision 0.28, from tests/golden/qwen3_vl_processor.npz and,
where torchvision is installed, live. Tolerance: 1e-3 on normalised pixels, whose 8-bit levels are
all the same; none on anything else.
"""

import dataclasses
import importlib.util
import json
import secrets
import zlib

from golden import qwen2_5_vl as shared_models
from golden import qwen2_5_vl_processor as shared
from golden import qwen3_vl as models
from golden import qwen3_vl_processor as golden
import model_builders as builders
import numpy as np
import pytest

from vr_jax import errors, recipe_config, records
from vr_jax.envs import grounding
from vr_jax.models import registry
from vr_jax.models.common import conversation, prompts
from vr_jax.models.qwen3_vl import config as config_lib
from vr_jax.models.qwen3_vl import pixels, positions, processor, transformers_files
from vr_jax.rewards import boxes

TOLERANCE = 1e-3
TOKENIZER = shared.make_tokenizer()
HAS_REFERENCE = all(map(importlib.util.find_spec, ("torch", "torchvision", "transformers")))
CASES = [pytest.param(case, id=case.name) for case in golden.CASES]


def make_processor(**options) -> processor.Qwen3VLProcessor:
  fields = models.CASES[0].config()
  fields["text_config"]["vocab_size"] = TOKENIZER.get_vocab_size()
  tokens = registry.family("qwen3_vl").tokenizer_fields(TOKENIZER)
  config = config_lib.Qwen3VLConfig.from_dict({**fields, **tokens})
  limits = golden.IMAGE_SIZE["shortest_edge"], golden.IMAGE_SIZE["longest_edge"]
  chosen = {
    "min_video_pixels": golden.VIDEO_SIZE["shortest_edge"],
    "max_video_pixels": golden.VIDEO_SIZE["longest_edge"],
    **options,
  }
  return processor.Qwen3VLProcessor(config, TOKENIZER, *limits, **chosen)


def encode(case: shared.ProcessorCase) -> prompts.EncodedPrompt:
  media = iter(case.media())

  def part(given):
    if isinstance(given, str):
      return given
    frames = next(media)[1]
    if given[0] == "image":
      return conversation.Image(pixels=frames[0])
    times = np.array(shared.frame_numbers(given)) / given[4]
    return conversation.VideoFrames(frames=frames, timestamps=times)

  turns = [
    conversation.Message(role=role, parts=tuple(map(part, parts))) for role, parts in case.turns
  ]
  return make_processor().encode_conversation(turns, open_reply=case.open_reply, name=case.name)


def patches(encoded: prompts.EncodedPrompt, kind: records.Kind) -> np.ndarray:
  kinds = [grid.kind for grid in encoded.grids for _ in range(grid.frames)]
  mine = [
    frame.vision.patches for frame, of in zip(encoded.frames, kinds, strict=True) if of == kind
  ]
  mine = np.concatenate([np.zeros((0, 1536), np.uint8), *mine])
  return np.asarray(pixels.normalise(mine, np.float32))


def check_all_but_pixels(encoded, theirs, told):
  np.testing.assert_array_equal(encoded.tokens, theirs["input_ids"], err_msg=told)
  kinds = np.array([records.Kind.TEXT, records.Kind.IMAGE, records.Kind.VIDEO])
  np.testing.assert_array_equal(encoded.kind, kinds[theirs["mm_token_type_ids"]], err_msg=told)
  for kind, name in ((records.Kind.IMAGE, "image"), (records.Kind.VIDEO, "video")):
    grids = [(g.frames, g.height, g.width) for g in encoded.grids if g.kind == kind]
    expected = np.asarray(theirs.get(f"{name}_grid_thw", np.zeros((0, 3))))
    np.testing.assert_array_equal(np.reshape(grids, (-1, 3)), expected, err_msg=told)
  np.testing.assert_array_equal(encoded.positions.T, theirs["positions"], err_msg=told)
  assert encoded.next_position == theirs["next_position"], told
  if "assistant_masks" in theirs:
    np.testing.assert_array_equal(encoded.loss_mask, theirs["assistant_masks"], err_msg=told)


@pytest.mark.parametrize("case", CASES)
def test_a_conversation_is_encoded_as_transformers_did(case):
  saved = np.load(golden.FILE)
  prefix = f"{case.name}."
  theirs = {name.removeprefix(prefix): saved[name] for name in saved if name.startswith(prefix)}
  encoded = encode(case)
  check_all_but_pixels(encoded, theirs, case.name)
  for kind, name in ((records.Kind.IMAGE, ""), (records.Kind.VIDEO, "_videos")):
    mine = golden.levels(patches(encoded, kind))
    some = theirs.get(f"pixel_values{name}", np.zeros((0, 3, 512), np.uint8))
    np.testing.assert_array_equal(mine[:: shared.EVERY], some)
    assert zlib.crc32(mine.tobytes()) == theirs.get(f"pixel_values{name}.checksum", 0)


@pytest.mark.skipif(not HAS_REFERENCE, reason="torchvision not installed: golden cases cover it")
@pytest.mark.parametrize("seed", [0, None, None])
def test_transformers_agrees_on_conversations_drawn_just_now(seed):
  seed = secrets.randbits(31) if seed is None else seed
  case = golden.random_case(seed)
  theirs = golden.reference_outputs(case, golden.reference_processor())
  told = f"golden.random_case({seed})"
  encoded = encode(case)
  check_all_but_pixels(encoded, theirs, told)
  for kind, name in ((records.Kind.IMAGE, ""), (records.Kind.VIDEO, "_videos")):
    expected = theirs.get(f"pixel_values{name}", np.zeros((0, 1536)))
    mine = patches(encoded, kind)
    np.testing.assert_allclose(mine, expected, rtol=0, atol=TOLERANCE, err_msg=told)


def text_of(encoded: prompts.EncodedPrompt) -> str:
  """The prompt's text with one <|video_pad|> or <|image_pad|> for each run of them."""
  tokens, kind = encoded.tokens, encoded.kind
  kept = (kind == records.Kind.TEXT) | (np.diff(kind, prepend=-1) != 0)
  return TOKENIZER.decode(tokens[kept].tolist(), skip_special_tokens=False)


def test_each_temporal_patch_tells_its_own_time_whatever_the_rate():
  times = np.array([0.2, 0.4, 12.5, 12.5 + 1 / 3, 301.26])
  encoded = make_processor(system="").encode("?", np.zeros((5, 64, 64, 3), np.uint8), times)
  block = "<|vision_start|><|video_pad|><|vision_end|>"
  assert text_of(encoded) == (
    f"<|im_start|>user\n<0.3 seconds>{block}<12.7 seconds>{block}<301.3 seconds>{block}?<|im_end|>"
    "\n<|im_start|>assistant\n"
  )
  assert encoded.grids[0].times == ((0.2 + 0.4) / 2, (times[2] + times[3]) / 2, 301.26)


def test_an_image_tells_its_time_only_if_it_is_a_frame_of_a_video():
  made, black = make_processor(system=""), np.zeros((64, 64, 3), np.uint8)
  parts = ("a ", conversation.Image(pixels=black, seconds=7.04), conversation.Image(pixels=black))
  turn = conversation.Message(role="user", parts=parts)
  block = "<|vision_start|><|image_pad|><|vision_end|>"
  assert f"\na <7.0 seconds>{block}{block}<|im_end|>" in text_of(made.encode_conversation([turn]))


def test_features_of_a_video_stand_where_its_patches_would():
  made, times = make_processor(), np.array([1.0, 2.0, 9.0])
  whole = made.encode("?", np.zeros((3, 64, 96, 3), np.uint8), times)
  shapes, count = made.config.vision_shapes, int((whole.kind != records.Kind.TEXT).sum())
  features = shapes.features(np.ones, count)
  known = made.encode_with_features("?", (3, 64, 96), times, features)
  np.testing.assert_array_equal(known.tokens, whole.tokens)
  assert made.count_media_tokens((3, 64, 96), "clip") == count
  assert shapes.feature_width == 3 * 32  # an embedding and two levels
  rows = shapes.pack_features(features)
  assert shapes.unpack_features(rows).levels.shape == (count, 2, 32)


@pytest.mark.parametrize("shape", [(2, 31, 57), (5, 60, 100), (4, 300, 30)])
def test_a_prompt_is_checked_by_its_shape_as_encoding_and_padding_would(shape):
  made, times = make_processor(), np.linspace(0.5, 1000.0, shape[0])
  one = made.encode(" What moves?", np.zeros((*shape, 3), np.uint8), times, name="clip")
  sizes = {
    "prefix_buckets": len(one.tokens),
    "frame_buckets": len(one.frames),
    "patch_buckets": one.frames[0].patches,
  }
  order = {"question_first": False, "name": "clip"}
  made.check_prompt(" What moves?", shape, times, **order, **{k: (v,) for k, v in sizes.items()})
  for name in sizes:
    buckets = {k: (v - (k == name),) for k, v in sizes.items()}
    with pytest.raises(errors.InputError) as cheap:
      made.check_prompt(" What moves?", shape, times, **order, **buckets)
    with pytest.raises(errors.InputError) as real:
      made.collate([one], **buckets)
    assert str(cheap.value) == str(real.value)


def test_the_limits_are_of_the_whole_video_so_that_more_frames_are_smaller():
  made = make_processor()
  sizes = [made.video_grid((n, 300, 300), np.arange(float(n)), "clip") for n in (2, 8, 24)]
  assert [grid.height // 2 for grid in sizes] == [4, 2, 1]
  for grid in sizes:
    assert 2 * grid.frames * grid.patches * 256 <= golden.VIDEO_SIZE["longest_edge"]
  assert made.resized((300, 300)) == (128, 128)


def test_the_table_is_met_at_its_corners_and_halfway_between_its_rows():
  config = dataclasses.replace(make_processor().config.vision, num_position_embeddings=25)
  rows = np.array([[0, 0], [8, 2], [1, 1]])
  places, weights = positions.table_places(rows, 9, 3, config)
  assert (places[0, 0], weights[0, 0]) == (0, 1)
  assert (places[1, 0], weights[1, 0]) == (24, 1)
  assert places[2].tolist() == [2, 3, 7, 8] and weights[2].tolist() == [0.5, 0, 0.5, 0]
  assert positions.table_places(np.zeros((1, 2), int), 1, 1, config)[1].sum() == 1


@pytest.mark.parametrize(
  ("times", "message"),
  [
    ([0.0, 1.0], "clip: 3 frames need 3 timestamps"),
    ([0.0, 2.0, 2.0], "clip: timestamps of its frames do not rise"),
    ([0.0, 1.0, np.inf], "clip: timestamps of its frames do not rise"),
  ],
)
def test_times_that_cannot_be_told_are_refused(times, message):
  with pytest.raises(errors.InputError, match=message):
    make_processor().encode("?", np.zeros((3, 64, 64, 3), np.uint8), np.array(times), name="clip")


def test_frames_that_are_too_long_and_limits_that_hold_no_frame_are_refused():
  with pytest.raises(errors.InputError, match="clip: frame of 32x9600 pixels: one side is over"):
    make_processor().video_grid((2, 1, 300), np.arange(2.0), "clip")
  for limits in ({"max_video_pixels": 2047}, {"min_video_pixels": 10**6}):
    with pytest.raises(errors.InputError, match=r"max_video_pixels: is .* one media token, 2048"):
      make_processor(**limits)


def test_one_frame_counts_as_the_two_of_a_temporal_patch():
  limits = {"span": 2, "factor": 32, "min_pixels": 4 * 64 * 64, "max_pixels": 40 * 1024}
  one, two = (pixels.video_resize(n, 200, 40, **limits) for n in (1, 2))
  assert one == two


def test_exported_files_give_transformers_the_limits_and_one_block_a_patch():
  made = make_processor(system="Be brief.")
  files = transformers_files.processor_files(made, {"do_sample_frames": True, "num_frames": 8})
  video = json.loads(files["video_preprocessor_config.json"])
  assert video["size"] == golden.VIDEO_SIZE and video["fps"] is None
  assert json.loads(files["preprocessor_config.json"])["size"] == golden.IMAGE_SIZE
  assert '"<|video_pad|>"' in files["chat_template.jinja"]


def test_a_box_in_either_family_s_numbers_is_the_same_box_of_the_video():
  video, box = (720, 1280), (100.0, 50.0, 500.0, 300.0)
  other = builders.make_processor(builders.load(shared_models.CASES[0]).config)
  scales = {"thousandths": make_processor().box_scale((832, 832)), "pixels": other.box_scale(video)}
  assert scales == {"thousandths": (1000, 1000), "pixels": other.resized(video)}
  written = {name: grounding.to_reply(box, scale, video) for name, scale in scales.items()}
  assert [round(x) for x in written["thousandths"]] == [78, 69, 391, 417]
  for name, scale in scales.items():
    found = grounding.to_video(written[name], scale, video)
    np.testing.assert_allclose(found, box, rtol=1e-12)
  mixed = grounding.to_video(written["thousandths"], scales["pixels"], video)
  overlap = 0.0 if mixed is None else float(boxes.box_iou(np.array(mixed), np.array(box)))
  assert overlap < 0.5


@pytest.mark.parametrize("frames", [2, 8])
def test_limits_of_a_frame_hold_for_videos_of_every_length(frames):
  base, family = make_processor(), registry.family("qwen3_vl")
  section = recipe_config.load("configs/moss_chatv.py:qwen3vl_2b").model.unlock()
  family.limit_pixels(section, 64 * 64, 128 * 128, frames)
  limited = family.make_processor(base.config, TOKENIZER, section)
  for side in (32, 512):
    shown = np.zeros((frames, side, side, 3), np.uint8)
    (grid,) = limited.encode("?", shown, np.arange(float(frames)), name="clip").grids
    height, width = limited.frame_size(grid)
    assert 64 * 64 <= height * width <= 128 * 128
