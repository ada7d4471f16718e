"""The claims command continues where it stopped, refuses results of other flags, and reports means.

The recorded results of docs/claims have the flags of today's arms and give today's pages.
"""

import json
import pathlib

import pytest

from benchmarks import claims, claims_arms, claims_page, recorded_names

RECORDED = pathlib.Path(__file__).parents[2] / "docs" / "claims"
# What docs/claims/<recipe>.md was recorded with.
EXTRA = {
  **dict.fromkeys(("revseg", "revseg_hidden"), ("--config.rl.steps=60",)),
  "videop2r": ("--config.rl.steps=60", "--config.rl.checkpoint_every=60"),
}
MEASURED = [recipe for recipe in claims_arms.CLAIMS if (RECORDED / f"{recipe}.md").exists()]
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
  row, *_ = [line for line in page.splitlines() if line.startswith("| SFT only")]
  assert "| 0.500 ± 0.025 |" in row
  paired, *_ = [line for line in page.splitlines() if line.startswith("| prr - sft")]
  assert "+0.200 ± 0.000" in paired
  capsys.readouterr()
  assert claims.main(["moss_chatv", "--seeds=4,3", "--config.rl.steps=9"]) == 2
  assert "a result with flags [], not ['--config.rl.steps=9']" in capsys.readouterr().err
  assert (len(ran), warmed) == (12, [1, 2, 3])  # nothing was trained before the message
  assert claims.main(["moss_chatv", "--seeds=22"]) == 0
  page = (tmp_path / "docs" / "claims" / "moss_chatv.md").read_text()
  assert "seeds 21, 22, 23, 24, 25, simulated" in page
  assert "sft 21" in page and "sft 22" not in page
  # A result of another registered seed would be averaged with theirs.
  assert claims.main(["moss_chatv", "--seeds=23", "--config.rl.steps=9"]) == 2
  assert "sft-seed22.json: a result with flags []" in capsys.readouterr().err


def test_training_is_reported_as_a_whole_at_its_ends_and_tenth_by_tenth(tmp_path):
  lines = [
    {"stage": stage, "step": step, "values": {"turns": float(step), "loss": 1.0}}
    for stage, steps in (("sft", 3), ("rl", 20))
    for step in range(1, steps + 1)
  ]
  (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  means, tenths = claims._over_training(tmp_path)
  assert means == {"training/turns": 10.5, "first/turns": 1.5, "last/turns": 19.5}
  assert tenths == {"turns": [1.5 + 2 * tenth for tenth in range(10)]}
  titled = claims_page._curves(
    "Turns", "turns", claims_arms.CLAIMS["videop2r"].arms[1:2], {"rl": [{"tenths": tenths}]}
  )
  assert titled[-1].endswith(
    "| 1.50 | 3.50 | 5.50 | 7.50 | 9.50 | 11.50 | 13.50 | 15.50 | 17.50 | 19.50 |"
  )


def test_the_page_of_video_mtr_has_its_curves_and_each_pair_of_arms(tmp_path):
  held_to = claims_arms.CLAIMS["video_mtr"]
  for number, arm in enumerate(held_to.arms):
    for seed in (1, 2):
      accuracy = 0.1 * number + 0.01 * seed
      metrics = {"accuracy": accuracy, "accuracy_interval": 0.05, "accuracy/moment": accuracy}
      tenths = {name: [1.0 + number] * 10 for _, name in held_to.curves}
      result = {"metrics": metrics, "tenths": tenths if arm.overrides is not None else {}}
      (tmp_path / f"{arm.name}-seed{seed}.json").write_text(json.dumps(result))
  claims_page.write("video_mtr", (1, 2), tmp_path, tmp_path / "page.md")
  lines = (tmp_path / "page.md").read_text().splitlines()
  for left, right in held_to.pairs:
    (row,) = [line for line in lines if line.startswith(f"| {left} - {right} |")]
    assert "nan" not in row
  (row,) = [line for line in lines if line.startswith("| no_bootstrapping - no_turn_rewards |")]
  assert row.split("|")[2].strip() == "+0.200 ± 0.000"
  curve = lines[lines.index("Turns of an episode, in each tenth of training:") :]
  (single, *_) = [line for line in curve if line.startswith("| one turn")]
  assert single.split("|")[2:-1] == [" 2.00 "] * 10


def test_an_arm_starts_from_the_shared_warm_start_its_own_or_none(tmp_path, monkeypatch):
  launched = []
  found = {"examples": 1, "metrics": {}}, {"versions": {}, "git_revision": ""}
  monkeypatch.setattr(claims, "_launch", lambda *flags: launched.append(flags))
  monkeypatch.setattr(claims, "_evaluated", lambda *_: found)
  monkeypatch.setattr(claims, "_over_training", lambda _: ({}, {}))
  for start in ("shared", "own", "none"):
    arm = claims_arms.Arm(name=start, title="", overrides=("--config.rl.steps=9",), start=start)
    claims.run_arm("video_mtr", arm, 7, tmp_path, [], tmp_path / f"{start}.json")
  modes = [flags[-1] for flags in launched]
  assert modes == ["--mode=rl", "--mode=sft", "--mode=rl", "--mode=rl"]
  assert all("--config.rl.steps=9" in flags for flags in launched)
  shared, *own, none = launched
  assert any(flag.startswith("--config.rl.init_checkpoint=") for flag in shared)
  assert not any(flag.startswith("--config.rl.init_checkpoint=") for flags in own for flag in flags)
  assert "--config.sft.steps=0" in none


def test_the_warm_start_of_an_arm_is_a_result_and_the_start_of_another(tmp_path, monkeypatch):
  launched, evaluated, scored = [], [], []

  def evaluate(flags, checkpoints, workdir):
    evaluated.append((flags, checkpoints))
    return {"examples": 1, "metrics": {}}, {"versions": {}, "git_revision": ""}

  def score(workdir, weights):
    scored.append((workdir, weights))
    return 0.25

  monkeypatch.setattr(claims, "_launch", lambda *flags: launched.append(flags))
  monkeypatch.setattr(claims, "_evaluated", evaluate)
  monkeypatch.setattr(claims, "_over_training", lambda _: ({}, {}))
  monkeypatch.setattr(claims.claims_tracker, "score", score)
  (tmp_path / "sam2").mkdir()  # else it would be trained
  warm, trained = (arm for arm in claims_arms.CLAIMS["revseg"].arms if "direct" in arm.name)
  for arm in (warm, trained):
    claims.run_arm("revseg", arm, 7, tmp_path, [], tmp_path / f"{arm.name}.json")
  home = tmp_path / "seed7"
  first, again, rl = launched
  assert first[-2:] == again[-2:] == (f"--workdir={home / 'direct_sft'}", "--mode=sft")
  assert rl[-1] == "--mode=rl"
  assert f"--config.rl.init_checkpoint={home / 'direct_sft' / 'checkpoints' / 'sft'}" in rl
  assert [path.relative_to(home).as_posix() for _, path in evaluated] == [
    "direct_sft/checkpoints/sft",
    "direct/checkpoints/rl",
  ]
  for flags, _ in evaluated:
    assert {"--config.eval.tracker=exact", "--config.env.decompose=False"} < {*flags}
  assert scored == [(home / f"{arm.name}-eval", tmp_path / "sam2") for arm in (warm, trained)]
  assert json.loads((tmp_path / "direct.json").read_text())["metrics"] == {"j_and_f@sam2": 0.25}


@pytest.mark.parametrize("recipe", MEASURED)
def test_each_recorded_result_has_the_flags_of_its_arm_under_todays_names(recipe):
  recorded = claims_arms.CLAIMS[recipe]
  for arm in recorded.arms:
    flags = [*(arm.overrides or ()), *EXTRA.get(recipe, ())]
    for seed in recorded.seeds:
      path = RECORDED / recipe / f"{arm.name}-seed{seed}.json"
      if not path.exists():
        continue  # the page names it
      assert recorded_names.current(path.read_text())["flags"] == flags, path


@pytest.mark.parametrize("recipe", MEASURED)
def test_the_recorded_page_is_what_the_recorded_results_give(tmp_path, recipe):
  page = tmp_path / "page.md"
  claims_page.write(
    recipe, claims_arms.CLAIMS[recipe].seeds, RECORDED / recipe, page, EXTRA.get(recipe, ())
  )
  assert page.read_text() == (RECORDED / f"{recipe}.md").read_text()
