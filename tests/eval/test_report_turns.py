"""Episodes of several turns in the report: the time line, and each turn's frames and rewards."""

import re

import pytest

from tests.eval import conftest as runs
from vr_jax import errors
from vr_jax.eval import report

LOOK = "<think>The <b>market</b> comes first.</think>\n<retrieve>20,29</retrieve>"
SAY = "<think>He falls & gets up.</think>\n<answer>B</answer>"
HOSTILE = "</svg></pre><img src=x onerror=alert(1)><script>alert(1)</script>"


def _turn(reply, shown, **fields):
  rewards = {"accuracy": 0.0, "format": 0.1, "relevance": -0.25, "total": -0.15}
  known = {"kind": "answer", "problem": "", "first": None, "last": None}
  return {"reply": reply, "shown": shown, "rewards": rewards, **known, **fields}


def _rollout(**fields):
  made = runs.rollout("q-001", ["He falls."], SAY, correct=True)
  turns = [
    _turn(LOOK, [0, 13, 26, 39], kind="retrieve", first=20, last=29),
    _turn("<b>hm", [20, 29], kind="invalid", problem="format"),
    _turn(SAY, [], rewards={"accuracy": 1.0, "format": 0.1, "total": 1.1}),
  ]
  times = [2.0 * number for number in range(40)]  # 0 to 78 s
  return {
    **made,
    "alignment": None,
    "turns": turns,
    "times": times,
    "relevant": [[40.0, 50.0], [70.0, 80.0]],
    **fields,
  }


@pytest.fixture
def page(workdir):
  """page(**fields) -> the replies of a report whose only one has these fields."""

  def write(**fields):
    runs.keep_one_reply(workdir, _rollout(**fields), runs.frames("q-001", 40))
    text = report.write_report(workdir).read_text(encoding="utf-8")
    return text[text.index('<div class="chips">') : text.index('<div class="steps">')]

  return write


def _bars(page, kind):
  """(left, width) in percent of the bars of a class."""
  found = re.findall(r'<rect x="([\d.]+)%"[^>]*? width="([\d.]+)%"[^>]*? class="([a-z]+)"', page)
  return [(float(x), float(width)) for x, width, name in found if name == kind]


def test_the_evidence_and_what_turns_ask_for_lie_where_they_are_in_time(page):
  text = page()
  line = text[text.index("<svg") : text.index("</svg>")]
  assert _bars(line, "truth") == _bars(line, "band") == [(50.0, 12.5), (87.5, 12.5)]  # of 80 s
  assert _bars(line, "look") == [(50.0, 22.5)]  # 40 to 58 s
  ticks = re.findall(r'<line x1="([\d.]+)%"', line)
  assert [float(x) for x in ticks] == [0.0, 32.5, 65.0, 97.5, 50.0, 72.5]
  labels = re.findall(r"<text[^>]*>([^<]*)<", line)
  look = "turn 1 asks for frames 20 to 29, 40 s to 58 s"
  assert labels == ["evidence", "shown first: 4 frames", look, "0 s", "40 s", "80 s"]


def test_each_turn_stands_with_its_frames_its_rewards_and_its_text(page):
  turns = re.split(r'<div class="segment segment-\d">', page())[1:]
  plain = [" ".join(re.sub(r"<[^>]*>", " ", turn).split()) for turn in turns]
  assert plain[0].startswith("turn 1 asks for frames 20 to 29, 40 s to 58 s accuracy 0.00 format")
  assert (
    "relevance -0.25 total -0.15 0 · 0 s 13 · 26 s 26 · 52 s 39 · 78 s &lt;think&gt;" in plain[0]
  )
  assert "turn 2 can&#39;t be used: format" in plain[1]
  assert "turn 3 answers accuracy 1.00 format 0.10 total 1.10 No frames were shown." in plain[2]
  assert [turn.count("<img") for turn in turns] == [4, 2, 0]
  assert "He falls &amp; gets up." in turns[2]
  assert '<span class="retrieve">20,29</span>' in turns[0]


def test_frames_stand_with_their_turns_alone_and_no_alignment_is_missed(page, workdir):
  page()
  text = (workdir / "report.html").read_text(encoding="utf-8")
  assert text.count("<img") == 6
  assert "No alignment" not in text


def test_evidence_that_is_not_known_is_said_to_be(page):
  text = page(relevant=[])
  assert "evidence: not known" in text
  assert not _bars(text, "truth")


def test_a_pool_of_one_frame_and_a_look_at_one_frame_are_seen(page):
  turn = _turn(LOOK, [0], kind="retrieve", first=0, last=0)
  text = page(turns=[turn], times=[0.0], relevant=[])
  assert _bars(text, "look") == [(0.0, 0.6)]


def test_what_the_model_wrote_stays_text(page):
  turn = _turn(HOSTILE, [], kind="invalid", problem=HOSTILE, rewards={HOSTILE: 1.0})
  text = page(turns=[turn])
  assert not re.search(r"<(script|img)", text)
  assert text.count("&lt;script&gt;") == 3


def test_a_frame_that_was_shown_and_is_not_kept_is_named(workdir):
  runs.keep_one_reply(workdir, _rollout(), runs.frames("q-001", 39))
  with pytest.raises(errors.InputError, match=r"frames\.jsonl: question 'q-001' lacks frame 39"):
    report.write_report(workdir)


@pytest.mark.parametrize(
  ("fields", "complaint"),
  [
    ({"turns": []}, "turns or times are empty"),
    ({"times": []}, r"turns\[0\]: frame 0 is not in a pool of 0"),
    ({"times": [3.0, 1.0] * 20}, "times should rise"),
    ({"relevant": [[1.0]]}, "relevant be [start, end]"),
    ({"turns": [_turn(SAY, [40])]}, "turns[0]: frame 40 is not in a pool of 40"),
    ({"turns": [_turn(SAY, [1.5])]}, "turns[0]: frame 1.5 is not in a pool of 40"),
    ({"turns": [_turn(LOOK, [], last=-1)]}, "turns[0]: frame -1 is not in a pool of 40"),
    ({"turns": [_turn(LOOK, [], kind="retrieve")]}, "turns[0]: a retrieval without first and last"),
    ({"turns": [{"reply": SAY}]}, "turns[0]: field 'shown' is missing"),
  ],
)
def test_a_wrong_field_of_turns_is_named(page, fields, complaint):
  with pytest.raises(errors.InputError) as caught:
    page(**fields)
  assert "before_rl.jsonl:1: " in str(caught.value)
  assert complaint.replace("\\", "") in str(caught.value)
