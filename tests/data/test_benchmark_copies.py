"""Copies of benchmarks in other layouts, those of lmms-eval and VLMEvalKit, give the same items."""

from benchmarks import benchmark_files as files
from vr_jax.data.benchmark_sets import registry


def test_the_copy_of_mlvu_with_options_in_the_question_is_read(tmp_path):
  record = {
    **{"video_name": "ego_900.mp4", "answer": "B", "task_type": "ego", "duration": 400.0},
    "question": "Where is it?\n(A) Bin\n(B) Box\n(C) A tall\nshelf",
  }
  files.write_parquet(tmp_path / "mlvu" / "test-00000-of-00001.parquet", [record])
  files.write_bytes(tmp_path / "video" / "3_ego" / "ego_900.mp4")
  (item,) = registry.read_items("mlvu", tmp_path).items
  assert (item.question, item.answer) == ("Where is it?", "B")
  assert item.options == ("Bin", "Box", "A tall\nshelf")
  assert item.video == "video/3_ego/ego_900.mp4"


def test_the_copy_of_egoschema_is_read(tmp_path):
  record = {
    **{"question_idx": "1", "question": "Main aim?", "video_idx": "0-1", "answer": "3"},
    "option": ["A. Cook", "B. Clean", "C. Paint", "D. Sew", "E. Play"],
  }
  files.write_parquet(tmp_path / "Subset" / "test-00000-of-00001.parquet", [record])
  hidden = record | {"answer": None}
  files.write_parquet(tmp_path / "MC" / "test-00000-of-00001.parquet", [hidden])
  files.write_bytes(tmp_path / "videos" / "0-1.MP4")
  (item,) = registry.read_items("egoschema", tmp_path).items
  assert (item.id, item.answer, item.options[3]) == ("0-1", "D", "Sew")
  assert item.video == "videos/0-1.MP4"
  (item,) = registry.read_items("egoschema", tmp_path, "test").items
  assert item.answer == ""


def test_the_parquet_of_longvideobench_is_filled_with_options_that_are_none(tmp_path):
  record = {name: value for name, value in files.LONGVIDEOBENCH.items() if name != "candidates"}
  record |= {"option0": "a", "option1": "b", "option2": "c", "option3": "d", "option4": "N/A"}
  files.write_parquet(tmp_path / "validation-00000-of-00001.parquet", [record])
  (item,) = registry.read_items("longvideobench", tmp_path).items
  assert (item.options, item.answer) == (("a", "b", "c", "d"), "C")


def test_the_copy_of_lvbench_with_a_row_for_each_question_is_read(tmp_path):
  record = files.LVBENCH["qa"][0] | {"video_path": "YTid.mp4", "key": "YTid", "type": "cartoon"}
  files.write_parquet(tmp_path / "data" / "train-00000-of-00001.parquet", [record])
  files.write_bytes(tmp_path / "videos" / "YTid.mp4")
  (item,) = registry.read_items("lvbench", tmp_path).items
  assert (item.id, item.video, item.answer) == ("1", "videos/YTid.mp4", "C")


def test_the_copy_of_tempcompass_is_read(tmp_path):
  row = {"video_id": "77_concat_0", "dim": "order", "question": "First?\nA. a\nB. b", "answer": "A"}
  files.write_parquet(tmp_path / "multi-choice" / "test-00000-of-00001.parquet", [row, row])
  items = registry.read_items("tempcompass", tmp_path, "multi-choice").items
  assert [item.id for item in items] == [
    "multi-choice-77_concat_0-order-0",
    "multi-choice-77_concat_0-order-1",
  ]
  assert {item.cluster for item in items} == {"77"}


def test_the_table_of_vcr_bench_is_read(tmp_path):
  record = files.VCR_BENCH[1]
  header = ["index", "video_path", "dimension", "question", "multiple-choice", "choices"]
  cells = ["10", "v1/videos/video/a/b.mp4", "Plot Analysis", "Why?", "True"]
  quoted = ['"{""A"": ""He fell."", ""B"": ""He ran.""}"', "B", '"[""1. He runs.""]"']
  lines = ["\t".join([*header, "answer", "reasoning"]), "\t".join([*cells, *quoted]), ""]
  files.write_bytes(tmp_path / "VCR-Bench.tsv", "\n".join(lines).encode())
  (item,) = registry.read_items("vcr_bench", tmp_path).items
  assert (item.id, item.answer, item.question) == ("10", record["answer"], "Why?")
  assert item.options == ("He fell.", "He ran.")
