"""Replies of several segments in the report, each with its own rewards and advantage."""

import re

import pytest

from tests.eval import conftest as runs
from vr_jax import errors
from vr_jax.eval import report

SEEN = "<observation>At 0s, the circle is <b>red</b>.</observation>"
THOUGHT = "\n<think>It changes & repeats.</think>\n<answer>B</answer>"
FIELDS = {
  "reply": SEEN + THOUGHT,
  "alignment": None,
  "segments": [
    {"name": "perception", "text": SEEN},
    {"name": "reasoning", "text": THOUGHT},
  ],
  "segment_rewards": {
    "perception": {"accuracy": 1.0, "format": 0.0},
    "reasoning": {"accuracy": 0.25, "length": None},
  },
  "segment_advantages": {"perception": 0.707, "reasoning": -1.2},
}


@pytest.fixture
def shown(workdir):
  """shown(**fields) -> the replies of a report whose only rollout has these fields."""

  def write(**fields):
    [reply, *_] = runs.read_replies(workdir / "eval" / "before_rl.jsonl")
    runs.keep_one_reply(workdir, reply | FIELDS | fields, runs.frames(reply["id"]))
    page = report.write_report(workdir).read_text(encoding="utf-8")
    return page[page.index('<div class="chips">') : page.index('<div class="steps">')]

  return write


def pieces(page):
  """(colour, text) of each piece, its markup left out."""
  found = re.split(r'<div class="segment segment-(\d)">', page)
  texts = [re.sub(r"<[^>]*>", " ", text) for text in found[2::2]]
  return list(zip(found[1::2], [" ".join(text.split()) for text in texts], strict=True))


def test_each_segment_stands_with_its_rewards_and_its_advantage(shown):
  (first, seen), (second, thought) = pieces(shown())
  assert (first, second) == ("0", "1")
  assert seen.startswith("perception accuracy 1.00 format 0.00 advantage +0.71 &lt;observation&gt;")
  assert thought.startswith("reasoning accuracy 0.25 length – advantage -1.20 &lt;think&gt;")
  assert "&lt;b&gt;red&lt;/b&gt;" in seen and "changes &amp; repeats" in thought


def test_rewards_of_segments_are_not_said_twice_and_no_alignment_is_missed(shown):
  page = shown()
  assert page.count("accuracy") == 2
  assert "No alignment" not in page
  assert "trace consistency" in page


def test_a_segment_in_several_parts_has_one_head_and_one_colour(shown):
  parts = [
    {"name": "reasoning", "text": "Well. "},
    {"name": "perception", "text": SEEN},
    {"name": "reasoning", "text": THOUGHT},
  ]
  found = pieces(shown(reply="Well. " + SEEN + THOUGHT, segments=parts))
  assert [colour for colour, _ in found] == ["1", "0", "1"]
  assert ["reasoning" in text.split()[:1] for _, text in found] == [True, False, False]


def test_a_segment_that_the_reply_lacks_is_said_to_be_missing(shown):
  parts = [{"name": "perception", "text": ""}, {"name": "reasoning", "text": THOUGHT}]
  found = pieces(shown(reply=THOUGHT, segments=parts))
  assert [colour for colour, _ in found] == ["1", "0"]
  lacking, _, _ = found[1][1].partition(" Ask again")
  assert lacking.endswith("advantage +0.71 (not in the reply)")


def test_a_segment_without_a_verdict_says_so(shown):
  rewards = FIELDS["segment_rewards"] | {"perception": {}}
  (_, seen), _ = pieces(shown(segment_rewards=rewards, segment_advantages=None))
  assert seen.startswith("perception no verdict &lt;observation&gt;")


def test_rewards_of_segments_are_shown_where_their_texts_are_not_known(shown):
  page = shown(segments=None)
  assert next(text for _, text in pieces(page)) == (
    "perception accuracy 1.00 format 0.00 advantage +0.71"
  )
  assert "It changes &amp; repeats." in page


def test_a_hostile_segment_stays_text(shown):
  name, text = "<script>alert(1)</script>", "</div></pre><img src=x onerror=alert(1)>"
  rewards = {name: {"<svg onload=alert(1)>": 1.0}}
  page = shown(
    reply=text,
    segments=[{"name": name, "text": text}],
    segment_rewards=rewards,
    segment_advantages={name: 0.0},
  )
  assert not re.search(r"<(script|svg|img)", page)
  assert page.count("&lt;script&gt;") == 1 and "&lt;img src=x" in page


@pytest.mark.parametrize(
  ("fields", "complaint"),
  [
    ({"segments": "all"}, "segments should be a list of objects"),
    ({"segments": [{"name": "perception"}]}, r"segments\[0\]: field 'text' is missing"),
    ({"segments": FIELDS["segments"][:1]}, "segments are not the whole reply"),
    ({"segment_rewards": [1.0]}, "segment_rewards should be an object"),
    ({"segment_rewards": {"perception": 1.0}}, "segment_rewards: perception should be an object"),
    (
      {"segment_rewards": {"perception": {"accuracy": "high"}}},
      "segment_rewards: perception.accuracy should be a number, is 'high'",
    ),
    ({"segment_advantages": {"perception": "up"}}, "segment_advantages.perception should be a num"),
  ],
)
def test_a_wrong_field_of_segments_is_named(shown, fields, complaint):
  with pytest.raises(errors.InputError, match=complaint) as caught:
    shown(**fields)
  assert "before_rl.jsonl:1: " in str(caught.value)
