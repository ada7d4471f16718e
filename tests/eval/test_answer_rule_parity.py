"""What public programs make of odd replies, recorded from them.

tests/golden/answer_rules.json has what lmms-eval's programs made of them; `make lmms` compares it
with them anew. The others were run by hand on 2026-11-30, as published (see the source in each
rule's docstring), with random choices counted as no letter; for mvbench with the "(" of the prefill
before the reply. Each row of RECORDED: a reply; for each rule of RULES the letters that would be
right (- for none) of the options below; what our own rule reads.
"""

import json
from pathlib import Path

import pytest

from tests.eval import benchmark_items
from vr_jax.eval.benchmarks import aggregation, answer_rules

RULES = ("mvbench", "video_mme", "mlvu", "lvbench", "video_r1", "easy_video_r1")
RECORDED = [
  ("B", "B B B B B B", "B"),
  ("b", "B - - - - B", "B"),
  ("B.", "B B - B - B", "B"),
  ("(B)", "B B - B - B", "B"),
  ("B)", "B B B B - B", "B"),
  ("B) cat", "B B B B - -", "B"),
  ("(B) cat", "B B - B - -", "B"),
  ("B. cat", "B B - B - -", "B"),
  ("B: cat", "- B - B - -", "B"),
  ("cat", "- - - - - -", "B"),
  (" B", "B B B B B B", "B"),
  ("B\n", "B B B B B B", "B"),
  ("**B**", "- B - - - -", "B"),
  ("", "ABCD - - - - -", "-"),
  ("(", "- - - - - -", "-"),
  ("Best option: (B) cat", "- B - B - -", "B"),
  ("Best answer: C", "- B - B - C", "C"),
  ("Best option: C", "- B - B - C", "C"),
  ("The best option is (C).", "- C - C - -", "C"),
  ("The answer is B", "- B - - - B", "B"),
  ("The answer is B.", "- B - - - B", "B"),
  ("The answer is (B).", "- B - B - -", "B"),
  ("Answer: B", "- A - A - B", "B"),
  ("A man throws a ball", "A A - A - -", "-"),
  ("The man throws a ball; the option is B", "- B - - - -", "B"),
  ("The answer is a red ball, so B", "- B - - - A", "-"),
  ("Dogs and cats are seen. B", "- D - D - B", "-"),
  ("D. A book", "D D - D - -", "D"),
  ("As the dog barks at the moon over the hill, nothing more happens here", "- A - A - -", "-"),
  ("<answer>B</answer>", "- B - - B B", "B"),
  ("<answer>B.</answer>", "- B - - - B", "B"),
  ("<answer>(B)</answer>", "B B - B - -", "B"),
  ("<answer>C. dog</answer>", "- C - - - -", "C"),
  ("<think>It barks.</think><answer>B</answer>", "- B - - B B", "B"),
  ("<think>It barks.</think>\nB", "- B - - - B", "B"),
  ("<think>The answer is A, no.</think>\n\nTherefore, the final answer is: B", "- A - - - B", "B"),
  ("<think>The answer is B", "- B - - - B", "-"),
  ("I choose option B", "- B - - - B", "B"),
  ("B or C", "B B - B - C", "-"),
  ("A, B", "- A - A - B", "-"),
  ("not A but B", "- A - - - B", "-"),
  ("vitamin A. So (C)", "- A - C - C", "-"),
  ("E", "- - - - - -", "-"),
  ("E. none", "- - - - - -", "-"),
  ("A. dog\nB. cat\nC. a red ball\nD. bird", "A A - A - -", "-"),
  ("\\boxed{B}", "- B - - - -", "B"),
  ("error", "- - - - - -", "-"),
  ("</s>B", "- B - - - B", "-"),
]
GOLDEN = json.loads(Path("tests/golden/answer_rules.json").read_text())


def test_the_replies_are_those_that_lmms_evals_programs_were_given():
  cases = json.loads(Path("tests/golden/answer_rule_cases.json").read_text())
  assert cases["choice"] == [reply for reply, _, _ in RECORDED]


def letters_right(rule, reply):
  return "".join(
    answer
    for answer in "ABCD"
    if answer_rules.score(rule, reply, benchmark_items.question(answer)).score == 1
  )


LMMS_EVAL = ("longvideobench", "lmms_eval_letter", "vsi_bench", "video_mmmu", "tempcompass")


@pytest.mark.parametrize("rule", LMMS_EVAL)
def test_a_rule_finds_right_what_the_program_in_lmms_eval_finds_right(rule):
  found = {reply: letters_right(rule, reply) for reply in GOLDEN["letters"][rule]}
  assert found == GOLDEN["letters"][rule]


def test_where_lmms_eval_has_changed_what_it_reads_is_known():
  """docs/evaluation.md says so: a score of 0.7.3 is another than one of the authors' program."""
  ours, theirs = (GOLDEN["letters"][name] for name in ("video_mmmu", "video_mmmu in 0.7.3"))
  assert sum(ours[reply] != theirs[reply] for reply in ours) == 11
  numbers = zip(GOLDEN["numbers"], GOLDEN["numbers in 0.7.3"], strict=True)
  differing = [a[0] for a, b in numbers if a[2] != b[2]]
  assert differing == ["about 4", "<answer>4</answer>", "four"]
  assert (GOLDEN["captions"]["B"], GOLDEN["captions"]["B) The man walks."]) == (1, 1)


@pytest.mark.parametrize(("reply", "letters", "strict"), RECORDED)
def test_a_rule_finds_right_what_the_program_found_right(reply, letters, strict):
  assert {rule: letters_right(rule, reply) for rule in RULES} == {
    rule: recorded.replace("-", "") for rule, recorded in zip(RULES, letters.split(), strict=True)
  }


@pytest.mark.parametrize(("reply", "letters", "strict"), RECORDED)
def test_our_rule_reads_what_is_recorded(reply, letters, strict):
  found = answer_rules.score("strict", reply, benchmark_items.question())
  assert found.parsed == (None if strict == "-" else strict)
  assert found.score == (strict == "B")


CAPTIONS = "Which fits?\nCaption A: The man runs.\nCaption B: The man walks."


# The programs' results: 1, 0, or None where they can't tell and count 0.
@pytest.mark.parametrize(
  ("reply", "caption", "word"),
  [
    ("Caption B: The man walks.", 1, None),
    ("The man walks.", 1, None),
    ("Caption B", 1, None),
    ("Caption B.", 1, None),
    ("B) The man walks.", 1, None),
    ("Caption A", 0, None),
    ("The man runs.", 0, None),
    ("B", None, None),
    ("caption b", None, None),
    ("The man walks", None, None),
    ("yes", None, 1),
    ("Yes, it does.", None, 1),
    ("No.", None, 0),
    ("Not sure", None, 0),
    ("nothing", None, 0),
    (" yes", None, None),
    ("</s>yes", None, 1),
    ("I say yes", None, None),
    ("", None, None),
  ],
)
def test_tempcompass_reads_captions_and_words_as_its_programs_do(reply, caption, word):
  # The authors' programs'. lmms-eval's copy takes a bare letter, too.
  assert GOLDEN["captions"][reply] == (1 if reply == "B" else caption)
  assert GOLDEN["yes_no"][reply] == word
  options = ("The man runs.", "The man walks.")
  item = benchmark_items.question(
    "B", "caption_match", options, source_record={"question": CAPTIONS}
  )
  for found, expected in (
    (answer_rules.score("tempcompass", reply, item), caption),
    (answer_rules.score("tempcompass", reply, benchmark_items.question("yes", "yes_no")), word),
  ):
    assert (found.parsed is None) == (expected is None)
    assert found.score == (expected or 0)


# VSI-Bench's in float64 with NumPy, Video-R1's in float32 with PyTorch 2.13, run on 2026-11-30.
@pytest.mark.parametrize(
  ("reply", "right", "vsi", "video_r1"),
  [
    ("3", "4", 0.6, 0.5),
    ("4", "4", 1.0, 1.0),
    ("4.", "4", 1.0, 1.0),
    ("9", "10", 0.9, 0.9),
    ("19", "20", 1.0, 1.0),
    ("6", "10", 0.3, 0.2),
    ("5", "10", 0.1, 0.0),
    ("7", "10", 0.5, 0.4),
    ("8", "10", 0.6, 0.6),
    ("15", "10", 0.1, 0.0),
    ("2.4", "2", 0.7, 0.6),
    ("17", "20", 0.8, 0.7),
    ("0", "4", 0.0, 0.0),
    ("-4", "4", 0.0, 0.0),
    ("nan", "3", 0.0, 0.0),
    ("inf", "3", 0.0, 0.0),
    ("4 meters", "4", 1.0, 0.0),
    ("about 4", "4", 0.0, 0.0),
    ("1,000", "1000", 0.0, 1.0),
    ("<answer>4</answer>", "4", 0.0, 1.0),
    ("four", "4", 0.0, 0.0),
    ("", "4", 0.0, 0.0),
  ],
)
def test_numbers_score_their_mean_relative_accuracy_as_in_the_programs(reply, right, vsi, video_r1):
  item = benchmark_items.question(right, "mra")
  assert [reply, right, vsi] in GOLDEN["numbers"]
  assert answer_rules.score("vsi_bench", reply, item).score == pytest.approx(vsi)
  assert answer_rules.score("video_r1", reply, item).score == pytest.approx(video_r1)


# EasyVideoR1's extraction and float32 comparison, run on 2026-11-30.
@pytest.mark.parametrize(
  ("reply", "score"),
  [
    ("<answer>4 m</answer>", 1.0),
    ("So the answer is 3 meters", 0.5),
    ("So the answer is 3 meters.", 0.0),
    ("Therefore, the final answer is: about 4", 1.0),
    ("The answer is B", 0.0),
    ("<think>It has 9.</think>\n4", 1.0),
    ("none", 0.0),
  ],
)
def test_easyvideor1_reads_numbers_as_its_program_does(reply, score):
  item = benchmark_items.question("4", "mra")
  assert answer_rules.score("easy_video_r1", reply, item).score == pytest.approx(score)


# VideoMMMU's open rule, run on 2026-11-30.
@pytest.mark.parametrize(
  ("reply", "right", "correct"),
  [
    ("3.5", "3.5", True),
    ("The value is 3.499", "3.5", True),
    ("The value is 3.49", "3.5", False),
    ("x = 7", "7", True),
    ("x = 7\nSo y = 8", "7", False),
    ("1,000", "1000", True),
    ("The answer is a torus.", "torus", True),
    ("It is not a torus", "torus", True),
    ("It is a sphere", "torus", False),
    ("The result is x", "x", True),
    ("The result is taxi", "x", False),
    ("Torus", "torus", True),
  ],
)
def test_open_answers_are_compared_as_in_videommmu(reply, right, correct):
  item = benchmark_items.question(right, "open_rule")
  assert [reply, right, int(correct)] in GOLDEN["open"]
  assert answer_rules.score("video_mmmu", reply, item).score == correct


def compute(metric, replies):
  return aggregation.compute(aggregation.get(metric), replies)


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
    assert compute(metric, replies)[name] == pytest.approx(expected, abs=1e-3)


def test_means_of_steps_are_those_of_vcr_benchs_program():
  replies = [
    benchmark_items.reply(
      0,
      f"v{number}",
      measures={
        f"official_steps/{name.lower()}": each for name, each in item.items() if each != ""
      },
    )
    for number, item in enumerate(GOLDEN["vcr_bench"]["items"])
  ]
  found = compute("vcr_bench", replies)
  for kind, totals in GOLDEN["vcr_bench"]["totals"].items():
    for name, value in totals.items():
      assert found[f"official_steps/{kind.lower()}_{name}"] == pytest.approx(100 * value)
