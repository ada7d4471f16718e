"""What was read stands beside what is published, and what is not on the disk is listed."""

from benchmarks import benchmark_files as files
from vr_jax.data.benchmark_sets import registry


def test_counts_stand_beside_the_published_ones_and_those_that_differ_are_named(tmp_path):
  files.write("video_mme", tmp_path)
  found = registry.read_items("video_mme", tmp_path)
  counts = {(count.kind, count.name): (count.read, count.published) for count in found.counts}
  assert counts == {
    ("questions", "all"): (2, 2700),
    ("videos", "all"): (1, 900),
    ("subtitles", "all"): (1, 744),
    ("duration", "short"): (2, 900),
    ("duration", "medium"): (0, 900),
    ("duration", "long"): (0, 900),
    ("category", "Knowledge"): (2, None),
    ("task", "Counting Problem"): (2, None),
  }
  assert len(found.differing) == 6
  assert not any(count.differs for count in found.counts if count.published is None)


def test_a_benchmark_with_as_many_questions_as_published_does_not_differ(tmp_path):
  questions = [files.EGOSCHEMA[0] | {"q_uid": f"{number}"} for number in range(500)]
  files.write_json(tmp_path / "questions.json", questions)
  files.write_json(tmp_path / "subset_answers.json", {str(number): 0 for number in range(500)})
  found = registry.read_items("egoschema", tmp_path)
  assert found.differing == ()
  assert len(found.missing) == 500


def test_a_question_with_several_abilities_counts_for_each(tmp_path):
  files.write("lvbench", tmp_path)
  counts = {
    count.name: count.read
    for count in registry.read_items("lvbench", tmp_path).counts
    if count.kind == "task"
  }
  assert counts == {"reasoning": 1, "entity recognition": 1}


def test_videos_and_subtitles_that_are_absent_are_listed_by_item(tmp_path):
  files.write("longvideobench", tmp_path)
  (tmp_path / "videos" / "z.mp4").unlink()
  (tmp_path / "subtitles" / "z_en.json").unlink()
  found = registry.read_items("longvideobench", tmp_path)
  assert found.missing == {"z_0": ("videos/z.mp4", "subtitles/z_en.json")}
  assert len(found.items) == 1


def test_a_folder_of_frames_that_is_absent_is_listed(tmp_path):
  files.write("mvbench", tmp_path)
  frames = tmp_path / "video" / "tvqa" / "frames_fps3_hq" / "K1.mp4"
  frames.rename(frames.with_name("other"))
  found = registry.read_items("mvbench", tmp_path)
  assert found.missing == {"episodic_reasoning-0": ("video/tvqa/frames_fps3_hq/K1.mp4",)}
  assert found.items[18].media == "frames"


def test_every_benchmark_says_where_it_is_and_how_large_its_first_split_is():
  for benchmark in registry.BENCHMARKS.values():
    assert benchmark.source
    assert benchmark.licence
    if benchmark.name in files.names():
      assert benchmark.published[benchmark.splits[0]]["questions"]["all"] > 0
    assert set(benchmark.published) <= set(benchmark.splits)
