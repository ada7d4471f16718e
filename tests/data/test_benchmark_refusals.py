"""What a benchmark's files must not be is refused in one line that names the file and record."""

import json

from hypothesis import given, strategies
from pyarrow import parquet
import pytest

from benchmarks import benchmark_files as files
from vr_jax.data.benchmark_sets import media_files, options, registry
from vr_jax.errors import InputError

# The file of each benchmark that is damaged, and the split that reads it.
FILES = {
  "mvbench": ("json/action_sequence.json", None),
  "mmvu": ("validation.json", None),
  "video_mme": ("videomme/test-00000-of-00001.parquet", None),
  "mlvu": ("json/2_needle.json", "dev"),
  "egoschema": ("questions.json", None),
  "longvideobench": ("lvb_val.json", None),
  "lvbench": ("video_info.meta.jsonl", None),
  "tempcompass": ("questions/multi-choice.json", "multi-choice"),
  "vsi_bench": ("test-00000-of-00001.parquet", None),
  "video_mmmu": ("Adaptation/test-00000-of-00001.parquet", "adaptation"),
  "vcr_bench": ("v1/videos/meta_info_video.json", None),
  "moss_video": ("test.jsonl", None),
}
TEMPCOMPASS = ("77", "direction", 0)


def load(path):
  """The content of an annotation file as JSON has it."""
  if path.suffix == ".parquet":
    return parquet.read_table(path).to_pylist()
  if path.suffix == ".jsonl":
    return [json.loads(line) for line in path.read_text().splitlines()]
  return json.loads(path.read_text())


def store(path, value):
  if path.suffix == ".parquet":
    files.write_parquet(path, value)
  elif path.suffix == ".jsonl":
    files.write_lines(path, value)
  else:
    files.write_json(path, value)


def put(value, path, new):
  """Puts a value at a path of keys; Ellipsis removes what is there."""
  *above, last = path
  for key in above:
    value = value[key]
  if new is ...:
    del value[last]
  else:
    value[last] = new


BAD = [
  ("mvbench", (0, "candidates"), ..., "field 'candidates' is missing"),
  ("mvbench", (0, "question"), 3, "field 'question' needs a text, is 3"),
  ("mvbench", (0, "answer"), "Flew", "answer 'Flew' equals no option"),
  ("mvbench", (0, "candidates"), ["Ran", "Ran"], "equals options A and B"),
  ("mvbench", (0, "candidates"), ["Ran"], "has 1 options; needs at least 2"),
  ("mvbench", (0, "start"), ..., "field 'start' is missing"),
  ("mvbench", (0, "start"), 12, "clip 12 to 9.5 s is empty"),
  ("mvbench", (0, "video"), "../../K1.mp4", "is no path below"),
  ("mmvu", (1, "answer"), "E", r"val_2\): answer 'E' is none of the letters 'ABCD'"),
  ("mmvu", (1, "choices", "B"), "", "an option before others is empty"),
  ("mmvu", (1, "choices"), ["Liver"], "field 'choices' needs an object"),
  ("mmvu", (0, "video"), "https://h/7.mp4", "has no path after videos/"),
  ("mmvu", (0, "video"), "https://h/videos/Magic/7.mp4", "subject 'Magic' is none of MMVU's 27"),
  ("mmvu", (0, "question_type"), "essay", "needs multiple-choice or open-ended"),
  ("mmvu", (1, "id"), "val_1", r"id 'val_1' is taken by .*record 0"),
  ("video_mme", (0, "options"), ["1", "2", "3", "4"], "do not begin with A, B"),
  ("video_mme", (0, "answer"), "E", r"901-1\): answer 'E' is none of"),
  ("video_mme", (1, "question_id"), "901-1", "id '901-1' is taken by .*row 0"),
  ("video_mme", (0, "duration"), "huge", "needs short or medium or long"),
  ("mlvu", (0, "answer"), "bin", "answer 'bin' equals no option"),
  ("mlvu", (0, "question_type"), "ego", "task 'ego' is not that of its file, '2_needle'"),
  ("egoschema", (0, "option 3"), None, ""),
  ("egoschema", (1, "option 3"), None, r"0-1\): field 'option 3' is missing"),
  ("egoschema", (1, "q_uid"), "0-2", "lacks question '0-1' of subset_answers.json"),
  ("longvideobench", (0, "correct_choice"), 4, r"z_0\): answer 4 is none of 4 options"),
  ("longvideobench", (0, "candidates"), ["a", "N/A", "c"], "an option before others is empty"),
  ("longvideobench", (0, "duration_group"), 61, "needs one of"),
  ("longvideobench", (0, "duration"), "long", "field 'duration' needs a number"),
  ("lvbench", (0, "qa", 0, "question"), "Year?", "is not followed by lines"),
  ("lvbench", (0, "qa", 0, "answer"), "E", "answer 'E' is none of the letters 'ABCD'"),
  ("lvbench", (0, "qa"), {"uid": 1}, "field 'qa' needs a list of objects"),
  ("tempcompass", (*TEMPCOMPASS, "answer"), "B. left", "is not the text of option B"),
  ("tempcompass", ("77", "direction"), {}, "'direction': needs a list of objects"),
  ("tempcompass", ("77", "mood"), [{"question": "a"}], "aspect 'mood' is none of"),
  ("vsi_bench", (0, "ground_truth"), "big", "needs a number, is 'big'"),
  ("vsi_bench", (0, "question_type"), "colour", "field 'question_type' needs one of"),
  ("vsi_bench", (1, "options"), None, "field 'options' is missing"),
  ("vsi_bench", (1, "ground_truth"), "C", "answer 'C' is none of the letters 'AB'"),
  ("video_mmmu", (0, "id"), "dev_Cooking_1", "one of VideoMMMU's 30 subjects"),
  ("video_mmmu", (0, "image 1", "bytes"), b"text", "is no PNG, JPEG, WebP or GIF"),
  ("video_mmmu", (0, "question_type"), "multiple-choice", "needs options"),
  ("vcr_bench", (1, "answer"), "C", "answer 'C' is none of the letters 'AB'"),
  ("vcr_bench", (0, "multiple-choice"), "no", "needs true or false"),
  ("vcr_bench", (0, "reasoning"), [""], "none of them empty"),
  ("moss_video", (0, "answer"), "C", "'C' is none of the options A, B"),
  ("moss_video", (1, "id"), "m1", "field 'id': 'm1' is taken"),
]


@pytest.mark.parametrize(("name", "path", "new", "complaint"), BAD)
def test_a_bad_record_is_refused_in_one_line_that_names_it(name, path, new, complaint, tmp_path):
  files.write(name, tmp_path)
  place, split = FILES[name]
  content = load(tmp_path / place)
  put(content, path, new)
  store(tmp_path / place, content)
  if not complaint:  # a bad record outside of the split does no harm
    registry.read_items(name, tmp_path, split)
    return
  with pytest.raises(InputError, match=complaint) as caught:
    registry.read_items(name, tmp_path, split)
  assert place.rpartition("/")[2] in str(caught.value)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_absent_empty_or_of_another_format_is_refused(name, tmp_path):
  files.write(name, tmp_path)
  place, split = FILES[name]
  for content in (b"", b"{", b"[]", b"\xff\x00", b"[1]", b"{}"):
    (tmp_path / place).write_bytes(content)
    with pytest.raises(InputError) as caught:
      registry.read_items(name, tmp_path, split)
    assert place.rpartition("/")[2] in str(caught.value) or "has no questions" in str(caught.value)
  (tmp_path / place).unlink()
  with pytest.raises(InputError, match=r"there is no .*\(docs/benchmarks\.md\)"):
    registry.read_items(name, tmp_path, split)
  with pytest.raises(InputError, match="there is no such directory"):
    registry.read_items(name, tmp_path / "nowhere", split)


def test_the_copies_of_trainers_and_the_tables_of_harnesses_are_named(tmp_path):
  copy = {"problem_id": 1, "problem": "Q?", "solution": "<answer>B</answer>", "path": "a.mp4"}
  files.write_json(tmp_path / "validation.json", [copy | {"id": 1}])
  with pytest.raises(InputError, match="a record of Video-R1's copy of a benchmark"):
    registry.read_items("mmvu", tmp_path)
  (tmp_path / "MVBench.tsv").write_text("index\n")
  with pytest.raises(InputError, match=r"'MVBench\.tsv' is a table of VLMEvalKit"):
    registry.read_items("mvbench", tmp_path)
  (tmp_path / "MVBench.tsv").unlink()
  (tmp_path / "eval_mvbench.json").write_text("[]")
  with pytest.raises(InputError, match=r"'eval_mvbench\.json' is Video-R1's copy"):
    registry.read_items("mvbench", tmp_path)


def test_a_caption_without_a_question_that_judges_it_is_refused(tmp_path):
  files.write("tempcompass", tmp_path)
  (tmp_path / "questions" / "multi-choice.json").unlink()
  with pytest.raises(InputError, match=r"video '77', 'direction', question 0: multi-choice\.json"):
    registry.read_items("tempcompass", tmp_path, "captioning")


def test_a_table_with_a_short_row_is_refused(tmp_path):
  (tmp_path / "VCR-Bench.tsv").write_text("index\tquestion\n1\n")
  with pytest.raises(InputError, match="row 0: has another number of cells"):
    registry.read_items("vcr_bench", tmp_path)


def test_an_unknown_name_or_split_is_refused(tmp_path):
  with pytest.raises(InputError, match="vcrbench: no such benchmark; one of mvbench, mmvu"):
    registry.read_items("vcrbench", tmp_path)
  with pytest.raises(InputError, match="mlvu: has no split 'val'; one of dev, dev_open, test"):
    registry.read_items("mlvu", tmp_path, "val")


@pytest.mark.parametrize("name", ["../a.mp4", "/a.mp4", "a/../../b.mp4", "a\0.mp4", ""])
def test_no_file_outside_of_the_directory_is_looked_for(name, tmp_path):
  with pytest.raises(InputError, match=r"here: .* is no path below the benchmark's directory"):
    media_files.MediaFiles(root=tmp_path).find("here", "ok.mp4", name)


@pytest.mark.parametrize("answer", ["A man", "AB", "", "a", "(A", "F", "D"])
def test_what_is_no_letter_of_an_option_is_no_answer(answer):
  with pytest.raises(InputError, match=r"here: answer .* is none of the letters 'ABC'"):
    options.check_letter(answer, ("A man", "two", "three"), "here")


@pytest.mark.parametrize("answer", ["B", "(B)", "B.", "B)", "B: two", "(B) two"])
def test_a_letter_is_read_with_its_label(answer):
  assert options.check_letter(answer, ("one", "two"), "here") == "B"


odd_values = strategies.one_of(
  strategies.none(),
  strategies.booleans(),
  strategies.integers(),
  strategies.floats(),
  strategies.sampled_from(["", "../x", "\x00", "\ud800", "A", "B. right", "1e999", "x" * 300]),
  strategies.text(max_size=6),
  strategies.lists(strategies.text(max_size=3), max_size=3),
  strategies.dictionaries(strategies.text(max_size=3), strategies.integers(), max_size=2),
  strategies.just(...),
)


def places(value, above=()):
  """The paths of all values inside of one."""
  entries = value.items() if isinstance(value, dict) else ()
  for key, entry in enumerate(value) if isinstance(value, list) else entries:
    yield (*above, key)
    yield from places(entry, (*above, key))


@pytest.fixture(scope="module", params=[name for name in FILES if "parquet" not in FILES[name][0]])
def written(request, tmp_path_factory):
  """A benchmark in a directory of its own, and its damaged file as it was."""
  root = tmp_path_factory.mktemp(request.param)
  files.write(request.param, root)
  return request.param, root, (root / FILES[request.param][0]).read_bytes()


@given(data=strategies.data())
def test_no_damaged_record_ends_in_anything_but_an_error_of_one_line(written, data):
  name, root, whole = written
  place, split = FILES[name]
  (root / place).write_bytes(whole)
  content = load(root / place)
  for _ in range(data.draw(strategies.integers(1, 2))):
    path = data.draw(strategies.sampled_from(list(places(content)) or [None]))
    if path is not None:
      put(content, path, data.draw(odd_values))
  store(root / place, content)
  try:
    found = registry.read_items(name, root, split)
  except InputError as error:
    assert "\n" not in str(error)
  else:
    assert all(item.question and item.video for item in found.items)
