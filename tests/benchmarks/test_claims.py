"""The claims command goes on where it stopped, refuses results of other flags, and tells means and differences over seeds."""

import json

from benchmarks import claims

ACCURACY = {"sft": 0.5, "grpo": 0.6, "prr": 0.7, "naive": 0.6}


def test_what_is_there_is_not_run_again_and_results_of_other_flags_are_refused(
  tmp_path, monkeypatch, capsys
):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "elsewhere")
  ran = []

  def run_arm(recipe, arm, seed, workdir, extra, path):
    ran.append((arm.name, seed))
    path.parent.mkdir(parents=True, exist_ok=True)
    result = {"flags": [*(arm.overrides or ()), *extra]}
    accuracy = ACCURACY[arm.name] + 0.01 * (seed - 2)
    result["metrics"] = {
      "accuracy": accuracy,
      "accuracy_interval": 0.05,
      "accuracy/free-form": accuracy,
    }
    path.write_text(json.dumps(result))

  warmed = []
  monkeypatch.setattr(claims, "warm_start", lambda recipe, seed, *_: warmed.append(seed))
  monkeypatch.setattr(claims, "run_arm", run_arm)
  assert claims.main(["moss_chatv", "--seeds=1,2"]) == 0
  assert len(ran) == 8
  assert claims.main(["moss_chatv", "--seeds=1,2,3"]) == 0
  assert ran[8:] == [(name, 3) for name in ACCURACY]
  assert warmed == [1, 2, 3]
  page = (tmp_path / "docs" / "claims" / "moss_chatv.md").read_text()
  told, *_ = [line for line in page.splitlines() if line.startswith("| SFT only")]
  assert "| 0.500 ± 0.025 |" in told
  paired, *_ = [line for line in page.splitlines() if line.startswith("| prr - sft")]
  assert "+0.200 ± 0.000" in paired
  capsys.readouterr()
  assert claims.main(["moss_chatv", "--seeds=4,3", "--config.rl.steps=9"]) == 2
  assert "a result with flags [], not ['--config.rl.steps=9']" in capsys.readouterr().err
  assert (len(ran), warmed) == (12, [1, 2, 3])  # nothing was trained before that was said
