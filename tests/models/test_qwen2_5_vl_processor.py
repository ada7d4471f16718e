"""The processor: sizes, patches, positions, template and padding.

Reference: Hugging Face's Qwen2-VL image processor in its Pillow variant, where transformers is
installed, also for single frames; `smart_resize` also by its rule. Whole prompts are compared with
transformers in test_qwen2_5_vl_processor_parity.py.
"""

import dataclasses
import functools
import importlib.util

from golden import qwen2_5_vl as golden
from hypothesis import assume, given
from hypothesis import strategies as st
import jax
import model_builders as builders
import numpy as np
import pytest

from vr_jax import errors, records
from vr_jax.models.common import conversation, image_patches, prompts
from vr_jax.models.qwen2_5_vl import config as config_lib
from vr_jax.models.qwen2_5_vl import pixels, positions, windows
from vr_jax.models.qwen3_vl import pixels as pixels3
from vr_jax.models.tinyllava import vision as vision_tiny

CONFIG = config_lib.Qwen2_5_VLConfig.from_dict(golden.CASES[0].config())
HAS_REFERENCE = all(map(importlib.util.find_spec, ("torch", "transformers")))
needs_reference = pytest.mark.skipif(
  not HAS_REFERENCE,
  reason="torch and transformers not installed: patch order and sizes are tested by rule too",
)


def picture(height: int, width: int, *, frames: int = 1, seed: int = 0) -> np.ndarray:
  return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), np.uint8)


def collate(encoded, *, prefix=(256,), frames=(0, 1, 2, 4), patches=(4, 16, 64)):
  return builders.make_processor(CONFIG).collate(
    encoded, prefix_buckets=prefix, frame_buckets=frames, patch_buckets=patches
  )


@needs_reference
@pytest.mark.parametrize("size", [(56, 84), (70, 90), (400, 30), (31, 29), (10, 10), (333, 517)])
def test_patches_of_an_image_are_those_of_the_reference(size):
  from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl as reference

  image = picture(*size)[0]
  theirs = reference.Qwen2VLImageProcessorPil(min_pixels=56 * 56, max_pixels=28 * 28 * 16)(image)
  one = conversation.Image(pixels=image)
  encoded = builders.make_processor(CONFIG, library="pillow").encode_conversation(
    [conversation.Message(role="user", parts=(one,))]
  )
  (frame,) = encoded.frames
  normalised = pixels.normalise(frame.vision.patches, np.float32)
  np.testing.assert_allclose(normalised, theirs["pixel_values"], rtol=0, atol=1e-5)
  _, height, width = np.asarray(theirs["image_grid_thw"])[0]
  np.testing.assert_array_equal(frame.vision.rows.max(axis=0) + 1, [height, width])


@needs_reference
def test_each_frame_of_a_video_is_patched_like_an_image_and_an_odd_last_one_is_repeated():
  from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl as reference

  video = picture(60, 100, frames=5)
  theirs = reference.Qwen2VLImageProcessorPil(min_pixels=56 * 56, max_pixels=28 * 28 * 16)
  made = builders.make_processor(CONFIG, library="pillow")
  encoded = made.encode("what?", video, np.arange(5.0))
  assert len(encoded.frames) == 3
  for step, frame in enumerate(encoded.frames):
    normalised = pixels.normalise(frame.vision.patches, np.float32)
    parts = normalised.reshape(frame.patches, 3, 2, -1)
    for half in range(2):
      expected = np.asarray(theirs(video[min(2 * step + half, 4)])["pixel_values"])
      expected = expected.reshape(len(expected), 3, 2, -1)[:, :, 0]
      np.testing.assert_allclose(parts[:, :, half], expected, rtol=0, atol=1e-5)


def test_a_patch_holds_its_own_pixels_channel_first_then_frames():
  video = picture(56, 84, frames=2)
  (patches,) = pixels.patchify(video, CONFIG.vision)
  rows = image_patches.patch_rows(4, 6, merge=2)
  assert rows[:6].tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [0, 2], [0, 3]]
  for (row, column), patch in zip(rows, patches, strict=True):
    square = video[:, 14 * row : 14 * row + 14, 14 * column : 14 * column + 14]
    np.testing.assert_array_equal(patch, square.transpose(3, 0, 1, 2).reshape(-1))


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("family", [pixels, pixels3, vision_tiny])
def test_each_level_of_a_pixel_is_normalised_as_on_the_host_to_one_rounding(family, compiled):
  levels = np.tile(np.arange(256, dtype=np.uint8), (2, 3))  # of each channel, one after the other
  mean, std = (np.repeat(255 * x, 256) for x in (family.MEAN, family.STD))
  expected = (levels.astype(np.float32) - mean) / std
  normalise = functools.partial(
    image_patches.normalise, mean=family.MEAN, std=family.STD, dtype=np.float32
  )
  found = np.asarray((jax.jit(normalise) if compiled else normalise)(levels))
  np.testing.assert_array_max_ulp(found, expected, maxulp=1)


def test_patches_stay_bytes_until_they_are_on_the_device():
  made = builders.make_processor(CONFIG)
  one = made.encode("Which?", picture(56, 56, frames=2), np.arange(2.0))
  sizes = {"prefix_buckets": (128,), "frame_buckets": (1,), "patch_buckets": (16,)}
  assert made.collate([one], **sizes).vision.patches.dtype == np.uint8
  normalised = np.asarray(pixels.normalise(one.frames[0].vision.patches, np.float32))
  vision = dataclasses.replace(one.frames[0].vision, patches=normalised)
  frame = dataclasses.replace(one.frames[0], vision=vision)
  with pytest.raises(TypeError, match=r"float32.*uint8"):
    made.collate([dataclasses.replace(one, frames=(frame,))], **sizes)


@given(
  height=st.integers(1, 2000),
  width=st.integers(1, 2000),
  budget=st.integers(4, 400),
  factor=st.sampled_from([28, 14, 32]),
)
def test_resized_frames_are_of_whole_tokens_within_the_budget(height, width, budget, factor):
  limits = {"min_pixels": 4 * factor**2, "max_pixels": budget * factor**2}
  if max(height, width) > 200 * min(height, width):
    with pytest.raises(errors.InputError, match="over 200 times"):
      image_patches.smart_resize(height, width, factor=factor, **limits)
    return
  tall, wide = image_patches.smart_resize(height, width, factor=factor, **limits)
  assert tall % factor == 0 and wide % factor == 0
  assert tall >= factor and wide >= factor
  longest = (
    200 * factor**2
  )  # a side is at least one token, so a very long frame may exceed the budget
  assert tall * wide <= max(limits["max_pixels"], longest)


@pytest.mark.parametrize(
  ("size", "tokens", "expected"),
  [
    ((112, 112), 4, (56, 56)),
    ((70, 98), 64, (56, 112)),  # 2.5 and 3.5 tokens: halves go to the even number
    ((480, 600), 12, (84, 84)),  # shrunk to 3.1 x 3.9 tokens, then cut
    ((20, 30), 64, (56, 84)),  # stretched to 1.6 x 2.4 tokens, then filled up
  ],
)
def test_smart_resize_of_known_sizes(size, tokens, expected):
  limits = {"min_pixels": 4 * 28**2, "max_pixels": tokens * 28**2}
  assert image_patches.smart_resize(*size, factor=28, **limits) == expected


def test_windows_are_squares_of_the_frame_cut_off_at_its_border():
  rows = image_patches.patch_rows(6, 10, merge=2)  # 3 x 5 tokens in windows of 2 x 2 tokens
  window = windows.patch_windows(rows, CONFIG.vision)
  expected = rows[:, 0] // 4 * 3 + rows[:, 1] // 4
  np.testing.assert_array_equal(window, expected)
  assert sorted(np.bincount(window).tolist()) == [4, 8, 8, 8, 16, 16]


def test_time_counts_seconds_and_text_goes_on_where_the_config_says():
  video = prompts.Grid(kind=records.Kind.VIDEO, frames=4, height=4, width=4, seconds=1.5)
  kind = np.array([1] * 3 + [3] * 16 + [1] * 2, np.int32)
  places, after = positions.rope_index(kind, [video], CONFIG.vision)  # two steps a second
  assert places[0, 3:19:4].tolist() == [3, 6, 9, 12]
  assert places[1, 3:7].tolist() == [3, 3, 4, 4]
  assert places[2, 3:7].tolist() == [3, 4, 3, 4]
  assert places[:, 19:].tolist() == [[5, 6]] * 3
  assert after == 7
  old = dataclasses.replace(CONFIG.vision, rope_after_video="largest")
  places, after = positions.rope_index(kind, [video], old)
  assert places[:, 19:].tolist() == [[13, 14]] * 3
  assert after == 15


def test_the_template_is_qwens_and_the_assistants_turn_is_open():
  encoded = builders.make_processor(CONFIG).encode(
    "Which?", picture(56, 56, frames=2), np.arange(2.0)
  )
  text = builders.BYTES.decode(encoded.tokens.tolist(), skip_special_tokens=False)
  assert text == (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n<|vision_start|>" + "<|video_pad|>" * 4 + "<|vision_end|>Which?<|im_end|>\n"
    "<|im_start|>assistant\n"
  )


def test_without_frames_the_prompt_is_text_alone():
  encoded = builders.make_processor(CONFIG, system="").encode("Which?", None)
  text = builders.BYTES.decode(encoded.tokens.tolist(), skip_special_tokens=False)
  assert text == "<|im_start|>user\nWhich?<|im_end|>\n<|im_start|>assistant\n"
  assert encoded.frames == ()
  assert set(encoded.kind) == {records.Kind.TEXT}
  assert encoded.next_position == len(encoded.tokens)


def test_a_conversation_may_hold_images_and_videos_and_earlier_replies():
  image = conversation.Image(pixels=picture(56, 84)[0])
  video = conversation.VideoFrames(frames=picture(56, 56, frames=4), timestamps=np.arange(4) / 2)
  turns = [
    conversation.Message(role="system", parts=("Be brief.",)),
    conversation.Message(role="user", parts=(image, "or", video, "?")),
    conversation.Message(role="assistant", parts=("Both.",)),
    conversation.Message(role="user", parts=("Sure?",)),
  ]
  encoded = builders.make_processor(CONFIG).encode_conversation(turns, open_reply=False)
  text = builders.BYTES.decode(encoded.tokens.tolist(), skip_special_tokens=False)
  assert text.startswith(
    "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
  )
  assert text.endswith(
    "<|im_start|>assistant\nBoth.<|im_end|>\n<|im_start|>user\nSure?<|im_end|>\n"
  )
  assert (encoded.kind == records.Kind.IMAGE).sum() == 6
  assert (encoded.kind == records.Kind.VIDEO).sum() == 8
  assert [frame.patches for frame in encoded.frames] == [24, 16, 16]


def test_padding_goes_to_the_smallest_buckets_and_media_tokens_find_their_features():
  one = builders.make_processor(CONFIG)
  short = one.encode("a", None)
  wide = one.encode("b", picture(56, 84, frames=3), np.arange(3.0), name="wide")
  batch = collate([short, wide], prefix=(64, 90, 256), patches=(4, 32, 64))
  assert batch.tokens.shape == (2, 90)
  assert batch.vision.patches.shape == (2, 2, 32, 1176)
  assert (batch.vision.window[0] == -1).all()
  assert (batch.vision.window[1, :, 24:] == -1).all()
  index = batch.media_index[1][batch.media_index[1] >= 0]
  assert index.tolist() == [0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13]
  np.testing.assert_array_equal(batch.media_index >= 0, batch.kind == records.Kind.VIDEO)
  assert (batch.kind[0, len(short.tokens) :] == records.Kind.PAD).all()


@pytest.mark.parametrize(
  ("buckets", "message"),
  [
    ({"prefix": (64,)}, "clip 7: .* tokens, but the largest bucket has 64"),
    ({"frames": (1,)}, "clip 7: 4 temporal patches, but the largest bucket has 1"),
    ({"patches": (8,)}, "clip 7: 16 patches a frame, but the largest bucket has 8"),
    ({"patches": (18,)}, "patch_buckets: 18 is no multiple of 4"),
  ],
)
def test_a_prompt_that_fits_no_bucket_is_named(buckets, message):
  clip = builders.make_processor(CONFIG).encode(
    "Which?", picture(56, 56, frames=8), np.arange(8.0), name="clip 7"
  )
  with pytest.raises(errors.InputError, match=message):
    collate([clip], **buckets)


@pytest.mark.parametrize(
  ("text", "frames", "timestamps", "message"),
  [
    ("a", 2, [0, 1, 2], "clip: 2 frames need 2 timestamps"),
    ("a", 2, None, "clip: 2 frames need 2 timestamps"),
    ("a", 3, [0, 2, 1], "clip: timestamps of its frames do not rise"),
    ("a", 2, [0, np.nan], "clip: timestamps of its frames do not rise"),
    ("a", 0, [], "clip: a video without pixels"),
  ],
)
def test_what_cannot_be_a_prompt_is_refused_by_name(text, frames, timestamps, message):
  frames = None if frames is None else picture(56, 56, frames=frames)
  timestamps = None if timestamps is None else np.array(timestamps, np.float64)
  with pytest.raises(errors.InputError, match=message):
    builders.make_processor(CONFIG).encode(text, frames, timestamps, name="clip")


def test_replies_end_the_turn_and_decode_to_their_text():
  one = builders.make_processor(CONFIG)
  reply = "<think>At 0s, the circle is red.\nÄ½🙂</think>\n<answer>B</answer>"
  ids = one.encode_reply(reply)
  assert ids[-1] in one.stop_tokens
  assert one.decode(ids) == reply
  assert not set(ids) & set(one.media_tokens)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda tokens: tokens[tokens != 269], "clip: 0 media tokens for 4 media features"),
    (lambda tokens: np.append(tokens, 269), "clip: 5 media tokens for 4 media features"),
    (
      lambda tokens: np.where(tokens == 269, 268, tokens),
      "clip: medium 0 is a run of 4 VIDEO tokens",
    ),
  ],
)
def test_media_tokens_that_do_not_match_the_features_are_an_error(change, message):
  made = builders.make_processor(CONFIG)
  one = made.encode("Which?", picture(56, 56, frames=2), np.arange(2.0))
  patches = [np.stack([frame.vision.patches for frame in one.frames])]
  tokens = change(one.tokens).astype(np.int32)
  with pytest.raises(errors.InputError, match=message):
    made.join(tokens, one.grids, patches, name="clip")


def test_media_tokens_of_one_medium_stand_together():
  made = builders.make_processor(CONFIG)
  one = made.encode("Which?", picture(56, 56, frames=2), np.arange(2.0))
  patches = [np.stack([frame.vision.patches for frame in one.frames])]
  split = np.insert(one.tokens, int(np.argmax(one.tokens == 269)) + 2, 65).astype(np.int32)
  with pytest.raises(errors.InputError, match="clip: medium 0 is a run of 4 VIDEO tokens"):
    made.join(split, one.grids, patches, name="clip")
  with pytest.raises(errors.InputError, match=r"clip: patches of shape .*\(1, 12, 1176\)"):
    made.join(one.tokens, one.grids, [patches[0][:, :12]], name="clip")


@pytest.mark.parametrize(
  ("turn", "message"),
  [
    (
      conversation.Message(role="judge", parts=("Guilty.",)),
      "clip: a turn of 'judge'; roles are system",
    ),
    (
      conversation.Message(role="user", parts=(conversation.Image(pixels=picture(2, 401)[0]),)),
      "clip: frame of 2x401 pixels: one side is over 200 times the other",
    ),
    (
      conversation.Message(
        role="user",
        parts=(conversation.VideoFrames(frames=picture(9, 9, frames=2), timestamps=np.zeros(2)),),
      ),
      "clip: timestamps of its frames do not rise",
    ),
  ],
)
def test_what_cannot_be_a_conversation_is_refused_by_name(turn, message):
  with pytest.raises(errors.InputError, match=message):
    builders.make_processor(CONFIG).encode_conversation([turn], name="clip")


def test_a_tokenizer_of_another_model_is_refused():
  other = dataclasses.replace(CONFIG, video_token_id=5)
  with pytest.raises(errors.InputError, match=r"video_pad.* is token 269, but .* says 5"):
    builders.make_processor(other)
  small = dataclasses.replace(CONFIG, text=dataclasses.replace(CONFIG.text, vocab_size=260))
  with pytest.raises(errors.InputError, match="has 270 tokens, but the model only 260"):
    builders.make_processor(small)


@pytest.mark.parametrize("question_first", [False, True])
@pytest.mark.parametrize("shape", [(2, 31, 57), (5, 60, 100), (4, 300, 30)])
def test_a_prompt_is_checked_by_its_shape_as_encoding_and_padding_would(shape, question_first):
  made = builders.make_processor(CONFIG)
  frames = picture(*shape[1:], frames=shape[0])
  order = {"question_first": question_first, "name": "clip"}
  one = made.encode(" What moves?", frames, np.arange(shape[0], dtype=float), **order)
  sizes = {
    "prefix_buckets": len(one.tokens),
    "frame_buckets": len(one.frames),
    "patch_buckets": one.frames[0].patches,
  }
  made.check_prompt(
    " What moves?",
    shape,
    np.arange(float(shape[0])),
    **order,
    **{k: (v,) for k, v in sizes.items()},
  )
  for name in sizes:
    buckets = {k: (v - (k == name),) for k, v in sizes.items()}
    with pytest.raises(errors.InputError) as cheap:
      made.check_prompt(" What moves?", shape, np.arange(float(shape[0])), **order, **buckets)
    with pytest.raises(errors.InputError) as real:
      made.collate([one], **buckets)
    assert str(cheap.value) == str(real.value)


@given(st.text(max_size=40))
def test_what_is_known_of_a_text_without_encoding_it_is_never_too_little(text):
  assume(not any("\ud800" <= sign <= "\udfff" for sign in text))
  made = builders.make_processor(CONFIG)
  length = len(made.encode_reply(text))
  assert made.reply_length(text, length - 1) == length
  assert length <= made.reply_length(text, 10_000) <= 10_000
  exact = len(made.encode(text, picture(56, 56, frames=2), np.arange(2.0)).tokens)
  assert exact <= made._around_question + conversation.most_tokens(text) + 4


@pytest.mark.parametrize(
  ("asked", "shown"), [((56, 56), (56, 56)), ((75, 60), (84, 56)), ((30, 120), (28, 112))]
)
def test_frames_are_shown_at_the_size_asked_for_whatever_their_shape(asked, shown):
  made = builders.make_processor(CONFIG)
  assert made.resized(asked) == shown
  assert made.box_scale(asked) == shown  # boxes count pixels of the frame as it is shown
  tokens = shown[0] * shown[1] // 28**2
  assert made.count_media_tokens((3, *asked), "clip") == 2 * tokens
  encoded = made.encode("Where?", picture(90, 160, frames=3), np.arange(3.0), size=asked)
  assert (encoded.kind == records.Kind.VIDEO).sum() == 2 * tokens
  image = conversation.Image(pixels=picture(90, 160)[0], size=asked)
  encoded = made.encode_conversation([conversation.Message(role="user", parts=(image,))])
  assert (encoded.kind == records.Kind.IMAGE).sum() == tokens
