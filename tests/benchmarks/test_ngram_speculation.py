"""Speculation on replies whose passes can be counted by hand."""

from collections import Counter
import json

import numpy as np
import pytest
import tokenizers

from benchmarks import ngram_speculation
from vr_jax import errors

FIVE = [1, 2, 3, 4, 5]


def recorded(*replies, prompt=(9,), others="so far"):
  return ngram_speculation.RecordedReplies([(list(prompt), [*replies])], others)


def test_what_followed_the_longest_suffix_most_often_is_proposed():
  table = ngram_speculation.NgramTable()
  table.add([7, 1, 2, 7, 1, 3, 8, 1, 3], 0)
  assert table.propose([7, 1], 1) == [2]  # 2 and 3 followed 7, 1 once each; 2 came first
  assert table.propose([6, 1], 1) == [3]  # 6, 1 is not known; 3 followed 1 twice
  assert table.propose([1, 2], 4) == [7, 1, 3, 8]
  assert table.propose([5], 3) == []


def test_replies_that_say_the_same_at_the_same_time_have_nothing_to_copy():
  passes, advanced = ngram_speculation.replay(recorded(FIVE, FIVE), 2, 8)
  assert passes == {(2, 2): 5}
  assert set(advanced) == {1}


def test_a_reply_copies_what_the_prompt_has():
  # By hand: one token, after which 2, 3 are proposed; they and 4 are written; then 5.
  passes, advanced = ngram_speculation.replay(recorded(FIVE, prompt=FIVE), 2, 8)
  assert passes == {(1, 2): 3}
  assert advanced == [1, 3, 1]


def test_a_reply_copies_others_that_have_ended():
  # By hand: 1, 2 are proposed after the prompt, and written with 3; then 4 and 5.
  passes, advanced = ngram_speculation.replay(recorded(FIVE, FIVE, others="whole"), 2, 8)
  assert passes == {(2, 2): 2}
  assert advanced == [3, 3, 2, 2]
  alone = recorded(FIVE, FIVE, others="none")
  assert ngram_speculation.replay(alone, 2, 8)[0] == {(2, 2): 5}


def test_a_reply_that_lags_behind_copies_the_one_ahead():
  # By hand: the first reply takes 7 passes; the second sees, at its 8th token 2, what followed it.
  ahead = [1, 2, 3, 4, 5, 6, 7]
  behind = [10, 11, 12, 13, 14, 15, 16, 1, 2, 3, 4, 5, 6, 7]
  passes, advanced = ngram_speculation.replay(recorded(ahead, behind), 4, 8)
  assert passes == Counter({(2, 4): 7, (1, 4): 3})
  assert advanced[-3:] == [1, 5, 1]


def test_there_are_no_proposals_in_more_slots_than_given():
  passes, advanced = ngram_speculation.replay(recorded(FIVE, [8], prompt=FIVE), 2, 1)
  assert passes == {(2, 0): 1, (1, 2): 2}
  assert advanced == [3, 1]


def test_random_replies_advance_by_the_expected_number_of_tokens():
  lengths = np.full(64, 1000)
  replies = ngram_speculation.RandomReplies(lengths, 0.5, 0)
  _, advanced = ngram_speculation.replay(replies, 4, 64)
  assert np.mean(advanced) == pytest.approx(1 + 0.5 + 0.25 + 0.125 + 0.0625, abs=0.03)


def test_break_even_is_where_both_take_equally_long():
  # By hand: a pass takes 1.5 steps; with 2 proposals 1 + a + a^2 = 1.5 at a = (sqrt(3) - 1) / 2.
  needed, acceptance = ngram_speculation.break_even(lambda n, k: 1 + k / 4, 1, 2)
  assert needed == 1.5
  assert acceptance == pytest.approx((3**0.5 - 1) / 2, abs=1e-3)
  assert ngram_speculation.break_even(lambda n, k: 1 + 2 * k, 1, 2) == (5.0, None)


def test_a_pass_reads_keys_once_and_weights_once():
  costs = ngram_speculation.StepCosts()
  for slots, seconds in ((32, 0.948), (64, 1.125), (128, 1.493)):  # by plan
    assert costs.plan(slots, 0) == pytest.approx(seconds, rel=0.01)
  rows = 8 * 5
  assert costs.plan(8, 4) == costs.memory + 8 * costs.keys_slot + rows * costs.memory_row


def test_a_run_is_read_and_judged(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(ngram_speculation, "STEPS", 1)
  monkeypatch.setattr(ngram_speculation, "ACCEPTANCES", (0.5,))
  words = {"up": 0, "down": 1, "left": 2, "right": 3, "?": 4}
  tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="?"))
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  tokenizer.save(str(tmp_path / "tokenizer.json"))
  flag = f"--tokenizer={tmp_path / 'tokenizer.json'}"
  with pytest.raises(errors.InputError, match="no step-"):
    ngram_speculation.main([str(tmp_path), flag])
  group = {"prompt": "up down left right", "replies": [{"text": "up down left right"}] * 8}
  turns = {"prompt": "?", "replies": [{"text": "up", "turns": [{"text": "left"}, {"text": "up"}]}]}
  (tmp_path / "rollouts").mkdir()
  for step, line in enumerate((group, turns)):
    path = tmp_path / "rollouts" / f"step-{step:06d}.jsonl"
    path.write_text(json.dumps(line), encoding="utf-8")
  first, second = ngram_speculation.read_steps(tmp_path, tokenizer, 1)
  assert first == [([0, 1, 2, 3], [[0, 1, 2, 3, -1]] * 8)]
  assert second == [([4], [[2, -1, 0, -1]])]
  path.write_text('{"prompt": "up"}', encoding="utf-8")
  with pytest.raises(errors.InputError, match=r"step-000001.jsonl: not the rollouts"):
    ngram_speculation.read_steps(tmp_path, tokenizer, 1)
  assert ngram_speculation.main([str(tmp_path), flag, "--every=2"]) == 0
  found = json.loads(capsys.readouterr().out)
  assert found["recorded"]["so far"]["best"]["plan"]["speed"] > 1.2
