"""Making a judge from config.judge: each kind works, and errors are found before a run starts."""

import contextlib
import dataclasses
import json
import os
import shutil
import sqlite3
import sys
import threading
from typing import Any, cast

import ml_collections
import pytest

from tests.data import annotation_files
from tests.eval import conftest as runs
from tests.rewards import judge_server
from tests.train import fixed_reply, nano
from vr_jax import errors, judge_traces, main
from vr_jax.data import annotations, examples, trace_store
from vr_jax.eval.trace_judging import asking, grade, grade_cache, judge_models, rubric
from vr_jax.models import qwen2_5_vl
from vr_jax.rewards import judge, judge_prompt
from vr_jax.traces import beam as traces_beam
from vr_jax.train import initialization, judge_factory, judge_local, paths
from vr_jax.worlds import config as world_config
from vr_jax.worlds import sufficiency, write

VARIABLE = "JUDGE_TEST_KEY"

server = judge_server.fixture(VARIABLE)


def section(**changes):
  fields = {
    "kind": "rule",
    "model": "m",
    "base_url": "",
    "key_variable": VARIABLE,
    "in_flight": 4,
    "requests_per_minute": 0,
    "timeout": 5.0,
    "retries": 0,
    "budget": 0,
    "max_tokens": 8,
    "blinded": False,
    "threshold": 0.6,
    "leak_filter": False,
  }
  return ml_collections.ConfigDict({**fields, **changes})


@pytest.fixture
def cache(tmp_path):
  return tmp_path / "verdicts.sqlite"


def threads():
  return [thread for thread in threading.enumerate() if thread.name == "config.judge"]


def test_the_rule_is_the_simulators_and_leaves_no_file(cache):
  _, examples = write.sample_video(world_config.WorldConfig(), seed=0, index=0, questions=1)
  seen = [step.text for step in examples[0].steps if step.start < examples[0].shown.end]
  cases = [judge.JudgeCase(example=examples[0], observation=text) for text in (" ".join(seen), "")]
  made = judge_factory.make_judge(section(model=""), cache)
  assert made.verdicts(cases) == [
    sufficiency.sufficient(examples[0], case.observation) for case in cases
  ]
  assert made.verdicts(cases)[1] is False
  made.close()
  assert not cache.exists()


@pytest.mark.parametrize("kind", ["openai", "anthropic"])
def test_an_endpoint_judges_and_its_verdicts_are_kept(server, cache, kind):
  chosen = section(kind=kind, base_url=server.url(kind))
  server.answer = judge_server.honest
  cases = [judge_server.case("The circle is red at 2s."), judge_server.case("The circle is red.")]
  server.answer = lambda request: (
    judge_server.honest(request) if "observation-" in request.text else judge_server.Reply()
  )
  for asked in (2, 0):
    made = judge_factory.make_judge(chosen, cache)
    assert made.verdicts(cases) == [True, False]
    assert made.counts()["asked"] == asked
    made.close()
  assert judge_server.KEY.encode() not in cache.read_bytes()
  assert not threads()


@pytest.mark.parametrize(
  ("kind", "own", "other"),
  [
    ("openai", "OPENAI_API_KEY", "ANTHROPIC_API_KEY"),
    ("anthropic", "ANTHROPIC_API_KEY", "OPENAI_API_KEY"),
  ],
)
def test_a_key_goes_to_its_own_vendor_alone(server, monkeypatch, kind, own, other):
  chosen = section(kind=kind, base_url=server.url(kind), key_variable="")
  for variable in (own, other):
    monkeypatch.setenv(variable, f"value-of-{variable}")
  judge_factory.make_endpoint(chosen).close()
  sent = str(server.requests[0].headers)
  assert f"value-of-{own}" in sent
  assert f"value-of-{other}" not in sent
  monkeypatch.delenv(own)
  with pytest.raises(errors.InputError, match=own):
    judge_factory.make_endpoint(chosen)


def test_blinded_and_filtered_judges_are_made_as_asked_for(server, cache):
  chosen = section(kind="openai", base_url=server.url("openai"), blinded=True, leak_filter=True)
  server.answer = lambda request: judge_server.Reply(text="<answer>B</answer>")
  made = judge_factory.make_judge(chosen, cache)
  cases = [judge_server.case("The answer is B."), judge_server.case("red at 2s")]
  assert made.verdicts(cases) == [False, True]
  assert made.counts()["leaked"] == 1
  assert "Correct answer" not in "".join(server.texts())
  made.close()


@pytest.mark.parametrize(("threshold", "verdict"), [(0.6, True), (0.7, False)])
def test_a_blinded_answer_is_held_to_the_configs_threshold(server, cache, threshold, verdict):
  url = server.url("openai")
  chosen = section(kind="openai", base_url=url, blinded=True, threshold=threshold)
  server.answer = lambda request: judge_server.Reply(text="<answer>6.5</answer>")
  made = judge_factory.make_judge(chosen, cache)
  case = judge_server.case("seen", answer="10", problem_type="regression", options=())
  assert made.verdicts([case]) == [verdict]
  made.close()


def test_the_first_retry_waits(server):
  server.answer = lambda request: judge_server.Reply(status=200 if request.number else 500)
  judge_factory.make_endpoint(
    section(kind="openai", base_url=server.url("openai"), retries=1)
  ).close()
  first, second = server.requests
  assert second.time - first.time >= 0.35  # of the client's 0.5 s, a quarter is left to chance


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    ({"kind": "oracle"}, r"config\.judge\.kind=oracle.*rule, local, openai, anthropic"),
    ({"kind": "openai", "model": ""}, r"config\.judge\.model"),
    ({"kind": "openai", "key_variable": "NO_SUCH_KEY"}, "NO_SUCH_KEY"),
    ({"kind": "anthropic", "base_url": "http://127.0.0.1:9"}, "http://127.0.0.1:9: no answer"),
    ({"kind": "local", "model": "nowhere"}, "nowhere: no such directory"),
  ],
)
def test_what_a_judge_lacks_is_said_at_once(server, cache, changes, said):
  with pytest.raises(errors.InputError, match=said) as refused:
    judge_factory.make_judge(section(**changes), cache)
  assert "\n" not in str(refused.value)
  assert not threads()


def test_a_missing_package_and_a_foreign_cache_are_said_at_once(server, cache, monkeypatch):
  chosen = section(kind="openai", base_url=server.url("openai"))
  with monkeypatch.context() as patched:
    patched.setitem(sys.modules, "openai", None)
    with pytest.raises(errors.InputError, match=r"vr_jax\[judge\]"):
      judge_factory.make_judge(chosen, cache)
  file = sqlite3.connect(cache)
  file.execute("PRAGMA application_id = 7")
  file.close()
  with pytest.raises(errors.InputError, match=r"verdicts\.sqlite"):
    judge_factory.make_judge(chosen, cache)


NO_STATES = annotation_files.record(states=None)


@pytest.mark.parametrize(
  ("flags", "says"),
  [
    ({"judge.kind": "openai", "judge.model": "m"}, "OPENAI_API_KEY"),
    ({"judge.kind": "openai"}, "config.judge.model"),
    ({"judge.kind": "local", "judge.model": "{here}"}, "{here}: holds no config.json"),
    ({"data.videos": "{here}", "data.annotations": "{here}/a.jsonl"}, "one: has no true states"),
  ],
)
def test_a_run_without_a_judge_that_can_judge_ends_before_it_begins(
  tmp_path, capsys, monkeypatch, flags, says
):
  monkeypatch.delenv("OPENAI_API_KEY", raising=False)
  here = annotation_files.write(tmp_path / "a.jsonl", NO_STATES).parent
  small = {"data.simulate.videos": 4, "sft.steps": 0, "data.directory": "{here}/data"}
  flags = {**small, **flags} if "data.videos" not in flags else flags
  words = [f"--config.{name}={value}".format(here=here) for name, value in flags.items()]
  recipe = f"--config={nano.ROOT}/configs/videop2r.py:tiny"
  assert main.cli(["vr-jax", recipe, f"--workdir={here}/run", "--mode=all", *words]) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert says.format(here=here) in line
  assert [path.name for path in here.iterdir()] == ["a.jsonl"]


@pytest.mark.parametrize(
  ("changes", "workers", "said"),
  [
    ({"budget": 100}, 2, r"config\.judge\.budget=100.*traces\.workers=2"),
    ({"kind": "local"}, 2, r"config\.judge\.kind=local.*traces\.workers=2"),
    ({}, 33, r"config\.judge\.in_flight=32.*traces\.workers=33"),
  ],
)
def test_what_several_workers_can_not_share_is_refused(changes, workers, said):
  fields = {"kind": "openai", "model": "m", **changes}
  fields = {f"judge__{name}": value for name, value in fields.items()}
  made = nano.config("configs/videop2r.py", traces__workers=workers, **fields)
  with pytest.raises(errors.InputError, match=said):
    traces_beam.load(made)
  made.judge.kind = "rule"
  assert judge_factory.split_limits(made.judge, workers) == made.judge


def test_workers_share_what_an_endpoint_is_asked_at_a_time_and_a_minute(tmp_path, monkeypatch):
  def make_judge(section, cache):
    asked.append((section.in_flight, section.requests_per_minute))
    raise errors.InputError("enough")

  asked, chunk = [], trace_store.TraceChunk(split="train", number=0, indices=(0,))
  monkeypatch.setattr(judge_factory, "make_judge", make_judge)
  made = nano.config(
    "configs/videop2r.py",
    traces__workers=5,
    judge__kind="openai",
    judge__requests_per_minute=60.0,
  )
  config = ml_collections.FrozenConfigDict(made)
  with pytest.raises(errors.InputError, match="enough"):
    traces_beam.decide_one(
      chunk, traces_beam.TracesJob(config=config, workdir=tmp_path, output=tmp_path)
    )
  assert asked == [(6, 12.0)]


@pytest.mark.parametrize("states", [annotation_files.record()["states"], None])
@pytest.mark.parametrize("ingested", [False, True])
def test_the_rule_is_refused_for_data_whose_states_are_not_known(tmp_path, states, ingested):
  file = annotation_files.write(tmp_path / "a.jsonl", annotation_files.record(states=states))
  made = nano.config("configs/videop2r.py", data__simulate__videos=0, data__annotations=str(file))
  if ingested:
    made.data.annotations = ""
    splits = {"train": [annotations.read_first(file)], "validation": [], "test": []}
    examples.write(paths.shards_directory(made, tmp_path), splits)
  known = contextlib.nullcontext()
  refused = pytest.raises(errors.InputError, match="one: has no true states")
  with known if states else refused:
    judge_factory.check(made, tmp_path)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Heard(judge_prompt.JudgeQuestion):
  """Records the reply; its verdict depends on the reply's length."""

  replies: list

  def read(self, reply):
    self.replies.append(reply)
    return len(reply) % 2 == 0


@pytest.fixture(scope="module")
def directory(data, tmp_path_factory):
  """A nano model, saved in Hugging Face format; its token probabilities are not uniform."""
  context = nano.build(data)
  where = tmp_path_factory.mktemp("judge") / "model"
  config = context.model
  params = nano.sharpened(initialization.fresh_params(context))
  qwen2_5_vl.save_pretrained(params, where, config=config)
  context.processor.tokenizer.save(str(where / "tokenizer.json"))
  loaded: Any = qwen2_5_vl.FAMILY.read_config(where / "config.json")
  assert loaded.text == cast(Any, config).text
  return where


def heard(texts, system="Judge."):
  return [Heard(system=system, text=text, replies=[]) for text in texts]


def test_a_local_model_replies_to_each_question_as_if_it_were_alone(directory):
  model = judge_local.LocalModel(directory, max_tokens=6, dtype="float32")
  texts = ["red", "a much longer question " * 20, "green", "green", *map(str, range(20))]
  together, alone = heard(texts), heard(texts[:3])
  verdicts = model.ask(together)
  assert verdicts == [len(question.replies[0]) % 2 == 0 for question in together]
  assert [model.ask([question])[0] for question in alone] == verdicts[:3]
  assert [question.replies for question in alone] == [q.replies for q in together[:3]]
  assert together[2].replies == together[3].replies
  assert len({question.replies[0] for question in together}) > 1


def test_a_question_longer_than_the_model_takes_has_no_verdict(directory):
  model = judge_local.LocalModel(directory, max_tokens=6, dtype="float32")
  long, short = heard(["x1 " * 3000, "red"])
  assert model.ask([long, short])[0] is None
  assert (len(long.replies), len(short.replies)) == (0, 1)
  assert model.counts() == {"too_long": 1}
  assert model.counts() == {"too_long": 0}


def test_a_local_judge_needs_a_config_and_a_tokenizer(directory, tmp_path):
  judge_local.check(directory)
  for name in ("config.json", "tokenizer.json"):
    with pytest.raises(errors.InputError, match=name):
      judge_local.check(tmp_path)
    shutil.copy(directory / name, tmp_path)
  judge_local.check(tmp_path)


def test_a_local_judge_is_built_from_its_directory(directory, cache):
  made = judge_factory.make_judge(section(kind="local", model=str(directory)), cache)
  assert made.verdicts([judge_server.case("seen")] * 2) == [None, None]
  assert made.counts() == {"asked": 1, "cached": 0, "failed": 2, "too_long": 0}
  made.close()


@pytest.fixture(scope="module")
def grader(data, tmp_path_factory):
  """A model that writes a verdict of four tokens, in Hugging Face format."""
  pieces = ('{"consistency"', ": 4, ", '"stability"', ": 2}")
  return fixed_reply.save(nano.build(data), pieces, tmp_path_factory.mktemp("grader") / "model")


def grading_prompts(*texts):
  return [
    asking.GradingPrompt(
      question=rubric.TraceQuestion(system="Grade.", text=text, places=rubric.ALONE), run=0
    )
    for text in texts
  ]


def grade_traces(path, prompts, source, connect=None, tick=lambda *_: None):
  """Asks, with the cache at `path`."""
  with contextlib.closing(grade_cache.GradeCache(path)) as grades:
    return asking.ask(
      prompts, connect or source.connect, grades, identity=source.identity, attempts=1, tick=tick
    )


def test_a_local_model_grades_traces_and_is_asked_once(grader, tmp_path):
  source, done, path = judge_models.local(grader, reply_tokens=6), [], tmp_path / "grades.sqlite"
  prompts = grading_prompts(*(f"trace {number}" for number in range(3)))
  found = grade_traces(path, prompts, source, tick=lambda *counts: done.append(counts))
  given = grade.TraceGrade(consistency=4, stability=2)
  assert found == [asking.Answer(grades=(given,))] * 3
  assert done == [(0, 3), (3, 3)]
  assert grade_traces(path, prompts, source, lambda: pytest.fail("it was asked before")) == found
  weights = next(grader.glob("*.safetensors"))
  os.utime(weights, ns=(0, weights.stat().st_mtime_ns + 1))
  assert judge_models.local(grader, reply_tokens=6).identity != source.identity


def test_a_local_verdict_that_was_cut_off_is_read_once_it_may_be_longer(grader, tmp_path):
  path, prompts = tmp_path / "grades.sqlite", grading_prompts("trace")
  [cut] = grade_traces(path, prompts, judge_models.local(grader, reply_tokens=3))
  assert (cut.grades, cut.problem) == (None, asking.UNREADABLE)
  [whole] = grade_traces(path, prompts, judge_models.local(grader, reply_tokens=6))
  assert whole.grades is not None


def test_a_prompt_longer_than_a_local_judge_takes_is_missing_for_this_reason(grader, tmp_path):
  source, prompts = judge_models.local(grader, reply_tokens=6), grading_prompts("x1 " * 3000, "x")
  long, short = grade_traces(tmp_path / "grades.sqlite", prompts, source)
  assert (long.grades, long.problem) == (None, asking.TOO_LONG)
  assert short.grades is not None


def test_the_command_grades_a_run_with_a_local_model(grader, tmp_path, capsys):
  run = runs.make_workdir(tmp_path)
  words = ("--judge=local", f"--model={grader}", "--alone", "--evaluations=after_rl")
  judge_traces.judge(["judge", str(run), *words, "--reply_tokens=6"])
  [found] = json.loads((run / "eval" / "judged.json").read_text())["judges"]
  assert (found["judge"], found["verdicts"], found["missing"]) == ("model (alone)", 3, 0)
  means = {name: each["scores"]["after_rl"]["mean"] for name, each in found["scales"].items()}
  assert means == {"consistency": 4, "stability": 2}
  assert "each trace alone" in capsys.readouterr().out
