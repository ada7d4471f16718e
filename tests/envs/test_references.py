"""No recipe asks what nothing can win: a reference is a reply that earns 1, or it is refused."""

import hypothesis
from hypothesis import strategies
import numpy as np
import pytest

from tests.rewards import scripts
from vr_jax import records
from vr_jax.envs import environment, moss_chatv, question_answer, video_mtr, videop2r
from vr_jax.rewards import judge as judge_lib

JUDGE = judge_lib.RuleJudge(lambda example, observation: True)
WEIGHTS = dict.fromkeys(
  ("perception", "reasoning", "accuracy", "format", "length", "temporal"), 1.0
)
RECIPES = {
  "grpo": question_answer.QuestionAnswer(),
  "moss_chatv": moss_chatv.MossChatV(),
  "videop2r": videop2r.VideoP2R(instruction="", weights=WEIGHTS, judge=JUDGE),
  "video_mtr": video_mtr.VideoMTR(instruction="", last_instruction=""),
}
COPIES = {
  "grpo": "<think>so</think>\n<answer>{}</answer>",
  "videop2r": "<observation>seen</observation>\n<think>so</think>\n<answer>{}</answer>",
  "video_mtr": "<think>so</think>\n<answer>{}</answer>",
}


def example(answer, problem_type, steps=()):
  return records.Example(
    id="q",
    video="v.mp4",
    question="What?",
    options=("A. red", "B. green") if problem_type == "multiple choice" else (),
    answer=answer,
    problem_type=problem_type,
    shown=records.Span(start=0.0, end=8.0),
    steps=tuple(records.Step(text=text, start=0.0, end=1.0) for text in steps),
  )


def rewards_of_copy(recipe, asked):
  """The rewards of a reply that copies the reference."""
  task = RECIPES[recipe]
  reply = task.reference_reply(asked) if recipe == "moss_chatv" and asked.steps else None
  reply = reply or COPIES.get(recipe, COPIES["grpo"]).format(asked.answer)
  episode = environment.Episode(pool=8, relevant=(), replies=(reply,))
  scores = task.score(
    [asked], environment.Replies(episodes=[[episode]], segment=np.zeros((1, 1, 1), np.int32))
  )
  segment = 0 if recipe == "video_mtr" else -1  # the turn, or the reasoning
  return {name: float(value[0, 0, segment]) for name, value in scores.rewards.items()}


WINNABLE = {
  "multiple choice": ["A", "B"],
  "numerical": ["3", "50%", "1/2", "$5", "three", "1,000", "3.0", "5 kg", "½", "１２", "٣"],
  "regression": ["3.5", "50%", "-1/2", "$5", "5 kg", "0"],
  "OCR": ["EXIT 4", "N/A", "!", "出口", *(texts[0] for texts in scripts.SENTENCES.values())],
  "free-form": ["no", "N/A", "左", "cafe\u0301", "１２"],
}
UNWINNABLE = {
  "multiple choice": ["C", "red door"],
  "numerical": ["N/A", "unknown", "3,5", "1.000,50", "3 or 4", "12:30", ""],
  "regression": ["N/A", "3,5", "1 to 2"],
  "OCR": [" ", "<answer>x", "a</answer><answer>b"],
  "free-form": ["👍", "…", "<answer>", ""],
}


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("problem_type", records.PROBLEM_TYPES)
def test_a_reference_that_passes_earns_one_as_a_reply_and_others_are_refused(recipe, problem_type):
  for answer in WINNABLE[problem_type]:
    asked = example(answer, problem_type)
    assert RECIPES[recipe].reference_problem(asked) == ""
    assert rewards_of_copy(recipe, asked)["accuracy"] == 1, answer
  for answer in UNWINNABLE[problem_type]:
    problem = RECIPES[recipe].reference_problem(example(answer, problem_type))
    assert problem.startswith("field 'answer': no reply can be right, since ")
    assert "\n" not in problem


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_one_recipe_alone_cannot_read_is_refused_by_it_alone(recipe):
  for answer, refusing in (("x" * 51, {"video_mtr"}), ("</think>", {"videop2r", "video_mtr"})):
    asked = example(answer, "free-form")
    assert (RECIPES[recipe].reference_problem(asked) != "") == (recipe in refusing)
    assert (rewards_of_copy(recipe, asked)["accuracy"] == 1) == (recipe not in refusing)


ANSWERS = strategies.text(
  strategies.sampled_from("aB3é1,.%/$ ½-红ทअ🎈</answer>") | strategies.characters(), max_size=8
)


@hypothesis.settings(max_examples=150, deadline=None)
@hypothesis.given(
  answer=ANSWERS,
  problem_type=strategies.sampled_from(records.PROBLEM_TYPES),
  recipe=strategies.sampled_from(list(RECIPES)),
)
def test_any_reference_is_refused_or_earns_one(answer, problem_type, recipe):
  asked = example(answer, problem_type)
  problem = RECIPES[recipe].reference_problem(asked)
  assert (problem == "") == (rewards_of_copy(recipe, asked)["accuracy"] == 1)


@pytest.mark.parametrize("language", scripts.SENTENCES)
def test_in_every_language_a_copy_of_steps_and_answer_earns_all(language):
  asked = example(scripts.SENTENCES[language][0], "free-form", scripts.SENTENCES[language])
  assert RECIPES["moss_chatv"].reference_problem(asked) == ""
  rewards = rewards_of_copy("moss_chatv", asked)
  assert rewards == {"accuracy": 1, "format": 1, "process": 1}


def test_steps_that_no_copy_can_match_are_refused_where_the_process_reward_counts():
  asked = example("A", "multiple choice", ["It moves.", "Then </think> it stops."])
  assert RECIPES["moss_chatv"].reference_problem(asked).startswith("field 'steps': its copy")
  for task in (
    RECIPES["grpo"],
    moss_chatv.MossChatV(rewards=("accuracy", "format")),
    moss_chatv.MossChatV(rewards=("accuracy", "process*0")),
  ):
    assert task.reference_problem(asked) == ""


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_query_whose_answer_is_a_mask_is_refused_by_recipes_whose_answers_are_texts(recipe):
  problem = RECIPES[recipe].reference_problem(example("", records.SEGMENTATION))
  assert problem == (
    "field 'problem_type': the answer to a segmentation query is a mask, not a text to score"
  )
