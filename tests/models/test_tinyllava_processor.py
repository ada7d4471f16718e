"""TinyLLaVA-Video's processor: pixels, the template "phi", its tokenizer, and what it refuses.

Reference: SiglipImageProcessorPil of transformers 5.24 where it is installed; prompts as its
published code writes them. Tolerance: 1e-6 on normalised pixels, none on anything else.
"""

import dataclasses
import importlib.util
import json
import random

from golden import tinyllava as golden
import model_builders as builders
import numpy as np
import pytest

from vr_jax import errors, records
from vr_jax.models import tinyllava
from vr_jax.models.common import conversation, image_patches, prompts
from vr_jax.models.common import tokenizer as tokenizer_lib
from vr_jax.models.tinyllava import processor, template, tokenizer, vision

HAS_REFERENCE = all(map(importlib.util.find_spec, ("torch", "transformers")))
CONFIG = builders.load(golden.CASES[0]).config
SYSTEM = template.SYSTEM


def make_processor(**options) -> processor.TinyLlavaProcessor:
  return builders.make_processor(CONFIG, **{"system": SYSTEM, "library": "pillow", **options})


def said(made: processor.TinyLlavaProcessor, tokens: np.ndarray) -> str:
  """The text of tokens, with [V] for each run of media tokens."""
  pieces, run = [], []
  for token in [*tokens.tolist(), None]:
    if token is None or token == CONFIG.image_token_id:
      pieces.append(made.tokenizer.decode(run, skip_special_tokens=False))
      run = []
      if token is not None and pieces[-1:] != [""]:
        pieces.append("[V]")
    else:
      run.append(token)
  return "".join(pieces)


def message(role: str, *parts) -> conversation.Message:
  return conversation.Message(role=role, parts=parts)


def video(images: int, *, seed: int = 0) -> conversation.VideoFrames:
  frames = np.random.default_rng(seed).integers(0, 256, (images, 20, 50, 3), np.uint8)
  return conversation.VideoFrames(frames=frames, timestamps=np.arange(float(images)))


def test_a_question_is_written_as_in_the_released_code():
  made = make_processor()
  for first in (False, True):
    encoded = made.encode(
      " What moves?\n", video(4).frames, np.arange(4.0), question_first=first, name="clip"
    )
    lines = "What moves?\n[V]" if first else "[V]\nWhat moves?"
    assert said(made, encoded.tokens) == f"{SYSTEM} USER: {lines} ASSISTANT:"
  assert (encoded.kind == records.Kind.VIDEO).sum() == CONFIG.resampler.queries
  assert encoded.positions[:, 0].tolist() == list(range(len(encoded.tokens)))
  assert encoded.next_position == len(encoded.tokens)
  assert made.system_length == len(made.tokenizer.encode(SYSTEM).ids)
  assert encoded.tokens[: made.system_length].tolist() == made.tokenizer.encode(SYSTEM).ids


def test_turns_end_with_the_end_of_text_alone_and_replies_start_with_a_space():
  made = make_processor()
  turns = (
    message("user", video(2), "Who?"),
    message("assistant", "The thief."),
    message("user", "And then?", conversation.Image(pixels=np.zeros((9, 9, 3), np.uint8)), " \n"),
  )
  whole = made.encode_conversation(turns)
  text = f"{SYSTEM} USER: [V]\nWho? ASSISTANT: The thief.<|endoftext|>"
  assert said(made, whole.tokens) == f"{text}USER: And then?\n[V] ASSISTANT:"
  written = made.tokenizer.decode(whole.tokens[whole.loss_mask].tolist(), skip_special_tokens=False)
  assert written == " The thief.<|endoftext|>"
  first, reply = made.encode_conversation(turns[:1]), made.encode_reply("The thief.")
  rest = made.continue_conversation(turns[2:], after=reply)
  joined = prompts.join([first, made.encode_tokens(reply), rest], name="joined")
  np.testing.assert_array_equal(joined.tokens, whole.tokens)
  np.testing.assert_array_equal(joined.positions, whole.positions)
  unfinished = made.continue_conversation(turns[2:], after=reply[:-1])
  assert unfinished.tokens.tolist() == [made.end_token, *rest.tokens.tolist()]


def test_a_reply_is_read_without_the_space_that_starts_it():
  made = make_processor()
  for text in ("The thief.", "<think> a </think>", " spaced", "naïve"):
    tokens = made.encode_reply(text)
    assert made.decode(tokens) == text
    ends = made.ends(tokens)
    assert ends[-1] == len(text) and ends == sorted(ends) and ends[0] >= 0
    assert made.reply_length(text, 0) == len(tokens)
  assert made.decode(made.tokenizer.encode("No").ids) == "No"  # it may start without one
  assert made.ends(made.tokenizer.encode("No").ids) == [1, 2]


def test_the_words_for_media_and_the_end_of_a_reply_are_text_in_a_question():
  made = make_processor()
  encoded = made.encode("Is <image> or <|endoftext|> shown?", None)
  assert (encoded.kind == records.Kind.TEXT).all() and made.end_token not in encoded.tokens
  assert "USER: Is <image> or <|endoftext|> shown? ASSISTANT:" in said(made, encoded.tokens)
  assert made.media_tokens == (CONFIG.vocab_size - 1,)


@pytest.mark.parametrize("images", [1, 3, 7])
def test_a_video_of_any_length_is_one_run_of_as_many_tokens_as_queries(images):
  made, times = make_processor(), np.arange(float(images))
  whole = made.encode("?", video(images).frames, times)
  assert len(whole.frames) == 1 and whole.patches == images * CONFIG.vision.patches
  count = CONFIG.resampler.queries
  assert made.count_media_tokens((images, 20, 50), "clip") == count
  features = np.ones((count, CONFIG.hidden_size), np.float32)
  known = made.encode_with_features("?", (images, 20, 50), times, features)
  np.testing.assert_array_equal(known.tokens, whole.tokens)
  sizes = {
    "prefix_buckets": len(whole.tokens),
    "frame_buckets": len(whole.frames),
    "patch_buckets": whole.patches,
  }
  order = {"question_first": False, "name": "prompt"}
  made.check_prompt("?", (images, 20, 50), times, **order, **{k: (v,) for k, v in sizes.items()})
  for name in ("prefix_buckets", "patch_buckets"):
    buckets = {k: (v - (k == name),) for k, v in sizes.items()}
    with pytest.raises(errors.InputError) as cheap:
      made.check_prompt("?", (images, 20, 50), times, **order, **buckets)
    with pytest.raises(errors.InputError) as real:
      made.collate([whole], **buckets)
    assert str(cheap.value) == str(real.value)
  with pytest.raises(errors.InputError, match="is no multiple of 16, the patches of an image"):
    made.collate([whole], **{k: (v + 1,) for k, v in sizes.items()})


@pytest.mark.skipif(not HAS_REFERENCE, reason="transformers not installed")
@pytest.mark.parametrize("size", [(20, 50), (90, 41), (29, 29)])
def test_pixels_are_those_of_the_released_processor(size):
  from transformers.models.siglip import image_processing_pil_siglip as reference

  made, side = make_processor(), CONFIG.vision.image_size
  frames = np.random.default_rng(1).integers(0, 256, (3, *size, 3), np.uint8)
  theirs = reference.SiglipImageProcessorPil(size={"height": side, "width": side})
  pixels = theirs(list(frames), return_tensors="np")["pixel_values"]
  encoded = made.encode("?", frames, np.arange(3.0))
  kept, patch = CONFIG.vision.side, CONFIG.vision.patch_size
  grid = pixels[:, :, : kept * patch, : kept * patch].reshape(3, 3, kept, patch, kept, patch)
  expected = grid.transpose(0, 2, 4, 1, 3, 5).reshape(-1, CONFIG.vision.patch_dim)
  (frame,) = encoded.frames
  mean, std = vision.MEAN, vision.STD
  found = image_patches.normalise(frame.vision.patches, mean=mean, std=std, dtype=np.float32)
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def slow_files(words, directory) -> None:
  """Writes a tokenizer as a slow one does, with runs of spaces that are added tokens."""
  words.model.save(str(directory))
  vocab = json.loads((directory / "vocab.json").read_text())
  vocab.pop(template.END, None)
  (directory / "vocab.json").write_text(json.dumps(vocab))
  added = [template.END, " " * 8, " " * 4, "\t\t"]
  numbered = {text: len(vocab) + place for place, text in enumerate(added)}
  (directory / "added_tokens.json").write_text(json.dumps(numbered))


def test_the_files_of_a_slow_tokenizer_are_read_too(tmp_path):
  texts = ["the quick brown fox, 12 times; " * 3, "def f(x):\n        return x\n\t\tpass"]
  slow_files(tokenizer.train_tokenizer(texts, 400), tmp_path)
  found = tokenizer.load_tokenizer(tmp_path)
  number = json.loads((tmp_path / "added_tokens.json").read_text())
  assert found.encode("a        b").ids[1] == number[" " * 8]
  assert found.token_to_id(template.END) == number[template.END]
  rng = random.Random(0)
  for _ in range(20):
    text = "".join(rng.choice("ab x\n\t12é<|") for _ in range(30)) + texts[1]
    assert found.decode(found.encode(text).ids) == text
  (tmp_path / "added_tokens.json").write_text(json.dumps({template.END: 9, "zz": 70000}))
  with pytest.raises(errors.InputError, match=r"added_tokens\.json: .* take all files from one"):
    tokenizer.load_tokenizer(tmp_path)
  (tmp_path / "merges.txt").unlink()
  with pytest.raises(errors.InputError, match=r"merges\.txt: no such file; download it, too"):
    tokenizer.load_tokenizer(tmp_path)


@pytest.mark.skipif(not HAS_REFERENCE, reason="transformers not installed")
def test_transformers_reads_the_same_tokens_from_these_files(tmp_path):
  import transformers

  slow_files(tokenizer.train_tokenizer(["the quick brown fox " * 9], 300), tmp_path)
  found = tokenizer.load_tokenizer(tmp_path)
  added = json.loads((tmp_path / "added_tokens.json").read_text())
  decoder = {str(number): {"content": text} for text, number in added.items()}
  decoder[str(added[template.END])]["special"] = True
  fields = {"tokenizer_class": "CodeGenTokenizer", "added_tokens_decoder": decoder}
  ends = dict.fromkeys(("bos_token", "eos_token", "unk_token"), template.END)
  (tmp_path / "tokenizer_config.json").write_text(json.dumps({**fields, **ends}))
  theirs = transformers.CodeGenTokenizer.from_pretrained(tmp_path)
  for text in ("the quick fox", "a        b\t\tc    d", "é 12  3\n\n the", SYSTEM):
    assert theirs(text)["input_ids"] == found.encode(text).ids


def test_what_does_not_go_together_is_refused(tmp_path):
  words = builders.PHI_BYTES
  text = dataclasses.replace(CONFIG.text, vocab_size=words.get_vocab_size())
  with pytest.raises(errors.InputError, match="257 tokens, and the model 257 rows, of which one"):
    processor.TinyLlavaProcessor(dataclasses.replace(CONFIG, text=text), words)
  with pytest.raises(errors.InputError, match=r"<\|endoftext\|> is token 256, but .* says 7"):
    processor.TinyLlavaProcessor(dataclasses.replace(CONFIG, end_token_id=7), words)
  with pytest.raises(errors.InputError, match=r"<\|endoftext\|>; it is not Phi-2's tokenizer"):
    tokenizer_lib.train_tokenizer([], 260, special_tokens=("<s>",)).save(f"{tmp_path}/other.json")
    tinyllava.FAMILY.load_tokenizer(tmp_path / "other.json")
  with pytest.raises(errors.InputError, match="resampler mix the frames of a video"):
    make_processor().shuffle_frames(np.zeros((1, 1), np.int32), [], np.random.default_rng(0))
