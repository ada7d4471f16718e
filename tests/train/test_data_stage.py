"""The data stage: simulated worlds, and the checks of examples before training."""

import dataclasses
import itertools
import json
import math
from pathlib import Path
import shutil

from PIL import Image
import pytest

from tests.data import videos as video_files
from tests.train import nano
from vr_jax import atomic, base_config, errors, main, records
from vr_jax.data import examples, ingest
from vr_jax.traces import stage as traces_stage
from vr_jax.train import (
  asked_clip,
  console,
  data_stage,
  judge_factory,
  mask_filter,
  paths,
  run_context,
)
from vr_jax.worlds import config as world_config
from vr_jax.worlds import write


def test_what_the_tiny_recipe_tests_on_it_never_trains_on():
  recipe = f"--config={nano.ROOT / nano.RECIPE}:tiny"
  data = main.parse_flags(["vr-jax", recipe, "--workdir=x"])[0].data
  world, count = world_config.WorldConfig(**data.simulate.world), 200
  settings = {"seed": data.simulate.seed, "questions": data.simulate.questions_per_video}
  made = [asked for _, asked in write.distinct_videos(world, videos=count, **settings)]
  shows = {asked[0].video: asked[0].states for asked in made}
  fractions = {"train": 1 - data.test_fraction, "test": data.test_fraction}
  split = examples.split_videos(list(shows), fractions, seed=data.split_seed)
  train, test = ({shows[video] for video in split[name]} for name in ("train", "test"))
  assert (len(train), len(test)) == (160, 40)
  assert not train & test


def test_simulated_videos_of_another_world_are_refused(data, tmp_path):
  config = nano.config(data__directory=str(data), data__simulate__world__wordings=1)
  with pytest.raises(errors.InputError, match="simulated: simulated from other values") as error:
    data_stage.prepare(config, tmp_path)
  assert str(data) in str(error.value)


def test_data_that_a_kill_left_on_the_way_to_their_name_are_not_there(tmp_path):
  """Each reader that finds the directory would fail at a file that it lacks."""
  config = nano.config("configs/videop2r.py")
  with config.unlocked():
    base_config.mask_filter(config)
  config.mask_filter.sam2 = "nowhere"
  shards = paths.shards_directory(config, tmp_path)
  shards.mkdir(parents=True)
  shards.with_name(f"{shards.name}{atomic.MOVING}").write_text("shards.partial")
  data_stage.check_before_training(config, tmp_path, "all")
  judge_factory.check(nano.config("configs/videop2r.py", judge__kind="rule"), tmp_path)
  video = video_files.write(tmp_path / "clip.mp4")
  clip = asked_clip.open_clip(video, "Which colour?", config=config, workdir=tmp_path)
  assert clip.example.question == "Which colour?"
  for write_results in (mask_filter.write, traces_stage.write):
    with pytest.raises(errors.InputError, match="shards: no such data; run --mode=data first"):
      write_results(config, tmp_path)


def test_nothing_is_simulated_next_to_data_that_was_not(tmp_path):
  own = _given(tmp_path)
  data_stage.prepare(nano.config(**own), tmp_path)
  before = sorted(tmp_path.rglob("*"))
  again = nano.config(data__directory=str(tmp_path))
  with pytest.raises(errors.InputError, match="holds data that was not simulated") as error:
    data_stage.prepare(again, tmp_path)
  assert "data.simulate.videos=12" in str(error.value)
  assert sorted(tmp_path.rglob("*")) == before


def test_a_video_shorter_than_required_is_found_when_it_is_read_in(tmp_path):
  with pytest.raises(
    errors.InputError, match=r"annotations\.jsonl:1: .* holds 8 stored frames, .* 16"
  ):
    nano.make_data(tmp_path, data__required_frames=16)
  assert not (tmp_path / "shards").exists()


def _given(directory, **fields):
  """Eight simulated questions as a user's own data, the third of them with other fields."""
  raw = directory / "raw"
  world = world_config.WorldConfig(**nano.config().data.simulate.world)
  write.write_dataset(raw, world, videos=8, seed=0, questions_per_video=1)
  records = [json.loads(line) for line in (raw / "annotations.jsonl").read_text().splitlines()]
  records[2] |= fields
  (raw / "annotations.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
  return {
    "data__simulate__videos": 0,
    "data__videos": str(raw / "videos"),
    "data__annotations": str(raw / "annotations.jsonl"),
    "data__directory": str(directory),
    "data__test_fraction": 0.0,
  }


LONG_STEPS = [{"text": "At 0s, the circle is red. " * 40, "start": 0, "end": 2}]
UNUSABLE = {
  "a reply that is too long": ({"steps": LONG_STEPS}, r"its reference reply has \d+ tokens"),
  "no steps": (
    {"steps": []},
    r"it has no reference reply \(.*\); add one, let .*--config.sft.steps=0",
  ),
  "a prompt that is too long": (
    {"question": "What? " * 100},
    r"\d+ tokens, but the largest bucket",
  ),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_an_example_that_would_fail_in_training_stops_the_data_stage_or_is_left_out(tmp_path, name):
  fields, problem = UNUSABLE[name]
  given = _given(tmp_path, **fields)
  with pytest.raises(errors.InputError, match=problem) as error:
    data_stage.prepare(nano.config(**given), tmp_path)
  assert str(error.value).startswith("example '000002-0' of video '000002.mp4': ")
  shutil.rmtree(tmp_path / "shards")

  config = nano.config(**given, data__on_bad="skip")
  for _ in range(2):
    data_stage.prepare(config, tmp_path)
  (listed,) = (tmp_path / "shards" / "bad_records.jsonl").read_text().splitlines()
  assert json.loads(listed)["where"] == "example '000002-0' of video '000002.mp4'"
  batches = run_context.make_run_context(config, tmp_path).builder.read("train", 7, repeat=False)
  assert sorted(item.example.id[:6] for batch in batches for item in batch.items) == [
    f"{index:06d}" for index in (0, 1, 3, 4, 5, 6, 7)
  ]


def test_records_without_steps_can_be_left_to_rl_alone(tmp_path, capsys):
  given = _given(tmp_path, steps=[])
  given |= {"data__validation_fraction": 0.25, "sft__validate_every": 1}
  config = nano.config(**given, sft__skip_without_reply=True)
  for _ in range(2):  # the second time from the file
    data_stage.prepare(config, tmp_path)
    said = [line for line in capsys.readouterr().out.splitlines() if "no reference reply" in line]
    assert len(said) == 1
    assert said[0].endswith(
      "1 question has no reference reply, so the warm start leaves it out "
      "(config.sft.skip_without_reply)"
    )
  builder = run_context.make_run_context(config, tmp_path).builder

  def read(view, **more):
    return {
      split: {
        item.example.id[:6]
        for batch in builder.read(split, 1, view=view, repeat=False, **more)
        for item in batch.items
      }
      for split in ("train", "validation")
    }

  rl, sft = read("whole"), read("supervised")
  assert set.union(*rl.values()) == {f"{index:06d}" for index in range(8)}
  assert set.union(*rl.values()) - set.union(*sft.values()) == {"000002"}
  # The first three with a reply, whether or not the one without is among them.
  assert len(read("supervised", limit=3)["train"]) == 3
  with pytest.raises(errors.InputError, match="let the warm start leave it out"):
    data_stage.prepare(nano.config(**given), tmp_path)


def test_a_warm_start_without_any_reference_reply_is_refused(tmp_path):
  given = _given(tmp_path)
  path = Path(given["data__annotations"])
  lines = [{**json.loads(line), "steps": []} for line in path.read_text().splitlines()]
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))
  fields = {**given, "env__rewards": ("accuracy",), "sft__skip_without_reply": True}
  with pytest.raises(errors.InputError, match=r"not one good example has a reference reply .*=0\)"):
    data_stage.prepare(nano.config(**fields), tmp_path)
  data_stage.prepare(nano.config(**fields, sft__steps=0), tmp_path)


UNWINNABLE = {"answer": "N/A", "problem_type": "numerical", "options": None}


def test_a_reference_that_nothing_can_match_is_named_by_its_line_before_any_video_is_read(tmp_path):
  given = _given(tmp_path, **UNWINNABLE)
  (tmp_path / "raw" / "videos" / "000000.mp4").write_bytes(b"is not decoded")
  with pytest.raises(errors.InputError) as error:
    data_stage.prepare(nano.config(**given), tmp_path)
  where = f"{tmp_path}/raw/annotations.jsonl:3: "
  assert str(error.value).startswith(
    f"{where}field 'answer': no reply can be right, since 'N/A' is"
  )
  steps = [{"text": "👍", "start": 0, "end": 2}]
  shutil.rmtree(tmp_path / "raw")
  with pytest.raises(errors.InputError, match=r"\.jsonl:3: field 'steps': '👍' has no word"):
    data_stage.prepare(nano.config(**_given(tmp_path, steps=steps)), tmp_path)


def test_a_reference_that_one_recipe_cannot_win_is_left_out_by_it_alone(tmp_path):
  given = _given(tmp_path, steps=[{"text": "👍", "start": 0, "end": 2}])
  given |= {"data__on_bad": "skip", "sft__steps": 0}
  data_stage.prepare(nano.config(**given), tmp_path)
  (listed,) = map(json.loads, (tmp_path / "shards/bad_records.jsonl").read_text().splitlines())
  assert listed["where"] == "example '000002-0' of video '000002.mp4'"
  assert listed["problem"].startswith("field 'steps': '👍' has no word")
  assert listed["problem"].endswith(f" ({tmp_path}/raw/annotations.jsonl:3)")
  other = nano.config(**given, env__rewards=("accuracy", "format"))
  assert not any(run_context.make_example_checks(other, tmp_path).find_unusable().values())


def test_pictures_and_videos_share_batches(tmp_path):
  given, raw = _given(tmp_path), tmp_path / "raw"
  Image.new("RGB", (64, 64), "red").save(raw / "videos" / "still.png")
  question = {"question": "What colour?", "answer": "red", "problem_type": "free-form"}
  value = {"id": "still", "video": "still.png", "steps": [{"text": "It is red."}], **question}
  with (raw / "annotations.jsonl").open("a") as file:
    file.write(json.dumps(value) + "\n")
  config = nano.config(**given)
  data_stage.prepare(config, tmp_path)
  (batch,) = run_context.make_run_context(config, tmp_path).builder.read("train", 9, repeat=False)
  frames = {item.example.id: len(item.encoded.frames) for item in batch.items}
  assert frames.pop("still") == 1  # temporal patches: two equal frames
  assert set(frames.values()) == {config.data.frames // 2}
  assert len(batch.prompt.tokens) == 9


def test_text_that_spells_media_tokens_is_trained_on_as_text(tmp_path):
  steps = [{"text": "At 0s, <|image_pad|>.", "start": 0, "end": 2}]
  config = nano.config(**_given(tmp_path, question="Which <|video_pad|>?", steps=steps))
  data_stage.prepare(config, tmp_path)
  context = run_context.make_run_context(config, tmp_path)
  (batch,) = context.builder.read("train", 8, repeat=False)
  (item,) = (item for item in batch.items if "<|" in item.example.question)
  prompt = item.encoded
  assert (prompt.kind == records.Kind.VIDEO).sum() == sum(
    grid.frames * grid.patches // 4 for grid in prompt.grids
  )
  assert "<|image_pad|>" in context.processor.decode(item.reply)


def test_a_reply_that_is_never_trained_on_may_be_too_long_or_missing(tmp_path):
  config = nano.config(**_given(tmp_path, steps=[]), sft__steps=0)
  data_stage.prepare(config, tmp_path)
  (batch,) = run_context.make_run_context(config, tmp_path).builder.read("train", 8, repeat=False)
  assert len(batch.items) == 8


def test_examples_are_checked_again_only_where_something_changed(data, monkeypatch):
  context = nano.build(data)
  context.builder.checks.find_unusable()
  checked, marks = [], []

  def check_prompt(*args, name, **more):
    checked.append(name)
    marks.append(console.progress_mark())

  monkeypatch.setattr(context.processor, "check_prompt", check_prompt)
  context.builder.checks.find_unusable()
  assert not checked
  longer = nano.config(data__directory=str(data), model__prefix_buckets=(64, 97))
  dataclasses.replace(context, config=longer).builder.checks.find_unusable()
  assert len(checked) == 24
  # Each moves the watch, which would else take long checks for a hang.
  assert all(before != after for before, after in itertools.pairwise(marks))


def _refused(given, tmp_path) -> str:
  with pytest.raises(errors.InputError) as error:
    data_stage.prepare(nano.config(**given), tmp_path)
  assert not (tmp_path / "shards").exists()
  return str(error.value)


def test_what_examples_lack_together_is_said_before_videos_are_read(tmp_path, monkeypatch):
  given = _given(tmp_path)
  monkeypatch.setattr(
    ingest.guarded_reader, "extract_all", lambda *_, **__: pytest.fail("reads videos")
  )
  for split in ("test", "validation"):
    line = _refused({**given, f"data__{split}_fraction": 0.05}, tmp_path)
    assert line.startswith(f"--config.data.{split}_fraction=0.05: leaves none of 8 videos for the")
    assert "give 0.13 or more, or 0" in line
  assert "none of 8 videos is left for" in _refused(
    {**given, "data__test_fraction": 0.99}, tmp_path
  )
  path = Path(given["data__annotations"])
  lines = [{**json.loads(line), "steps": []} for line in path.read_text().splitlines()]
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))
  line = _refused(given, tmp_path)
  assert line.startswith("config.env.rewards: process has the weight 1, but none of 8 examples")
  for rewards in (("accuracy", "format"), ("accuracy", "process*0")):
    with pytest.raises(pytest.fail.Exception, match="reads videos"):
      data_stage.prepare(nano.config(**given, env__rewards=rewards), tmp_path)


def test_the_fraction_that_is_advised_leaves_a_video():
  for videos in range(1, 40):
    config = nano.config(data__test_fraction=min(math.ceil(100 / videos) / 100, 0.99))
    names = [f"{number}.mp4" for number in range(videos)]
    parts = examples.split_videos(
      names, {"train": 1 - config.data.test_fraction, "test": config.data.test_fraction}, seed=0
    )
    assert parts["test"]


def test_data_for_another_recipe_are_checked_for_this_one_before_training(tmp_path):
  given = _given(tmp_path)
  path = Path(given["data__annotations"])
  lines = [{**json.loads(line), "steps": []} for line in path.read_text().splitlines()]
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))
  plain = nano.config(**given, env__rewards=("accuracy",), sft__steps=0)
  data_stage.prepare(plain, tmp_path)
  with pytest.raises(errors.InputError, match="process has the weight 1, but none of 8 examples"):
    data_stage.prepare(nano.config(**given, sft__steps=0), tmp_path)
  with pytest.raises(errors.InputError, match=r"\(test\): holds no example that can be used; run"):
    data_stage.check_before_training(plain, tmp_path, "all")
  data_stage.check_before_training(plain, tmp_path, "rl")
  # Where nothing was left out, on_bad makes no difference.
  plain.data.on_bad = "skip"
  data_stage.prepare(plain, tmp_path)


def test_data_with_records_left_out_are_not_those_of_a_run_that_stops(tmp_path):
  given = {**_given(tmp_path, question=""), "data__on_bad": "skip"}
  data_stage.prepare(nano.config(**given), tmp_path)
  with pytest.raises(errors.InputError, match="on_bad=skip, which left out 0 videos and 1 records"):
    data_stage.prepare(nano.config(**{**given, "data__on_bad": "stop"}), tmp_path)
