"""What no rule can score is judged by a model: its verdicts are cached, and never guessed."""

import dataclasses
import json
import re

import pytest

from tests.eval import benchmark_items
from tests.eval.benchmarks import answer_judge
from tests.eval.benchmarks.answer_judge import (
  BLUE,
  TEXTS,
  asked,
  caption_item,
  grade_by_words,
  judge_kinds,
  rubric_item,
  said,
  steps_item,
)
from tests.rewards import judge_server
from tests.rewards.judge_server import Reply
from vr_jax import benchmark_arguments, evaluate_benchmarks, model_endpoint
from vr_jax.errors import InputError
from vr_jax.eval.benchmarks import (
  judge_questions,
  judged_answers,
  protocols,
  reply_store,
  score_table,
  scored_protocol,
)
from vr_jax.eval.trace_judging import grade_cache
from vr_jax.train import judge_local

server = judge_server.fixture("A_KEY")
judge = answer_judge.fixture()


def test_mlvus_open_answers_get_two_marks_of_which_g_avg_is_the_mean(judge, server):
  server.answer = judge_kinds
  some = [
    rubric_item("sub_scene", scoring_points=["fall", "laugh"]),
    rubric_item("summary"),
    dataclasses.replace(rubric_item("summary"), id="lost"),
  ]
  texts = {"sub_scene": "He falls.", "summary": "A man falls.", "lost": "unclear"}
  row = score_table.make(protocols.get("mlvu@official"), some, said(texts), judge=judge)
  # Sub-scene: 3 + 4. Summary: 2 + 5 and, without marks, 0. G-Avg is their mean.
  assert row.headline == "G-Avg"
  assert row.values["G-Avg"].value == pytest.approx((7 + 7 / 2) / 2)
  assert row.values["generation/summary"].value == pytest.approx(3.5)
  assert (row.questions, row.unparsed, row.unreadable, row.unscored) == (3, 1, 1, 0)
  assert score_table.cells([row])[0][0] == "mlvu@official test, G-Avg"
  assert "m gave no readable verdict to 1 prompts" in scored_protocol.notes([row])[0]
  assert "Standard answer:\nHe falls, then laughs." in "".join(server.texts())
  with pytest.raises(InputError, match="has no rubric for task 'ego'"):
    judged_answers.grade(judge, [rubric_item("ego")], said({"ego": "x"}))


def test_a_caption_is_right_if_the_option_that_follows_from_it_is(judge, server):
  server.answer = judge_kinds
  some = [*map(caption_item, range(3)), caption_item(3, "(A) down"), caption_item(4)]
  texts = dict(zip([item.id for item in some], ["It rises."] * 4 + ["unclear"], strict=True))
  texts["caption-1"] = "A ball."
  row = score_table.make(protocols.get("tempcompass@official"), some, said(texts), judge=judge)
  # Right: 0 and 2. Nothing follows from 1, up is wrong for 3, and 4 has no verdict.
  assert row.values["format/captioning"].value == pytest.approx(100 * 2 / 5)
  assert (row.questions, row.unparsed, row.unreadable) == (5, 1, 1)
  texts = [text for text in asked(server) if "rises" in text]
  assert len(texts) == 1  # equal prompts are asked once, and don't hold the right answer
  assert texts[0].startswith("Description:") and "A. down\nB. up\nC. left" in texts[0]


def test_steps_of_reasoning_have_recall_precision_and_f1(judge, server):
  server.answer = judge_kinds
  some = [*map(steps_item, range(4)), steps_item(4, "a torus", ())]
  texts = dict.fromkeys((item.id for item in some), "At 0:04 he runs. The answer is B.")
  texts |= {"steps-1": "", "steps-2": "unclear. The answer is B.", "steps-4": "It is blue."}
  replies = said(texts)
  replies["steps-3"] = reply_store.StoredReply(id="steps-3", problem="no video")
  row = score_table.make(protocols.get("vcr_bench@recipe"), some, replies, judge=judge)
  # Accuracy: 0 and 2 by the rule, 4 by the judge, of five. Recall is 3/4 and precision 2/3 of 0 and
  # 4; 1 and 3 have no reply, and the verdict on 2 is unreadable. VCR-Bench leaves these out.
  values = {name: each.value for name, each in row.values.items()}
  assert values["accuracy"] == pytest.approx(100 * 3 / 5)
  for steps, recall, precision in (
    ("steps", 2 * 3 / 4 / 5, 2 * 2 / 3 / 5),
    ("official_steps", 3 / 4, 2 / 3),
  ):
    assert values[f"{steps}/overall_recall"] == pytest.approx(100 * recall)
    assert values[f"{steps}/overall_precision"] == pytest.approx(100 * precision)
    f1 = 2 * recall * precision / (recall + precision)
    assert values[f"{steps}/overall_f1"] == pytest.approx(100 * f1)
  assert values["official_steps/video_recall"] == pytest.approx(50)
  assert values["official_steps/logic_precision"] == pytest.approx(100)
  assert (row.questions, row.failed, row.unreadable, row.judge) == (5, 1, 2, "m")
  (first, *_) = score_table.further_values([row])
  assert first.startswith("vcr_bench@recipe test: steps/overall_recall 30.0")
  plain = score_table.make(protocols.get("vcr_bench@recipe"), some, replies)
  assert (plain.questions, plain.unscored, plain.unjudged, plain.judge) == (4, 1, 5, "")
  assert "steps of 5 replies not judged: no judge (--judge)" in " ".join(
    scored_protocol.notes([plain])
  )


@pytest.mark.parametrize(
  ("said_of", "reply"),
  [
    ("sub_scene", '{"accuracy": 0.5, "relevance": 4}'),
    ("sub_scene", '{"accuracy": 3, "relevance": 4.5}'),
    ("sub_scene", '{"accuracy": 3}'),
    ("sub_scene", '{"accuracy": 3, "relevance": 4} or {"accuracy": 4, "relevance": 4}'),
    ("sub_scene", '{"accuracy": 3, "accuracy": 3, "relevance": 4}'),
    ("summary", '{"completeness": 2.5, "reliability": 5}'),
    ("summary", '{"completeness": true, "reliability": 5}'),
    ("caption", "B"),
    ("caption", "Answer: D"),
    ("caption", "Answer: A. down or B. up"),
    ("caption", "Answer: Bup"),
    ("caption", "Answer: A or B"),
    ("caption", "Answer: A/B"),
    ("caption", "Answer: A, B"),
    ("caption", "Answer: A and C"),
    ("caption", "Answer: A ball goes up"),
    ("caption", "Answer: A is wrong, so None"),
    ("caption", "Answer: A. up"),
    ("caption", "Answer: None, or B"),
    ("recall", '{"steps": []}'),
    ("recall", '{"steps": [{"number": 1, "kind": "video", "judgement": "matched"}]}'),
    ("recall", json.dumps({"steps": [{"kind": "video", "judgement": "matched"}] * 5})),
    ("precision", '{"steps": [{"kind": "video", "judgement": "unmatched"}]}'),
    ("precision", '{"steps": [{"kind": "sound", "judgement": "matched"}]}'),
    ("precision", '[{"kind": "video", "judgement": "matched"}, {}]'),
  ],
)
def test_what_is_no_clear_verdict_is_none(said_of, reply):
  if said_of == "caption":
    question = judge_questions.about_answer(caption_item(0), "It rises.")
  elif said_of in ("recall", "precision"):
    question = judge_questions.about_steps(steps_item(0), "He runs.")[said_of]
  else:
    question = judge_questions.about_answer(rubric_item(said_of), "He falls.")
  assert question.read(reply) is None


@pytest.mark.parametrize(
  ("reply", "letter"),
  [
    ("Answer: B", "B"),
    ("It says so.\n**Answer:** (B)", "B"),
    ("**Answer: B.**", "B"),
    ("Answer: B. up, from point A.", "B"),
    ("Answer: (B) Up, from  point A", "B"),
    ("Answer: **A**) down", "A"),
    ("Answer: None", ""),
    ("Answer: None of the options.", ""),
  ],
)
def test_a_letter_alone_or_with_the_text_of_its_option_is_a_verdict(reply, letter):
  question = "Where does it go?\nA. down\nB. up, from point A.\nC. left"
  item = dataclasses.replace(caption_item(0), source_record={"mc_question": question})
  assert judge_questions.about_answer(item, "It rises.").read(reply) == letter


def test_all_of_a_caption_and_of_a_solution_is_judged_with_the_answer():
  long = "It rises, " * 4000 + "then falls."
  for item in (caption_item(0), rubric_item("summary")):
    assert long in judge_questions.about_answer(item, long).text
  for question in judge_questions.about_steps(steps_item(0, "a torus", ()), long).values():
    assert long in question.text and "\n\nAnswer:\na torus\n\n" in question.text


def items(count=4, **changes):
  first = benchmark_items.question("blue", "judge", benchmark="mmvu", **changes)
  return [dataclasses.replace(first, id=f"q{number}") for number in range(count)]


def replies(texts=TEXTS):
  return {f"q{n}": reply_store.StoredReply(id=f"q{n}", reply=text) for n, text in enumerate(texts)}


def test_answers_are_right_wrong_or_without_a_verdict_and_give_the_judge_no_orders(judge):
  judged = judged_answers.grade(judge, items(), replies())
  assert judged.unreadable == 1
  scores = judged.answers
  assert [scores[f"q{n}"].parsed for n in range(4)] == ["right", "wrong", None, "wrong"]
  assert [scores[f"q{n}"].score for n in range(4)] == [1.0, 0.0, 0.0, 0.0]


def test_only_prompts_without_a_verdict_are_asked_again_and_only_so_often(judge, server):
  first = judged_answers.grade(dataclasses.replace(judge, attempts=1), items(), replies())
  assert len(asked(server)) == 4
  assert judged_answers.grade(judge, items(), replies()) == first
  assert [BLUE.search(text)[2] for text in asked(server)[4:]] == ["Hard to say."] * 2
  assert judged_answers.grade(judge, items(), replies()) == first
  assert len(asked(server)) == 6
  source = dataclasses.replace(judge.source, identity=("endpoint", "another"))
  judged_answers.grade(dataclasses.replace(judge, source=source), items(), replies())
  assert sum("It is blue" in text for text in asked(server)) == 2


def test_failed_replies_and_what_rules_score_are_not_asked(judge, server):
  failed = reply_store.StoredReply(id="q0", problem="no video")
  choice = dataclasses.replace(items()[1], scorer="yes_no")
  unreleased = dataclasses.replace(items()[2], answer="")
  found = judged_answers.grade(judge, [items()[0], choice, unreleased], {**replies(), "q0": failed})
  assert found == judged_answers.JudgedReplies(answers={}, measures={}, unreadable=0, not_judged={})
  assert not server.requests


def test_an_endpoint_that_goes_down_ends_it_and_keeps_what_it_said(judge, server):
  texts = [f"It is blue, {number}." for number in range(70)]

  def answer(request):
    down = BLUE.search(request.text) and int(re.search(r"blue, (\d+)", request.text)[1]) > 63
    return dataclasses.replace(grade_by_words(request), status=403 if down else 200)

  server.answer = answer
  says = r"^--judge_key_variable: .*status 403.* of 70 verdicts are stored in"
  with pytest.raises(InputError, match=says):
    judged_answers.grade(judge, items(70), replies(texts))
  server.answer = grade_by_words
  known = {text for text in asked(server) if int(re.search(r"blue, (\d+)", text)[1]) < 64}
  before = len(asked(server))
  scores = judged_answers.grade(judge, items(70), replies(texts)).answers
  assert all(score.score == 1 for score in scores.values())
  assert 6 <= len(asked(server)) - before <= 70 - len(known) + 6


def refuse_long(request):
  quoted = BLUE.search(request.text)
  if quoted and "Too" in quoted[2]:
    return Reply(text="too many tokens", status=400)
  return judge_kinds(request)


def test_prompts_that_the_judge_refuses_have_no_score_and_the_cause_is_told(judge, server):
  server.answer = refuse_long
  protocol, some = protocols.get("mmvu@official"), items(strata={"discipline": ("Art",)})
  texts = ("It is blue.", "Too long.", "Hard to say.", "Red.")
  row = score_table.make(protocol, some, replies(texts), judge=judge)
  assert row.values["accuracy"].value == pytest.approx(100 / 3)
  assert (row.questions, row.unparsed, row.unreadable, row.unscored) == (3, 1, 1, 1)
  assert row.not_judged == {"refused (status 400)": 1} and row.is_partial
  notes = " ".join(scored_protocol.notes([row]))
  assert "1 questions not scored: not judged, or no answer" in notes
  assert "m did not judge 1 prompts: refused (status 400); such answers are not scored" in notes
  with pytest.raises(InputError, match=r"none of 1 .* scored: m: refused \(status 400\)"):
    score_table.make(protocol, some[:1], replies(("Too long.",)), judge=judge)
  steps = [dataclasses.replace(steps_item(number), id=f"q{number}") for number in range(2)]
  row = score_table.make(protocols.get("vcr_bench@recipe"), steps, replies(texts), judge=judge)
  assert row.not_judged == {"refused (status 400)": 2} and row.is_partial
  assert row.values["steps/overall_recall"].clusters == 1


def test_a_base_is_judged_too_and_what_has_no_verdict_there_is_told(judge, server):
  server.answer = refuse_long
  some = items(strata={"discipline": ("Art",)})
  new = replies(("It is blue.", "It is blue.", "Red.", "Red."))
  base = replies(("Hard to say.", "Too long.", "It is blue.", "Red."))
  row = score_table.make(protocols.get("mmvu@official"), some, new, base=base, judge=judge)
  assert (row.unreadable, row.not_judged, row.base_unreadable) == (0, {}, 1)
  assert row.base_not_judged == {"refused (status 400)": 1} and not row.unscored
  # Of the three that both have a score of, one is right in either.
  assert row.values["accuracy"].value == pytest.approx(50)
  assert row.changes["accuracy"].change == pytest.approx(0)
  notes = " ".join(scored_protocol.notes([row]))
  assert "m gave no readable verdict to 1 prompts of --base;" in notes
  assert "1 prompts of --base: refused (status 400); such answers are not scored, nor comp" in notes


def test_a_directory_that_was_judged_with_a_cache_of_another_kind_is_judged_again(
  judge, server, tmp_path
):
  old = {"application": 0x76726A62, "content": "judged answers"}
  as_json = {"to_json": lambda verdict: verdict, "from_json": lambda verdict: verdict}
  grade_cache.GradeCache(tmp_path / "judged_answers.sqlite", **old, **as_json).close()
  arguments = benchmark_arguments.parse(
    [
      *("eval", "--benchmarks=mmvu@official", "--score_only", "--judge=endpoint"),
      *("--judge_model=m", f"--judge_base_url={server.url('openai')}"),
      *("--judge_key_variable=A_KEY", f"--benchmark_data={tmp_path}", f"--out={tmp_path}"),
    ],
    help_text="",
  )
  assert arguments is not None
  asks = evaluate_benchmarks._judge(arguments)
  assert asks is not None
  assert judged_answers.grade(asks, items(), replies()) == judged_answers.grade(
    judge, items(), replies()
  )


def test_a_judge_has_the_time_and_the_tokens_for_35_steps(judge, tmp_path, monkeypatch):
  limits, real = [], model_endpoint.connect
  monkeypatch.setattr(
    model_endpoint, "connect", lambda *args, **given: limits.append(given) or real(*args, **given)
  )
  judged_answers.grade(judge, items(1), replies())
  assert limits[0]["limits"].timeout >= 600 and limits[0]["limits"].max_tokens == 4096
  monkeypatch.setattr(judge_local, "check", lambda *_, **__: None)
  local = judged_answers.local(tmp_path, cache=tmp_path / "local.sqlite")
  assert "4096 tokens" in local.source.identity


def test_a_missing_key_is_named_by_its_flag(judge, monkeypatch):
  monkeypatch.delenv("A_KEY")
  with pytest.raises(InputError, match=r"^--judge_key_variable"):
    judged_answers.grade(judge, items(), replies())


def test_the_table_counts_judged_questions_and_names_the_judge(judge):
  protocol = protocols.get("mmvu@official")
  strata = {"discipline": ("Art",)}
  choice = benchmark_items.question("B", benchmark="mmvu", strata=strata)
  some = [choice, *items(strata=strata)]
  some[0] = dataclasses.replace(choice, id="choice")
  said = replies() | {"choice": reply_store.StoredReply(id="choice", reply="The answer is B.")}
  judged = score_table.make(protocol, some, said, judge=judge)
  # Of multiple choice, too, it is the judge who says what the reply means.
  assert (judged.questions, judged.unscored, judged.unparsed, judged.judge) == (5, 0, 1, "m")
  assert judged.values["accuracy"].value == pytest.approx(20) and judged.by_rule == 0
  # This judge says no to all but blue; our rule reads the right letter.
  assert (judged.agreed, judged.compared) == (0, 1)
  assert score_table.cells([judged])[0][-1] == "m (agrees with our rule on 0 % of 1)"
  plain = score_table.make(protocol, some, said)
  assert (plain.questions, plain.unscored, plain.judge, plain.by_rule) == (1, 4, "", 1)


@pytest.mark.parametrize(
  ("words", "complaint"),
  [
    (["--judge=endpoint"], "--judge=endpoint: needs --judge_model"),
    (["--judge_model=m"], "--judge_model: has no effect with --judge=none"),
    (
      ["--judge=local", "--judge_model=m", "--judge_base_url=http://127.0.0.1"],
      "--judge_base_url: has no effect with --judge=local",
    ),
  ],
)
def test_flags_of_a_judge_that_contradict_each_other_are_refused(tmp_path, words, complaint):
  line = ["eval", "--benchmarks=mmvu@official", f"--benchmark_data={tmp_path}", "--score_only"]
  with pytest.raises(InputError, match=complaint):
    benchmark_arguments.parse([*line, f"--out={tmp_path}", *words], help_text="")
