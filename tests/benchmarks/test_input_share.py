"""The benchmark of the input pipeline on a nano run: its shares leave out the first steps.

No times are checked.
"""

import json

from benchmarks import input_share
from tests.train import nano


def test_the_line_holds_the_shares_of_both_stages(capsys, monkeypatch):
  nano.use_devices(monkeypatch, 1)
  small = {"sft__steps": 2, "rl__steps": 2, "data__simulate__videos": 8, "rl__max_new_tokens": 4}
  monkeypatch.setattr(input_share, "WARM_UP", 1)
  monkeypatch.setattr(input_share, "tiny_config", lambda workdir: nano.config(**small))
  input_share.main()
  told = json.loads(capsys.readouterr().out.splitlines()[-1])
  for stage in ("sft", "rl"):
    assert 0 < told[stage]["share"] < 1
    assert 0 <= told[stage]["exposed_host_share"] < 1
    assert 0 < told[stage]["data_ms"] < told[stage]["step_ms"]


def test_shares_are_over_the_steps_behind_the_warm_up(tmp_path, monkeypatch):
  monkeypatch.setattr(input_share, "WARM_UP", 1)
  lines = []
  for step, data, exposed in ((1, 9.0, 0.9), (2, 0.5, 0.1), (3, 1.0, 0.15), (4, 1.5, 0.5)):
    values = {
      "perf/time/data": data,
      "perf/time/step": 3.0 + data,
      "perf/exposed_host_fraction": exposed,
    }
    lines += [{"stage": stage, "step": step, "values": values} for stage in ("sft", "rl")]
  (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  one = {"share": 0.25, "data_ms": 1000, "step_ms": 4000}
  one |= {"exposed_host_share": 0.25, "exposed_host_share_median": 0.15}
  assert input_share.shares(tmp_path) == {"sft": one, "rl": one}
