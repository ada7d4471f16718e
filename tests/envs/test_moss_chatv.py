"""The task of MOSS-ChatV: what it asks, and what replies are worth under each gate and weight."""

import dataclasses
import json

import numpy as np
import pytest

from vr_jax import errors, records
from vr_jax.envs import environment, moss_chatv

STEPS = ("At 0s, the circle is red.", "At 2s, the circle turns green.", "At 4s, it turns blue.")
EXAMPLE = records.Example(
  id="q1",
  video="v.mp4",
  question="Which colour will the circle have at 9s?",
  options=("A. red", "B. green"),
  answer="B",
  problem_type="multiple choice",
  shown=records.Span(start=0.0, end=8.0),
  steps=tuple(records.Step(text=t, start=2.0 * i, end=2.0 * i + 2) for i, t in enumerate(STEPS)),
)
TRACE = "\n".join(STEPS)
RIGHT = f"<think>{TRACE}</think>\n<answer>B</answer>"
WRONG = f"<think>{TRACE}</think>\n<answer>A</answer>"
UNFORMATTED = f"Well. <think>{TRACE}</think> <answer>B</answer>, I say."
EMPTY = ""


def _task(**changes):
  fields = {
    "instruction": "Think.",
    "weights": {"accuracy": 1.0, "format": 1.0, "process": 1.0},
    "alpha": 1.0,
    "dtw_moves": "jump",
    "dtw_alignment": "subsequence",
    "process_gate": "none",
  }
  return moss_chatv.MossChatV(**{**fields, **changes})


def _score(*replies, **changes):
  return _task(**changes).score([EXAMPLE], _said([list(replies)]))


def _said(texts):
  return environment.Replies.from_texts(texts, np.zeros((len(texts), len(texts[0]), 1), np.int32))


def test_it_is_an_environment():
  assert isinstance(_task(), environment.Environment)


def test_the_question_shows_options_and_instruction_one_a_line():
  shown = "Which colour will the circle have at 9s?\nA. red\nB. green\nThink."
  assert _task().question(EXAMPLE) == shown
  assert _task(instruction="").question(EXAMPLE) == shown.removesuffix("\nThink.")


@pytest.mark.parametrize("alignment", ["subsequence", "naive"])
@pytest.mark.parametrize("moves", ["strict", "jump", "classic"])
def test_the_reference_reply_earns_full_marks(alignment, moves):
  task = _task(dtw_alignment=alignment, dtw_moves=moves)
  scores = task.score([EXAMPLE], _said([[task.reference_reply(EXAMPLE)]]))
  for name in ("accuracy", "format", "process"):
    np.testing.assert_allclose(scores.rewards[name], 1, atol=1e-6)
  np.testing.assert_allclose(scores.total, 3, atol=1e-6)


def test_an_example_without_steps_has_no_reference_reply():
  bare = records.Example(
    id="q2",
    video="v.mp4",
    question="?",
    answer="3",
    problem_type="numerical",
    shown=records.Span(start=0.0, end=1.0),
  )
  assert _task().reference_reply(bare) is None
  replies = _said([["<think>x</think><answer>3</answer>"]])
  assert _task().score([bare], replies).rewards["process"] == 0


@pytest.mark.parametrize(
  ("gate", "totals"),
  [("none", [3, 2, 2, 0]), ("format", [3, 2, 1, 0]), ("accuracy", [3, 1, 2, 0])],
)
def test_the_gate_takes_the_process_reward_and_nothing_else(gate, totals):
  scores = _score(RIGHT, WRONG, UNFORMATTED, EMPTY, process_gate=gate)
  np.testing.assert_allclose(scores.total[0, :, 0], totals, atol=1e-6)
  np.testing.assert_allclose(scores.rewards["process"][0, :, 0], [1, 1, 1, 0], atol=1e-6)


def test_accuracy_and_format_are_scored_apart():
  scores = _score(RIGHT, WRONG, UNFORMATTED, EMPTY)
  np.testing.assert_array_equal(scores.rewards["accuracy"][0, :, 0], [1, 0, 1, 0])
  np.testing.assert_array_equal(scores.rewards["format"][0, :, 0], [1, 1, 0, 0])


def test_the_total_is_the_weighted_sum():
  weights = {"accuracy": 2.0, "format": 0.5, "process": 0.25}
  scores = _score(RIGHT, WRONG, weights=weights)
  np.testing.assert_allclose(scores.total[0, :, 0], [2.75, 0.75], atol=1e-6)


def test_a_trace_out_of_order_earns_less_and_alpha_says_how_much():
  backwards = "<think>" + "\n".join(STEPS[::-1]) + "</think>\n<answer>B</answer>"
  mild, stern = (_score(backwards, alpha=a).rewards["process"].item() for a in (0.5, 1.0))
  assert 0 < stern < mild < 1
  np.testing.assert_allclose(mild**2, stern, rtol=1e-5)


def test_scores_have_the_shape_of_prompts_and_group_and_their_order():
  other = records.Example(**{**vars(EXAMPLE), "id": "q2", "answer": "A"})
  scores = _task().score([EXAMPLE, other], _said([[RIGHT, WRONG, EMPTY]] * 2))
  assert scores.total.shape == scores.scored.shape == (2, 3, 1)
  assert scores.scored.all()
  np.testing.assert_array_equal(scores.rewards["accuracy"][..., 0], [[1, 0, 0], [0, 1, 0]])


@pytest.mark.parametrize("reply", [RIGHT, EMPTY, "<think></think>", "\x00 <think>é🎉"])
def test_the_explanation_is_json_with_steps_and_alignment(reply):
  explained = json.loads(json.dumps(_task().explain(EXAMPLE, reply)))
  assert explained.keys() == {"reference", "steps", "alignment"}
  assert [step["text"] for step in explained["reference"]] == list(STEPS)
  assert explained["alignment"].keys() == {"cost", "path", "distance"}
  cost = explained["alignment"]["cost"]
  assert len(cost) == len(STEPS)
  assert all(len(row) == len(explained["steps"]) for row in cost)


def test_the_explanation_of_the_reference_is_its_diagonal():
  explained = _task().explain(EXAMPLE, RIGHT)
  assert list(explained["steps"]) == list(STEPS)
  assert explained["alignment"]["path"] == [[0, 0], [1, 1], [2, 2]]
  assert explained["alignment"]["distance"] == pytest.approx(0, abs=1e-6)


def test_nothing_is_remembered():
  task = _task()
  assert task.state() == {}
  task.set_state({})


def test_a_step_of_several_sentences_is_explained_as_what_the_reward_compares():
  step = records.Step(text="1. It moves. Then it stops.", start=0.0, end=2.0)
  example = dataclasses.replace(EXAMPLE, steps=(step, EXAMPLE.steps[1]))
  explained = _task().explain(example, RIGHT)
  texts = ["It moves. Then it stops.", STEPS[1]]
  assert [each["text"] for each in explained["reference"]] == texts
  assert len(explained["alignment"]["cost"]) == 2
  explained = _task().explain(dataclasses.replace(example, steps=(_step("It. Is."),)), RIGHT)
  assert [each["text"] for each in explained["reference"]] == ["It.", "Is."]


def _step(text):
  return records.Step(text=text, start=0.0, end=2.0)


PARAPHRASED = (
  "<think>The disc is red at 0s. By 2s the disc is green. Once it is 4s, it is blue.</think>\n"
  "<answer>B</answer>"
)
FALSE = RIGHT.replace("turns green", "turns pink")


def test_with_claims_the_process_reward_pays_for_facts_and_not_for_words():
  rouge, claims = (
    _score(RIGHT, PARAPHRASED, FALSE, step_distance=distance).rewards["process"].ravel()
    for distance in ("rouge", "claims")
  )
  assert rouge[0] == 1 and rouge[1] < rouge[2]
  np.testing.assert_allclose(claims, [1, 1, np.exp(-1 / 3)], rtol=1e-6)


def test_claims_of_nearby_times_count_as_equal_within_the_seconds_asked_for():
  late = RIGHT.replace("2s", "3s")
  near, far = (
    _score(late, step_distance="claims", claim_seconds=seconds).rewards["process"].item()
    for seconds in (4.0, 1.0)
  )
  np.testing.assert_allclose([near, far], np.exp([-0.25 / 3, -1 / 3]), rtol=1e-6)


def test_with_embeddings_the_service_is_asked_and_without_it_scoring_fails():
  asked = []

  def embed(texts):
    asked.extend(texts)
    return np.array([[1.0, 0.0] if "green" in text else [0.6, 0.8] for text in texts], np.float32)

  scores = _score(RIGHT, FALSE, step_distance="embeddings", step_embedder=embed)
  np.testing.assert_allclose(scores.rewards["process"].ravel(), [1, np.exp(-0.4 / 3)], rtol=1e-6)
  assert set(STEPS) < set(asked)
  with pytest.raises(errors.InputError, match="no step_embedder"):
    _score(RIGHT, step_distance="embeddings")


def test_references_that_claim_nothing_are_refused_where_claims_are_compared():
  steps = tuple(
    records.Step(text=t, start=0.0, end=1.0) for t in (STEPS[0], "He runs.", "It ends.")
  )
  plain = dataclasses.replace(EXAMPLE, steps=steps)
  with pytest.raises(errors.InputError, match="2 of 3 reference steps claim nothing"):
    _task(step_distance="claims").check_examples([plain])
  _task(step_distance="claims").check_examples([plain, EXAMPLE])  # 2 of 6
  _task(step_distance="claims", weights={"process": 0.0}).check_examples([plain])
  _task(step_distance="rouge").check_examples([plain])
