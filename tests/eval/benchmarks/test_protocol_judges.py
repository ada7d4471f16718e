"""Which answers a protocol has a judge read, and what it is asked."""

import dataclasses
import html

import pytest

from tests.eval import benchmark_items
from tests.eval.benchmarks import answer_judge
from tests.eval.benchmarks.answer_judge import (
  BLUE,
  asked,
  grade_by_words,
  judge_kinds,
  said,
  steps_item,
)
from tests.rewards import judge_server
from tests.rewards.judge_server import Reply
from vr_jax.eval.benchmarks import protocols, reply_store, score_table, scored_protocol

server = judge_server.fixture("A_KEY")
judge = answer_judge.fixture()


def read_finals(request):
  """As a judge says that extracts; what it is to compare gets its verdict by words."""
  quoted = BLUE.search(request.text)
  if quoted is None or "find the final answer" not in request.system:
    return judge_kinds(request)
  assert "Correct answer" not in request.text and "a torus" not in request.text
  said = html.unescape(quoted[2])
  finals = {"4 to 9": "[4, 9]", "runs": "B. He runs.", "blue": "a blue one", "nothing": "None"}
  return Reply(text=next((f"Answer: {v}" for k, v in finals.items() if k in said), "It says much."))


def test_vcr_benchs_judge_extracts_each_answer_and_rules_compare_what_they_can(judge, server):
  server.answer = read_finals
  some = [
    steps_item(0, "[4, 9]", ()),
    steps_item(1),
    steps_item(2, "a torus", ()),
    steps_item(3, "[4, 9]", ()),
    steps_item(4, "a torus", ()),
    steps_item(5, "a torus", ()),
  ]
  some = [dataclasses.replace(item, steps=()) for item in some]
  texts = ("4 to 9 s", "A man who runs", "It is blue.", "nothing", "unclear", "It is blue.")
  replies = said(dict(zip([item.id for item in some], texts, strict=True)))
  replies["steps-5"] = reply_store.StoredReply(id="steps-5", problem="no video")
  protocol = protocols.get("vcr_bench@official")
  row = score_table.make(protocol, some, replies, judge=judge)
  # Right: 0 by overlap, 1 by its letter, 2 by the judge. 3 has none, 4 none that can be read.
  assert row.values["accuracy"].value == pytest.approx(50)
  assert (row.questions, row.failed, row.unparsed, row.unreadable) == (6, 1, 1, 1)
  compared = [text for text in asked(server) if "Correct answer" in text]
  assert len(compared) == 1 and "a blue one" in compared[0] and "It is blue" not in compared[0]
  # Without a judge, "4 to 9 s" is no answer, which the table says.
  plain = score_table.make(protocol, some, replies)
  assert plain.values["accuracy"].value == 0 and (plain.questions, plain.by_rule) == (3, 3)
  (line,) = [line for line in scored_protocol.notes([plain]) if "by a rule" in line]
  assert line.startswith("vcr_bench@official: 3 answers that a judge is to read are read by a rule")


def test_tempcompasss_judge_reads_what_the_rules_cant(judge, server):
  server.answer = grade_by_words
  captions = {"question": "Which?\nCaption A: a red one.\nCaption B: a blue one."}
  made = {"benchmark": "tempcompass", "strata": {"aspect": ("order",)}}
  some = [
    benchmark_items.question("B", **made),
    benchmark_items.question("B", **made),
    benchmark_items.question("yes", "yes_no", **made),
    benchmark_items.question(
      "B", "caption_match", ("a red one.", "a blue one."), source_record=captions, **made
    ),
    benchmark_items.question("no", "yes_no", **made),
  ]
  some = [dataclasses.replace(item, id=str(number)) for number, item in enumerate(some)]
  texts = ("A. dog", "I think it is blue", "It is red", "the blue one", "No.")
  given = said({str(number): text for number, text in enumerate(texts)})
  row = score_table.make(protocols.get("tempcompass@official"), some, given, judge=judge)
  assert row.values["accuracy"].value == pytest.approx(60)  # 1 and 3 by the judge, 4 by the rule
  assert (row.questions, row.unparsed, row.judge, len(asked(server))) == (5, 0, "m", 3)
  assert any("B. cat" in text and "Correct answer:\nB. cat" in text for text in asked(server))
  assert any("Correct answer:\nCaption B: a blue one." in text for text in asked(server))
  for name, counted in (("tempcompass@official", 3), ("tempcompass@disable_llm", 0)):
    plain = score_table.make(protocols.get(name), some, given)
    assert plain.values["accuracy"].value == pytest.approx(20)
    assert (plain.questions, plain.unparsed, plain.by_rule) == (5, 3, counted)
    told = [line for line in scored_protocol.notes([plain]) if "judge (" in line]
    wrong = f"{name}: 3 answers that no rule reads count as wrong: no judge (--judge)"
    assert told == ([wrong] if counted else [])
  row = score_table.make(protocols.get("tempcompass@disable_llm"), some, given, judge=judge)
  assert row.values["accuracy"].value == pytest.approx(20) and row.judge == ""


def test_intervals_of_few_videos_are_said_to_be_too_narrow():
  protocol = protocols.get("mvbench@official")
  question = benchmark_items.question("B", strata={"task": ("Action Count",)})
  for count, told in ((19, True), (20, False)):
    some = [
      dataclasses.replace(question, id=str(number), cluster=str(number)) for number in range(count)
    ]
    given = said({item.id: "B)" if int(item.id) % 2 else "A)" for item in some})
    row = score_table.make(protocol, some, given)
    lines = [line for line in scored_protocol.notes([row]) if "too narrow" in line]
    assert bool(lines) == told
