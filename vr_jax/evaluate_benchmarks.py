"""The command `vr-jax eval`: a policy on public benchmarks, with numbers that others can compare.

    vr-jax eval --checkpoint=runs/mine --benchmarks=mvbench@official,vsi_bench@recipe \\
      --benchmark_data=sets --out=scores/mine [--base=scores/before]

Each benchmark lies in a directory of its name below `--benchmark_data` (docs/benchmarks.md). What
stands behind its @ says how it is asked and scored; `--benchmarks=list` prints all. `--split`
chooses another split than the usual one: `--split=mlvu:test`.

--out (by default <run>/benchmarks) gets a directory for each protocol with all replies, and

    table.json, table.tex, table.html   the scores with their intervals; the table is printed, too

A run's report shows the table of <run>/benchmarks.

The same command goes on where it was interrupted, in any number of processes. Replies that are
there are not sampled again: with `--score_only`, no model is loaded, and only the annotations are
needed beside the replies, no videos. `--base` is the --out of
another policy, before RL say, on the same questions: the table then has the change, with its
interval and p-value.

    vr-jax eval --seeds=scores/seed0,scores/seed1,scores/seed2

prints how much scores vary over runs of one recipe with several training seeds: their mean and
standard deviation, beside the standard error of the questions. It reads the tables in each `--out`.

`--checkpoint`, `--config` and `--before_rl` are those of `vr-jax ask`. `--limit=100` asks only as
many questions of each benchmark, drawn by a hash of their ids: a quick look, no score to report.

Open answers, captions and steps of reasoning need a judge: `--judge=endpoint --judge_model=NAME
[--judge_base_url=URL] [--judge_key_variable=VARIABLE]`, or `--judge=local --judge_model=DIRECTORY`
of weights. Without one they are not scored, and the score is partial.

Sets of masks (mevis, ref_youtube_vos, ref_davis17, revos, reason_vos; @official) need a policy that
boxes objects, of configs/revseg.py, and --sam2, SAM2's weights: it follows each box through the
video. --out gets the masks as the set's program reads them and, where masks were not released, the
archive for the set's server (docs/benchmarks.md).

Frames of the videos are decoded once, to `--frames` (by default <out>/frames).
"""

from collections.abc import Sequence
import dataclasses
import hashlib
import json
from pathlib import Path
import sys
from typing import TYPE_CHECKING, Any

from vr_jax import ask, atomic, benchmark_arguments, errors, main
from vr_jax.data import benchmark_item
from vr_jax.data.benchmark_sets import registry
from vr_jax.eval import report
from vr_jax.eval.benchmarks import (
  answer_submission,
  expression_masks,
  judged_answers,
  policy_weights,
  protocols,
  reply_store,
  score_table,
  scored_protocol,
  seed_table,
)

if TYPE_CHECKING:
  from jaxtyping import PyTree
  from rich import table as rich_table

  from vr_jax.train import run_context

_ANNOTATED = ("id", "question", "scorer", "answer", "options", "strata", "steps")  # fields of items


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Questions:
  """What is asked of one benchmark by one protocol; see `ScoredProtocol`.

  items: whose files are there, or whose replies. every: all that the protocol asks.
  missing: a file that is not there, by id, of each other item.
  limit: 0 if all are asked.
  """

  items: tuple[benchmark_item.Item, ...]
  every: tuple[benchmark_item.Item, ...]
  missing: dict[str, str]
  limit: int
  count_differences: tuple[str, ...]
  unshown: int


def evaluate_benchmarks(argv: Sequence[str]) -> int:
  """Runs the command, together with the other processes; returns the exit code.

  argv: ["eval", *flags].

  Raises InputError naming the flag or file at fault.
  """
  arguments = benchmark_arguments.parse(argv, help_text=__doc__ or "")
  if arguments is None:
    for each in protocols.PROTOCOLS.values():
      print(f"{each.name:28} {each.source}")
    return 0
  if isinstance(arguments, benchmark_arguments.SeedArguments):
    _print(seed_table.to_terminal(seed_table.read(arguments.directories, arguments.names)))
    return 0
  if arguments.score_only:
    evaluate(arguments)
    return 0
  return main.in_cluster(argv, lambda: evaluate(arguments))


def evaluate(arguments: benchmark_arguments.EvalArguments) -> None:
  """Asks, scores and prints. All processes of a run call it together."""
  questions = {each.name: read_questions(arguments, each) for each in arguments.protocols}
  first = True
  if not arguments.score_only:
    from vr_jax.parallel import processes

    _ask_policy(arguments, questions)
    first = processes.is_first()
  if first:
    rows = [_score(arguments, each, questions[each.name]) for each in arguments.protocols]
    if found := [row for row in rows if row is not None]:
      write_table(arguments.out, found)


def read_questions(
  arguments: benchmark_arguments.EvalArguments, protocol: protocols.Protocol
) -> _Questions:
  """Reads the questions of a protocol whose files are there, or that have a reply already.

  To score replies, the annotations are enough: the replies' directory says what was missing.

  Raises InputError if there are none.
  """
  name = protocol.benchmark
  store = reply_store.ReplyStore(directory=arguments.out / protocol.name)
  found = registry.read_items(name, arguments.data / name, arguments.splits.get(name))
  asked = [item for item in found.items if protocol.asks(item)]
  shown = [item for item in asked if not (item.images and protocol.prompt is None)]
  known = {each.id for each in store.read().values() if not each.problem}
  if arguments.score_only:
    absent = store.media().missing
  else:
    absent = {
      item.id: files[0]
      for item in shown
      if (files := _needed(protocol, item, found.missing.get(item.id, ())))
    }
  absent = {key: path for key, path in absent.items() if key not in known}
  present = [item for item in shown if item.id not in absent]
  if not present:
    raise errors.InputError(
      f"{arguments.data / name}: has no video for any of {len(asked)} questions of {protocol.name}"
    )
  differences = [
    f"{count.kind}/{count.name}: {count.read} of {count.published}"
    for count in found.differing
    if count.kind != "subtitles" or protocol.uses_subtitles
  ]
  if arguments.score_only:
    differences = list(store.media().count_differences)
  limit = arguments.limit if arguments.limit < len(present) else 0
  chosen = sorted(present, key=_shuffled)[:limit] if limit else present
  if limit and not arguments.score_only:
    differences.insert(0, f"--limit={limit} of {len(present)} questions")
  return _Questions(
    items=tuple(chosen),
    every=tuple(shown),
    missing=absent,
    limit=limit,
    count_differences=tuple(differences),
    unshown=len(asked) - len(shown),
  )


def _needed(
  protocol: protocols.Protocol, item: benchmark_item.Item, files: Sequence[str]
) -> list[str]:
  """Those of an item's missing files that the protocol needs: none shows pictures of questions."""
  unused = {*item.images, *(() if protocol.uses_subtitles else [item.subtitles])}
  return [path for path in files if path not in unused]


def _shuffled(item: benchmark_item.Item) -> str:
  """Orders items at random, always in the same way."""
  return hashlib.sha256(item.id.encode()).hexdigest()


def _ask_policy(
  arguments: benchmark_arguments.EvalArguments, questions: dict[str, _Questions]
) -> None:
  """Asks what has no reply yet; the policy is loaded once."""
  # As in main.run: a mistyped flag should not wait until JAX has been imported.
  from vr_jax.parallel import mesh as mesh_lib
  from vr_jax.train import compilations, config_checks, console, model_setup, run_context

  assert arguments.config is not None
  config, workdir = arguments.config.copy_and_resolve_references(), arguments.workdir or Path()
  config_checks.check(config)
  config.mesh = model_setup.mesh_shape(config, stages=("eval",))
  context = run_context.make_run_context(config, workdir, judged=False, read=False)
  for protocol in arguments.protocols:
    if protocol.finds_masks and not context.environment.finds_objects:
      raise errors.InputError(
        f"--benchmarks={protocol.name}: the replies of {config.recipe} give no boxes; give a run "
        "of configs/revseg.py"
      )
  mesh_lib.check_batch(config.eval.batch_size, context.mesh, "config.eval.batch_size")
  cache = compilations.use_cache(workdir)
  with (
    console.heartbeat(stream=sys.stderr),
    compilations.announced(cache, compilations.network(config)),
  ):
    with console.doing("loading the weights", announce=True):
      params, policy = ask.load_policy(context, arguments.workdir, before_rl=arguments.before_rl)
    weights = policy_weights.fingerprint(
      policy_weights.find(context, arguments.workdir, before_rl=arguments.before_rl)
    )
    for protocol in arguments.protocols:
      _play(arguments, context, params, policy, weights, protocol, questions[protocol.name])


def _as_json(value: Any) -> Any:
  """Dataclasses as objects, tuples as lists."""
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    value = dataclasses.asdict(value)
  return json.loads(json.dumps(value))


def _play(
  arguments: benchmark_arguments.EvalArguments,
  context: "run_context.RunContext",
  params: "PyTree",
  policy: str,
  weights: str,
  protocol: protocols.Protocol,
  questions: _Questions,
) -> None:
  import jax

  from vr_jax.eval import stage
  from vr_jax.eval.benchmarks import asked_items, frame_cache, play_items, track_expressions
  from vr_jax.models import sam2
  from vr_jax.parallel import processes
  from vr_jax.train import console, paths
  from vr_jax.train import workdir as workdir_lib

  played = play_items.with_protocol(context, protocol)
  data, root = context.config.data, arguments.data / protocol.benchmark
  store = reply_store.ReplyStore(directory=arguments.out / protocol.name)
  about = {
    "protocol": protocol.name,
    "asked": {
      name: _as_json(getattr(protocol, name))
      for name in ("frames", "pixels", "decoding", "uses_clip", "uses_subtitles", "kinds")
    }
    | ({"interleaves": True} if protocol.interleaves else {}),
    "policy": policy,
    "weights": weights,
    # To how much prompts are padded changes nothing.
    "config": _as_json(
      {
        name: value
        for name, value in stage.evaluation_fields(context.config).items()
        if not name.endswith("_buckets")
      }
    ),
    "prompts": _hash([_prompt_text(protocol, item) for item in questions.every]),
    "questions": _hash_questions(questions.every),
    "clips": _hash([benchmark_item.to_json(item).get("clip") for item in questions.every]),
    "limit": questions.limit,
    **({"sam2": _tracker(arguments)} if protocol.finds_masks else {}),
    "versions": workdir_lib.provenance()["versions"],
  }
  media = reply_store.AskedMedia(
    files=_files(root, protocol, questions.items),
    missing=questions.missing,
    count_differences=questions.count_differences,
  )
  known = {each.id for each in store.read().values() if not each.problem}
  answered = _files(root, protocol, [item for item in questions.items if item.id in known])
  processes.first_alone("benchmark", lambda: store.begin(about, media, answered=answered.keys()))
  asker = asked_items.ItemAsker(
    context=played,
    protocol=protocol,
    cache=frame_cache.FrameCache(
      videos=root,
      cache=arguments.frames,
      limits=paths.decode_limits(data),
    ),
    root=root,
  )
  with console.progress(protocol.name, len(questions.items)) as tick:
    # Of a part, by --limit, the places are those within it.
    every = questions.items if questions.limit else questions.every
    play_items.play(played, params, asker, every, store, absent=questions.missing, tick=tick)
  if protocol.finds_masks:
    processes.first_alone("replies", lambda: None)  # so that all replies are there
    masks = _mask_store(arguments, protocol, questions)
    with console.progress(f"{protocol.name}: tracking", len(questions.items)) as tick:
      track_expressions.track(
        masks,
        store.read(),
        context.environment,
        lambda: sam2.load(str(arguments.sam2)),
        limits=paths.decode_limits(data),
        fresh_reverse=arguments.fresh_reverse,
        share=(jax.process_index(), jax.process_count()),
        tick=tick,
      )
    processes.first_alone("masks", lambda: None)


def _tracker(arguments: benchmark_arguments.EvalArguments) -> list[Any]:
  """What follows boxes: masks of other weights don't mix."""
  return [policy_weights.fingerprint(arguments.sam2), arguments.fresh_reverse]


def _mask_store(
  arguments: benchmark_arguments.EvalArguments, protocol: protocols.Protocol, questions: _Questions
) -> expression_masks.ExpressionMasks:
  return expression_masks.ExpressionMasks(
    directory=arguments.out / protocol.name,
    root=arguments.data / protocol.benchmark,
    protocol=protocol,
    items=questions.items,
  )


def _hash_questions(items: Sequence[benchmark_item.Item]) -> str:
  """A hash of what the annotations say: names of files depend on which of them are there."""
  told = [benchmark_item.to_json(item) for item in items]
  return _hash([{name: each.get(name) for name in _ANNOTATED} for each in told])


def _files(
  root: Path, protocol: protocols.Protocol, items: Sequence[benchmark_item.Item]
) -> dict[str, tuple[int, int]]:
  """Sizes and times of the files that items are asked with, as far as they are there."""
  names = {item.video for item in items}
  if protocol.uses_subtitles:
    names |= {item.subtitles for item in items if item.subtitles}
  there = [(name, root / name) for name in sorted(names) if (root / name).exists()]
  stats = [(name, path.stat()) for name, path in there]
  return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats}


def _prompt_text(protocol: protocols.Protocol, item: benchmark_item.Item) -> Any:
  return None if protocol.prompt is None else dataclasses.asdict(protocol.render(item))


def _hash(value: Any) -> str:
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _score(
  arguments: benchmark_arguments.EvalArguments, protocol: protocols.Protocol, questions: _Questions
) -> scored_protocol.ScoredProtocol | None:
  """Scores the replies on disk; None if a server scores their masks.

  Raises InputError if there are none.
  """
  store = reply_store.ReplyStore(directory=arguments.out / protocol.name)
  about = store.about()
  asked = about["questions"], about.get("limit", 0)
  if asked != (_hash_questions(questions.every), questions.limit):
    raise errors.InputError(
      f"{store.directory}: has replies to other questions; give the --limit and --split that they "
      "were asked with, and the same files"
    )
  base = None
  if arguments.base is not None:
    base = reply_store.ReplyStore(directory=arguments.base / protocol.name)
    if about["questions"] != base.about()["questions"]:
      raise errors.InputError(
        f"--base={arguments.base}: {protocol.name} was asked other questions there"
      )
    if about["prompts"] != base.about()["prompts"]:
      raise errors.InputError(f"--base={arguments.base}: {protocol.name} was asked in other words")
    if left := {item.id for item in questions.items} - set(base.read()):
      raise errors.InputError(
        f"--base={arguments.base}: {len(left)} questions of {protocol.name} were not asked there"
      )
  replies, scores = store.read(), {}
  if protocol.finds_masks:
    masks = _mask_store(arguments, protocol, questions)
    scores["masks"] = expression_masks.read_scores(masks, replies)
    if scores["masks"] is None:
      print(expression_masks.submit(masks, questions.missing))
      return None
    if base is not None:
      before = dataclasses.replace(masks, directory=base.directory)
      scores["base_masks"] = expression_masks.read_scores(before, base.read())
  if answer_submission.is_needed(questions.items):
    path = store.directory / "submission.json"
    count = answer_submission.write(path, protocol, questions.items, replies)
    print(
      f"{path}: {count} answers of {len(questions.items)}, for the server of {protocol.benchmark}"
    )
  return score_table.make(
    protocol,
    questions.items,
    replies,
    missing=tuple(questions.missing.values()),
    count_differences=questions.count_differences,
    unshown=questions.unshown,
    base=None if base is None else base.read(),
    judge=None if protocol.finds_masks else _judge(arguments),
    **scores,
  )


def _judge(arguments: benchmark_arguments.EvalArguments) -> judged_answers.AnswerJudge | None:
  cache = arguments.out / "answer_verdicts.sqlite"
  if arguments.judge == "local":
    return judged_answers.local(Path(arguments.judge_model), cache=cache)
  if arguments.judge == "endpoint":
    return judged_answers.endpoint(
      arguments.judge_model,
      base_url=arguments.judge_base_url,
      key_variable=arguments.judge_key_variable,
      cache=cache,
    )
  return None


def _print(table: "rich_table.Table") -> None:
  from rich import console as rich_console

  width = max(rich_console.Console().width, score_table.WIDTH)
  rich_console.Console(markup=False, width=width).print(table)


def write_table(out: Path, rows: Sequence[scored_protocol.ScoredProtocol]) -> None:
  """Writes the table in all its forms, and prints it."""
  out.mkdir(parents=True, exist_ok=True)
  lines = score_table.to_json(rows)
  atomic.write_bytes(out / "table.json", [json.dumps(lines, indent=1).encode(), b"\n"])
  atomic.write_bytes(out / "table.tex", [score_table.to_latex(rows).encode()])
  atomic.write_bytes(out / "table.html", [score_table.to_page(lines).encode()])
  _print(score_table.to_terminal(rows))
  for line in (*score_table.further_values(rows), *scored_protocol.notes(rows)):
    print(line)
  print(f"table: {out / 'table.html'}")
  if out.name == benchmark_arguments.OWN and (out.parent / "report.html").is_file():
    print(f"report: {report.write_report(out.parent)}")
