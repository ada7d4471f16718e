"""Questions about masked futures, and the filters: planted faults are caught, clean ones kept."""

import dataclasses

import numpy as np
import pytest

from tests.traces import construct_runs as runs
from vr_jax import records
from vr_jax.traces.construct import equivalence, future_questions, quality, reviewers
from vr_jax.traces.construct import states as states_lib
from vr_jax.worlds import captions as world_captions
from vr_jax.worlds import claims
from vr_jax.worlds import write as worlds_write


def general() -> future_questions.FutureQuestion:
  (question,), _ = future_questions.make(runs.parsed(runs.man()), runs.MAN, runs.RULES)
  return question


def simulated(count: int = 30) -> list[future_questions.FutureQuestion]:
  rules = dataclasses.replace(runs.RULES, style="simulator")
  found = []
  for index in range(count):
    scene, _ = worlds_write.sample_video(runs.world(), seed=5, index=index, questions=1)
    rng = np.random.default_rng(index)
    value = world_captions.record(scene, name=str(index), video=f"{index}.mp4", rng=rng)
    video = runs.parsed(value)
    found += future_questions.make(video, states_lib.read_by_rule(video), rules)[0]
  return found


def changed(question, /, *, values=None, **fields):
  """The question with other fields of its example; `values` also letters the options."""
  if values is not None:
    letters = "ABCDEFGH"[: len(values)]
    fields["options"] = tuple(f"{a}. {b}" for a, b in zip(letters, values, strict=True))
    fields.setdefault("answer", letters[values.index(question.right)])
  example = dataclasses.replace(question.example, **fields)
  values = question.values if values is None else tuple(values)
  return dataclasses.replace(question, example=example, values=values)


def with_step(question, text, **times):
  first, *rest = question.example.steps
  return changed(question, steps=(dataclasses.replace(first, text=text, **times), *rest))


def test_the_last_state_is_masked_and_the_earlier_ones_are_the_trace():
  question = general()
  example = question.example
  assert question.pair == ("man", "posture") and question.right == "lies down"
  assert sorted(question.values) == ["lies down", "sitting", "standing"]
  assert (example.shown.end, example.masked) == (4.0, records.Span(start=4.0, end=6.0))
  assert [(step.start, step.end) for step in example.steps] == [(0, 0), (0, 2), (2, 4)]
  words = ("standing", "sitting", "standing")
  assert all(word in step.text for word, step in zip(words, example.steps, strict=True))
  assert "by 6s" in example.question.lower() and "lies" not in example.question
  assert {state.value for state in example.states if state.object == "pot"} == {
    "empty",
    "half full",
  }


def test_a_step_says_when_a_change_is_certain_and_how_long_a_state_is_seen():
  for step in general().example.steps:
    assert claims.read_times(step.text) == ((step.end, step.end),)
  value = runs.man(keyframe=None)
  for number, caption in enumerate(value["captions"][:-1]):
    caption |= {"start": 2 * number, "end": 2 * number + 2}
  (question,), _ = future_questions.make(runs.parsed(value), runs.MAN, runs.RULES)
  for step in question.example.steps:
    times = [time for span in claims.read_times(step.text) for time in span]
    assert (min(times), max(times)) == (step.start, step.end)
  assert quality.find_fault(question, runs.QUALITY) == ("", "")
  late = with_step(question, "At 6s, the posture of the man is odd.")
  assert quality.find_fault(late, runs.QUALITY)[0] == "trace leaks"  # the masked state holds then


def test_questions_about_two_parts_of_a_video_have_two_names():
  spans = ([1000.001, 1008], [1000.002, 1008], [1000.001, 1009])
  videos = [runs.parsed(runs.man(timestamp=list(span))) for span in spans]
  names = {future_questions.make(v, runs.MAN, runs.RULES)[0][0].example.id for v in videos}
  assert len(names) == 3


def test_what_is_not_asked_about_is_counted_by_its_reason():
  told = (
    *runs.MAN,
    *runs.told(
      ("cat", "mood", "calm", 1),
      ("cat", "mood", "calm", 3),
      ("dog", "place", "left", 0),
      ("dog", "place", "right", 0),
      ("dog", "place", "middle", 3),
      ("lamp", "light", "on", 0),
      ("lamp", "light", "turned on", 1),
      ("lamp", "light", "on", 3),
    ),
  )
  questions, skipped = future_questions.make(runs.parsed(runs.man()), told, runs.RULES)
  assert len(questions) == 1
  assert skipped == {
    "not told in the masked span": 1,
    "never changes": 1,
    "several values in one caption": 1,
    "too few options": 1,
  }


def test_no_more_than_so_many_questions_are_asked_about_a_video():
  told = (*runs.MAN, *runs.told(("pot", "fill", "full", 3)))
  video = runs.parsed(runs.man())
  rules = dataclasses.replace(runs.RULES, per_video=1)
  questions, skipped = future_questions.make(video, told, rules)
  assert len(questions) == 1 and skipped == {"enough questions": 1}
  fill = next(q for q in future_questions.make(video, told, runs.RULES)[0] if q.pair[0] == "pot")
  assert sorted(fill.values) == ["empty", "full"]  # "half full" may be meant by "full"


def test_wrong_options_are_states_of_the_same_video_and_never_true_in_the_masked_span():
  told = runs.told(
    ("man", "colour", "red", 0),
    ("man", "colour", "dark blue", 1),
    ("man", "colour", "grey", 2),
    ("car", "colour", "yellow", 1),
    ("car", "colour", "gray", 2),
    ("man", "coat", "red", 3),
    ("man", "colour", "blue", 3),
  )
  rules = dataclasses.replace(runs.RULES, most_options=6)
  (question,), _ = future_questions.make(runs.parsed(runs.man()), told, rules)
  assert sorted(question.values) in (["blue", "grey", "yellow"], ["blue", "gray", "yellow"])
  assert question.example.options[ord(question.example.answer) - 65][3:] == "blue"


def test_a_wrong_option_that_the_masked_caption_mentions_is_not_used():
  told = runs.told(
    ("man", "posture", "standing", 0),
    ("man", "posture", "sitting", 1),
    ("man", "posture", "lies down", 3),
    ("dog", "posture", "running", 2),
  )
  value = runs.man()
  value["captions"][3]["content"] = "He lies down while somebody sits and is jogging."
  (question,), _ = future_questions.make(runs.parsed(value), told, runs.RULES)
  assert sorted(question.values) == ["lies down", "standing"]


@pytest.mark.parametrize(
  ("one", "other", "same"),
  [
    ("red", "Red.", True),
    ("the red one", "red", True),
    ("dark red", "red", True),
    ("grey", "gray", True),
    ("in the centre", "middle", True),
    ("sitting", "sits", True),
    ("red", "green", False),
    ("top left", "top right", False),
    ("hidden", "visible", False),
    ("turned on", "turned off", False),
    ("in the box", "on the box", False),
  ],
)
def test_values_that_may_mean_the_same_are_known(one, other, same):
  assert equivalence.may_be_same(one, other) == equivalence.may_be_same(other, one) == same


def test_clean_questions_pass_the_rules():
  assert quality.find_fault(general(), runs.QUALITY) == ("", "")
  questions = simulated()
  assert len(questions) > 60
  assert {quality.find_fault(question, runs.QUALITY) for question in questions} == {("", "")}
  assert set(reviewers.RuleReviewer().review(questions)) == {("", "")}


def span(start, end):
  return records.Span(start=start, end=end)


def late(step):
  return dataclasses.replace(step, end=5.0)


FAULTS = {
  "shown and masked overlap": ("times", lambda q: changed(q, shown=span(0, 5))),
  "masked beyond the captioned part": ("times", lambda q: changed(q, masked=span(4, 60))),
  "nothing masked": ("times", lambda q: changed(q, masked=None)),
  "shown for a moment": ("times", lambda q: changed(q, shown=span(3, 4))),
  "masked for a moment": ("times", lambda q: changed(q, masked=span(4, 4.2))),
  "steps out of order": ("times", lambda q: changed(q, steps=q.example.steps[::-1])),
  "one step": ("length", lambda q: changed(q, steps=q.example.steps[:1])),
  "a long question": ("length", lambda q: changed(q, question="What " * 60)),
  "an empty step": ("length", lambda q: with_step(q, "...")),
  "one option": ("options", lambda q: changed(q, values=["lies down"])),
  "answer of no option": ("options", lambda q: changed(q, answer="D")),
  "letters out of order": ("options", lambda q: changed(q, options=q.example.options[::-1])),
  "an option twice": ("options", lambda q: changed(q, values=["lies down", "sitting", "sits"])),
  "an option that is true": (
    "options",
    lambda q: dataclasses.replace(q, future=("lies down", "standing still")),
  ),
  "the answer in the question": (
    "question leaks",
    lambda q: changed(q, question="When the man lies down, what is his posture?"),
  ),
  "the letter in the question": (
    "question leaks",
    lambda q: changed(q, question=f"The answer is {q.example.answer}. What is his posture?"),
  ),
  "a step in the masked span": (
    "trace leaks",
    lambda q: changed(q, steps=(*q.example.steps[:-1], late(q.example.steps[-1]))),
  ),
  "a step that names a masked time": ("trace leaks", lambda q: with_step(q, "At 5s, he rests.")),
  "a step that states the answer": (
    "trace leaks",
    lambda q: with_step(q, "So the answer is lies down."),
  ),
  "a step that quotes the caption": (
    "trace leaks",
    lambda q: with_step(q, "Soon, then he lies down, I guess."),
  ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_caught_with_its_reason(name):
  reason, plant = FAULTS[name]
  found, detail = quality.find_fault(plant(general()), runs.QUALITY)
  assert (found, bool(detail)) == (reason, True)


def test_a_question_that_quotes_the_masked_caption_is_caught():
  value = runs.man()
  value["captions"][3]["content"] = "Then he lies down next to the green sofa near the old window."
  (question,), _ = future_questions.make(runs.parsed(value), runs.MAN, runs.RULES)
  text = "What does he do next to the green sofa near the old window by 6s?"
  assert quality.find_fault(question, runs.QUALITY) == ("", "")
  leak = changed(question, question=text)
  assert quality.find_fault(leak, runs.QUALITY)[0] == "question leaks"


def test_a_question_that_names_all_options_leaks_nothing():
  question = changed(general(), values=["lies down", "sitting"], question="Sitting or lies down?")
  assert quality.find_fault(question, runs.QUALITY) == ("", "")


def reviewed(question):
  return reviewers.RuleReviewer().review([question])[0][0]


def test_the_rule_notices_options_that_the_question_alone_rules_out():
  question = next(q for q in simulated() if q.pair[1] == "colour")
  assert reviewed(question) == ""
  others = ["large", "hidden"]
  assert reviewed(changed(question, values=[question.right, *others])) == "answerable blind"


def test_the_rule_notices_traces_that_do_not_tell_the_future():
  for question in simulated(10):
    assert reviewed(question) == ""
    short = changed(question, steps=question.example.steps[-2:])
    assert reviewed(short) == "not answerable from the trace"
    other = changed(question, steps=(dataclasses.replace(question.example.steps[0], text="Hm."),))
    assert reviewed(other) == "not answerable from the trace"
