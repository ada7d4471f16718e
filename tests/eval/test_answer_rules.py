from hypothesis import given, settings, strategies
import pytest

from tests.eval import benchmark_items
from vr_jax.errors import InputError
from vr_jax.eval.benchmarks import answer_rules, reasoning_steps, strict_rules

question = benchmark_items.question


def read(reply, answer="B", scorer="choice", **fields):
  return answer_rules.score("strict", reply, question(answer, scorer, **fields)).parsed


@pytest.mark.parametrize(
  "reply",
  [
    "Final answer: **B**. It shows",
    "I first thought the answer is A. Then the answer is B.",
    "The answer is A. No, wait.\nFinal answer: B",
    "The answer is B, not C",
    "Therefore, the final answer is: $B$",
    "The best choice is (b).",
    "answer: b",
    "答案：B",
    "答案是B",
    "Option B",
    "\\boxed{\\text{B}}",
    "B\nBecause the cat runs.",
    "Reasons first.\nB. cat",
    "<answer>A</answer> no, <answer>The answer is B</answer>",
    "reasoning without its first tag</think> B",
    "The answer is B because of A",
    "Ｂ",
  ],
)
def test_what_is_stated_last_is_the_answer(reply):
  assert read(reply) == "B"


@pytest.mark.parametrize(
  "reply",
  [
    *("A man throws a ball", "I see B-roll", "The answer is a ball", "The answer is A man"),
    *("B or C", "The answer is B or C.", "The answer is (B) and (C)", "Answer: A, B"),
    *("<think>The answer is B", "<answer>B", "<think>x</think><answer>B", "<answer></answer>B"),
    *("The answer is E", "Final answer: Z. Before: B", "It isn't B", "I would not choose B"),
    "The answer is B. The answer is E.",
  ],
)
def test_what_is_not_stated_or_stated_twice_is_no_answer(reply):
  found = answer_rules.score("strict", reply, question("B"))
  assert (found.parsed, found.score) == (None, 0)


def test_options_that_begin_like_letters_keep_their_own():
  options = ("N. Korea", "S. Korea", "U. S. Army")
  assert read("S. Korea", options=options) == "B"
  assert read("The answer is C", options=options) == "C"


@pytest.mark.parametrize(
  ("reply", "word"),
  [
    ("Yes", "yes"),
    ("no.", "no"),
    ("**No**, it rises", "no"),
    ("There is no ball. The answer is yes", "yes"),
    ("<think>No</think>Answer: yes", "yes"),
    ("Not sure", None),
    ("There is no ball, so it is true", None),
  ],
)
def test_yes_or_no_is_the_first_word_or_stated(reply, word):
  assert read(reply, "yes", "yes_no") == word


@pytest.mark.parametrize(
  ("reply", "letter"),
  [
    ("Caption B", "B"),
    ("option 2.", "B"),
    ("B", "B"),
    ("It moves up.", "B"),
    ("Caption A fits; caption B doesn't", None),
    ("Option 7", None),
    ("Option 0", None),
  ],
)
def test_a_caption_is_named_by_label_letter_or_text(reply, letter):
  assert read(reply, "B", "caption_match", options=("It falls.", "It moves up.")) == letter


@pytest.mark.parametrize(
  ("reply", "number"),
  [
    ("4", "4"),
    ("four", "4"),
    ("about 4 meters", "4"),
    ("The room has 21.5 square meters.", "21.5"),
    ("The answer is 12 m^2.", "12"),
    ("First 3, then 5. The answer is 8 cm", "8"),
    ("\\boxed{7} of 9", "7"),
    ("1,000", "1000"),
    ("It is -2.5", "-2.5"),
    ("3 to 4", None),
    ("3-4 meters", None),
    ("many", None),
    ("not 4", None),
    ("3 to five", None),
    ("more than 4", None),
  ],
)
def test_a_number_is_read_where_there_is_one(reply, number):
  assert read(reply, "4", "mra") == number


@pytest.mark.parametrize(
  ("reply", "number"),
  [
    ("The distance between the chair and the table is 2.5 meters.", "2.5"),
    ("There are 5 birds flying over the lake.", "5"),
    ("There are 5 birds over the lake and under the bridge.", "5"),
    ("The two sofas are 1.5 m apart.", "1.5"),
    ("The distance between the two lamps comes to 1.5 m.", "1.5"),
    ("The two chairs differ by 0.5 m.", "0.5"),
    ("Between the five trees, I see 4 birds.", "4"),
    ("The three rooms together measure 42.5 square meters.", "42.5"),
    ("The lamp above the table is 1.2 m high.", "1.2"),
    ("Under the bridge, 7 boats are moored.", "7"),
    ("He walks up to the door, which is 2 m wide.", "2"),
    ("5 cups or mugs stand on the table.", "5"),
    ("There are 5 million people below the line.", "5e+06"),
  ],
)
def test_a_number_in_prose_is_read_whatever_words_are_around_it(reply, number):
  for scorer in ("mra", "open_rule"):
    assert read(reply, number, scorer).split()[0] == number


@pytest.mark.parametrize(
  "reply",
  [
    *(
      "between 3 and 5",
      "between three and 5",
      "3 or 4 or 5",
      "3 or five",
      "two or 5",
      "3 to five",
    ),
    *(
      "five-6",
      "5 – six",
      "two sofas and 3 chairs",
      "3 red chairs and two tables",
      "2 times three",
    ),
    *("five, maybe 6", "5 birds, or perhaps six", "1.5 m or two", "two of the 5 chairs"),
    *("not 5", "It isn't 5", "no 5", "over 5", "under 5 m", "above about 5", "up to 5", "below $5"),
    *("at least 5", "fewer than 5", "5 or more", "5 meters or more", "5 and above", "5 or so"),
    *("2 and a half meters", "2 dozen chairs", "3 hundred", "thirteen or 14"),
    *("There are three chairs in room 5.", "I count three birds at 12 s"),
  ],
)
def test_a_bound_a_denied_number_or_one_of_two_is_no_answer(reply):
  for scorer in ("mra", "open_rule"):
    assert read(reply, "5", scorer) is None


def test_our_rule_for_numbers_scores_mean_relative_accuracy():
  assert answer_rules.score("strict", "3 meters", question("4", "mra")).score == pytest.approx(0.6)


@pytest.mark.parametrize(
  ("reply", "right", "parsed", "score"),
  [
    ("5", "5", "5", 1),
    ("5.0", "5", "5", 1),
    ("five", "5", "5", 1),
    ("There are 5 chairs.", "5", "5 chairs", 1),
    ("I see 3 and then 4. The answer is 5", "5", "5", 1),
    ("3.499", "3.5", "3.499", 1),
    ("3.49", "3.5", "3.49", 0),
    ("50%", "0.5", "50 %", 1),
    ("50%", "50", "50 %", 1),
    ("5 kg", "5 m", "5 kg", 0),
    ("between 3 and 5", "5", None, 0),
    ("3 or 4 or 5", "5", None, 0),
    ("4-5", "5", None, 0),
    ("not 5", "5", None, 0),
    ("The answer is not 5.", "5", None, 0),
    ("at least 5", "5", None, 0),
    ("exit", "EXIT", "exit", 1),
    ('The answer is: "EXIT".', "EXIT", "exit", 1),
    ("It is above the door.\nEXIT", "EXIT", "exit", 1),
    ("\\boxed{a torus}", "A torus", "a torus", 1),
    ("no EXIT sign, it says ENTER", "EXIT", "no exit sign, it says enter", 0),
    ("EXIT or ENTER", "EXIT", "exit or enter", 0),
    ("The answer is EXIT. The answer is ENTER", "EXIT", "enter", 0),
    ("It is not a torus", "torus", "it is not a torus", 0),
    ("...", "EXIT", None, 0),
    ("<answer>EXIT", "EXIT", None, 0),
  ],
)
def test_an_open_answer_gives_one_value_that_is_the_right_one(reply, right, parsed, score):
  found = answer_rules.score("strict", reply, question(right, "open_rule"))
  assert (found.parsed, found.score) == (parsed, score)


def test_times_and_boxes_of_reasoning_questions_need_no_judge():
  item = question("[4, 9]", "reasoning_steps", options=())
  assert not answer_rules.needs_judge(item)
  assert answer_rules.score("strict", "From 1: it is at [4.5, 9]", item).score == 1
  assert answer_rules.score("strict", "[4, 20]", item).score == 0
  assert answer_rules.score("strict", "at 4 s", item).parsed is None
  assert answer_rules.score("strict", "B", question("B", "reasoning_steps")).score == 1
  assert answer_rules.needs_judge(question("a torus", "reasoning_steps", options=()))


@pytest.mark.parametrize("scorer", ["judge", "caption_judge", "rubric"])
def test_what_needs_a_judge_is_refused(scorer):
  with pytest.raises(InputError, match="needs a judge"):
    answer_rules.score("strict", "text", question("text", scorer))


def test_an_answer_that_was_not_released_can_not_be_scored():
  with pytest.raises(InputError, match="was not released"):
    answer_rules.score("strict", "B", question(""))


def test_an_unknown_rule_is_refused_with_the_near_ones():
  with pytest.raises(InputError, match="did you mean mvbench"):
    answer_rules.score("mvbenhc", "B", question())


def test_a_right_answer_of_zero_has_no_relative_accuracy():
  for rule in ("strict", "vsi_bench", "video_r1"):
    with pytest.raises(InputError, match="other than 0"):
      answer_rules.score(rule, "3", question("0", "mra"))
  with pytest.raises(InputError, match="q1: answer 'many' is no number"):
    answer_rules.score("vsi_bench", "3", question("many", "mra"))


def test_a_guess_scores_what_is_expected_of_it():
  found = answer_rules.score("longvideobench_guess", "no idea", question("B"))
  assert (found.parsed, found.score) == (None, 0.25)
  assert answer_rules.score("longvideobench", "no idea", question("B")).score == 0
  assert answer_rules.score("longvideobench_guess", "A", question("B")).score == 0


def test_captions_without_labels_are_refused_by_the_official_rule():
  with pytest.raises(InputError, match="no labels"):
    answer_rules.score("tempcompass", "B", question("B", "caption_match", ("x: y", "z: w")))


CASES = [
  *[(rule, "choice", "B") for rule in answer_rules.RULES],
  *[(rule, "mra", "4") for rule in ("strict", "vsi_bench", "video_r1", "easy_video_r1")],
  *[(rule, "yes_no", "yes") for rule in ("strict", "tempcompass")],
  *[
    ("strict", "caption_match", "A"),
    *[("strict", "open_rule", answer) for answer in ("4", "x y")],
    ("video_mmmu", "open_rule", "x"),
  ],
]
PIECES = strategies.sampled_from(
  (
    *("A", "B", "answer", " is ", ":", "<answer>", "</answer>", "<think>", "</think>"),
    *(
      "}",
      "4",
      "1e309",
      "-",
      ".",
      ",",
      "\n",
      "yes",
      "no",
      "(",
      ")",
      " or ",
      "option ",
      "١",
      "\ud800",
    ),
  )
)
REPLIES = strategies.one_of(strategies.text(max_size=60), strategies.lists(PIECES).map("".join))


@pytest.mark.parametrize(("rule", "scorer", "answer"), CASES)
@settings(max_examples=40, deadline=None)
@given(reply=REPLIES)
def test_any_reply_scores_between_0_and_1(rule, scorer, answer, reply):
  found = answer_rules.score(rule, reply, question(answer, scorer))
  assert 0 <= found.score <= 1
  assert found.parsed is None or isinstance(found.parsed, str)


@pytest.mark.parametrize("answer", "ABCD")
def test_each_letter_alone_is_right_by_each_rule(answer):
  for rule in answer_rules.RULES:
    assert answer_rules.score(rule, answer, question(answer)).score == 1, rule


def test_options_get_their_letters():
  assert strict_rules.lettered(question(), "({letter}) {text}")[2] == "(C) a red ball"


# By hand: overlap over the stretch from the first start to the last end; areas.
@pytest.mark.parametrize(
  ("given", "right", "score"),
  [
    ("[4, 9]", "[4, 9]", 1.0),
    ("[4, 8]", "[4, 9]", 1.0),  # 4 / 5
    ("[5.5, 9]", "[4, 9]", 0.0),  # 3.5 / 5 is .7, not more
    ("[0, 1]", "[4, 9]", 0.0),
    ("[3, 3]", "[3, 3]", 0.0),
    ("[0, 0, 10, 10]", "[0, 0, 10, 10]", 1.0),
    ("[0, 0, 10, 10]", "[0, 0, 10, 6]", 1.0),  # 60 / 100
    ("[0, 0, 10, 10]", "[0, 0, 10, 5]", 0.0),  # 50 / 100 is .5, not more
    ("[10, 10, 0, 0]", "[0, 0, 10, 10]", 0.0),
    ("[20, 20, 30, 30]", "[0, 0, 10, 10]", 0.0),
    ("[1, 2, 3]", "[4, 9]", None),
    ("4 to 9", "[4, 9]", None),
    ("[4, 9]", "[0, 0, 10, 10]", None),
  ],
)
def test_times_and_boxes_have_to_overlap_by_more_than_the_limit(given, right, score):
  assert reasoning_steps.interval_score(given, right) == score


def verdicts(*pairs):
  return [reasoning_steps.StepVerdict(kind=kind, judgement=each) for kind, each in pairs]


def test_steps_have_recall_and_precision_by_kind():
  reference = verdicts(*[("video", "matched")] * 3, ("video", "unmatched"), ("logic", "unmatched"))
  reply = verdicts(
    *[("video", "matched")] * 2, ("video", "wrong"), ("video", "redundant"), ("background", "wrong")
  )
  assert reasoning_steps.measure("recall", reference) == {
    "official_steps/video_recall": 3 / 4,
    "official_steps/logic_recall": 0,
    "official_steps/overall_recall": 3 / 5,
    "steps/overall_recall": 3 / 5,
  }
  assert reasoning_steps.measure("precision", reply) == {
    "official_steps/video_precision": pytest.approx(2 / 3),
    # No logic; background and redundant steps are left out.
    "official_steps/overall_precision": pytest.approx(2 / 3),
    "steps/overall_precision": pytest.approx(2 / 3),
  }
  # Only a redundant step, or none that could be read: the reply counts, with nothing right.
  for steps in (verdicts(("logic", "redundant")), []):
    assert reasoning_steps.measure("precision", steps) == {"steps/overall_precision": 0}
