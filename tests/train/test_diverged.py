"""A run whose updates are not finite ends with its own exit code, and says what to do."""

from tests.train import nano
from vr_jax import main
from vr_jax.train import metrics


def test_void_updates_in_a_row_end_the_run_with_code_3(data, tmp_path, capsys, monkeypatch):
  nano.use_devices(monkeypatch, 1)
  flags = (
    f"--config.data.directory={data}",
    "--config.sft.learning_rate=1e38",
    "--config.sft.warmup_steps=0",
    "--config.sft.steps=9",
    "--config.sft.max_consecutive_nonfinite=3",
    "--config.sft.max_grad_norm=1e38",
    "--config.sft.schedule=constant",
  )
  assert main.cli(["vr-jax", *nano.arguments(tmp_path, *flags, mode="sft")]) == 3
  line = capsys.readouterr().err.splitlines()[-1]
  assert line.startswith("vr-jax: sft step ")
  assert "config.sft.max_consecutive_nonfinite=3" in line
  lines = [line["values"] for line in metrics.read(tmp_path / "metrics.jsonl")]
  assert [values["consecutive_nonfinite_updates"] for values in lines[-3:]] == [1, 2, 3]
  assert len(lines) < 9
