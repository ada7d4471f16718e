"""The TRL side of comparisons: its GRPO trainer with a recipe's model, clips and settings."""

from collections.abc import Callable, Iterator, Mapping
import itertools
from pathlib import Path
import time
from typing import Any

import datasets
import jax
import numpy as np
from PIL import Image
import transformers
import trl

from benchmarks import torch_side
from vr_jax.models import qwen2_5_vl
from vr_jax.train import batching, initialization, run_context

# The turns of Qwen2.5-VL without a system's, as the recipe has them.
TEMPLATE = """\
{%- for turn in messages -%}
<|im_start|>{{ turn.role + '\n' }}
{%- for part in turn.content -%}
{%- if part.type == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>
{%- else -%}{{ part.text }}
{%- endif -%}
{%- endfor -%}
<|im_end|>{{ '\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}<|im_start|>{{ 'assistant\n' }}{%- endif -%}
"""


class Trainer:
  """Trains on the first clips of the recipe, again and again, without logs or checkpoints.

  All replies are generated at once.
  accumulated: gradient accumulation steps of an update.
  """

  def __init__(
    self,
    context: run_context.RunContext,
    directory: Path,
    reward: Callable[[str], float],
    *,
    accumulated: int = 1,
  ):
    self._accumulated = accumulated
    qwen2_5_vl.save_pretrained(
      initialization.fresh_params(context), directory / "model", config=context.model
    )
    self.counts: list[int] = []  # tokens that each step sampled
    self.prompt_tokens = 0
    self._reward, self._context, self._directory = reward, context, directory

  def in_turn(
    self, name: str, others: Mapping[str, Callable[[], object]], *, repeats: int
  ) -> dict[str, list[float]]:
    """Seconds of each side, as from `measure.in_turn`.

    name: of this side.
    others: sides that run at the end of each of its steps.
    """
    turns, clips, processor = _Turns(name, others), _clips(self._context), _processor(self._context)
    self.prompt_tokens = _longest(clips, processor, _media_tokens(self._context))
    trainer = trl.GRPOTrainer(
      model=torch_side.load(self._directory / "model"),
      reward_funcs=[self._rewards],
      args=_arguments(self._context, self._directory / "run", repeats + 1, self._accumulated),
      train_dataset=clips,
      processing_class=processor,
      callbacks=[turns],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    return {name: seconds[1:] for name, seconds in turns.rounds.items()}

  def _rewards(
    self,
    completions: list[list[dict[str, str]]],
    completion_ids: list[list[int]],
    **_: Any,
  ) -> list[float]:
    self.counts.append(sum(map(len, completion_ids)))
    return [self._reward(turns[0]["content"]) for turns in completions]


class _Turns(transformers.TrainerCallback):
  """Times each step of a trainer, from the end of the last one, and other sides between steps."""

  def __init__(self, name: str, others: Mapping[str, Callable[[], object]]):
    self._name, self._others, self._begun = name, others, 0.0
    self.rounds: dict[str, list[float]] = {side: [] for side in (name, *others)}

  def on_train_begin(self, *_: Any, **__: Any) -> None:
    """Starts the clock of the first step."""
    self._begun = time.perf_counter()

  def on_step_end(self, *_: Any, **__: Any) -> None:
    """Records a step, runs the other sides, and starts the clock again."""
    self._lap(self._name)
    for name, side in self._others.items():
      jax.block_until_ready(side())
      self._lap(name)

  def _lap(self, name: str) -> None:
    now = time.perf_counter()
    self.rounds[name].append(now - self._begun)
    self._begun = now


def _arguments(
  context: run_context.RunContext, directory: Path, steps: int, accumulated: int
) -> trl.GRPOConfig:
  """The recipe's settings; all others are the trainer's fastest."""
  rl = context.config.rl
  forbidden = np.flatnonzero(~np.asarray(context.allowed_tokens)).tolist()
  return trl.GRPOConfig(
    output_dir=str(directory),
    max_steps=steps,
    per_device_train_batch_size=rl.batch_size * rl.num_generations // accumulated,
    gradient_accumulation_steps=accumulated,
    num_generations=rl.num_generations,
    max_completion_length=rl.max_new_tokens,
    generation_kwargs={"suppress_tokens": forbidden},
    temperature=rl.temperature,
    top_p=rl.top_p,
    learning_rate=rl.learning_rate,
    lr_scheduler_type="constant",
    adam_beta1=rl.b1,
    adam_beta2=rl.b2,
    weight_decay=rl.weight_decay,
    max_grad_norm=rl.max_grad_norm,
    loss_type="grpo",
    epsilon=rl.clip_epsilon_low,
    epsilon_high=rl.clip_epsilon_high,
    beta=rl.kl_weight,
    bf16=False,
    gradient_checkpointing=False,
    pad_to_multiple_of=None,
    use_cpu=True,
    save_strategy="no",
    logging_strategy="no",
    report_to="none",
    disable_tqdm=True,
  )


def _clips(context: run_context.RunContext) -> datasets.Dataset:
  """Questions with resized images in memory: the first frame of each temporal patch of a clip."""
  items = _first_items(context, 2 * context.config.rl.batch_size)
  images = [_images(item, context) for item in items]
  questions = [context.environment.question(item.example) for item in items]

  def rows(batch: dict[str, list[int]]) -> dict[str, list[Any]]:
    chosen = batch["row"]
    prompts = [[{"role": "user", "content": questions[row]}] for row in chosen]
    return {"prompt": prompts, "images": [images[row] for row in chosen]}

  return datasets.Dataset.from_dict({"row": range(len(items))}).with_transform(rows)


def _images(item: batching.BatchItem, context: run_context.RunContext) -> list[Image.Image]:
  vision, grid = context.model.vision, item.encoded.grids[0]
  size = (grid.width * vision.patch_size, grid.height * vision.patch_size)
  frames = item.clip.frames[:: vision.temporal_patch_size]
  return [Image.fromarray(np.asarray(frame)).resize(size) for frame in frames]


def _media_tokens(context: run_context.RunContext) -> int:
  """Media tokens of the recipe's first prompt; all clips have the same size."""
  tokens = _first_items(context, 1)[0].encoded.tokens
  return int((tokens == context.model.video_token_id).sum())


def _longest(clips: datasets.Dataset, processor: transformers.ProcessorMixin, media: int) -> int:
  """Tokens of the longest prompt.

  Raises ValueError where a prompt has another number of media tokens.
  """
  turns = [trl.prepare_multimodal_messages(clip["prompt"], images=clip["images"]) for clip in clips]
  made = processor.apply_chat_template(
    turns, add_generation_prompt=True, tokenize=True, return_dict=True
  )
  found = {ids.count(processor.image_token_id) for ids in made["input_ids"]}
  if found != {media}:
    raise ValueError(f"trl: prompts have {sorted(found)} media tokens, not {media}")
  return max(map(len, made["input_ids"]))


def _first_items(context: run_context.RunContext, count: int) -> list[batching.BatchItem]:
  batches: Iterator[batching.Batch] = context.builder.read("train", context.config.rl.batch_size)
  items = itertools.chain.from_iterable(batch.items for batch in batches)
  return list(itertools.islice(items, count))


class _ImageProcessor(transformers.Qwen2_5_VLProcessor):
  """The model's processor without videos, which need torchvision."""

  def __init__(self, image_processor: Any = None, tokenizer: Any = None, **named: Any):
    super().__init__(image_processor, tokenizer, **named)


def _processor(context: run_context.RunContext) -> transformers.ProcessorMixin:
  """A processor with the recipe's tokenizer, which does not resize images."""
  tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=context.processor.tokenizer,
    eos_token="<|im_end|>",
    pad_token="<|endoftext|>",
    padding_side="left",
  )
  images = transformers.Qwen2VLImageProcessorPil(do_resize=False)
  return _ImageProcessor(images, tokenizer, chat_template=TEMPLATE)
