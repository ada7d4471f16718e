import dataclasses
import json
import shutil
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest

from tests.data import released_sets
from vr_jax import run_length
from vr_jax.data import ingest, mask_store, segmentation_sets
from vr_jax.errors import InputError

HEIGHT, WIDTH, mask = released_sets.HEIGHT, released_sets.WIDTH, released_sets.mask
CONFIG = ingest.IngestConfig(fps=30.0, validation_fraction=0.0, test_fraction=0.0)


def converted(tmp_path, layout, *, root=None, **arguments):
  """The records of a set by their ids, after it was converted and ingested."""
  if root is None:
    root = getattr(released_sets, layout)(tmp_path / "set")
  segmentation_sets.convert(layout, root, tmp_path / "out", **arguments)
  ingest.ingest(root, tmp_path / "out" / "*.jsonl", tmp_path / "shards", CONFIG)
  source, store = ingest.open_split(tmp_path / "shards", "train")
  masks = mask_store.MaskStore(tmp_path / "shards" / "masks")
  return {source[index].id: source[index] for index in range(len(source))}, store, masks


def true_masks(numbers, count, frames=None):
  return np.stack(
    [
      np.any([mask(number, frame, count) for number in numbers] or [np.zeros((HEIGHT, WIDTH))], 0)
      for frame in (range(count) if frames is None else frames)
    ]
  )


def check_track(example, masks, numbers, count, *, rate, frames=None):
  """The track and the stored masks are those of the union of objects, at the frames' times."""
  track, true = example.object_track, true_masks(numbers, count, frames).astype(bool)
  np.testing.assert_array_equal(masks.read(example.video, track.instances), true)
  np.testing.assert_array_equal(
    track.boxes, [run_length.box(run_length.encode(each)) for each in true]
  )
  np.testing.assert_allclose(
    track.times, np.array(range(count) if frames is None else frames) / rate, atol=1e-6
  )
  assert (track.height, track.width) == (HEIGHT, WIDTH)
  assert (example.problem_type, example.answer) == ("segmentation", "")


def test_mevis_end_to_end_with_a_query_for_several_instances(tmp_path):
  found, store, masks = converted(tmp_path, "mevis")
  assert len(found) == 6
  assert found["mevis_park_1"].question == "both squares"
  for video, count in released_sets.LENGTHS.items():
    for query, numbers in (("0", [1]), ("1", [1, 2]), ("2", [10])):
      example = found[f"mevis_{video}_{query}"]
      assert example.video == f"train/JPEGImages/{video}"
      assert example.shown.end == pytest.approx(count / 6)
      check_track(example, masks, numbers, count, rate=6)
    np.testing.assert_allclose(store.timestamps(example.video), np.arange(count) / 6)
    np.testing.assert_allclose(store.ends(example.video), np.arange(1, count + 1) / 6)
    assert store.original_size(example.video) == (HEIGHT, WIDTH)
    assert store.read(example.video, [count - 1])[0, -1, -1].tolist() == [20 + 20 * count] * 3
  late = found["mevis_park_2"].object_track
  assert late.visible.tolist() == [False] * 4 + [True]


def test_ref_youtube_vos_has_labels_in_palettes_and_every_fifth_frame(tmp_path):
  found, store, masks = converted(tmp_path, "ref_youtube_vos")
  assert sorted(found) == [
    f"ref_youtube_vos_{video}_{query}" for video in ("park", "street") for query in "01"
  ]
  example = found["ref_youtube_vos_park_0"]
  check_track(example, masks, [1], 5, rate=6)
  check_track(found["ref_youtube_vos_street_1"], masks, [10], 3, rate=6)
  assert masks.frames(example.video) == ("00000", "00005", "00010", "00015", "00020")
  assert len(store.timestamps(example.video)) == 5


def test_pictures_that_a_set_does_not_list_are_no_frames_of_its_video(tmp_path):
  root = released_sets.ref_youtube_vos(tmp_path / "set")
  folder = root / "train" / "JPEGImages" / "park"
  for index in range(21):  # all frames of the original video, as another download has them
    if index % 5:
      Image.fromarray(np.full((HEIGHT, WIDTH, 3), 8 * index, np.uint8)).save(
        folder / f"{index:05d}.jpg"
      )
  found, store, masks = converted(tmp_path, "ref_youtube_vos", root=root)
  example = found["ref_youtube_vos_park_0"]
  check_track(example, masks, [1], 5, rate=6)
  np.testing.assert_allclose(store.timestamps(example.video), example.object_track.times, atol=1e-6)
  assert store.read(example.video, [4])[0, -1, -1].tolist() == [120] * 3  # the fifth that is listed
  Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "00005.png")
  with pytest.raises(InputError, match=r"00005.jpg and 00005.png are the same frame"):
    ingest.ingest(root, tmp_path / "out" / "*.jsonl", tmp_path / "other", CONFIG)
  (folder / "00005.png").unlink()
  (folder / "00010.jpg").unlink()
  with pytest.raises(InputError, match=r"'00010' is not among the 20 pictures .*1 of 5 are miss"):
    ingest.ingest(root, tmp_path / "out" / "*.jsonl", tmp_path / "other", CONFIG)


def test_the_masks_of_other_splits_are_not_released(tmp_path):
  root = released_sets.ref_youtube_vos(tmp_path / "set")
  (park,) = segmentation_sets.read("ref_youtube_vos", root, "valid")  # without those of test
  assert park.name == "park" and park.instances is None and len(park.queries) == 2
  mevis = released_sets.mevis(tmp_path / "mevis", "valid")
  assert all(video.instances is None for video in segmentation_sets.read("mevis", mevis, "valid"))
  for layout, folder in (("ref_youtube_vos", root), ("mevis", mevis)):
    with pytest.raises(InputError, match="this split has no masks"):
      segmentation_sets.convert(layout, folder, tmp_path / "out", split="valid")
  assert not list((tmp_path / "out").rglob("*.json*"))


def test_ref_davis17_reads_four_annotators_in_two_encodings_and_string_order(tmp_path):
  found, _, masks = converted(tmp_path, "ref_davis17", split="val")
  assert len(found) == 2 * 3 * 4
  # As texts, object 10 comes before object 2.
  for place, number in enumerate((1, 10, 2)):
    for annotator in range(4):
      example = found[f"ref_davis17_classic-car_{4 * place + annotator}"]
      assert example.question == f"object {number} by {annotator}, café"
      assert example.object_track.instances == (str(number),)
  check_track(found["ref_davis17_classic-car_4"], masks, [10], 5, rate=24)


def test_revos_keeps_types_and_has_queries_that_mean_nothing(tmp_path):
  found, _, masks = converted(tmp_path, "revos")
  check_track(found["revos_sub/park_0"], masks, [1], 5, rate=6)
  check_track(found["revos_sub/park_1"], masks, [1, 2], 5, rate=6)
  nothing = found["revos_sub/park_2"]
  check_track(nothing, masks, [], 5, rate=6)
  assert not nothing.object_track.visible.any()
  assert [found[f"revos_sub/park_{k}"].extra["type_id"] for k in range(3)] == [0, 1, 2]
  (valid,) = segmentation_sets.read("revos", tmp_path / "set", "valid")
  assert valid.name == "sub/street"


def test_lv_vis_has_categories_or_the_sentences_of_visa(tmp_path):
  found, _, masks = converted(tmp_path, "lv_vis")
  check_track(found["lv_vis_00001_1"], masks, [1, 2], 5, rate=6)
  assert [example.question for example in found.values()] == ["the lamp", "the paving stone"]
  visa = released_sets.mevis(tmp_path / "visa")
  path = visa / "train" / "meta_expressions.json"
  path.write_text(path.read_text().replace("the square that", "the paving_stone that"))
  videos = segmentation_sets.read("lv_vis", visa, "train")
  assert next(videos).queries[0].text == "the paving stone that moves"


def test_reason_vos_knows_a_frame_only_where_it_was_annotated(tmp_path):
  found, store, masks = converted(tmp_path, "reason_vos")
  check_track(found["reason_vos_park_0"], masks, [1], 5, rate=6, frames=[0, 2, 4])
  check_track(found["reason_vos_park_1"], masks, [2], 5, rate=6, frames=[0, 1, 2])
  video = found["reason_vos_park_0"].video
  assert masks.frames(video, ["1"]) == ("00000", "00002", "00004")
  assert masks.frames(video, ["1", "2"]) == ("00000", "00002")
  assert len(store.timestamps(video)) == 5
  np.testing.assert_array_equal(
    masks.read(video, ["2"], [2, 0]), true_masks([2], 5, [2, 0]).astype(bool)
  )
  with pytest.raises(IndexError, match="no annotated frame 3 among 3"):
    masks.read(video, ["1"], [3])
  with pytest.raises(InputError, match="has no instance '7'"):
    masks.read(video, ["7"])
  with pytest.raises(InputError, match="has no video 'else'"):
    masks.read("else", ["1"])
  # The first release had an object instead of a list.
  path = tmp_path / "set" / "meta_expressions.json"
  value = json.loads(path.read_text())
  entries = value["videos"]["park"]["expressions"]
  for entry in entries:
    entry["exp"] = entry.pop("exp_text")
  value["videos"]["park"]["expressions"] = {str(entry.pop("exp_id")): entry for entry in entries}
  path.write_text(json.dumps(value))
  (older,) = segmentation_sets.read("reason_vos", tmp_path / "set")
  assert [query.text for query in older.queries] == ["Which one moves?", "Which one stays?"]
  with pytest.raises(InputError, match="--split=train: ReasonVOS has one split"):
    list(segmentation_sets.read("reason_vos", tmp_path / "set", "train"))


def edit(path, change):
  value = json.loads(path.read_text())
  change(value)
  path.write_text(json.dumps(value))


def remove_frame(root):
  (root / "train" / "JPEGImages" / "park" / "00002.jpg").unlink()


def other_size(value):
  value["1"][3] = run_length.encode(np.ones((HEIGHT, WIDTH + 1), bool))


MEVIS_FAULTS = {
  "a frame is missing": (remove_frame, "JPEGImages/park: the frame '00002' is missing"),
  "a video is missing": (
    lambda root: shutil.rmtree(root / "train" / "JPEGImages" / "park"),
    "JPEGImages/park: there is no such folder",
  ),
  "a mask is of another size": (
    lambda root: edit(root / "train" / "mask_dict.json", other_size),
    r"instance '1', frame 00003: the mask is of \[24, 41\] pixels .* the frames of \[24, 40\]",
  ),
  "masks are fewer than frames": (
    lambda root: edit(root / "train" / "mask_dict.json", lambda value: value["1"].pop()),
    "annotation 1: has 4 masks for the 5 frames",
  ),
  "an annotation is missing": (
    lambda root: edit(root / "train" / "mask_dict.json", lambda value: value.pop("2")),
    "annotation 2: is missing",
  ),
  "a mask is damaged": (
    lambda root: edit(
      root / "train" / "mask_dict.json", lambda value: value["1"][0].update(counts="!")
    ),
    "annotation 1: is a damaged run-length mask",
  ),
  "a text is empty": (
    lambda root: edit(
      root / "train" / "meta_expressions.json",
      lambda value: value["videos"]["park"]["expressions"]["0"].update(exp=" "),
    ),
    "video 'park', expression '0': 'exp' is no text",
  ),
  "the file is cut off": (
    lambda root: (root / "train" / "meta_expressions.json").write_text('{"videos": {'),
    "meta_expressions.json: is not JSON",
  ),
  "the split is missing": (lambda root: shutil.rmtree(root / "train"), "there is no such file"),
}


@pytest.mark.parametrize("fault", MEVIS_FAULTS)
def test_what_is_wrong_with_a_set_is_named_and_nothing_is_left(tmp_path, fault):
  root = released_sets.mevis(tmp_path / "set")
  change, problem = MEVIS_FAULTS[fault]
  change(root)
  with pytest.raises(InputError, match=problem):
    converted(tmp_path, "mevis", root=root)
  assert not (tmp_path / "shards").exists()
  assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_labels_that_are_no_labels_are_named(tmp_path):
  root = released_sets.ref_youtube_vos(tmp_path / "set")
  path = root / "train" / "Annotations" / "park" / "00005.png"
  for image, problem in (
    (np.zeros((HEIGHT, WIDTH, 3), np.uint8), "00005.png: has colours"),
    (np.zeros((HEIGHT, WIDTH - 1), np.uint8), "park: the masks of frame '00000' are of"),
  ):
    Image.fromarray(image).save(path)
    with pytest.raises(InputError, match=problem):
      list(segmentation_sets.read("ref_youtube_vos", root))
  path.write_bytes(b"nothing")
  with pytest.raises(InputError, match=r"00005.png: cannot be read as a picture"):
    list(segmentation_sets.read("ref_youtube_vos", root))


def test_two_pictures_of_a_frame_are_named(tmp_path):
  root = released_sets.mevis(tmp_path / "set")
  folder = root / "train" / "JPEGImages" / "park"
  Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "00002.png")
  with pytest.raises(InputError, match="park: has two pictures of frame '00002', ") as error:
    list(segmentation_sets.read("mevis", root))
  assert "00002.jpg" in str(error.value) and "00002.png" in str(error.value)


def test_masks_of_another_size_than_the_frames_are_an_error_of_ingestion(tmp_path):
  root = released_sets.mevis(tmp_path / "set")
  segmentation_sets.convert("mevis", root, tmp_path / "out")
  folder = root / "train" / "JPEGImages" / "park"
  for path in folder.iterdir():  # frames at half the size, as another download has them
    Image.open(path).resize((WIDTH // 2, HEIGHT // 2)).save(path)
  notes = tmp_path / "out" / "mevis_train.jsonl"
  with pytest.raises(InputError, match=r"'masks': they are of 40 x 24 pixels, .* of 20 x 12"):
    ingest.ingest(root, notes, tmp_path / "shards", CONFIG)
  small = dataclasses.replace(CONFIG, on_bad="skip")
  report = ingest.ingest(root, notes, tmp_path / "shards", small)
  assert (report.skipped_records, report.examples["train"]) == (3, 3)
  kept = mask_store.MaskStore(tmp_path / "shards" / "masks")
  assert kept.videos == ("train/JPEGImages/street",)
  Image.new("RGB", (9, 9)).save(folder / "00003.jpg")
  with pytest.raises(InputError, match=r"00003.jpg: has 9 x 9 pixels, the first frame .* 20 x 12"):
    ingest.ingest(root, notes, tmp_path / "other", CONFIG)


def test_records_about_a_video_that_contradict_each_other_are_bad_ones(tmp_path):
  root = released_sets.mevis(tmp_path / "set")
  segmentation_sets.convert("mevis", root, tmp_path / "out")
  notes = tmp_path / "out" / "mevis_train.jsonl"
  lines = [json.loads(line) for line in notes.read_text().splitlines()]
  (tmp_path / "out" / "masks" / "copy.json").write_bytes(
    (tmp_path / "out" / lines[0]["masks"]).read_bytes()
  )
  for change, field in (
    ({"frame_rate": 5.0}, "frame_rate"),
    ({"masks": "masks/copy.json"}, "masks"),
  ):
    changed = [lines[0], {**lines[1], **change}, *lines[2:]]
    notes.write_text("".join(json.dumps(line) + "\n" for line in changed))
    with pytest.raises(InputError, match=rf"mevis_train.jsonl:2: field '{field}': is .* at .*:1, "):
      ingest.ingest(root, notes, tmp_path / "shards", CONFIG)
    skip = dataclasses.replace(CONFIG, on_bad="skip")
    report = ingest.ingest(root, notes, tmp_path / f"shards_{field}", skip)
    assert (report.skipped_records, report.examples["train"]) == (1, 5)


def test_masks_that_changed_since_are_noticed(tmp_path):
  root = released_sets.mevis(tmp_path / "set")
  segmentation_sets.convert("mevis", root, tmp_path / "out")
  notes = tmp_path / "out" / "mevis_train.jsonl"
  report = ingest.ingest(root, notes, tmp_path / "shards", CONFIG)
  assert ingest.ingest(root, notes, tmp_path / "shards", CONFIG) == report
  path = tmp_path / "out" / "masks" / "mevis_train" / "park.json"
  edit(path, lambda value: value["instances"].update({"1": value["instances"]["2"]}))
  with pytest.raises(InputError, match="was ingested from other inputs"):
    ingest.ingest(root, notes, tmp_path / "shards", CONFIG)


def test_the_command_converts_and_says_what_is_wrong(tmp_path):
  root = released_sets.mevis(tmp_path / "sets" / "MeViS")
  command = [sys.executable, "-m", "vr_jax.data.segmentation_sets"]
  given = ["mevis", str(root), str(tmp_path / "out"), f"--videos={tmp_path / 'sets'}"]
  done = subprocess.run([*command, *given], capture_output=True, text=True, check=True)
  assert done.stdout == f"{tmp_path / 'out'}: 6 queries about 2 videos\n"
  first = json.loads((tmp_path / "out" / "mevis_train.jsonl").read_text().splitlines()[0])
  assert first == {
    "id": "mevis_park_0",
    "video": "MeViS/train/JPEGImages/park",
    "question": "the square that moves",
    "problem_type": "segmentation",
    "masks": "masks/mevis_train/park.json",
    "instances": ["1"],
    "frame_rate": 6.0,
    "source": "MeViS",
  }
  again = subprocess.run([*command, *given], capture_output=True, text=True, check=False)
  assert (again.returncode, again.stdout) == (2, "") and "is already there" in again.stderr
  for arguments, problem in (
    (["mevi", *given[1:2], "new"], "mevi: no such layout; one of mevis, "),
    (["mevis", "nowhere", "new"], "nowhere: there is no such directory"),
    (given[:2], "usage: LAYOUT ROOT OUTPUT"),
    ([*given[:2], "new", f"--videos={tmp_path / 'out'}"], "is not below --videos="),
    ([*given[:2], "new", "--frame_rate=0"], "frame_rate"),
  ):
    with pytest.raises(InputError, match=problem):
      segmentation_sets.run(arguments)
