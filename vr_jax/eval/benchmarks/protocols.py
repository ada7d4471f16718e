"""Protocols: how a benchmark is asked and scored, as one name such as "mvbench@official".

One benchmark's name covers several protocols whose scores differ by several points: MVBench with
its clips or without, VSI-Bench's mean of eight tasks or of two kinds. So a score is stored with its
protocol's name.

    official     as its authors, or the harness that they maintain, ask and score it
    unclipped    mvbench: the same, but with the whole video
    subtitles    the same, with the subtitles that are spoken at the times of the frames
    mc           mmvu: multiple choice alone, no judge, by our strict rule
    disable_llm  tempcompass: what the rules can't read is wrong, also where there is a judge
    guessing     longvideobench: a reply without a letter scores as a random option
    lmms_eval    mvbench: as lmms-eval asks and scores it
    video_r1, easy_video_r1
                 as these projects evaluate it
    recipe       as the policy's own recipe asks, with our strict rule
    expressions  ref_davis17: each expression alone, as VISA scores it

Denominators are fixed in all of them (`scored_reply`), also where the public program's is not.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import difflib

from vr_jax.data import benchmark_item
from vr_jax.errors import InputError
from vr_jax.eval.benchmarks import frame_choice, prompts, protocol_table, scored_reply

_OFTEN_SHORTENED = {"vsi": "vsi_bench", "videomme": "video_mme", "videommmu": "video_mmmu"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
  """How a benchmark is asked and scored.

  name, benchmark: the latter is `Item.benchmark`.
  prompt: the texts beside the video; None: as the policy's recipe asks.
  frames, pixels, decoding: None: as the policy's recipe has them.
  rule: name in `answer_rules.RULES`, for questions that need no judge; MASKS where none reads
    replies (`finds_masks`).
  metric: name in `aggregation.METRICS`.
  uses_clip: whether only the item's clip is shown, if it has one.
  uses_subtitles: whether the subtitles at the times of the frames are shown.
  interleaves: whether frames are pictures, with the subtitles between them, and not a video with
    the subtitles in the text of `render`.
  kinds: which questions are asked, by `Item.scorer`; (): all.
  merges_objects: of masks: whether all objects that an annotator describes are scored together.
  judge: the model that judges in published scores; "": none.
  judge_reads: which answers a judge reads, if there is one; `judged_answers.asks_judge`.
  counted: statuses whose scores count. Public programs score what they find in a reply that was
    cut off; by our rule it is wrong.
  source: where all of this is defined, and what we chose where it isn't.
  """

  name: str
  benchmark: str
  prompt: prompts.PromptFunction | None
  frames: frame_choice.FrameChoice | None
  pixels: protocol_table.PixelLimits | None
  decoding: protocol_table.DecodingSettings | None
  rule: str
  metric: str
  uses_clip: bool = True
  uses_subtitles: bool = False
  interleaves: bool = False
  kinds: tuple[benchmark_item.Scorer, ...] = ()
  merges_objects: bool = False
  judge: str = ""
  judge_reads: protocol_table.JudgeReads = "open"
  counted: tuple[scored_reply.Status, ...] = ("answered",)
  source: str

  @property
  def finds_masks(self) -> bool:
    """Whether what a reply boxes is followed through the video, and its masks are the answer."""
    return self.rule == protocol_table.MASKS

  def asks(self, item: benchmark_item.Item) -> bool:
    """Whether the item is one of this protocol's questions."""
    return item.benchmark == self.benchmark and (not self.kinds or item.scorer in self.kinds)

  def render(
    self, item: benchmark_item.Item, subtitles: Sequence[str] = ()
  ) -> prompts.BenchmarkPrompt:
    """The texts that an item is asked with.

    subtitles: the lines at the times of the frames, where `uses_subtitles`, and not `interleaves`.

    Raises InputError if the item isn't asked, the recipe renders it, or no line belongs there.
    """
    if not self.asks(item):
      raise InputError(f"{item.id}: not a question of {self.name}")
    if self.prompt is None:
      raise InputError(f"{self.name}: has no text of its own; the policy's environment asks")
    if subtitles and (self.interleaves or not self.uses_subtitles):
      raise InputError(f"{self.name}: shows no subtitles with the question")
    return self.prompt(item, subtitles)


def get(name: str) -> Protocol:
  """The protocol of that name. Raises InputError with near names if there is none."""
  if name in PROTOCOLS:
    return PROTOCOLS[name]
  benchmark, _, kind = name.partition("@")
  likely = f"{_OFTEN_SHORTENED.get(benchmark, benchmark)}@{kind}"
  near = difflib.get_close_matches(likely, PROTOCOLS, n=3, cutoff=0.5) or sorted(PROTOCOLS)
  raise InputError(f"protocol {name!r}: unknown; did you mean {' or '.join(near)}?")


def list_protocols(benchmark: str) -> tuple[Protocol, ...]:
  """All protocols of a benchmark. Raises InputError if there is none."""
  found = tuple(each for each in PROTOCOLS.values() if each.benchmark == benchmark)
  if not found:
    known = ", ".join(dict.fromkeys(each.benchmark for each in PROTOCOLS.values()))
    raise InputError(f"benchmark {benchmark!r}: has no protocol; one of {known}")
  return found


def _protocol(name: str, **fields) -> Protocol:
  return Protocol(name=name, benchmark=name.partition("@")[0], **fields)


def _all() -> Mapping[str, Protocol]:
  rows = {**protocol_table.OFFICIAL, **protocol_table.VIDEO_R1, **protocol_table.EASY_VIDEO_R1}
  rows |= {**protocol_table.RECIPE, **protocol_table.OF_MASKS}
  return {name: _protocol(name, **fields) for name, fields in rows.items()}


PROTOCOLS: Mapping[str, Protocol] = _all()
