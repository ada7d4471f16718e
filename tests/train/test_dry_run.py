"""--mode=check lists all problems of a run, and estimates what it takes; it writes nothing."""

import json
import math
import re

import jax
import pytest

from launch import chips
from tests.train import nano
from vr_jax import atomic, errors, main
from vr_jax.data import examples as example_files
from vr_jax.data import ingest_trial
from vr_jax.models.common import flops
from vr_jax.parallel import accelerators
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.rollout import refill_queue
from vr_jax.train import (
  data_stage,
  dry_run,
  estimates,
  initialization,
  learner_state,
  run_context,
  train_state,
)
from vr_jax.worlds import config as world_config
from vr_jax.worlds import write


@pytest.fixture(scope="module")
def given(tmp_path_factory):
  """Four videos with a question each, the fields that name them, and the records."""
  raw = tmp_path_factory.mktemp("given") / "raw"
  world = world_config.WorldConfig(**nano.config().data.simulate.world)
  write.write_dataset(raw, world, videos=4, seed=0, questions_per_video=1)
  records = [json.loads(line) for line in (raw / "annotations.jsonl").read_text().splitlines()]
  return raw, records


@pytest.fixture(scope="module")
def context(data):
  return nano.build(data, rl__kl_weight=0.1)


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
  nano.use_devices(monkeypatch, 1)


def _fields(raw, records, **more):
  path = raw.parent / "records.jsonl"
  path.write_text("".join(json.dumps(record) + "\n" for record in records))
  return {
    "data__simulate__videos": 0,
    "data__videos": str(raw / "videos"),
    "data__annotations": str(path),
    **more,
  }


def _report(capsys, config, workdir, **more) -> tuple[int, list[str], list[str]]:
  """The number of problems, their lines, and the other lines."""
  count = dry_run.report(config, workdir, **more)
  lines = capsys.readouterr().out.splitlines()
  problems = [each.removeprefix("problem: ") for each in lines if each.startswith("problem: ")]
  assert len(problems) == count
  return count, problems, [each for each in lines if not each.startswith("problem: ")]


def test_all_problems_of_flags_workdir_model_data_and_machine_are_listed(given, capsys, tmp_path):
  raw, records = given
  workdir, broken = tmp_path / "run", tmp_path / "videos"
  broken.mkdir()
  for path in (raw / "videos").iterdir():
    (broken / path.name).symlink_to(path)
  (broken / records[0]["video"]).unlink()
  (broken / records[0]["video"]).write_bytes(b"no video")
  bad = [{**records[1], "id": f"bad-{number}", "question": ""} for number in range(25)]
  gone = {**records[2], "video": "gone.mp4"}
  late = {**records[3], "shown": [0, 999], "masked": None}
  config = nano.config(
    **_fields(raw, [records[0], gone, late, *bad], data__videos=str(broken)),
    data__test_fraction=0.01,
    rl__dual_clip=0.5,
    rl__overlong_buffer=999,
    rl__init_checkpoint=str(tmp_path / "nowhere"),
    mesh=(3, 1, 1, 1),
    model__pretrained="some-lab/Model",
    model__tokenizer="",
  )
  _, problems, _ = _report(capsys, config, workdir, fallback=nano.config())
  says = [
    "config.rl.dual_clip=0.5",
    "config.rl.overlong_buffer=999",
    "config.rl.init_checkpoint",
    "hf download some-lab/Model",
    "records.jsonl:2: field 'video': there is no file 'gone.mp4' among the videos",
    *(f"records.jsonl:{line}: field 'question' is empty" for line in range(4, 22)),
  ]
  for part in says:
    assert sum(part in problem for problem in problems) == 1, part
  assert len([each for each in problems if "records.jsonl" in each]) == dry_run.SHOWN
  assert sum("more records and videos have problems; mend these" in each for each in problems) == 1
  assert not workdir.exists()
  # Without the records that can't be read, what is behind them is seen.
  fields = {"data__test_fraction": 0.01, "mesh": (3, 1, 1, 1), "data__videos": str(broken)}
  config = nano.config(**_fields(raw, [records[0], late], **fields))
  _, problems, lines = _report(capsys, config, workdir)
  assert any(each.startswith("data: 1 of 2 videos were read, and 1 could not be") for each in lines)
  says = ("cannot be decoded", "999 s is outside", "test_fraction=0.01", "config.mesh=(3")
  for part in says:
    assert sum(part in problem for problem in problems) == 1, part
  assert len(problems) == 4


def test_a_missing_directory_of_videos_hides_no_missing_annotations(given, capsys, tmp_path):
  fields = {"data__videos": str(tmp_path / "none"), "data__annotations": str(tmp_path / "a.jsonl")}
  config = nano.config(**_fields(*given, **fields))
  _, problems, _ = _report(capsys, config, tmp_path / "run")
  assert any("none: there is no such directory of videos" in each for each in problems)
  assert any("a.jsonl: there is no such annotation file" in each for each in problems)


def test_prompts_that_are_too_long_are_found_before_ingestion(given, data, capsys, tmp_path):
  raw, records = given
  long = [{**records[0], "question": "What? " * 100}, *records[1:]]
  workdir = tmp_path / "run"
  tokenizer = next(data.glob("tokenizer-*.json"))
  fields = _fields(raw, long, model__tokenizer=str(tokenizer), data__test_fraction=0.25)
  count, problems, _ = _report(capsys, nano.config(**fields), workdir)
  assert count == 1
  assert "tokens, but the largest bucket" in problems[0]
  good = {**fields, "data__annotations": str(raw / "annotations.jsonl")}
  count, _, lines = _report(capsys, nano.config(**good), workdir)
  assert count == 0
  assert any(line.startswith("data: 4 of 4 videos were read") for line in lines)


@pytest.mark.parametrize("model", ["its tokenizer is yet to be trained", "its files are missing"])
def test_what_needs_no_tokenizer_is_found_without_one(given, capsys, tmp_path, model):
  raw, records = given
  plain = {**records[0], "steps": []}
  long = {**records[1], "question": "What? " * 400}
  fields = _fields(raw, [plain, long, *records[2:]], data__test_fraction=0.25)
  missing = model == "its files are missing"
  if missing:
    name = "Qwen2.5-VL-3B-Instruct"
    fields |= {"model__pretrained": name, "model__tokenizer": "", "mesh": (1, 1, 1, 1)}
  _, problems, lines = _report(capsys, nano.config(**fields), tmp_path / "run")
  assert sum("it has no reference reply" in each for each in problems) == 1
  assert sum("tokens, but the largest bucket" in each for each in problems) == (not missing)
  assert sum("hf download Qwen/Qwen2.5-VL-3B-Instruct" in each for each in problems) == missing
  (memory,) = (each for each in lines if each.startswith("memory: "))
  size = re.search(r"needs at least ([\d.]+) GiB", memory)
  # Of 3.75e9 weights: float32, and their two moments.
  assert missing == (size is not None and float(size[1]) > 3.75e9 * 12 / 2**30)


def test_what_a_run_would_skip_is_no_problem_unless_nothing_is_left(given, capsys, tmp_path):
  raw, records = given
  plain = [{**each, "steps": []} for each in records]
  fields = {"data__on_bad": "skip", "data__test_fraction": 0.25}
  config = nano.config(**_fields(raw, [plain[0], *records[1:]], **fields))
  count, _, lines = _report(capsys, config, tmp_path / "run")
  assert count == 0
  (line,) = (each for each in lines if each.startswith("would be skipped: "))
  assert records[0]["id"] in line and "it has no reference reply" in line
  _, problems, _ = _report(capsys, nano.config(**_fields(raw, plain, **fields)), tmp_path / "run")
  assert any("train: not one good example is left; first, " in each for each in problems)


def _validation_video(records) -> str:
  """The video of the validation split where a quarter of four is in it, and another in test."""
  fractions = {"train": 0.5, "validation": 0.25, "test": 0.25}
  videos = [record["video"] for record in records]
  (video,) = example_files.split_videos(videos, fractions, seed=0)["validation"]
  return video


def test_a_validation_split_is_checked_where_the_run_reads_it_alone(given, capsys, tmp_path):
  raw, records = given
  mute = _validation_video(records)
  records = [{**each, "steps": []} if each["video"] == mute else each for each in records]
  fields = _fields(raw, records, data__on_bad="skip", data__test_fraction=0.25)
  fields["data__validation_fraction"] = 0.25
  count, _, lines = _report(capsys, nano.config(**fields), tmp_path / "run")
  assert count == 0 and not any("would be skipped" in each for each in lines)
  config = nano.config(**fields, sft__validate_every=1)
  (problem,) = _report(capsys, config, tmp_path / "run")[1]
  assert problem.startswith("validation: not one good example is left; first, ")
  # Evaluations during RL need no reference reply.
  config = nano.config(**fields, rl__eval_every=1)
  assert _report(capsys, config, tmp_path / "run")[0] == 0


def test_what_the_warm_start_leaves_out_is_told_and_is_no_problem(given, capsys, tmp_path):
  raw, records = given
  fields = {"data__test_fraction": 0.25, "sft__skip_without_reply": True}
  fractions = {"train": 0.75, "validation": 0.0, "test": 0.25}
  videos = [record["video"] for record in records]
  mute = example_files.split_videos(videos, fractions, seed=0)["train"][0]
  some = [{**each, "steps": []} if each["video"] == mute else each for each in records]
  count, _, lines = _report(capsys, nano.config(**_fields(raw, some, **fields)), tmp_path / "run")
  assert count == 0
  assert sum("train: 1 question has no reference reply" in each for each in lines) == 1
  mute = [{**each, "steps": []} for each in records]
  fields["env__rewards"] = ("accuracy",)
  _, problems, _ = _report(capsys, nano.config(**_fields(raw, mute, **fields)), tmp_path / "run")
  (problem,) = problems
  assert problem.startswith("train: not one good example has a reference reply to train on")


def test_short_clips_and_the_size_of_the_run_are_told(data, capsys, tmp_path):
  config = nano.config(data__directory=str(data))
  _, _, lines = _report(capsys, config, tmp_path / "run")
  rl = config.rl
  assert any(
    each.startswith(f"run: rl: {rl.steps} steps of {rl.num_iterations} update")
    and f"{rl.batch_size} prompts x {rl.num_generations} replies" in each
    for each in lines
  )
  assert not any("fewer stored frames" in each for each in lines)
  dry_run._add_short_clips(config, [1, config.data.frames], lines)
  assert lines[-1].startswith("data: 1 of 2 clips have fewer stored frames than the ")


def test_annotations_that_were_edited_are_noticed_by_all_that_read_the_store(
  data, capsys, tmp_path
):
  own = tmp_path / "data"
  (own / "simulated").mkdir(parents=True)
  for name in ("shards", next(data.glob("tokenizer-*.json")).name):
    (own / name).symlink_to(data / name)
  config, edited = nano.config(data__directory=str(own)), own / "simulated" / "annotations.jsonl"
  assert _report(capsys, config, tmp_path / "run")[0] == 0  # the frames and examples alone
  text = (data / "simulated" / "annotations.jsonl").read_text()
  edited.write_text(text)
  run_context.make_run_context(config, tmp_path / "run", judged=False)
  edited.write_text(text.replace("colour", "color"))
  says = rf"^{edited}: is not as it was when {own}/shards was ingested; restore it, or choose ano"
  (problem,) = _report(capsys, config, tmp_path / "run")[1]
  assert re.match(says, problem)
  for stage in (
    lambda: run_context.make_run_context(config, tmp_path / "run", judged=False),
    lambda: data_stage.check_before_training(config, tmp_path / "run", "sft"),
  ):
    with pytest.raises(errors.InputError, match=says):
      stage()


def test_the_time_of_few_videos_is_shared_by_all_and_of_many_that_of_the_later_ones():
  # The second of two that were read together comes at once.
  assert ingest_trial._seconds_per_video([5.0, 7.0, 7.0002]) == pytest.approx(1.0001)
  steady = [0.0, *(3 + 0.5 * each for each in range(40))]
  assert ingest_trial._seconds_per_video(steady) == pytest.approx(0.5)
  assert ingest_trial._seconds_per_video([5.0]) == 0


def test_data_and_a_workdir_that_exist_are_checked_as_they_are(data, capsys, tmp_path):
  from vr_jax.train import workdir as workdir_lib

  fields = {"data__directory": str(data)}
  workdir = tmp_path / "run"
  workdir_lib.claim(workdir, nano.config(**fields), "all")
  before = (workdir / "config.json").read_bytes()
  count, _, lines = _report(capsys, nano.config(**fields), workdir)
  assert count == 0
  assert f"data: {data} is complete" in lines
  config = nano.config(**fields, sft__max_reply_tokens=20, data__quality=50)
  count, problems, _ = _report(capsys, config, workdir)
  assert "config.data.quality=90, now 50; the data were made with it" in problems[0]
  assert all("its reference reply has" in each for each in problems[1:])
  assert count == len(problems) > 2
  assert (workdir / "config.json").read_bytes() == before


def test_data_on_the_way_to_their_name_are_not_complete(capsys, tmp_path):
  shards = tmp_path / "run" / "data" / "shards"
  shards.mkdir(parents=True)
  shards.with_name(f"shards{atomic.MOVING}").write_text("shards.partial")
  _, problems, lines = _report(capsys, nano.config(), tmp_path / "run")
  assert not any("is complete" in line for line in lines)
  assert not any("shards" in problem for problem in problems)


def test_all_mistakes_of_a_command_line_are_listed_and_end_with_code_2(capsys, tmp_path):
  words = nano.arguments(tmp_path / "run", mode="check")
  config = "--config."
  wrong = [f"{config}rl.stps=1", f"{config}rl.steps=many", f"{config}rl.top_p=0.0"]
  wrong += ["--wron", "stray"]
  assert main.cli(["vr-jax", *words, *wrong]) == 2
  out = capsys.readouterr().out
  says = ("config.rl.stps: no", "steps=many", "wron", "stray: not a flag", "top_p=0.0: not in")
  for part in says:
    assert part in out
  assert out.count("problem: ") == len(says)
  assert "memory: a device" in out  # the rest is checked with the value of the recipe
  assert not (tmp_path / "run").exists()


def test_a_run_without_problems_ends_with_code_0(capsys, tmp_path):
  words = nano.arguments(tmp_path / "run", mode="check")
  place = words.index("--mode=check")
  words[place : place + 1] = ["--mode", "check"]  # both spellings
  assert main.cli(["vr-jax", *words]) == 0
  out = capsys.readouterr().out
  assert out.endswith("check: no problems\n")
  assert "data: 4 of 12 videos were read" in out
  assert "time: rl: not known for cpu" in out
  assert not (tmp_path / "run").exists()


def _bytes(tree):
  return sum(x.nbytes for x in jax.tree.leaves(tree))


def test_the_estimated_state_is_that_of_a_learner(context, data):
  config = nano.config(data__directory=str(data), rl__kl_weight=0.1)
  estimate = estimates.estimate(config, context.mesh)
  params = initialization.fresh_params(context)
  learner = learner_state.make_learner_state(context, params)
  assert estimate.memory.state == _bytes((learner.policy, learner.reference_params))
  assert estimate.memory.gradient == _bytes(params)
  saved = 2 * _bytes((learner.policy.params, learner.policy.optimizer_state))
  assert estimate.checkpoint_bytes == estimates.CHECKPOINTS * saved
  text = config.model.architecture.text_config
  head = text.hidden_size // text.num_attention_heads
  width = 2 * text.num_key_value_heads * head * text.num_hidden_layers
  prompt = max(config.model.prefix_buckets)
  most = 4 * width * config.rl.batch_size * (prompt + config.rl.num_generations * 16)
  assert 0 < estimate.memory.sampling <= most  # float32 on one device: keys and values alone
  assert (estimate.sft_step, estimate.rl_step) == (None, None)


def test_advice_about_memory_is_what_would_help(data, capsys, tmp_path, monkeypatch):
  config = nano.config(data__directory=str(data))
  monkeypatch.setattr(estimates, "_available_bytes", lambda mesh: 1000)
  (problem,) = _report(capsys, config, tmp_path / "run")[1]
  assert problem.endswith("use a host with more memory")  # the state alone is larger
  # Longer replies, whose keys and values need more than the gradient.
  fields = {"data__directory": str(data), "rl__num_generations": 64, "rl__batch_size": 12}
  config = nano.config(**fields, rl__microbatches=4)
  memory = estimates.estimate(config, mesh_lib.make_mesh(config.mesh)).memory
  assert memory.stage == "rl" and memory.sampling > 2 * memory.gradient
  # Of 12 prompts, 11 would fit; in four micro-batches, 8 are the most.
  room = memory.total - memory.sampling // 12
  monkeypatch.setattr(estimates, "_available_bytes", lambda mesh: room)
  (problem,) = _report(capsys, config, tmp_path / "run")[1]
  assert problem.endswith("or a smaller batch (config.rl.batch_size=8)")
  config.rl.batch_size = 8
  assert _report(capsys, config, tmp_path / "run")[0] == 0


def test_a_batch_that_its_microbatches_do_not_divide_is_a_problem(data, capsys, tmp_path):
  config = nano.config(data__directory=str(data), rl__batch_size=6, rl__microbatches=4)
  (problem,) = _report(capsys, config, tmp_path / "run")[1]
  assert problem.startswith("config.rl.batch_size=6: not a multiple of 4 = data x fsdp")


def _memory(data, **fields):
  config = nano.config(data__directory=str(data), **fields)
  return estimates.estimate(config, mesh_lib.make_mesh(config.mesh)).memory


def test_fewer_slots_take_less_memory_for_keys_and_values(data, context):
  fields = {"rl__num_generations": 64, "rl__batch_size": 8, "rl__max_new_tokens": 64}
  whole, few = _memory(data, **fields), _memory(data, **fields, rl__decode_slots=64)
  text = context.model.text_sizes
  token = 4 * text.layers * text.kv_width
  prompt = max(context.config.model.prefix_buckets)
  assert whole.sampling == token * 8 * (prompt + 64 * 64)
  assert few.sampling == token * (2 * prompt + 64 * 64)  # two groups' prompts are kept
  # The arrays of the sampler itself.
  places = refill_queue.RefillLayout.choose(mesh_lib.MeshLayout(context.mesh), 8, 64, 64)
  assert (places.prompt_slots, places.slots) == (2, 64)
  same = _memory(data, **fields, rl__decode_slots=10_000)
  assert same.sampling == whole.sampling


def test_a_run_without_rl_needs_the_memory_of_its_warm_start_and_evaluations(data, context):
  fields = {"rl__steps": 0, "rl__num_generations": 64, "rl__kl_weight": 0.1}
  drawn = context.draw_params()
  memory, params = _memory(data, **fields), _bytes(drawn)
  assert memory.stage == "sft" and memory.sampling == 0 and memory.gradient == params
  state = train_state.create(
    drawn,
    train_state.make_optimizer(context.config.sft, context.abstract_params, ()),
    context.mesh,
  )
  assert memory.state == _bytes(state)
  played = _memory(data, **fields, eval__batch_size=512)
  assert (played.stage, played.state, played.gradient) == ("eval", params, 0)
  assert played.sampling > 3 * params


def test_time_is_that_of_products_and_of_reading_the_weights(context, data, monkeypatch):
  config = nano.config(data__directory=str(data))
  speeds = (
    accelerators.Speed(flops=1e9, bandwidth=math.inf),
    accelerators.Speed(flops=math.inf, bandwidth=1e6),
  )
  products, reading = [], []
  for speed, found in zip(speeds, (products, reading), strict=True):
    monkeypatch.setattr(accelerators, "find_speed", lambda kind, speed=speed: speed)
    found.append(estimates.estimate(config, context.mesh))
  # Nothing of the tower, and of an embedding that is not the head, too, a few rows.
  weights = sum(x.size for x in jax.tree.leaves(context.abstract_params["text"]))
  assert reading[0].rl_step == pytest.approx(16 * 4 * weights / 1e6)
  untied = config.copy_and_resolve_references()
  untied.model.architecture.text_config.tie_word_embeddings = False
  assert estimates.estimate(untied, context.mesh).rl_step == reading[0].rl_step
  assert reading[0].sft_step == 0
  forward = 0.0
  for group, time in ((4, 16), (1, 80)):
    sizes = {"frames": 4, "patches": 16, "prefix": max(config.model.prefix_buckets)}
    work = context.family.forward_flops(context.model, **sizes, group=group, time=time)
    assert isinstance(work, flops.Forward)
    forward += work.total
  assert 4 * forward / 1e9 < products[0].rl_step + products[0].sft_step < 6 * 4 * forward / 1e9


@pytest.mark.parametrize(
  ("kind", "name"),
  [
    ("NVIDIA H200", "h200"),
    ("NVIDIA A100-SXM4-80GB", "a100"),
    ("TPU v5 lite", "tpu v5 lite"),
    ("TPU v5", "tpu v5"),
    ("TPU v6 lite", "tpu v6"),
    ("TPU7x", "tpu7x"),
  ],
)
def test_devices_are_known_by_their_names(kind, name):
  assert accelerators.find_speed(kind) == accelerators.SPEEDS[name]
  assert accelerators.find_speed("cpu") is None


def test_peak_rates_of_tpus_are_those_of_plans():
  names = {"v5e": "tpu v5 lite", "v5p": "tpu v5", "v6e": "tpu v6", "tpu7x": "tpu7x"}
  assert names.keys() == chips.CHIPS.keys()
  for chip, name in names.items():
    speed, known = accelerators.SPEEDS[name], chips.CHIPS[chip]
    assert (speed.flops, speed.bandwidth) == (known.peak, known.bandwidth)
