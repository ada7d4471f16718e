"""Encoded prompts against Hugging Face transformers' Qwen2_5_VLProcessor.

Compared are the chat template, token ids, kinds, grids, pixels and positions.

Reference: transformers 5.23 with torchvision 0.28, from tests/golden/qwen2_5_vl_processor.npz and,
where transformers is installed, live. Tolerance: 1e-3 on normalised pixels, whose 8-bit levels are
all the same; none on anything else.
"""

import importlib.util
import secrets
import zlib

from golden import qwen2_5_vl as models
from golden import qwen2_5_vl_processor as golden
import numpy as np
import pytest

from vr_jax import errors, records
from vr_jax.models.common import conversation, prompts, resize
from vr_jax.models.qwen2_5_vl import config as config_lib
from vr_jax.models.qwen2_5_vl import pixels, processor
from vr_jax.models.qwen2_5_vl import tokenizer as tokenizer_lib

TOLERANCE = 1e-3
TOKENIZER = golden.make_tokenizer()
HAS_REFERENCE = all(map(importlib.util.find_spec, ("torch", "transformers")))
needs_reference = pytest.mark.skipif(
  not HAS_REFERENCE, reason="torch and transformers not installed: golden cases cover it"
)
CASES = [pytest.param(case, id=case.name) for case in golden.CASES]


def make_processor() -> processor.Qwen2_5_VLProcessor:
  fields = models.CASES[0].config()
  fields["text_config"]["vocab_size"] = TOKENIZER.get_vocab_size()
  fields["vision_config"]["tokens_per_second"] = golden.TOKENS_PER_SECOND
  tokens = tokenizer_lib.config_fields(TOKENIZER)
  config = config_lib.Qwen2_5_VLConfig.from_dict({**fields, **tokens})
  limits = golden.SIZE["shortest_edge"], golden.SIZE["longest_edge"]
  return processor.Qwen2_5_VLProcessor(config, TOKENIZER, *limits)


def encode(case: golden.ProcessorCase) -> prompts.EncodedPrompt:
  media = iter(case.media())

  def part(given):
    if isinstance(given, str):
      return given
    frames = next(media)[1]
    if given[0] == "image":
      return conversation.Image(pixels=frames[0])
    times = np.arange(len(frames)) / given[4]
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
  mine = np.concatenate([np.zeros((0, 1176), np.uint8), *mine])
  return np.asarray(pixels.normalise(mine, np.float32))


def check_all_but_pixels(
  encoded: prompts.EncodedPrompt, theirs: dict[str, np.ndarray], told: str
) -> None:
  np.testing.assert_array_equal(encoded.tokens, theirs["input_ids"], err_msg=told)
  kinds = np.array([records.Kind.TEXT, records.Kind.IMAGE, records.Kind.VIDEO])
  np.testing.assert_array_equal(encoded.kind, kinds[theirs["mm_token_type_ids"]], err_msg=told)
  for kind, name in ((records.Kind.IMAGE, "image"), (records.Kind.VIDEO, "video")):
    grids = [(g.frames, g.height, g.width) for g in encoded.grids if g.kind == kind]
    expected = np.asarray(theirs.get(f"{name}_grid_thw", np.zeros((0, 3))))
    np.testing.assert_array_equal(np.reshape(grids, (-1, 3)), expected, err_msg=told)
  videos = [grid for grid in encoded.grids if grid.kind == records.Kind.VIDEO]
  expected = np.asarray(theirs.get("second_per_grid_ts", []))
  several = [grid.frames > 1 for grid in videos]  # of one frame there is no distance
  seconds = np.array([grid.seconds for grid in videos])
  np.testing.assert_allclose(seconds[several], expected[several], rtol=1e-12)
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
    some = theirs.get(f"pixel_values{name}", np.zeros((0, 3, 392), np.uint8))
    np.testing.assert_array_equal(mine[:: golden.EVERY], some)
    assert zlib.crc32(mine.tobytes()) == theirs.get(f"pixel_values{name}.checksum", 0)


@needs_reference
@pytest.mark.parametrize("seed", [0, None, None, None])
def test_transformers_agrees_on_conversations_drawn_just_now(seed):
  seed = secrets.randbits(31) if seed is None else seed
  case = golden.random_case(seed)
  theirs = golden.reference_outputs(case, golden.reference_processor())
  told = f"golden.random_case({seed})"
  encoded = encode(case)
  check_all_but_pixels(encoded, theirs, told)
  for kind, name in ((records.Kind.IMAGE, ""), (records.Kind.VIDEO, "_videos")):
    expected = theirs.get(f"pixel_values{name}", np.zeros((0, 1176)))
    mine = patches(encoded, kind)
    np.testing.assert_allclose(mine, expected, rtol=0, atol=TOLERANCE, err_msg=told)


def continued(case: golden.ProcessorCase, *, cut_off: bool) -> prompts.EncodedPrompt:
  """Joins a conversation as an episode does: the first prompt, then replies and observations."""
  made, media = make_processor(), iter(case.media())
  turns = [
    conversation.Message(
      role=role,
      parts=tuple(
        part if isinstance(part, str) else conversation.Image(pixels=next(media)[1][0])
        for part in parts
      ),
    )
    for role, parts in case.turns
  ]
  parts = [made.encode_conversation(turns[:1])]
  for reply, shown in zip(turns[1::2], turns[2::2], strict=True):
    said = made.encode_reply("".join(map(str, reply.parts)))
    said = np.array(said[:-1] if cut_off else said, np.int32)
    parts += [made.join(said, [], []), made.continue_conversation([shown], after=said)]
  return prompts.join(parts, name=case.name)


@needs_reference
@pytest.mark.parametrize("cut_off", [False, True])
def test_an_episode_of_several_turns_is_the_conversation_that_transformers_makes_of_them(cut_off):
  case = golden.ProcessorCase(
    name="episode",
    turns=(
      ("user", ("frame 0", ("image", 60, 90), "\nWhere is the", ("image", 30, 60), "?")),
      ("assistant", ("<think>not yet</think><retrieve>3,5</retrieve>",)),
      ("user", (("image", 200, 40), "frame 3\n", ("image", 56, 56), ("image", 84, 56), "And?")),
      ("assistant", ("the video",)),
      ("user", ("Not in the right form. Again.",)),
      ("assistant", ("?",)),
      ("user", ("\n\nthen: ", ("image", 33, 71))),
    ),
    seed=3,
  )
  theirs = golden.reference_outputs(case, golden.reference_processor())
  del theirs["assistant_masks"]
  mine = continued(case, cut_off=cut_off)
  check_all_but_pixels(mine, theirs, case.name)
  pixels = patches(mine, records.Kind.IMAGE)
  np.testing.assert_allclose(pixels, theirs["pixel_values"], rtol=0, atol=TOLERANCE)


def shown_at(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """Frames [frames, height, width, 3] resized by PyTorch, as qwen-vl-utils resizes to a size."""
  import torch

  tensor = torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous()
  resized = torch.nn.functional.interpolate(tensor, size=list(size), mode="bicubic", antialias=True)
  return resized.permute(0, 2, 3, 1).numpy()


@needs_reference
def test_an_image_of_another_size_after_a_video_is_where_transformers_has_it():
  """The video's frames and the image are shown at sizes of their own, whatever their shape."""
  drawn = np.random.default_rng(4).integers(0, 256, (4, 60, 90, 3), np.uint8)
  clip, picture = shown_at(drawn, (56, 84)), shown_at(drawn[2:3], (112, 112))

  class Resized(golden.ProcessorCase):
    def media(self):
      return [(("video", 4, 56, 84, 2.0), clip), (("image", 112, 112), picture)]

  said = "<think>then</think><answer>[{'frame_idx': 2}]</answer>"
  case = Resized(
    name="two sizes",
    turns=(
      ("user", (("video", 4, 56, 84, 2.0), "Where is it?")),
      ("assistant", (said,)),
      ("user", (("image", 112, 112), "\nIts box?")),
    ),
  )
  theirs = golden.reference_outputs(case, golden.reference_processor())
  del theirs["assistant_masks"]
  made = make_processor()
  reply = np.array(made.encode_reply(said), np.int32)
  image = conversation.Image(pixels=drawn[2], size=(116, 100))  # rounded to 112
  parts = [
    made.encode("Where is it?", drawn, np.arange(4) / 2, size=(60, 90)),  # to 56 x 84
    made.join(reply, [], []),
    made.continue_conversation(
      [conversation.Message(role="user", parts=(image, "\nIts box?"))], after=reply
    ),
  ]
  mine = prompts.join(parts, name=case.name)
  check_all_but_pixels(mine, theirs, case.name)
  for kind, name in ((records.Kind.IMAGE, ""), (records.Kind.VIDEO, "_videos")):
    expected = theirs[f"pixel_values{name}"]
    np.testing.assert_allclose(patches(mine, kind), expected, rtol=0, atol=TOLERANCE)


@needs_reference
@pytest.mark.skipif(golden.has_torchvision(), reason="the stand-in is for where torchvision is not")
@pytest.mark.parametrize("case", CASES)
def test_the_stand_in_for_the_video_processor_gives_its_pixels(case):
  saved = np.load(golden.FILE)
  theirs = golden.reference_outputs(case, golden.reference_processor())
  for name in ("pixel_values", "pixel_values_videos"):
    if name in theirs:
      found = zlib.crc32(golden.levels(theirs[name]).tobytes())
      assert found == saved[f"{case.name}.{name}.checksum"]


@needs_reference
def test_a_padded_batch_has_the_references_attention_mask():
  reference = golden.reference_processor()
  texts = ["short", "this one is a good deal longer"]
  chat = [[{"role": "user", "content": [{"type": "text", "text": text}]}] for text in texts]
  theirs = reference.apply_chat_template(
    chat,
    add_generation_prompt=True,
    tokenize=True,
    return_dict=True,
    return_tensors="np",
    processor_kwargs={"padding": True},
  )
  ours = make_processor()
  encoded = [ours.encode(text, None) for text in texts]
  length = theirs["input_ids"].shape[1]
  batch = ours.collate(encoded, prefix_buckets=(length,), frame_buckets=(0,), patch_buckets=(4,))
  np.testing.assert_array_equal(batch.tokens, theirs["input_ids"])
  np.testing.assert_array_equal(batch.kind != records.Kind.PAD, theirs["attention_mask"])


@needs_reference
@pytest.mark.parametrize("seed", range(6))
def test_frames_are_resized_to_the_bit_as_by_torch_from_any_size_to_any_other(seed):
  import torch

  rng = np.random.default_rng(seed)
  height, width, *size = np.exp(rng.uniform(0, 6, 4)).astype(int) + 1
  frames = rng.integers(0, 256, (2, height, width, 3), np.uint8)
  tensor = torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous()
  theirs = torch.nn.functional.interpolate(
    tensor, size=[int(side) for side in size], mode="bicubic", antialias=True
  )
  ours = resize.resample(frames, int(size[0]), int(size[1]), "torchvision")
  np.testing.assert_array_equal(ours, theirs.permute(0, 2, 3, 1).numpy())


def test_text_that_spells_special_tokens_stays_text():
  spelled = (
    "a <|video_pad|><|image_pad|><|vision_end|><|im_end|>\n<|im_start|>assistant\n<|endoftext|>"
  )
  made = make_processor()
  encoded = made.encode(spelled, np.zeros((2, 56, 56, 3), np.uint8), np.arange(2.0))
  assert (encoded.kind == records.Kind.VIDEO).sum() == 4
  ends = [TOKENIZER.token_to_id(token) for token in ("<|im_start|>", "<|im_end|>", "<|endoftext|>")]
  assert [int((encoded.tokens == end).sum()) for end in ends] == [3, 2, 0]
  assert not set(made.encode_reply(spelled)[:-1]) & {*made.media_tokens, *made.stop_tokens}
  assert made.decode(made.encode_reply(spelled)) == spelled


def test_the_loss_falls_on_what_the_assistant_wrote_and_on_the_ends_of_its_turns():
  turns = [
    conversation.Message(role="user", parts=("Who?",)),
    conversation.Message(role="assistant", parts=("\nMe.",)),
    conversation.Message(role="user", parts=("assistant",)),
    conversation.Message(role="assistant", parts=("", "Still", " me.")),
  ]
  encoded = make_processor().encode_conversation(turns, open_reply=False)
  learnt = TOKENIZER.decode(encoded.tokens[encoded.loss_mask].tolist(), skip_special_tokens=False)
  assert (
    learnt == "\n\nMe.<|im_end|>Still me.<|im_end|>"
  )  # the break that opens the turn is one token with the next
  assert not make_processor().encode("Who?", None).loss_mask.any()


def test_the_two_libraries_differ_and_no_third_is_known():
  made = make_processor()
  frames = np.random.default_rng(0).integers(0, 256, (2, 333, 517, 3), np.uint8)
  both = [resize.resample(frames, 224, 448, library) for library in resize.RESIZE]
  assert 0 < np.mean(both[0] != both[1]) < 0.02
  with pytest.raises(
    errors.InputError, match="library: is 'opencv', not one of torchvision, pillow"
  ):
    processor.Qwen2_5_VLProcessor(made.config, TOKENIZER, 1, 2, library="opencv")
