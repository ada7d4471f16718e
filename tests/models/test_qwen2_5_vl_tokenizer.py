"""The tokenizer: Qwen2.5's rules, trained on new text.

Reference: transformers' Qwen2Tokenizer, where it is installed.
"""

import importlib.util

from hypothesis import given
from hypothesis import strategies as st
import pytest

from vr_jax import errors
from vr_jax.models.qwen2_5_vl import tokenizer

TEXTS = [f"At {i}s, the circle's colour turns {c}.\n" for i in range(20) for c in ("red", "blue")]
HAS_REFERENCE = importlib.util.find_spec("transformers") is not None


def test_the_same_texts_give_the_same_tokenizer():
  first, second = (tokenizer.train_tokenizer(iter(TEXTS), 320).to_str() for _ in range(2))
  assert first == second


def test_bytes_come_first_then_merges_then_special_tokens():
  trained = tokenizer.train_tokenizer(TEXTS, 290)
  assert trained.get_vocab_size() == 290
  assert trained.token_to_id("<|endoftext|>") == 290 - len(tokenizer.SPECIAL_TOKENS)
  assert tokenizer.config_fields(trained) == {
    "vocab_size": 290,
    "image_token_id": 288,
    "video_token_id": 289,
    "vision_start_token_id": 285,
    "vision_end_token_id": 286,
  }


def test_merges_shorten_the_text_they_were_learnt_from():
  trained = tokenizer.train_tokenizer(TEXTS, 400)
  assert trained.encode(TEXTS[0]).tokens == [
    "At", "Ġ", "0", "s", ",", "Ġthe", "Ġcircle", "'s", "Ġcolour", "Ġturns", "Ġred", ".Ċ",
  ]  # fmt: skip


@given(st.text())
def test_any_text_comes_back_in_composed_form(text):
  trained = tokenizer.train_tokenizer([], 270)
  back = trained.decode(trained.encode(text).ids, skip_special_tokens=False)
  assert back == trained.normalizer.normalize_str(text)


@pytest.mark.skipif(
  not HAS_REFERENCE, reason="transformers not installed: the pieces above are written out"
)
@given(st.text(max_size=80))
def test_text_is_cut_as_qwen2_cuts_it(text):
  from transformers.models.qwen2 import tokenization_qwen2

  theirs = tokenization_qwen2.Qwen2Tokenizer().backend_tokenizer
  ours = tokenizer.train_tokenizer([], 270)
  assert ours.pre_tokenizer.pre_tokenize_str(text) == theirs.pre_tokenizer.pre_tokenize_str(text)


def test_a_saved_tokenizer_is_read_from_its_file_or_its_directory(tmp_path):
  trained = tokenizer.train_tokenizer(TEXTS, 300)
  trained.save(str(tmp_path / "tokenizer.json"))
  assert tokenizer.load_tokenizer(tmp_path).to_str() == trained.to_str()
  assert tokenizer.load_tokenizer(tmp_path / "tokenizer.json").to_str() == trained.to_str()


@pytest.mark.parametrize("content", [None, "", "{}", '{"model": {"type": "BPE"', "\x00\x01"])
def test_what_is_no_tokenizer_is_named(tmp_path, content):
  path = tmp_path / "tokenizer.json"
  if content is not None:
    path.write_text(content)
  with pytest.raises(errors.InputError, match=r"tokenizer\.json: (no such file|not a tokenizer)"):
    tokenizer.load_tokenizer(path)


def test_a_tokenizer_without_media_tokens_is_refused(tmp_path):
  path = tmp_path / "tokenizer.json"
  text = tokenizer.train_tokenizer([], 270).to_str().replace("<|video_pad|>", "<|other_pad|>")
  path.write_text(text)
  with pytest.raises(errors.InputError, match=r"has no token <\|video_pad\|>"):
    tokenizer.load_tokenizer(path)


def test_a_vocabulary_too_small_for_bytes_is_refused():
  with pytest.raises(errors.InputError, match="vocab_size: 200 is less than the 270"):
    tokenizer.train_tokenizer(TEXTS, 200)
