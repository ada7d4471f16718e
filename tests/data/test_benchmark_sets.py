"""Each benchmark's released files become the items that its records say, worked out by hand."""

import pytest

from benchmarks import benchmark_files as files
from vr_jax import records
from vr_jax.data import benchmark_item
from vr_jax.data.benchmark_sets import mvbench, registry, tempcompass, vcr_bench, video_mmmu
from vr_jax.errors import InputError

Item = benchmark_item.Item


def read(name, root, split=None):
  """The items of a small benchmark, whose files are all there."""
  files.write(name, root)
  found = registry.read_items(name, root, split)
  assert found.missing == {}
  return found.items


@pytest.mark.parametrize("name", files.names())
def test_items_of_every_split_survive_the_disk(name, tmp_path):
  files.write(name, tmp_path)
  splits = [split for split in registry.BENCHMARKS[name].splits if split != "train"]
  for split in splits:
    found = registry.read_items(name, tmp_path, split)
    benchmark_item.write(tmp_path / "items.jsonl", found.items)
    assert list(benchmark_item.read(tmp_path / "items.jsonl")) == list(found.items)
    assert {(item.benchmark, item.split) for item in found.items} == {(name, split)}


def test_mvbench_has_clips_of_whole_videos_in_its_revision_main(tmp_path):
  items = read("mvbench", tmp_path)
  assert len(items) == 20
  assert items[0] == Item(
    id="action_sequence-0",
    benchmark="mvbench",
    split="test",
    video="video/star/Charades_v1_480/K1.mp4",
    question="What did she do after?",
    scorer="choice",
    answer="B",
    options=("Sat", "Ran"),
    clip=records.Span(start=3.0, end=9.5),
    strata={"task": ("Action Sequence",)},
    cluster="star/K1",
    source_record=files.MVBENCH,
  )
  clipped = {item.id for item in items if item.clip}
  assert clipped == {
    *("action_sequence-0", "action_prediction-0", "object_interaction-0"),
    *("action_localization-0", "episodic_reasoning-0"),
  }
  frames = {item.id: item.frames_fps for item in items if item.media == "frames"}
  assert frames == {"episodic_reasoning-0": 3.0}
  assert {item.cluster for item in items if item.strata["task"] == ("Moving Count",)} == {
    item.cluster for item in items if item.strata["task"] == ("Object Existence",)
  }


def test_mvbench_has_no_clips_in_its_revision_video_whose_files_are_cut(tmp_path):
  for name, task in mvbench.TASKS.items():
    files.write_json(tmp_path / "json" / f"{name}.json", [files.MVBENCH])
    files.write_bytes(tmp_path / (task.cut or task.folder) / "K1.mp4")
  found = registry.read_items("mvbench", tmp_path)
  assert found.missing == {}
  assert {item.clip for item in found.items} == {None}
  assert {item.media for item in found.items} == {"video"}
  assert found.items[0].video == "star/Charades_segment/K1.mp4"


def test_mvbench_finds_a_webm_and_the_supplement(tmp_path):
  files.write("mvbench", tmp_path)
  (tmp_path / "video/ssv2_video/K1.mp4").rename(tmp_path / "video/ssv2_video/K1.webm")
  clevrer = tmp_path / "video/data0613/clevrer/video_validation"
  clevrer.parent.mkdir(parents=True)
  (tmp_path / "video/clevrer/video_validation").rename(clevrer)
  found = registry.read_items("mvbench", tmp_path)
  videos = {item.id: item.video for item in found.items}
  assert videos["action_antonym-0"] == "video/ssv2_video/K1.webm"
  assert videos["moving_count-0"] == "video/data0613/clevrer/video_validation/K1.mp4"
  assert found.missing == {}


def test_both_revisions_of_mvbench_in_one_directory_are_refused(tmp_path):
  files.write("mvbench", tmp_path)
  (tmp_path / "star" / "Charades_segment").mkdir(parents=True)
  with pytest.raises(InputError, match="revision main and 'star/Charades_segment' of its revision"):
    registry.read_items("mvbench", tmp_path)


def test_mmvu_has_open_questions_for_a_judge_and_drops_empty_choices(tmp_path):
  items = read("mmvu", tmp_path)
  assert items[0] == Item(
    id="val_1",
    benchmark="mmvu",
    split="validation",
    video="videos/Art/7.mp4",
    question="Which technique?",
    scorer="judge",
    answer="Sfumato",
    strata={
      "discipline": ("Humanities and Social Science",),
      "subject": ("Art",),
      "format": ("open-ended",),
    },
    cluster="Art/7",
    source_record=files.MMVU[0],
  )
  assert items[1].video == "videos/Basic_Medicine/3.MP4"
  assert (items[1].scorer, items[1].options, items[1].answer) == (
    *("choice", ("Liver", "Heart", "Lung", "Skin")),
    "B",
  )
  assert items[1].strata["discipline"] == ("Healthcare",)


def test_video_mme_has_the_subtitles_that_are_there(tmp_path):
  item = read("video_mme", tmp_path)[0]
  assert item == Item(
    id="901-1",
    benchmark="video_mme",
    split="test",
    video="data/aB1.mkv",
    question="How many?",
    scorer="choice",
    answer="B",
    options=("1.", "2.", "3.", "4."),
    subtitles="subtitle/aB1.srt",
    strata={
      "duration": ("short",),
      "category": ("Knowledge",),
      "task": ("Counting Problem",),
    },
    cluster="aB1",
    source_record=files.VIDEO_MME[0],
  )
  assert registry.read_subtitles(item, tmp_path) == ((1.0, 2.5, "Good day."),)
  (tmp_path / "subtitle" / "aB1.srt").unlink()
  found = registry.read_items("video_mme", tmp_path)
  assert {item.subtitles for item in found.items} == {""}
  assert found.missing == {}
  assert registry.read_subtitles(found.items[0], tmp_path) == ()


def test_a_name_in_other_letters_is_another_video(tmp_path):
  files.write("video_mme", tmp_path)
  (tmp_path / "data" / "aB1.mkv").rename(tmp_path / "data" / "ab1.mkv")
  missing = registry.read_items("video_mme", tmp_path).missing
  assert missing == {"901-1": ("data/aB1.mp4",), "901-2": ("data/aB1.mp4",)}


def test_mlvu_has_seven_tasks_with_options(tmp_path):
  items = read("mlvu", tmp_path)
  assert [item.strata["task"] for item in items] == [
    *(("plotQA",), ("needle",), ("ego",), ("count",), ("order",), ("anomaly_reco",)),
    ("topic_reasoning",),
  ]
  assert items[1] == Item(
    id="2_needle-0",
    benchmark="mlvu",
    split="dev",
    video="video/2_needle/ego_900.mp4",
    question="Where is it?",
    scorer="choice",
    answer="B",
    options=("Bin", "Box"),
    strata={"task": ("needle",)},
    cluster="needle/ego_900",
    source_record=files.MLVU | {"question_type": "findNeedle"},
  )


def test_mlvu_has_two_open_tasks_for_a_rubric(tmp_path):
  first, second = read("mlvu", tmp_path, "dev_open")
  assert (first.scorer, first.answer, first.options) == ("rubric", "She swims.", ())
  assert first.strata == {"task": ("sub_scene",)}
  assert first.source_record["scoring_points"] == "swims; alone"
  assert (second.id, second.video) == ("9_summary-0", "video/9_summary/t.mp4")


def test_mlvu_test_questions_have_no_answer_before_it_was_released(tmp_path):
  (item,) = read("mlvu", tmp_path, "test")
  assert (item.id, item.video, item.answer) == ("AR_0", "video/a.mp4", "B")
  path = tmp_path / "test-ground-truth" / "test_mcq_gt.json"
  path.unlink()
  question = {**files.MLVU, "question_id": "AR_0", "question_type": "anomaly_reco"}
  del question["answer"]
  files.write_json(tmp_path / "test_question.json", [question])
  (item,) = registry.read_items("mlvu", tmp_path, "test").items
  assert (item.answer, item.options) == ("", ("Bin", "Box"))


def test_egoschema_has_letters_for_indices_and_no_answer_where_none_is_public(tmp_path):
  (item,) = read("egoschema", tmp_path)
  assert item == Item(
    id="0-1",
    benchmark="egoschema",
    split="subset",
    video="videos/0-1.mp4",
    question="Main aim?",
    scorer="choice",
    answer="D",
    options=("Cook", "Clean", "Paint", "Sew", "Play"),
    cluster="0-1",
    source_record=files.EGOSCHEMA[1],
  )
  everything = registry.read_items("egoschema", tmp_path, "test").items
  assert [item.answer for item in everything] == ["", "D"]


def test_longvideobench_counts_options_from_0_and_moves_subtitles_to_the_clip(tmp_path):
  (item,) = read("longvideobench", tmp_path)
  assert item == Item(
    id="z_0",
    benchmark="longvideobench",
    split="validation",
    video="videos/z.mp4",
    question="When …?",
    scorer="choice",
    answer="C",
    options=("a", "b", "c", "d"),
    subtitles="subtitles/z_en.json",
    strata={"duration": ("600",), "category": ("S2E",)},
    cluster="z",
    source_record=files.LONGVIDEOBENCH,
  )
  # The clip begins at 12 s of the subtitles' clock; one without an end lasts as long as the clip.
  assert registry.read_subtitles(item, tmp_path) == ((1.0, 3.0, "Hello."), (8.0, 500.0, "B"))
  (hidden,) = registry.read_items("longvideobench", tmp_path, "test").items
  assert hidden.answer == ""


def test_lvbench_splits_options_from_questions_and_counts_several_abilities(tmp_path):
  (item,) = read("lvbench", tmp_path)
  assert item == Item(
    id="1",
    benchmark="lvbench",
    split="test",
    video="videos/YTid.webm",
    question="Year?",
    scorer="choice",
    answer="C",
    options=("1", "2", "3", "4"),
    strata={"task": ("reasoning", "entity recognition")},
    cluster="YTid",
    source_record=files.LVBENCH["qa"][0],
  )


def test_tempcompass_has_four_formats_with_answers_of_their_own(tmp_path):
  choice, yes_no, matching, captioning = read("tempcompass", tmp_path)
  assert choice == Item(
    id="multi-choice-77-direction-0",
    benchmark="tempcompass",
    split="test",
    video="videos/77.mp4",
    question="Which way?",
    scorer="choice",
    answer="B",
    options=("left", "right"),
    strata={"format": ("multi-choice",), "aspect": ("direction",)},
    cluster="77",
    source_record=files.TEMPCOMPASS["multi-choice"]["77"]["direction"][0],
  )
  assert (yes_no.scorer, yes_no.answer, yes_no.options) == ("yes_no", "yes", ())
  assert (yes_no.video, yes_no.cluster) == ("videos/77_reverse.mp4", "77")
  assert (matching.scorer, matching.answer) == ("caption_match", "B")
  assert (matching.question, matching.options) == (
    "Which caption fits?",
    ("It goes left.", "It goes right."),
  )
  # The caption is judged by the multi-choice question, not by its own list of facts.
  assert (captioning.scorer, captioning.answer, captioning.options) == (
    *("caption_judge", "B. right"),
    (),
  )
  assert captioning.question == "Write a caption.\nInformation A: {'way': 'left'}"
  assert captioning.source_record["mc_question"] == "Which way?\nA. left\nB. right"


def test_videos_of_tempcompass_that_share_a_source_are_one_cluster():
  videos = ["5", "5_reverse", "7_concat_0", "7_9_1", "9", "4_7_0", "6", "x_y_0", "_reverse"]
  assert tempcompass.find_clusters(videos) == {
    **{"5": "5", "5_reverse": "5", "7_concat_0": "4", "7_9_1": "4", "9": "4", "4_7_0": "4"},
    **{"6": "6", "x_y_0": "x_y_0", "_reverse": "_reverse"},
  }


def test_vsi_bench_has_numbers_and_options_in_eight_tasks(tmp_path):
  size, direction = read("vsi_bench", tmp_path)
  assert size == Item(
    id="1",
    benchmark="vsi_bench",
    split="test",
    video="scannet/s9_00.mp4",
    question="Size?",
    scorer="mra",
    answer="21.5",
    strata={"task": ("room_size_estimation",), "category": ("room_size_estimation",)},
    cluster="scannet/s9_00",
    source_record=files.VSI_BENCH[0],
  )
  assert (direction.scorer, direction.options, direction.answer) == (
    *("choice", ("left", "right")),
    "A",
  )
  assert direction.strata == {
    "task": ("object_rel_direction",),
    "category": ("object_rel_direction_hard",),
  }


def test_the_published_counts_of_vsi_bench_add_up():
  published = registry.BENCHMARKS["vsi_bench"].published["test"]
  assert sum(published["task"].values()) == sum(published["category"].values()) == 5130
  assert len(published["task"]) == 8


def test_video_mmmu_has_three_tracks_and_the_clips_of_the_question_alone(tmp_path):
  perception, comprehension, adaptation = read("video_mmmu", tmp_path)
  assert perception.id == "perception-dev_Math_9"
  assert (perception.options, perception.answer) == (("a + b", "a - b"), "A")
  assert (comprehension.scorer, comprehension.answer) == ("choice", "B")
  assert adaptation == Item(
    id="adaptation-dev_Math_9",
    benchmark="video_mmmu",
    split="test",
    video="Science/dev_Math_9.mp4",
    question="Find x <image 1>",
    scorer="open_rule",
    answer="3.5",
    images=("images/adaptation-dev_Math_9-1.png",),
    strata={"track": ("adaptation",), "discipline": ("Science",), "subject": ("Math",)},
    cluster="dev_Math_9",
    source_record={
      name: {"path": "x.png"} if name == "image 1" else value
      for name, value in files.VIDEO_MMMU["Adaptation"].items()
    },
  )
  (alone,) = registry.read_items("video_mmmu", tmp_path, "question_only").items
  assert alone.video == "question_only/dev_Math_9_image.mp4"
  assert (alone.answer, alone.images) == ("3.5", adaptation.images)
  together = registry.read_items("video_mmmu", tmp_path, "knowledge_gain").items
  assert [item.id.partition("-")[0] for item in together] == [
    *("perception", "comprehension", "adaptation", "question_only")
  ]


def test_pictures_of_video_mmmu_are_written_once(tmp_path):
  files.write("video_mmmu", tmp_path)
  picture = tmp_path / "images" / "adaptation-dev_Math_9-1.png"
  picture.unlink()
  missing = registry.read_items("video_mmmu", tmp_path, "adaptation").missing
  assert missing == {"adaptation-dev_Math_9": ("images/adaptation-dev_Math_9-1.png",)}
  assert video_mmmu.extract_images(tmp_path) == 1
  assert picture.read_bytes() == files.PNG
  assert video_mmmu.extract_images(tmp_path) == 0
  assert registry.read_items("video_mmmu", tmp_path, "adaptation").missing == {}


def test_vcr_bench_has_steps_with_their_times(tmp_path):
  open_item, choice = read("vcr_bench", tmp_path)
  assert open_item == Item(
    id="9",
    benchmark="vcr_bench",
    split="test",
    video="v1/videos/video/a/b.mp4",
    question="When …?",
    scorer="reasoning_steps",
    answer="[4, 9]",
    strata={"dimension": ("Temporal Grounding",), "format": ("open-ended",)},
    cluster="video/a/b",
    steps=(
      benchmark_item.ItemStep(text="0:04-0:09, a man runs.", times=(4.0, 9.0)),
      benchmark_item.ItemStep(text="Therefore, from 4 to 9 s."),
    ),
    source_record=files.VCR_BENCH[0],
  )
  # The options stand in the released question, too.
  assert (choice.question, choice.options, choice.answer) == ("Why?", ("He fell.", "He ran."), "B")
  assert choice.steps[0].times == (33.0, 36.0)


@pytest.mark.parametrize(
  ("sentence", "text", "times"),
  [
    ("1. 0:07-0:55, two men.", "0:07-0:55, two men.", (7.0, 55.0)),
    ("3. Between 1:00 and 1:02, he", "Between 1:00 and 1:02, he", (60.0, 62.0)),
    ("2. 1:00:05 - 1:01:00, x", "1:00:05 - 1:01:00, x", (3605.0, 3660.0)),
    ("2. Between 2:55 and 1:02, x", "Between 2:55 and 1:02, x", None),  # as released
    ("4. So he left at 1:02.", "So he left at 1:02.", None),
  ],
)
def test_a_step_begins_with_its_times(sentence, text, times):
  step = vcr_bench.parse_step(sentence)
  assert (step.text, step.times) == (text, times)


def test_moss_video_is_in_our_own_format(tmp_path):
  choice, number = read("moss_video", tmp_path)
  assert choice == Item(
    id="m1",
    benchmark="moss_video",
    split="test",
    video="videos/v.mp4",
    question="What next?",
    scorer="choice",
    answer="A",
    options=("red", "blue"),
    clip=records.Span(start=0.0, end=8.0),
    strata={"task": ("multiple choice",)},
    cluster="v",
    steps=(
      benchmark_item.ItemStep(text="At 2 s, it is blue.", times=(2.0, 4.0)),
      benchmark_item.ItemStep(text="Then it turns."),
    ),
    source_record={"problem_type": "multiple choice", "masked": [8.0, 10.0]},
  )
  assert (number.scorer, number.answer, number.clip) == ("open_rule", "3", None)
