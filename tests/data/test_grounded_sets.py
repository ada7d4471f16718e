"""Reading NExT-GQA and QVHighlights in their released layouts, and which questions are dropped."""

import json

import pytest

from tests.data import annotation_files
from vr_jax import atomic, errors
from vr_jax.data import annotations, nextgqa, qvhighlights, temporal_grounding

HEADER = "video_id,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4"


def _row(
  video="11",
  qid="3",
  answer="sit down",
  question="what does the cat do",
  options="run,sit down,eat,hide,jump",
):
  return f"{video},900,640,480,{question},{answer},{qid},TN,{options}"


def _nextgqa(tmp_path, *rows, spans=None, header=HEADER, limits=None):
  spans = spans or {"11": {"duration": 60, "location": {"3": [[5.5, 9]]}, "fps": 29.97}}
  questions = tmp_path / "val.csv"
  questions.write_text("\n".join([header, *rows]) + "\n")
  (tmp_path / "gsub_val.json").write_text(json.dumps(spans))
  (tmp_path / "map.json").write_text(
    json.dumps({"11": "0101/11", "12": "0101/12", "13": "0101/13"})
  )
  return nextgqa.read(questions, tmp_path / "gsub_val.json", tmp_path / "map.json", limits=limits)


def _read(tmp_path, result, videos):
  """Reads the kept records as ingestion does."""
  path = tmp_path / "annotations.jsonl"
  atomic.write_json_lines(path, result.kept)

  def stop(_, error):
    raise error

  return [question.example for question in annotations.read(path, frozenset(videos), on_bad=stop)]


def test_a_question_of_nextgqa_becomes_a_multiple_choice_with_its_seconds(tmp_path):
  result = _nextgqa(tmp_path, _row())
  (example,) = _read(tmp_path, result, {"0101/11.mp4"})
  assert (example.id, example.answer, example.source) == ("11_3", "B", "NExT-GQA")
  assert example.question == "What does the cat do?"
  assert example.options == ("A. run", "B. sit down", "C. eat", "D. hide", "E. jump")
  assert [(span.start, span.end) for span in example.relevant] == [(5.5, 9)]
  assert result.dropped == {}


def test_what_is_left_out_of_nextgqa_is_counted_by_reason(tmp_path):
  spans = {
    "11": {"duration": 60, "location": {"0": [[0, 30]], "1": [[0, 29.9]], "2": []}},
    "12": {"duration": 30, "location": {"0": [[0, 1]]}},
    "14": {"duration": 60, "location": {"0": [[0, 1]]}},
  }
  rows = [
    *[_row(qid="0"), _row(qid="1"), _row(qid="2"), _row(qid="9"), _row(video="13", qid="0")],
    *[_row(video="12", qid="0"), _row(video="14", qid="0"), _row(answer="fly"), _row(question=" ")],
    _row(options="run,sit down,eat, run ,jump"),
  ]
  result = _nextgqa(tmp_path, *rows, spans=spans)
  assert [record["id"] for record in result.kept] == ["11_1"]
  assert result.dropped == {"wide": 1, "no span": 3, "short": 1, "no video": 1, "options": 3}
  wider = _nextgqa(
    tmp_path, *rows, spans=spans, limits=temporal_grounding.SpanFilter(seconds=10.0, share=0.6)
  )
  assert len(wider.kept) == 3


def test_spans_are_put_in_order_joined_and_cut_to_the_video():
  def merged(*pairs):
    return temporal_grounding.merge_spans([list(pair) for pair in pairs], 21.0, "here")

  assert merged((9.2, 21.5), (0, 6.1), (5, 7)) == [[0, 7], [9.2, 21]]
  assert merged((2, 2), (22, 25), (-1, 3)) == [[0, 3]]
  assert merged((1, 2), (2, 3)) == [[1, 3]]
  assert merged() == []


def test_commas_and_quotes_within_a_column_are_read(tmp_path):
  result = _nextgqa(
    tmp_path, _row(answer='"wave, then sit"', options='run,"wave, then sit",eat,hide,jump')
  )
  assert result.kept[0]["answer"] == "B"


@pytest.mark.parametrize(
  ("kind", "says"),
  [
    ({"header": HEADER.replace("qid", "id")}, "val.csv: column 'qid' is missing"),
    ({"spans": {"11": {"duration": 60}}}, "video 11: needs a duration and a location"),
    ({"spans": {"11": {"duration": "x", "location": {}}}}, "video 11: a duration in seconds"),
    (
      {"spans": {"11": {"duration": 60, "location": {"3": [[1]]}}}},
      "video 11, question 3: needs a list",
    ),
    (
      {"spans": {"11": {"duration": 60, "location": {"3": [["a", 2]]}}}},
      "question 3: needs a list",
    ),
  ],
)
def test_another_layout_of_nextgqa_is_an_error_that_names_the_place(tmp_path, kind, says):
  with pytest.raises(errors.InputError, match=says):
    _nextgqa(tmp_path, _row(), **kind)


def test_a_short_line_and_a_missing_or_broken_file_are_named(tmp_path):
  with pytest.raises(errors.InputError, match=r"val\.csv:2: has fewer columns"):
    _nextgqa(tmp_path, "11,900")
  good = tmp_path / "val.csv"
  good.write_text(HEADER)
  with pytest.raises(errors.InputError, match=r"none\.json: cannot be read"):
    nextgqa.read(good, tmp_path / "none.json", tmp_path / "map.json")
  (tmp_path / "map.json").write_text("[]")
  with pytest.raises(errors.InputError, match=r"map\.json: holds no JSON object"):
    nextgqa.read(good, tmp_path / "gsub_val.json", tmp_path / "map.json")
  (tmp_path / "map.json").write_text("{")
  with pytest.raises(errors.InputError, match=r"map\.json: is not JSON"):
    nextgqa.read(good, tmp_path / "gsub_val.json", tmp_path / "map.json")


def _moment(qid, **fields):
  value = {
    "qid": qid,
    "query": "A dog swims. ",
    "duration": 150,
    "vid": "abc_60.0_210.0",
    "relevant_windows": [[70, 110]],
    "relevant_clip_ids": [35, 36],
    "saliency_scores": [[4, 1, 1], [4, 2, 1]],
  }
  return {**value, **fields}


def _rewrite(qid, **fields):
  value = {
    "qid": qid,
    "suitable": True,
    "question": "What swims?",
    "options": ["a cat", "a dog", "a man", "nothing"],
    "answer": "B",
  }
  return {**value, **fields}


def _qvhighlights(tmp_path, moments, rewrites):
  return (
    annotation_files.write(tmp_path / "highlight.jsonl", *moments),
    annotation_files.write(tmp_path / "rewrites.jsonl", *rewrites),
  )


def test_a_quote_that_never_closes_is_named(tmp_path):
  with pytest.raises(errors.InputError, match=r"val\.csv:\d+: is not CSV"):
    _nextgqa(tmp_path, _row(question='"' + "x" * 200_000))


def test_a_time_of_hundreds_of_digits_is_none(tmp_path):
  spans = {"11": {"duration": 10**400, "location": {"3": [[5.5, 9]]}}}
  with pytest.raises(errors.InputError, match="video 11"):
    _nextgqa(tmp_path, _row(), spans=spans)


def test_a_rewritten_moment_of_qvhighlights_becomes_a_multiple_choice(tmp_path):
  options = ["A. a cat", "B) a dog", "(C) a man", "D: no one"]
  files = _qvhighlights(
    tmp_path, [_moment(8), _moment(9)], [_rewrite(8), _rewrite("9", options=options)]
  )
  result = qvhighlights.read(*files)
  first, second = _read(tmp_path, result, {"abc_60.0_210.0.mp4"})
  assert (first.id, first.question, first.answer) == ("qvhighlights_8", "What swims?", "B")
  assert first.options == ("A. a cat", "B. a dog", "C. a man", "D. nothing")
  assert [(span.start, span.end) for span in first.relevant] == [(70, 110)]
  assert second.options == ("A. a cat", "B. a dog", "C. a man", "D. no one")
  assert result.dropped == {}


def test_what_is_left_out_of_qvhighlights_is_counted_by_reason(tmp_path):
  moments = [
    *[_moment(1), _moment(2), _moment(3), _moment(4, duration=30, relevant_windows=[[2, 4]])],
    *[_moment(5, relevant_windows=[[0, 75]]), _moment(6, relevant_windows=[])],
  ]
  files = _qvhighlights(
    tmp_path, moments, [_rewrite(1), {"qid": 2, "suitable": False}, _rewrite(4)]
  )
  result = qvhighlights.read(*files)
  assert [record["id"] for record in result.kept] == ["qvhighlights_1"]
  assert result.dropped == {
    "unsuitable": 1,
    "not rewritten": 1,
    "short": 1,
    "wide": 1,
    "no span": 1,
  }
  worth = qvhighlights.moments(files[0])
  assert [(moment.qid, moment.query) for moment in worth.kept] == [
    (qid, "A dog swims.") for qid in "123"
  ]
  assert worth.dropped == {"short": 1, "wide": 1, "no span": 1}


def test_the_test_split_of_qvhighlights_has_no_windows_and_is_refused(tmp_path):
  value = {field: entry for field, entry in _moment(1).items() if field != "relevant_windows"}
  files = _qvhighlights(tmp_path, [value], [])
  with pytest.raises(errors.InputError, match=r"highlight\.jsonl:1: field 'relevant_windows'"):
    qvhighlights.moments(files[0])


@pytest.mark.parametrize(
  ("fields", "says"),
  [
    ({"options": ["one"]}, "field 'options'"),
    ({"options": ["one", ""]}, "field 'options'"),
    ({"options": None}, "field 'options'"),
    ({"options": ["a cat", "a dog", "a man", " a dog "]}, "field 'options': texts that differ"),
    ({"options": ["A. a cat", "B. a dog", "C. a dog"]}, "field 'options': texts that differ"),
    ({"answer": "E"}, "field 'answer'"),
    ({"answer": None}, "field 'answer'"),
    ({"question": " "}, "field 'question'"),
  ],
)
def test_a_rewrite_that_is_no_question_is_an_error(tmp_path, fields, says):
  files = _qvhighlights(tmp_path, [_moment(1)], [_rewrite(1, **fields)])
  with pytest.raises(errors.InputError, match=rf"rewrites\.jsonl:1: {says}"):
    qvhighlights.read(*files)


def test_a_line_that_is_no_object_is_an_error(tmp_path):
  path = annotation_files.write(tmp_path / "highlight.jsonl", "", _moment(1), "3")
  with pytest.raises(errors.InputError, match=r"highlight\.jsonl:3: field 'qid' is missing"):
    qvhighlights.moments(path)
