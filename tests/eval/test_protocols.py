import numpy as np
import pytest

from tests.eval import benchmark_items
from vr_jax import records
from vr_jax.data import benchmark_item
from vr_jax.envs import environment
from vr_jax.errors import InputError
from vr_jax.eval.benchmarks import (
  aggregation,
  answer_rules,
  frame_choice,
  protocols,
  recipe_question,
)

question = benchmark_items.question
CAPTIONS = {"question": "Which?\nCaption A: rising\nCaption B: falling"}
ITEMS = {
  "choice": {"answer": "B", "options": ("rising", "falling")},
  "mra": {"answer": "3.5"},
  "yes_no": {"answer": "yes"},
  "caption_match": {"answer": "B", "options": ("rising", "falling"), "source_record": CAPTIONS},
  "open_rule": {"answer": "4"},
  "judge": {"answer": "a torus"},
  "caption_judge": {"answer": "A. rising"},
  "rubric": {"answer": "It rains."},
  "reasoning_steps": {"answer": "B", "options": ("rising", "falling")},
}
KINDS = {
  "tempcompass": ("choice", "yes_no", "caption_match", "caption_judge"),
  "vsi_bench": ("choice", "mra"),
  "video_mmmu": ("choice", "open_rule"),
  "mmvu": ("choice", "judge"),
  "mlvu": ("choice", "rubric"),
  "vcr_bench": ("reasoning_steps",),
}
ALL = [each for each in protocols.PROTOCOLS.values() if not each.finds_masks]


def items_of(protocol) -> list[benchmark_item.Item]:
  kinds = KINDS.get(protocol.benchmark, ("choice",))
  found = [question(scorer=kind, benchmark=protocol.benchmark, **ITEMS[kind]) for kind in kinds]
  return [item for item in found if protocol.asks(item)]


@pytest.mark.parametrize("protocol", ALL, ids=lambda each: each.name)
def test_a_protocol_names_rules_and_metrics_that_exist(protocol):
  assert protocol.name.split("@")[0] == protocol.benchmark
  assert protocol.rule in answer_rules.RULES
  assert aggregation.get(protocol.metric).headline
  assert protocol.source
  assert items_of(protocol)


@pytest.mark.parametrize(
  "protocol", [each for each in ALL if each.prompt], ids=lambda each: each.name
)
def test_a_protocol_asks_with_the_question_and_each_option_once(protocol):
  for item in items_of(protocol):
    text = protocol.render(item).user
    assert text.count("What is seen?") == 1
    for option in item.options:
      assert text.count(f" {option}") == 1


@pytest.mark.parametrize("protocol", ALL, ids=lambda each: each.name)
def test_the_rule_of_a_protocol_scores_its_questions(protocol):
  for item in items_of(protocol):
    if not answer_rules.needs_judge(item):
      right = "Caption B" if item.scorer == "caption_match" and item.source_record else item.answer
      assert answer_rules.score(protocol.rule, right, item).score == 1


def test_each_benchmark_can_be_asked_as_its_authors_do_and_as_the_recipe_does():
  benchmarks = {each.benchmark for each in ALL}
  assert len(benchmarks) == 12
  for name in benchmarks:
    kinds = {each.name.split("@")[1] for each in protocols.list_protocols(name)}
    assert "recipe" in kinds
    assert "official" in kinds or name == "moss_video"  # no program of its authors is known


def test_an_unknown_protocol_is_refused_with_near_ones():
  for name, near in (
    ("mvbench@oficial", "mvbench@official"),
    ("vsi@video_r1", "vsi_bench@video_r1"),
    ("videomme@subtitles", "video_mme@subtitles"),
  ):
    with pytest.raises(InputError, match=f"did you mean (.* or )?{near}"):
      protocols.get(name)
  assert protocols.get("mvbench@official").rule == "mvbench"
  with pytest.raises(InputError, match="benchmark 'mv': has no protocol"):
    protocols.list_protocols("mv")


def test_a_question_of_another_benchmark_or_kind_is_not_asked():
  for name, fields in (
    ("mvbench@official", {"benchmark": "mlvu"}),
    ("mmvu@mc", {"benchmark": "mmvu", "scorer": "judge", "answer": "text"}),
  ):
    with pytest.raises(InputError, match="q1: not a question of"):
      protocols.get(name).render(question(**fields))
  with pytest.raises(InputError, match="the policy's environment asks"):
    protocols.get("mvbench@recipe").render(question())


def test_mvbench_and_video_mme_are_asked_word_for_word():
  prompt = protocols.get("mvbench@official").render(question("A", options=("up", "down")))
  assert prompt.user == (
    "Question: What is seen?\nOptions:\n(A) up\n(B) down\nOnly give the best option."
  )
  assert prompt.prefill == "Best option:("
  assert prompt.system.startswith("Carefully watch the video")
  ask = protocols.get("video_mme@subtitles")
  item = question("A", options=("up", "down"), benchmark="video_mme")
  lines = ask.render(item, ["Hello.", "Bye."]).user.split("\n")
  assert lines[:3] == ["This video's subtitles are listed below:", "Hello.", "Bye."]
  assert lines[3].startswith("Select the best answer")
  assert lines[4:] == ["What is seen?", "A. up", "B. down", "The best answer is:"]
  assert ask.render(item).user.startswith("Select")
  with pytest.raises(InputError, match="shows no subtitles"):
    protocols.get("video_mme@official").render(item, ["Hello."])


def test_clips_and_cut_off_replies_are_as_the_protocol_says():
  assert protocols.get("mvbench@official").uses_clip
  assert not protocols.get("mvbench@unclipped").uses_clip
  assert not protocols.get("mvbench@video_r1").uses_clip
  for each in ALL:
    # EgoSchema's has no rule, and a judge reads what it finds.
    judged = ("egoschema@official", "mmvu@official", "vcr_bench@official")
    own = each.rule == "strict" and each.name not in judged
    assert ("truncated" in each.counted) != own, each.name


def test_a_recipe_asks_a_question_in_its_own_words():
  item = question(
    "A",
    options=("up", "down"),
    clip=records.Span(start=1.0, end=4.0),
    steps=(benchmark_item.ItemStep(text="It rises.", times=(1.0, 2.0)),),
  )
  example = recipe_question.to_example(item)
  assert example.shown == records.Span(start=1.0, end=4.0)
  assert environment.question_text(example, "Think.") == "What is seen?\nA. up\nB. down\nThink."
  assert environment.task_score("A. up", example) == 1
  assert example.steps[0] == records.Step(text="It rises.", start=1.0, end=2.0)
  whole = recipe_question.to_example(item, 9.0, uses_clip=False)
  assert whole.shown == records.Span(start=0.0, end=9.0)
  for kind, problem_type in (("mra", "regression"), ("yes_no", "free-form")):
    made = recipe_question.to_example(question(**{"scorer": kind, **ITEMS[kind]}))
    assert made.problem_type == problem_type


@pytest.mark.parametrize(
  ("placement", "expected"),
  [
    ("ends", [0, 33, 66, 99]),
    ("rounded", [0, 33, 66, 99]),
    ("middles", [12, 37, 62, 86]),  # 12.375 + round(24.75 i): 0, 25, 50, 74
    ("inside", [20, 40, 60, 80]),
    ("starts", [0, 25, 50, 75]),
  ],
)
def test_frames_are_those_of_the_program(placement, expected):
  choice = frame_choice.FrameChoice(count=4, placement=placement)
  assert frame_choice.choose(choice, 100, 25.0).tolist() == expected


def test_frames_of_a_clip_lie_in_it():
  choice = frame_choice.FrameChoice(count=3)
  clip = records.Span(start=1.0, end=2.0)
  assert frame_choice.choose(choice, 100, 10.0, clip).tolist() == [10, 15, 20]
  assert frame_choice.choose(choice, 12, 10.0, clip).tolist() == [10, 10, 11]
  with pytest.raises(InputError, match="no frame in 20 to 30 s of 100"):
    frame_choice.choose(choice, 100, 10.0, records.Span(start=20.0, end=30.0))


@pytest.mark.parametrize(("seconds", "count"), [(1, 4), (10, 20), (10.4, 20), (1000, 256)])
def test_frames_at_a_rate_are_an_even_number_within_bounds(seconds, count):
  choice = frame_choice.FrameChoice(count=256, fps=2.0, placement="rounded")
  chosen = frame_choice.choose(choice, int(seconds * 25), 25.0)
  assert len(chosen) == count
  assert (np.diff(chosen) > 0).all() and chosen[0] == 0


def test_longvideobench_shows_at_most_a_frame_a_second():
  choice = frame_choice.FrameChoice(count=256, placement="starts")
  assert frame_choice.choose(choice, 250, 25.0).tolist() == list(range(0, 250, 25))
  with pytest.raises(InputError, match="both above 0"):
    frame_choice.FrameChoice(count=0)
