"""Times one GRPO update of a group with a shared prompt, against a replicated prompt and PyTorch.

    python -m benchmarks.group_update [--family=qwen3_vl|tinyllava]

One prompt of 1,024 video tokens, 8 replies of 128 tokens, float32 (bfloat16 on an accelerator):
log-probs, loss, gradients of all parameters, vision tower included, clipping and AdamW. Three
sides, on the same weights, pixels and tokens:

- ours: `train.train_step.make_rl_step`, the step of every recipe, in the group layout
- replicated: the same step, each reply a group of its own with a copy of the prompt
- torch: transformers' Qwen2.5-VL (sdpa attention), each reply a row with a copy of the prompt,
  logits of the reply alone, as in TRL. It computes no entropy, which ours does.

Before timing, their losses and all gradients are compared. Peak memory is the amount that XLA's
compiler assigns to the step, arguments included. The line also has the growth of a fresh process in
which only one side runs, twice (`python -m benchmarks.group_update ours` alone does that). Prints
one JSON line.
"""

from collections.abc import Sequence
import dataclasses
import functools
import json
from pathlib import Path
import subprocess
import sys
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree
import ml_collections
import optax

from benchmarks import measure, workload
from vr_jax import main as vr_jax
from vr_jax import records
from vr_jax.models.common import flops
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.train import train_state as train_state_lib
from vr_jax.train import train_step

REPEATS = 7
TOLERANCES = {
  "float32": {"loss": 1e-5, "gradients": 2e-5},
  "bfloat16": {
    "loss": 0.01,
    "gradients": 0.4,
  },  # some gradients are small differences of large numbers
}
GOALS = {"over_replicated": 3.5, "over_torch": 4.0, "memory_over_replicated": 0.4}
SIDES = ("ours", "replicated", "torch")


def settings() -> ml_collections.ConfigDict:
  """The section `rl` of the tiny recipe: GRPO, one update a batch, no KL, no micro-batches."""
  recipe = ["--config=configs/moss_chatv.py:tiny", "--config.rl.microbatches=1"]
  argv = ["group_update", "--workdir=.", *recipe]
  return vr_jax.parse_flags(argv)[0].rl


def advantages_of(sizes: workload.WorkloadSizes) -> Array:
  """Advantages that alternate between good and bad replies, equal for all tokens of a reply."""
  value = jnp.where(jnp.arange(sizes.group) % 2 == 0, 1.0, -1.0) * (1 + jnp.arange(sizes.group))
  return jnp.broadcast_to(value[:, None] / sizes.group, (sizes.prompts, sizes.group, sizes.time))


class GroupUpdate:
  """One of our sides: the recipe's update on a batch, with its state."""

  def __init__(self, work: workload.Work, rollout: records.Rollout, *, replicate: bool):
    rl, advantages = settings(), advantages_of(work.sizes)
    prompt = work.prompt
    if replicate:
      prompt = workload.replicated_prompt(prompt, work.sizes.group)
      rollout, advantages = workload.replicated_rows((rollout, advantages))
    group_mask = jnp.ones(prompt.tokens.shape[0], bool)
    self._batch = (prompt, rollout, advantages, group_mask, None, None)
    optimizer = optax.chain(_keep_gradients(), train_state_lib.make_optimizer(rl, work.params, ()))
    params = jax.tree.map(jnp.copy, work.params)
    self._state = train_state_lib.create(params, optimizer, mesh_lib.make_mesh((-1, 1, 1, 1)))
    self._step = train_step.make_rl_step(work.graphdef, optimizer, work.allowed_tokens, rl)

  def __call__(self) -> Array:
    """Runs one update."""
    self._state, metrics = self._step(self._state, *self._batch)
    return metrics["loss"]

  def loss_and_gradients(self) -> tuple[Array, PyTree]:
    """Loss and gradients of one update.

    Zeros for biases of SigLIP's keys, whose gradients are rounding alone: all keys moved alike
    leave a softmax as it was.
    """
    loss = self()
    return loss, jax.tree_util.tree_map_with_path(
      lambda path, x: x * ("['blocks']['key_bias']" not in jax.tree_util.keystr(path)),
      self._state.optimizer_state[0],
    )

  def peak_megabytes(self) -> float:
    """Megabytes that the compiler assigns to the step: arguments, results and temporaries."""
    stats = self._step.lower(self._state, *self._batch).compile().memory_analysis()
    kept = stats.argument_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes
    return round((kept + stats.temp_size_in_bytes) / 1e6, 1)


def _keep_gradients() -> optax.GradientTransformation:
  """A transformation that keeps the gradients in its state, so that they can be compared."""
  return optax.GradientTransformation(
    lambda params: jax.tree.map(jnp.zeros_like, params), lambda gradients, *_: (gradients,) * 2
  )


def scored_replies(work: workload.Work) -> records.Rollout:
  """Replies with the log-probs that the model itself gives them, as its sampler would."""
  rollout = workload.replies(work)
  score = train_step.make_logprob_fn(work.graphdef, work.allowed_tokens, temperature=1.0)
  log_probs = score(work.params, work.prompt, rollout)
  return records.Rollout(**{**vars(rollout), "log_probs": log_probs})


def torch_update(work: workload.Work, rollout: records.Rollout, directory: Path) -> Any:
  """The PyTorch side; PyTorch is imported only here."""
  from benchmarks import torch_side

  work.save(directory)
  rl = settings()
  return torch_side.TorchUpdate(
    torch_side.load(directory),
    torch_side.inputs(work, rollout.tokens),
    advantages_of(work.sizes),
    optimizer={"lr": rl.learning_rate, "betas": (rl.b1, rl.b2), "weight_decay": rl.weight_decay},
    gradient_norm=rl.max_grad_norm,
    clip=(rl.clip_epsilon_low, rl.clip_epsilon_high),
    forbidden=work.forbidden,
  )


def check(sides: dict[str, Any], work: workload.Work) -> dict[str, float]:
  """Largest differences of losses and gradients of the first update, all sides against ours.

  Raises ValueError where they exceed the tolerance.
  """
  loss, gradients = sides["ours"].loss_and_gradients()
  tolerance, found = TOLERANCES[work.config.dtype], {}
  for name in [name for name in sides if name != "ours"]:
    their_loss, theirs = sides[name].loss_and_gradients()
    mine = gradients
    if name == "torch":
      from benchmarks import torch_side

      mine = torch_side.by_name(gradients, work.config)
    for what, our, their in (("loss", loss, their_loss), ("gradients", mine, theirs)):
      found[f"{what}_{name}"] = measure.check_same(f"{what}, {name}", our, their, tolerance[what])
  return found


def compare(
  sizes: workload.WorkloadSizes, *, names: Sequence[str] = SIDES, repeats: int = REPEATS
) -> dict[str, Any]:
  """All measurements in this process."""
  work = workload.make(sizes)
  rollout = scored_replies(work)
  with tempfile.TemporaryDirectory() as directory:
    make = {
      "ours": functools.partial(GroupUpdate, work, rollout, replicate=False),
      "replicated": functools.partial(GroupUpdate, work, rollout, replicate=True),
      "torch": functools.partial(torch_update, work, rollout, Path(directory) / "model"),
    }
    sides = {name: make[name]() for name in names}
    differences = check(sides, work)
    rounds = measure.in_turn(sides, repeats=repeats)
  memory = {name: sides[name].peak_megabytes() for name in names if name != "torch"}
  ratios = {f"over_{n}": measure.ratio(rounds, n, "ours") for n in names if n != "ours"}
  if "replicated" in names:
    ratios["memory_over_replicated"] = round(memory["ours"] / memory["replicated"], 3)
  return {
    "seconds": measure.medians(rounds),
    "ratio": ratios,
    "model_gigaflops": model_gigaflops(sizes),
    "compiled_megabytes": memory,
    "differences": differences,
    "dtype": work.config.dtype,
    "tolerance": TOLERANCES[work.config.dtype],
  }


def model_gigaflops(sizes: workload.WorkloadSizes) -> dict[str, float]:
  """10^9 FLOPs of one update, by side. Their ratio is the gain if all FLOPs take equally long."""
  replicated = dataclasses.replace(sizes, prompts=sizes.prompts * sizes.group, group=1)
  return {
    side: round(
      each.prompts * flops.training(workload.forward_flops(each), vision_frozen=False) / 1e9, 1
    )
    for side, each in (("ours", sizes), ("replicated", replicated))
  }


def grown_megabytes(side: str, sizes: workload.WorkloadSizes) -> dict[str, float]:
  """Growth of this process when one side runs twice; call it in a fresh process."""
  work = workload.make(sizes)
  rollout = workload.replies(work)
  before = measure.peak_bytes()
  with tempfile.TemporaryDirectory() as directory:
    if side == "torch":
      update = torch_update(work, rollout, Path(directory) / "model")
    else:
      update = GroupUpdate(work, rollout, replicate=side == "replicated")
    for _ in range(2):
      jax.block_until_ready(update())
  after = measure.peak_bytes()
  return {"before": round(before / 1e6, 1), "peak": round(after / 1e6, 1)}


def main(argv: Sequence[str]) -> None:
  """Runs the comparison and prints its line."""
  words = [word for word in argv if not word.startswith("--")]
  flags = [word for word in argv if word.startswith("--")]
  sizes, names = workload.of_family(workload.ISSUE, flags, SIDES)
  if words:
    print(json.dumps(grown_megabytes(words[0], sizes)))
    return
  about = measure.About("torch", "transformers")
  result = compare(sizes, names=names)
  command = [sys.executable, "-m", "benchmarks.group_update", *flags]
  processes = {
    side: json.loads(subprocess.run([*command, side], check=True, capture_output=True).stdout)
    for side in names
  }
  found = {"benchmark": "group_update", **result, "process_megabytes": processes, "goal": GOALS}
  print(json.dumps({**found, **about.fields()}))


if __name__ == "__main__":
  main(sys.argv[1:])
