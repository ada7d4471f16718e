"""The score that lmms-eval gives `vr-jax serve`, beside that of `vr-jax eval` for the same replies.

    make lmms LMMS_CHECKPOINT=runs/demo
    python -m benchmarks.lmms_score --python=.venv-lmms/bin/python --checkpoint=runs/demo

`--python` has lmms-eval, in an environment of its own (`make lmms` makes it). The questions are
the run's held-out ones with options. lmms-eval sends no spans, so both are asked about whole
videos; a line says of how many questions that is more than the run shows. Its `openai` model asks a
server of the run over HTTP, and a task in `lmms_task/` scores by lmms-eval's rule for letters;
`vr-jax eval` asks the run's policy itself, by moss_video@recipe. Exits with 1 unless both scores
are equal. The run has to sample so many frames of a video, and its episodes have one turn.
"""

from collections.abc import Iterator, Sequence
import contextlib
import json
import os
from pathlib import Path
import shutil
import subprocess
import sys
import tempfile

from absl import flags
import ml_collections

from vr_jax import errors, records
from vr_jax.data import examples, frame_store, sampling
from vr_jax.envs import registry
from vr_jax.train import paths
from vr_jax.train import workdir as workdir_lib

_TASK = "vr_jax_choice"
_PROTOCOL = "moss_video@recipe"
_ROWS = 8  # of the server
_TOLERANCE = 0.05  # seconds between a span's end and the video's


def main(argv: Sequence[str]) -> int:
  """Compares the scores. Returns the exit code: 2 with one line if the run can't be asked so."""
  try:
    return compare(argv)
  except errors.InputError as error:
    print(error, file=sys.stderr)
    return 2


def compare(argv: Sequence[str]) -> int:
  """Asks both ways, prints the numbers as one JSON object, and returns 1 unless they are equal.

  Raises InputError as `choose_questions` does.
  """
  values = flags.FlagValues()
  flags.DEFINE_string("python", None, "Of lmms-eval's environment.", flag_values=values)
  flags.DEFINE_string("checkpoint", None, "Workdir of a run.", flag_values=values)
  flags.DEFINE_integer("limit", 32, "Questions.", 1, flag_values=values)
  values(list(argv))
  if not (values.python and values.checkpoint):
    raise errors.InputError("needs --python=<of lmms-eval's environment> --checkpoint=<run>")
  run = Path(values.checkpoint).resolve()
  config = workdir_lib.config_of(run)
  asked = choose_questions(config, run, values.limit)
  with tempfile.TemporaryDirectory() as folder:
    where = Path(folder)
    videos = paths.videos_directory(config, run).resolve()
    ours, our_replies = score_here(where, run, asked, videos)
    with server(run, videos, config) as url:
      theirs, replies = score_there(where, values.python, url, asked, videos, config)
  same = sum(theirs_of == our_replies[name] for name, theirs_of in replies.items())
  told = {
    "questions": len(asked),
    "vr-jax eval": ours,
    "lmms-eval": theirs,
    "equal answers": same,
    "lost": sum("LMMS_EVAL_REQUEST_FAILED" in each for each in replies.values()),
  }
  print(json.dumps(told, indent=1))
  return int(abs(ours - theirs) > 1e-9 or bool(told["lost"]) or len(replies) != len(asked))


def choose_questions(
  config: ml_collections.ConfigDict, run: Path, limit: int
) -> list[records.Example]:
  """Held-out questions with options. Says on stderr if they are about parts of their videos.

  Raises InputError if lmms-eval can't ask this run as `vr-jax eval` does, or there are none.
  """
  if not isinstance(paths.sampling_rule(config.data), sampling.UniformRule):
    raise errors.InputError(
      f"{run}: config.data.sampling={config.data.sampling} doesn't show a fixed number of frames, "
      "which is all that lmms-eval can ask for; choose another run"
    )
  turns = registry.make_environment(config).turns
  if turns > 1:
    raise errors.InputError(
      f"{run}: its episodes have up to {turns} turns, and the task takes a reply of one; choose "
      "another run"
    )
  shards = paths.shards_directory(config, run)
  asked = [each for each in examples.ExampleSource(shards, "test") if each.options][:limit]
  if not asked:
    raise errors.InputError(f"{run}: no held-out question has options; choose another run")
  store = frame_store.FrameStore(shards / "frames")
  parts = sum(
    each.shown.start > 0 or each.shown.end < store.duration(each.video) - _TOLERANCE
    for each in asked
  )
  if parts:
    print(
      f"{parts} of {len(asked)} questions are about a part of their video; lmms-eval sends no "
      "spans, so both are asked about all of it, and the score is not that of the run's evaluation",
      file=sys.stderr,
    )
  return asked


def score_here(
  where: Path, run: Path, asked: Sequence[records.Example], videos: Path
) -> tuple[float, dict[str, str]]:
  """The accuracy by `vr-jax eval`, in percent, and the answers by id."""
  root = where / "sets" / "moss_video"
  root.mkdir(parents=True)
  (root / "videos").symlink_to(videos)
  lines = [
    {
      **{"id": each.id, "video": each.video, "question": each.question, "answer": each.answer},
      **{"options": list(each.options), "problem_type": each.problem_type},
    }
    for each in asked
  ]
  (root / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  words = [f"--checkpoint={run}", f"--benchmarks={_PROTOCOL}", f"--benchmark_data={root.parent}"]
  words += [f"--out={where / 'scores'}", "--config.eval.temperature=0.0"]
  subprocess.run([sys.executable, "-m", "vr_jax.main", "eval", *words], check=True)
  (row,) = json.loads((where / "scores" / "table.json").read_text())
  stored = (where / "scores" / _PROTOCOL).glob("replies-*.jsonl")
  replies = [json.loads(line) for path in stored for line in path.read_text().splitlines()]
  return row["values"]["accuracy"]["value"], {
    each["id"]: _answer(each["reply"]) for each in replies
  }


def _answer(reply: str) -> str:
  return reply.rpartition("<answer>")[2].partition("</answer>")[0].strip()


@contextlib.contextmanager
def server(run: Path, videos: Path, config: ml_collections.ConfigDict) -> Iterator[str]:
  """A server of the run's policy; yields its address."""
  words = [f"--checkpoint={run}", f"--allowed_root={videos}", "--port=0", f"--batch={_ROWS}"]
  words += ["--reply=answer", "--name=run", f"--max_tokens={config.rl.max_new_tokens}"]
  process = subprocess.Popen(
    [sys.executable, "-m", "vr_jax.main", "serve", *words], stdout=subprocess.PIPE, text=True
  )
  try:
    assert process.stdout
    line = process.stdout.readline()
    if " at http://" not in line:
      raise errors.InputError(f"the server did not start: {line!r}")
    yield line.split(" at ")[1].strip()
  finally:
    process.terminate()
    process.wait(30)


def score_there(
  where: Path,
  python: str,
  url: str,
  asked: Sequence[records.Example],
  videos: Path,
  config: ml_collections.ConfigDict,
) -> tuple[float, dict[str, str]]:
  """The accuracy by lmms-eval, in percent, and the replies by id."""
  task = where / "task"
  shutil.copytree(Path(__file__).parent / "lmms_task", task)
  documents = [
    {
      **{"id": each.id, "path": str(videos / each.video), "question": each.question},
      **{"options": list(each.options), "answer": each.answer},
    }
    for each in asked
  ]
  questions = where / "questions.json"
  questions.write_text(json.dumps(documents))
  about = task / f"{_TASK}.yaml"
  about.write_text(about.read_text().replace("QUESTIONS", str(questions)))
  model = [f"base_url={url}", "model=run", "pass_video_url=True", "timeout=600"]
  model += [f"max_frames_num={config.data.frames}", f"num_concurrent={_ROWS}"]
  words = ["--model", "openai", "--tasks", _TASK, "--include_path", str(task), "--batch_size", "1"]
  words += ["--model_args", ",".join(model), "--output_path", str(where / "lmms"), "--log_samples"]
  words += ["--gen_kwargs", f"max_new_tokens={config.rl.max_new_tokens},temperature=0"]
  kept = {"OPENAI_API_KEY": "none", "HF_HOME": str(where / "cache"), "HF_HUB_OFFLINE": "1"}
  environment = {**os.environ, **kept, "CUDA_VISIBLE_DEVICES": ""}
  environment.pop("PYTHONPATH", None)
  line = [python, "-m", "lmms_eval", *words]
  subprocess.run(line, check=True, env=environment, stdout=sys.stderr)
  (results,) = (where / "lmms").rglob("*_results.json")
  (samples,) = (where / "lmms").rglob("*_samples_*.jsonl")
  rows = [json.loads(row) for row in samples.read_text().splitlines()]
  accuracy = json.loads(results.read_text())["results"][_TASK]["accuracy,none"]
  return 100 * accuracy, {asked[row["doc_id"]].id: _text(row["filtered_resps"]) for row in rows}


def _text(replies: Sequence[str] | str) -> str:
  return (replies if isinstance(replies, str) else replies[0]).strip()


if __name__ == "__main__":
  sys.exit(main(sys.argv))
