"""What our rules make of odd replies, beside what public programs made of the same ones.

tests/golden/official_scores.json has what the benchmarks' own programs made of them (`python -m
benchmarks.official_scores` asks them anew), answer_rules.json what lmms-eval's did (`make lmms`).
An answer that a program draws at random counts as none.
"""

import copy
import json
import re

import pytest

from benchmarks import official_cases, official_programs, official_scores
from tests.eval import benchmark_items
from vr_jax.eval.benchmarks import aggregation, answer_rules

CASES = json.loads(official_cases.RECORDED.read_text())
GOLDEN = json.loads(official_cases.RECORDED.with_name("answer_rules.json").read_text())
OFFICIAL = json.loads(official_scores.RECORD.read_text())
CASES["sets"] = OFFICIAL["sets"]
COMPARED = official_scores.compare(CASES, OFFICIAL)


@pytest.mark.parametrize("compared", COMPARED, ids=lambda each: each.name)
def test_we_find_what_the_benchmarks_own_program_found(compared):
  assert compared.count
  assert not compared.differing


def test_the_record_is_of_all_programs_and_of_the_replies_that_are_known():
  assert {*OFFICIAL["programs"]} == {*official_programs.PROGRAMS}
  assert all([*letters] == CASES["choice"] for letters in OFFICIAL["letters"].values())
  assert [*OFFICIAL["captions"]] == [*OFFICIAL["yes_no"]] == CASES["tempcompass"]
  names = [each.name for each in COMPARED]
  assert (len(names), sum(name.endswith("totals") for name in names)) == (23, 9)


@pytest.mark.parametrize(
  ("path", "value", "line"),
  [
    (("letters", "mlvu", "B"), "C", "mlvu, letters: 'B': theirs 'C', ours 'B'"),
    (("captions", "Caption B"), 0, "tempcompass, captions: 'Caption B': theirs 0, ours 1"),
    (("numbers", "vsi_bench", 0), 0.5, 'vsi_bench, numbers: \'["3", "4"]\': theirs 0.5, ours 0.6'),
    (
      ("intervals", 0),
      None,
      'vcr_bench, intervals: \'["[4, 9]", "[4, 9]"]\': theirs None, ours 1.0',
    ),
    (("totals", "lvbench", "acc"), 0.0, "lvbench, totals: 'acc': theirs 0.0, ours"),
    (("totals", "mlvu_open", "summary"), 11.0, "mlvu_open, totals: 'summary': theirs 11.0, ours"),
  ],
)
def test_a_difference_is_seen_and_told(path, value, line):
  record = copy.deepcopy(OFFICIAL)
  inner = record
  for name in path[:-1]:
    inner = inner[name]
  inner[path[-1]] = value
  found = official_scores.compare(CASES, record)
  lines = "\n".join(f"{each.name}: {text}" for each in found for text in each.differing)
  assert line in lines


STRICT = [
  ("B", "B"),
  ("b", "B"),
  ("B.", "B"),
  ("(B)", "B"),
  ("B)", "B"),
  ("B) cat", "B"),
  ("(B) cat", "B"),
  ("B. cat", "B"),
  ("B: cat", "B"),
  ("cat", "B"),
  (" B", "B"),
  ("B\n", "B"),
  ("**B**", "B"),
  ("", "-"),
  ("(", "-"),
  ("Best option: (B) cat", "B"),
  ("Best answer: C", "C"),
  ("Best option: C", "C"),
  ("The best option is (C).", "C"),
  ("The answer is B", "B"),
  ("The answer is B.", "B"),
  ("The answer is (B).", "B"),
  ("Answer: B", "B"),
  ("A man throws a ball", "-"),
  ("The man throws a ball; the option is B", "B"),
  ("The answer is a red ball, so B", "-"),
  ("Dogs and cats are seen. B", "-"),
  ("D. A book", "D"),
  ("As the dog barks at the moon over the hill, nothing more happens here", "-"),
  ("<answer>B</answer>", "B"),
  ("<answer>B.</answer>", "B"),
  ("<answer>(B)</answer>", "B"),
  ("<answer>C. dog</answer>", "C"),
  ("<think>It barks.</think><answer>B</answer>", "B"),
  ("<think>It barks.</think>\nB", "B"),
  ("<think>The answer is A, no.</think>\n\nTherefore, the final answer is: B", "B"),
  ("<think>The answer is B", "-"),
  ("I choose option B", "B"),
  ("B or C", "-"),
  ("A, B", "-"),
  ("not A but B", "-"),
  ("vitamin A. So (C)", "-"),
  ("E", "-"),
  ("E. none", "-"),
  ("A. dog\nB. cat\nC. a red ball\nD. bird", "-"),
  ("\\boxed{B}", "B"),
  ("error", "-"),
  ("</s>B", "-"),
]


def test_the_same_replies_were_given_to_all():
  assert CASES["choice"] == [reply for reply, _ in STRICT]


@pytest.mark.parametrize(("reply", "letter"), STRICT)
def test_our_own_rule_reads_what_is_meant(reply, letter):
  found = answer_rules.score("strict", reply, benchmark_items.question())
  assert found.parsed == (None if letter == "-" else letter)
  assert found.score == (letter == "B")


LMMS_EVAL = ("longvideobench", "lmms_eval_letter", "vsi_bench", "video_mmmu", "tempcompass")


@pytest.mark.parametrize("rule", LMMS_EVAL)
def test_a_rule_finds_right_what_the_program_in_lmms_eval_finds_right(rule):
  letters = GOLDEN["letters"][rule]
  assert {reply: official_scores.letters_right(rule, reply) for reply in letters} == letters


def test_where_lmms_eval_reads_otherwise_is_known():
  """docs/evaluation.md says so: a score of 0.7.3 is another than one of the authors' program."""
  ours, theirs = (GOLDEN["letters"][name] for name in ("video_mmmu", "video_mmmu in 0.7.3"))
  assert sum(ours[reply] != theirs[reply] for reply in ours) == 11
  numbers = zip(GOLDEN["numbers"], GOLDEN["numbers in 0.7.3"], strict=True)
  differing = [a[0] for a, b in numbers if a[2] != b[2]]
  assert differing[:3] == ["about 4", "<answer>4</answer>", "four"]
  assert all(re.search("4 m|3 meters|about 4", reply) for reply in differing[3:])
  for kind, replies in (("captions", ["B"]), ("yes_no", [])):
    lmms, official = GOLDEN[kind], OFFICIAL[kind]
    assert [each for each in official if lmms[each] != official[each]] == replies
  assert {rule: GOLDEN["letters"][rule] for rule in ("vsi_bench", "tempcompass")} == {
    rule: OFFICIAL["letters"][rule] for rule in ("vsi_bench", "tempcompass")
  }


@pytest.mark.parametrize(("reply", "right", "score"), GOLDEN["numbers"])
def test_numbers_score_their_mean_relative_accuracy_as_in_lmms_eval(reply, right, score):
  item = benchmark_items.question(right, "mra")
  assert answer_rules.score("vsi_bench", reply, item).score == pytest.approx(score)


@pytest.mark.parametrize(("reply", "right", "correct"), GOLDEN["open"])
def test_open_answers_are_compared_as_in_videommmu(reply, right, correct):
  item = benchmark_items.question(right, "open_rule")
  assert answer_rules.score("video_mmmu", reply, item).score == correct


def test_vsi_benchs_overall_and_mlvus_m_avg_are_those_of_lmms_eval():
  vsi, mlvu = GOLDEN["vsi_overall"], GOLDEN["mlvu_m_avg"]
  for metric, kind, scores, name, expected in (
    ("vsi_bench", "category", vsi["scores"], "overall", 100 * vsi["overall"]),
    ("mlvu", "task", mlvu["scores"], "M-Avg", mlvu["M-Avg"]),
  ):
    replies = [
      benchmark_items.reply(score, f"{group}-{number}", **{kind: group})
      for group, found in scores.items()
      for number, score in enumerate(found)
    ]
    found = aggregation.compute(aggregation.get(metric), replies)
    assert found[name] == pytest.approx(expected, abs=1e-3)
