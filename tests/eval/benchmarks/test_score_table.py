"""The table of scores, and that of several training seeds."""

import json
import math
import shutil

import pytest
from rich import console as rich_console

from vr_jax import main
from vr_jax.eval.benchmarks import (
  reply_store,
  score_table,
  scored_protocol,
  seed_table,
  statistics,
)

NAN = math.nan


def interval(value, error=NAN):
  return statistics.MetricInterval(
    value=value, low=value - 2 * error, high=value + 2 * error, standard_error=error, clusters=9
  )


def row(protocol="video_mmmu@official", headline="overall", values=None, **fields):
  counts = dict.fromkeys(("questions", "failed", "unparsed", "truncated", "unscored"), 0)
  base = dict(
    protocol=protocol,
    headline=headline,
    further=(),
    values=values or {headline: interval(50.0, 2.0)},
    changes={},
    missing=(),
    count_differences=(),
    not_asked=0,
    unshown=0,
    absent_groups=(),
    split="test",
    tokens=9.0,
    shown="32 x 602112",
  )
  return scored_protocol.ScoredProtocol(**{**base, **counts, **fields})


def printed(table) -> str:
  console = rich_console.Console(markup=False, width=score_table.WIDTH)
  with console.capture() as captured:
    console.print(table)
  return captured.get()


def test_a_value_or_a_change_that_is_undefined_is_so_in_the_table():
  change = statistics.MetricChange(
    change=NAN, low=NAN, high=NAN, standard_error=NAN, clusters=1, p_value=NAN
  )
  undefined = row(
    further=("knowledge_gain",),
    values={"overall": interval(NAN), "knowledge_gain": interval(50.0)},
    changes={
      "overall": statistics.MetricChange(
        change=2.0, low=NAN, high=NAN, standard_error=NAN, clusters=1, p_value=NAN
      ),
      "knowledge_gain": change,
    },
  )
  (line,) = score_table.further_values([undefined])
  assert line.endswith("knowledge_gain 50.0, change undefined")
  assert score_table.cells([undefined])[0][1:4] == ("undefined", "", "+2.0")
  (shown,) = score_table.to_json([undefined])
  assert shown["intervals"][0][1] == "undefined"


def test_all_columns_are_in_the_terminal_also_beside_a_base():
  change = statistics.MetricChange(
    change=-2.04, low=-12.5, high=10.2, standard_error=5.0, clusters=9, p_value=0.04
  )
  rows = [
    row("mmvu@official", "accuracy", judge="gpt-4.1-mini", agreed=118, compared=120),
    row("longvideobench@easy_video_r1", "accuracy", missing=("a.mp4",), questions=1337),
  ]
  rows = [
    scored_protocol.ScoredProtocol(**{**vars(each), "changes": {"accuracy": change}})
    for each in rows
  ]
  text = " ".join(printed(score_table.to_terminal(rows)).split())
  assert "…" not in text
  for told in (
    *("50.0 (46.0 to 54.0)", "-2.0 (-12.5 to 10.2)", "0.080", "1337"),
    "32 x 602112; gpt-4.1-mini (agrees with our rule on 98 % of 120)",
    *("longvideobench@easy_video_r1 50.0 (46.0 to 54.0)", "test (partial) 32 x 602112; none"),
  ):
    assert told in text, told
  latex = score_table.to_latex(rows)
  assert r"agrees with our rule on 98 \% of 120" in latex and "32 x 602112" in latex


def test_several_benchmarks_have_a_mean_with_its_error():
  rows = [row(values={"overall": interval(60.0, 3.0)})]
  assert score_table.further_values(rows) == []
  rows.append(row("mmvu@mc", "accuracy", values={"accuracy": interval(50.0, 4.0)}))
  assert score_table.further_values(rows) == ["mean of 2 benchmarks: 55.0 (standard error 2.5)"]
  marks = row("mlvu@official", "G-Avg", values={"G-Avg": interval(6.0, 0.5)})  # 2 to 10
  assert score_table.further_values([rows[0], marks]) == []
  part = row("mmvu@mc", "accuracy", values={"accuracy": interval(50.0, 4.0)}, not_asked=1)
  assert score_table.further_values([rows[0], marks, part]) == [
    "mean of 2 benchmarks (partial) without mlvu@official (G-Avg is no percentage): 55.0 "
    "(standard error 2.5)"
  ]
  rows.append(row("mmvu@video_r1", "accuracy"))  # the same benchmark again
  assert score_table.further_values(rows) == []


@pytest.fixture
def seeds(tmp_path):
  """The --out of three training seeds, with two protocols."""
  for seed, (gain, accuracy) in enumerate(((60.0, 40.0), (62.0, 42.0), (64.0, 38.0))):
    out = tmp_path / str(seed)
    rows = [
      row(values={"overall": interval(gain, 3.0)}),
      row("mmvu@mc", "accuracy", values={"accuracy": interval(accuracy, 4.0)}),
    ]
    for each in rows:
      store = reply_store.ReplyStore(directory=out / each.protocol)
      store.begin({"questions": "q", "prompts": "p", "limit": 0, "weights": f"w{seed}"})
    (out / "table.json").write_text(json.dumps(score_table.to_json(rows)))
  return [tmp_path / str(seed) for seed in range(3)]


def _seeds(directories, *words) -> int:
  listed = ",".join(map(str, directories))
  return main.cli(["vr-jax", "eval", f"--seeds={listed}", *words])


def test_the_spread_over_seeds_stands_beside_the_error_of_questions(seeds, capsys):
  assert _seeds(seeds) == 0
  out = capsys.readouterr().out
  lines = [" ".join(line.split()) for line in out.splitlines()]
  assert "video_mmmu@official 62.0 2.0 3.0 60.0, 62.0, 64.0" in lines
  assert "mmvu@mc 40.0 2.0 4.0 40.0, 42.0, 38.0" in lines
  # 50, 52 and 51; the errors of independent benchmarks: sqrt(3^2 + 4^2) / 2
  assert "mean of 2 benchmarks 51.0 1.0 2.5 50.0, 52.0, 51.0" in lines
  (only,) = seed_table.read(seeds, ["mmvu@mc"])
  assert (only.mean, only.deviation) == (40.0, 2.0)


@pytest.mark.parametrize(
  ("change", "complaint"),
  [
    ({"weights": "w0"}, "mmvu@mc was asked of the same weights in"),
    ({"questions": "others"}, "mmvu@mc was asked other questions in"),
    ({"limit": 9}, "mmvu@mc was asked other questions in"),
  ],
)
def test_seeds_that_can_not_be_compared_are_refused(seeds, capsys, change, complaint):
  path = seeds[2] / "mmvu@mc" / "about.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | change))
  assert _seeds(seeds) == 2
  assert complaint in capsys.readouterr().err


@pytest.mark.parametrize(
  ("field", "value", "told"),
  [
    ("headline", "level", "headline='level'"),
    ("judge", "gpt-4.1-mini", "judge='gpt-4.1-mini'"),
    ("questions", 700, "questions=700"),
    ("missing", ["a.mp4", "b.mp4"], "missing=2 files"),
    ("unscored", 9, "unscored=9"),
    ("not_asked", 9, "not_asked=9"),
  ],
)
def test_seeds_scored_on_other_questions_or_by_others_are_refused(
  seeds, capsys, field, value, told
):
  _change_row(seeds[2], lambda one: one["values"].update(level=one["values"]["accuracy"]))
  assert _seeds(seeds) == 0
  _change_row(seeds[2], lambda one: one.update({field: value}))
  capsys.readouterr()
  assert _seeds(seeds) == 2
  assert f"mmvu@mc has {told} in {seeds[2] / 'table.json'}" in capsys.readouterr().err


def _change_row(seed, change):
  """Changes the row of mmvu@mc in the table of a seed."""
  path = seed / "table.json"
  rows = json.loads(path.read_text())
  change(rows[1])
  path.write_text(json.dumps(rows))


def test_scores_of_seeds_that_are_partial_or_no_percentages_are_marked(seeds, capsys):
  for seed in seeds:
    _change_row(seed, lambda one: one.update(missing=["a.mp4"], partial=True))
    (seed / "mlvu@official").mkdir()
    shutil.copy(seed / "mmvu@mc" / "about.json", seed / "mlvu@official")
    rows = json.loads((seed / "table.json").read_text())
    marks = row("mlvu@official", "G-Avg", values={"G-Avg": interval(6.0, 0.5)})
    rows += score_table.to_json([marks])
    (seed / "table.json").write_text(json.dumps(rows))
  assert [each.name for each in seed_table.read(seeds)] == [
    *("video_mmmu@official", "mmvu@mc (partial)", "mlvu@official"),
    "mean of 2 benchmarks (partial) without mlvu@official (G-Avg is no percentage)",
  ]
  assert seed_table.read(seeds)[-1].scores == (50.0, 52.0, 51.0)


def test_what_is_no_table_of_a_seed_is_named(seeds, tmp_path, capsys):
  assert _seeds(seeds[:1]) == 2
  assert "needs the --out of at least two training seeds" in capsys.readouterr().err
  assert _seeds([*seeds, tmp_path]) == 2
  assert "table.json: no such file; --seeds needs the --out" in capsys.readouterr().err
  assert _seeds(seeds, "--benchmarks=mvbench@official") == 2
  assert "has no score of mvbench@official" in capsys.readouterr().err
  assert _seeds(seeds, "--limit=3") == 2
  assert "--limit: has no effect with --seeds" in capsys.readouterr().err
  (seeds[1] / "table.json").write_text('[{"protocol": 3}]')
  assert _seeds(seeds) == 2
  assert "table.json: is damaged" in capsys.readouterr().err
