import json
import unicodedata

import hypothesis
from hypothesis import strategies
import numpy as np
import pytest

from tests.rewards import scripts
from vr_jax import errors
from vr_jax.rewards import dtw, process, rouge, steps, words

REFERENCE = ["The circle is red.", "A square moves left.", "That box opens wide."]
CHATTER = "Hmm, let me look again."
TRACES = {
  "exact copy": REFERENCE,
  "chatter around": [CHATTER, *REFERENCE, CHATTER],
  "chatter between": [REFERENCE[0], CHATTER, REFERENCE[1], CHATTER, REFERENCE[2]],
  "one sentence": ["The circle is red and a square moves left and that box opens wide."],
  "reversed": REFERENCE[::-1],
}


def reply(trace, answer="B"):
  return f"<think>{chr(10).join(trace)}</think>\n<answer>{answer}</answer>"


def score(traces, **options):
  return process.process_reward([reply(t) for t in traces], [REFERENCE] * len(traces), **options)


ZERO, ABOVE, NONE = "0", "> 0", "infeasible"


@pytest.mark.parametrize(
  ("options", "expected"),
  [
    ({"alignment": "naive"}, [ZERO, ABOVE, ABOVE, ABOVE, ABOVE]),
    ({"moves": "classic"}, [ZERO, ZERO, ABOVE, ABOVE, ABOVE]),
    ({"moves": "strict"}, [ZERO, ZERO, ABOVE, NONE, ABOVE]),
    ({"moves": "jump"}, [ZERO, ZERO, ZERO, NONE, ABOVE]),
  ],
  ids=["naive", "classic", "strict", "jump"],
)
def test_distances_of_the_five_toy_traces_are_those_of_the_paper(options, expected):
  scored = score(TRACES.values(), **options)
  kinds = [ZERO if d == 0 else NONE if np.isinf(d) else ABOVE for d in scored.distance]
  assert dict(zip(TRACES, kinds, strict=True)) == dict(zip(TRACES, expected, strict=True))
  expected_reward = np.where(np.isinf(scored.distance), 0, np.exp(-scored.distance))
  np.testing.assert_allclose(scored.reward, expected_reward, rtol=1e-6)


def test_naive_warping_makes_chatter_around_the_steps_expensive():
  assert score([TRACES["chatter around"]], alignment="naive").distance[0] > 0.3


def test_alpha_sets_how_fast_the_reward_falls():
  mild, steep = (score([TRACES["reversed"]], alpha=alpha).reward[0] for alpha in (0.5, 2.0))
  assert steep == pytest.approx(mild**4, rel=1e-5) and 0 < steep < mild < 1


@pytest.mark.parametrize("alignment", ["subsequence", "naive"])
def test_an_empty_trace_or_reference_earns_nothing(alignment):
  replies = [reply([]), "no tags at all", "", reply(REFERENCE)]
  scored = process.process_reward(replies, [REFERENCE, REFERENCE, [], []], alignment=alignment)
  np.testing.assert_array_equal(scored.reward, 0)
  assert [scored.alignment(n) for n in (0, 3)] == [
    {"cost": [[], [], []], "path": [], "distance": None},
    {"cost": [], "path": [], "distance": None},
  ]


def test_no_replies_earn_an_empty_array():
  assert process.process_reward([], []).reward.shape == (0,)


def test_costs_are_one_minus_the_mean_rouge_of_every_pair_of_steps():
  scored = score([["The red circle moved.", "It opened."]])
  ids = words.Vocabulary()
  rows = [[ids.ids(text)[None] for text in texts] for texts in (REFERENCE, scored.steps[0])]
  expected = [[1 - np.mean(rouge.rouge(a, b)) for b in rows[1]] for a in rows[0]]
  assert scored.costs[0].shape == (3, 2)
  np.testing.assert_allclose(scored.costs[0], expected, atol=1e-6)


def test_a_reply_scores_the_same_alone_as_in_a_ragged_batch():
  traces = [*TRACES.values(), [CHATTER] * 40 + REFERENCE, [" ".join(REFERENCE * 20)], []]
  together = score(traces)
  for index, trace in enumerate(traces):
    alone = score([trace])
    assert together.distance[index] == alone.distance[0]
    np.testing.assert_array_equal(together.costs[index], alone.costs[0])


def test_the_alignment_is_json_and_its_path_explains_the_distance():
  scored = score([TRACES["chatter between"], TRACES["reversed"]])
  drawn = json.loads(json.dumps(scored.alignment(0)))
  assert drawn["path"] == [[0, 0], [1, 2], [2, 4]] and drawn["distance"] == 0
  drawn = scored.alignment(1)
  mean = np.mean([drawn["cost"][i][j] for i, j in drawn["path"]])
  assert mean == pytest.approx(drawn["distance"], rel=1e-6)


def test_the_naive_alignment_joins_both_ends():
  drawn = score([TRACES["chatter around"]], alignment="naive").alignment(0)
  assert drawn["path"][0] == [0, 0] and drawn["path"][-1] == [2, 4]
  total = sum(drawn["cost"][i][j] for i, j in drawn["path"])
  assert total / 5 == pytest.approx(drawn["distance"], rel=1e-6)


def test_after_warm_up_batches_of_other_sizes_compile_nothing():
  def counts():
    return rouge._mean._cache_size(), dtw.subsequence_dtw._cache_size()

  for copies in (1, 8, 60):
    score(list(TRACES.values()) * copies)
    score([[f"{word} {n}" for word in "abcde"] for n in range(20 * copies)])
  warm = counts()
  for copies in (3, 7, 30):
    score([[f"{word} {n}" for word in "fgh"] for n in range(copies)])
  assert counts() == warm


def test_unequal_numbers_of_replies_and_references_are_refused():
  with pytest.raises(errors.InputError, match="2 replies but 1 references"):
    process.process_reward(["a", "b"], [["c"]])


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
def test_an_alpha_that_is_no_positive_number_is_refused(alpha):
  with pytest.raises(errors.InputError, match="alpha"):
    process.process_reward([], [], alpha=alpha)


def test_steps_that_the_report_shows_are_those_that_were_scored():
  text = reply(["1. The circle is red.", "2. It moves."])
  scored = process.process_reward([text], [REFERENCE])
  assert list(scored.steps[0]) == steps.split_steps(steps.think_text(text))


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"moves": "jmup"}, "moves 'jmup' is unknown; use one of strict, jump, classic"),
    ({"alignment": "niave"}, "alignment 'niave' is unknown; use one of subsequence, naive"),
  ],
)
def test_mistyped_options_are_named(options, message):
  with pytest.raises(errors.InputError, match=message):
    process.process_reward([], [], **options)


@pytest.mark.parametrize("options", [{}, {"moves": "strict"}, {"alignment": "naive"}])
@pytest.mark.parametrize("language", scripts.SENTENCES)
def test_in_every_language_a_copy_earns_one_and_other_sentences_less(language, options):
  reference = scripts.SENTENCES[language]
  copies = [unicodedata.normalize(form, reply(reference)) for form in ("NFC", "NFD")]
  scored = process.process_reward(
    [*copies, reply(reference[::-1]), reply(reference[:1])], [reference] * 4, **options
  )
  np.testing.assert_array_equal(scored.reward[:2], 1)
  assert (scored.reward[2:] < 0.8).all()


@pytest.mark.parametrize(
  "reference",
  [
    ["Left."],
    ["红。"],
    ["It moves. Then it stops!", "3"],
    ["1. It moves.", "- It stops.", "Step 3: It waits."],
    ["At 2s, it moves. At 4s, it stops.", "…", "Wait"],
    ["它移动。然后停下。", "左"],
  ],
)
def test_a_copy_earns_one_however_its_steps_are_written(reference):
  scored = process.process_reward([reply(reference)], [reference])
  assert scored.reward[0] == 1 and scored.references == scored.steps


STEP_TEXTS = strategies.text(
  strategies.sampled_from("aé1 .!?。\n-3)红ท🎈<>/think") | strategies.characters(), max_size=12
)


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(strategies.lists(STEP_TEXTS, max_size=4))
def test_a_reference_without_a_problem_is_one_whose_copy_earns_one(reference):
  copy = reply(reference)
  problem = process.find_reference_problem(copy, reference)
  assert (not problem) == (process.process_reward([copy], [reference]).reward[0] == 1)
  assert "\n" not in problem


@pytest.mark.parametrize(
  ("reference", "says"),
  [
    (["👍"], "'👍' has no word"),
    (["see </think> there"], "is split into other steps; leave out <think>"),
  ],
)
def test_a_reference_whose_copy_earns_less_is_named(reference, says):
  problem = process.find_reference_problem(reply(reference), reference)
  assert says in problem
