"""Writers behind an endpoint: their input, how they fail, and messages if they don't work."""

import base64
import contextlib
import sys

import pytest

from tests.faults import runs
from tests.rewards import judge_server
from tests.traces import trace_runs
from tests.train import nano
from vr_jax import errors, model_endpoint
from vr_jax.data import batches, frame_store, sampling, trace_store
from vr_jax.traces import stage as traces_stage
from vr_jax.traces import vlm_client

VARIABLE = "TRACES_TEST_KEY"

data = trace_runs.data
server = judge_server.fixture(VARIABLE)


def endpoint(server):
  return {
    "traces__writer": "openai",
    "traces__model": "a-writer",
    "traces__base_url": server.url("openai"),
    "traces__key_variable": VARIABLE,
    "traces__timeout": 5.0,
  }


def config(data, server, **overrides):
  return trace_runs.config(data, **{**endpoint(server), **overrides})


def images_of(data, example):
  """The stored JPEGs that the recipe shows of a question."""
  store = frame_store.FrameStore(data / "shards" / "frames")
  clip = batches.select_clip(
    example, store, sampling.UniformRule(frames=trace_runs.config().data.frames)
  )
  return tuple(store.jpegs(example.video, clip.frame_indices))


def asked(data):
  return [
    e for split in trace_store.SPLITS for e in trace_runs.all_examples(data / "shards", split)
  ]


def shown(request):
  """The images of a request and its text; none of a greeting."""
  if isinstance(request.text, str):
    return (), ""
  *images, text = request.text
  head = "data:image/jpeg;base64,"
  urls = [image["image_url"]["url"] for image in images]
  assert all(url.startswith(head) for url in urls)
  return tuple(base64.b64decode(url.removeprefix(head)) for url in urls), text["text"]


def knowing(data, delay=0.0):
  """Gives the simulator's right reply to its frames and question, after `delay` seconds."""
  known = {}
  for example in asked(data):
    lines = (example.question, *example.options, trace_runs.INSTRUCTION)
    known[images_of(data, example), "\n".join(lines)] = trace_runs.reference(example)

  def answer(request):
    return judge_server.Reply(text=known.get(shown(request), "Yes."), delay=delay)

  return answer


def test_the_frames_and_the_question_are_shown_and_the_replies_are_kept(data, tmp_path, server):
  server.answer = knowing(data, delay=0.1)  # or one may be done before the next is sent
  made = config(data, server, traces__in_flight=3)
  traces_stage.write(made, tmp_path)
  counts = trace_store.summary(tmp_path / "traces")
  assert sum(count["template"] + count["no reply"] for count in counts.values()) == 0
  found = trace_runs.lines(tmp_path / "traces" / "traces.jsonl")
  found += trace_runs.lines(tmp_path / "traces" / "rejected.jsonl")
  outputs = {line["problem_id"]: line["output"] for line in found}
  assert outputs == {example.id: trace_runs.reference(example) for example in asked(data)}
  assert 1 < server.most_in_flight <= 3
  for request in server.requests[1:]:
    assert request.system == "You watch videos."
    assert (request.fields["temperature"], request.fields["max_tokens"]) == (0, 16)
    assert request.fields["model"] == "a-writer"
  for path in (tmp_path / "traces").rglob("*.json*"):
    assert judge_server.KEY not in path.read_text()


def test_a_failure_is_asked_again_and_a_refusal_is_said_and_is_a_reason(
  data, tmp_path, server, capsys
):
  right, first = knowing(data), asked(data)[0]
  refused = images_of(data, first), first.question
  failed = set()

  def answer(request):
    images, text = shown(request)
    if (images, text.partition("\n")[0]) == refused:
      return judge_server.Reply(status=400, text="too long")
    if images and (images, text) not in failed:
      failed.add((images, text))
      return judge_server.Reply(status=500, headers={"retry-after-ms": "1"})
    return right(request)

  server.answer = answer
  traces_stage.write(config(data, server), tmp_path)
  rejected = trace_runs.lines(tmp_path / "traces" / "rejected.jsonl")
  unanswered = [entry for entry in rejected if entry["reason"] == "no reply"]
  assert [entry["problem_id"] for entry in unanswered] == [first.id]
  assert failed
  (said,) = [line for line in capsys.readouterr().out.splitlines() if "no reply; " in line]
  assert "status 400" in said
  assert "too long" in said


PASSING = {
  "busy": (judge_server.Reply(status=429, headers={"retry-after-ms": "1"}), "status 429"),
  "failing": (judge_server.Reply(status=503, headers={"retry-after-ms": "1"}), "status 503"),
  "slow": (judge_server.Reply(delay=0.4), "no answer"),
}


@pytest.mark.parametrize("name", PASSING)
def test_an_outage_stops_the_run_instead_of_leaving_a_question_out_for_good(
  data, tmp_path, server, name
):
  fails, problem = PASSING[name]
  server.answer = lambda request: fails if shown(request)[0] else judge_server.Reply()
  limit = 0.2 if fails.delay else 5.0
  made = config(data, server, traces__batch_size=1, traces__timeout=limit)
  with pytest.raises(errors.InputError, match=f"{problem}.*the same command goes on"):
    traces_stage.write(made, tmp_path)
  assert not list((tmp_path / "traces" / "chunks").iterdir())


@pytest.fixture
def model(server):
  with contextlib.closing(endpoint_at(server.url("openai"))) as endpoint:
    yield vlm_client.VideoModel(endpoint=endpoint, system="s")


def endpoint_at(url):
  limits = model_endpoint.Limits(timeout=5.0, retries=0, max_tokens=8)
  return model_endpoint.Endpoint(
    "config.traces", "openai", model="m", base_url=url, key=judge_server.KEY, limits=limits
  )


def test_a_model_that_spends_its_token_on_reasoning_passes_the_check(server, model):
  body = '{"choices": [{"message": {"role": "assistant", "content": null}}]}'
  server.answer = lambda request: judge_server.Reply(body=body)
  model.endpoint.check()
  assert model.reply("What?", []) is None


def test_half_an_emoji_is_a_reply_that_can_be_written(server, model):
  server.answer = lambda request: judge_server.Reply(text="red \ud83d")
  assert model.reply("What?", []) == "red ?"


def test_without_an_address_the_key_goes_to_the_vendor_alone(server, monkeypatch):
  monkeypatch.setenv("OPENAI_BASE_URL", server.url("openai"))
  monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # so that nothing leaves this machine
  with (
    contextlib.closing(endpoint_at("")) as endpoint,
    pytest.raises(errors.InputError, match=r"base_url=https://api\.openai\.com/v1: no answer"),
  ):
    endpoint.check()
  assert not server.requests


def test_an_endpoint_that_goes_down_stops_the_run_and_the_same_command_goes_on(
  data, tmp_path, server
):
  right = knowing(data)
  server.answer = lambda request: (
    right(request) if request.number < 9 else judge_server.Reply(drop=True)
  )
  with pytest.raises(errors.InputError, match=r"no answer; start the endpoint .* goes on"):
    traces_stage.write(config(data, server, traces__in_flight=1), tmp_path)
  decided = len(list((tmp_path / "traces" / "chunks").iterdir()))
  assert 0 < decided < 5
  before, server.answer = len(server.requests), right
  traces_stage.write(config(data, server), tmp_path)
  assert len(server.requests) - before == 1 + len(asked(data)) - 4 * decided


def test_an_endpoint_that_answers_nothing_of_use_stops_the_run(data, tmp_path, server):
  server.answer = lambda request: (
    judge_server.Reply() if request.number == 0 else judge_server.Reply(body='{"choices": []}')
  )
  with pytest.raises(errors.InputError, match="no reply to any of 4 questions"):
    traces_stage.write(config(data, server), tmp_path)


AT_START = {
  "down": ({"traces__base_url": "http://127.0.0.1:9/v1"}, "base_url=http://127.0.0.1:9/v1: no an"),
  "no address": ({"traces__base_url": "localhost"}, "needs the form http"),
  "no model": ({"traces__model": ""}, "config.traces.model: is empty"),
  "no key": (
    {"traces__key_variable": "NO_SUCH_KEY"},
    "config.traces.key_variable=NO_SUCH_KEY: the",
  ),
}


@pytest.mark.parametrize("name", AT_START)
def test_what_is_missing_is_said_before_anything_is_written(data, tmp_path, server, name):
  overrides, problem = AT_START[name]
  with pytest.raises(errors.InputError, match=problem):
    traces_stage.write(config(data, server, **overrides), tmp_path)
  assert not list(tmp_path.iterdir())


REFUSALS = {
  "the key": (
    judge_server.Reply(status=401, text=judge_server.KEY),
    "key_variable: .* refuses its key .status 401",
  ),
  "the model": (
    judge_server.Reply(status=404),
    "refuses what 'a-writer' is asked .status 404.*correct model",
  ),
  "the request": (
    judge_server.Reply(status=400, text=f"no temperature, {judge_server.KEY}"),
    "refuses what 'a-writer' is asked .status 400.*no temperature",
  ),
  "another protocol": (
    judge_server.Reply(body="<html>"),
    "answers, but not in the protocol of openai",
  ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_is_said_before_anything_is_written(data, tmp_path, server, name):
  reply, problem = REFUSALS[name]
  server.answer = lambda request: reply
  with pytest.raises(errors.InputError, match=problem) as error:
    traces_stage.write(config(data, server), tmp_path)
  assert judge_server.KEY not in str(error.value)
  assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named_with_its_extra(data, tmp_path, server, monkeypatch):
  monkeypatch.setitem(sys.modules, "openai", None)
  with pytest.raises(errors.InputError, match=r"openai is missing; pip install 'vr_jax\[judge\]'"):
    traces_stage.write(config(data, server), tmp_path)


def test_of_two_processes_the_first_asks_and_both_end_well(data, tmp_path, server):
  server.answer = knowing(data)
  traces_stage.write(config(data, server), tmp_path / "one")
  requests, workdir = len(server.requests), tmp_path / "two"
  named = {name.replace("__", "."): value for name, value in endpoint(server).items()}
  made = {**nano.OVERRIDES, **trace_runs.OVERRIDES, "data.directory": data, **named}
  flags = [f"--config.{name}={value}" for name, value in made.items()]
  words = ["--config=configs/videop2r.py:tiny", *flags, "--mode=traces", f"--workdir={workdir}"]
  ended = runs.LocalRun.start(words, workdir, processes=2, module="vr_jax.main").finish(100)
  assert ended.codes == (0, 0), ended.said
  assert len(server.requests) == 2 * requests
  one, two = (each / "traces" / "traces.jsonl" for each in (tmp_path / "one", workdir))
  assert two.read_text() == one.read_text() != ""


def test_two_processes_do_not_sample_traces(data, tmp_path, monkeypatch):
  monkeypatch.setattr("jax.process_count", lambda: 2)
  refused = pytest.raises(errors.InputError, match="writer=sampler: samples in one process, but ")
  with refused:
    traces_stage.write(trace_runs.config(data), tmp_path)
