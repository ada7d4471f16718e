"""The table behind `protocols`: prompts, frames, pixels, decoding, rule and metric of each."""

from collections.abc import Mapping
import dataclasses
from typing import Any, Literal

from vr_jax.eval.benchmarks import frame_choice, prompts


@dataclasses.dataclass(frozen=True, kw_only=True)
class PixelLimits:
  """Bounds of the size at which a frame is shown, in pixels.

  total: the most of all frames of a video together; None: no bound.
  """

  least: int
  most: int
  total: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodingSettings:
  """How replies are sampled, see `sampler.Decoding`."""

  max_tokens: int
  temperature: float = 0.0
  top_p: float = 1.0
  top_k: int = 0
  presence_penalty: float = 0.0


# What a judge, if there is one, reads of the answers: what no rule can read; also what the rule did
# not read in this reply; all; or all, extracting the answer first, without knowing the right one.
JudgeReads = Literal["open", "unread", "all", "extracted"]

_TOKEN = 28 * 28  # pixels of a frame that the harnesses count as one token
_HARNESS_PIXELS = PixelLimits(least=256 * _TOKEN, most=1_605_632)
_ENDS_32 = frame_choice.FrameChoice(count=32)
_MIDDLES_16 = frame_choice.FrameChoice(count=16, placement="middles")
_AS_READ = ("answered", "truncated")  # a public program scores what it finds in a part of a reply

_MVBENCH: Mapping[str, Any] = {
  "prompt": prompts.mvbench,
  "frames": _MIDDLES_16,
  "pixels": PixelLimits(least=224 * 224, most=224 * 224),
  "decoding": DecodingSettings(max_tokens=100),
  "rule": "mvbench",
  "metric": "mvbench",
  "counted": _AS_READ,
}
_VIDEO_MME: Mapping[str, Any] = {
  "prompt": prompts.video_mme,
  "frames": _ENDS_32,
  "pixels": _HARNESS_PIXELS,
  "decoding": DecodingSettings(max_tokens=16),
  "rule": "video_mme",
  "metric": "video_mme",
  "counted": _AS_READ,
}
_LONGVIDEOBENCH: Mapping[str, Any] = {
  "prompt": prompts.longvideobench,
  "frames": frame_choice.FrameChoice(count=256, placement="starts"),
  # A picture takes two frames' tokens of a video: all together have room beside 8,000 others.
  "pixels": PixelLimits(least=256 * _TOKEN, most=1_605_632, total=90_000 * _TOKEN),
  "decoding": DecodingSettings(max_tokens=32),
  "metric": "micro",
  "uses_subtitles": True,
  "interleaves": True,
}
_MMVU: Mapping[str, Any] = {
  "prompt": prompts.mmvu,
  "frames": _ENDS_32,
  "pixels": _HARNESS_PIXELS,
  "decoding": DecodingSettings(max_tokens=1024, temperature=1.0),
  "rule": "strict",
  "metric": "micro",
}

_TEMPCOMPASS: Mapping[str, Any] = {
  "prompt": prompts.tempcompass,
  "frames": frame_choice.FrameChoice(count=768, fps=1.0, placement="rounded"),
  "pixels": PixelLimits(least=128 * _TOKEN, most=720 * 720),
  "decoding": DecodingSettings(max_tokens=128),
  "rule": "tempcompass",
  "metric": "tempcompass",
  "judge": "gpt-3.5-turbo-1106",
  "counted": _AS_READ,
}

OFFICIAL: Mapping[str, Mapping[str, Any]] = {
  "mvbench@official": {
    **_MVBENCH,
    "source": "Ask-Anything, video_chat2/mvbench.ipynb: 16 frames of 224 x 224, bounded tasks cut",
  },
  "mvbench@unclipped": {
    **_MVBENCH,
    "uses_clip": False,
    "source": "mvbench@official without start and end, as Video-R1 and EasyVideoR1 show it",
  },
  "mvbench@lmms_eval": {
    **_MVBENCH,
    "prompt": prompts.mvbench_lmms_eval,
    "frames": _ENDS_32,
    "pixels": _HARNESS_PIXELS,
    "decoding": DecodingSettings(max_tokens=16),
    "rule": "lmms_eval_letter",
    "source": "lmms-eval, mvbench: clips cut beforehand",
  },
  "video_mme@official": {
    **_VIDEO_MME,
    "source": "Video-MME, README and its script; frames and decoding, which it leaves open, of "
    "lmms-eval",
  },
  "video_mme@subtitles": {
    **_VIDEO_MME,
    "uses_subtitles": True,
    "source": "the same with the subtitles at the times of the frames",
  },
  "mlvu@official": {
    "prompt": prompts.mlvu,
    "frames": _MIDDLES_16,
    "pixels": PixelLimits(least=224 * 224, most=224 * 224),
    "decoding": DecodingSettings(max_tokens=100),
    "rule": "mlvu",
    "metric": "mlvu",
    "judge": "gpt-4-turbo",
    "counted": _AS_READ,
    "source": "JUNJIE99/MLVU, choice_bench.py, open_bench.py and evaluation/",
  },
  "egoschema@official": {
    "prompt": prompts.egoschema,
    "frames": _ENDS_32,
    "pixels": _HARNESS_PIXELS,
    "decoding": DecodingSettings(max_tokens=16),
    "rule": "strict",
    "metric": "micro",
    "counted": _AS_READ,
    "source": "EgoSchema scores numbers of options; prompt and decoding of lmms-eval, whose parser "
    "draws an option where it reads none, replaced by our rule",
  },
  "longvideobench@official": {
    **_LONGVIDEOBENCH,
    "rule": "longvideobench",
    "counted": _AS_READ,
    "source": "LongVideoBench, longvideobench_dataset.py: frames as pictures, subtitles between "
    "them; each on a line, and decoding, as lmms-eval's task has it, without its random choice. "
    "Pixels of a picture are lmms-eval's, those of all together at most 90,000 tokens",
  },
  "longvideobench@guessing": {
    **_LONGVIDEOBENCH,
    "rule": "longvideobench_guess",
    "counted": (*_AS_READ, "unparsed"),
    "source": "the same; a reply without a letter scores what a random option is expected to",
  },
  "lvbench@official": {
    "prompt": prompts.lvbench,
    "frames": _ENDS_32,
    "pixels": _HARNESS_PIXELS,
    "decoding": DecodingSettings(max_tokens=16),
    "rule": "lvbench",
    "metric": "lvbench",
    "counted": _AS_READ,
    "source": "THUDM/LVBench, lvbench/; prompt, frames and decoding of lmms-eval",
  },
  "tempcompass@official": {
    **_TEMPCOMPASS,
    "judge_reads": "unread",
    "source": "llyx97/TempCompass, eval_*.py: a judge reads what the rules can't; without one that "
    "is wrong, as in tempcompass@disable_llm. Frames of its example script",
  },
  "tempcompass@disable_llm": {
    **_TEMPCOMPASS,
    "source": "the same with --disable_llm: what the rules can't read is wrong. Captions need a "
    "judge in any case",
  },
  "vsi_bench@official": {
    "prompt": prompts.vsi_bench,
    "frames": _ENDS_32,
    "pixels": _HARNESS_PIXELS,
    "decoding": DecodingSettings(max_tokens=16),
    "rule": "vsi_bench",
    "metric": "vsi_bench",
    "counted": _AS_READ,
    "source": "VSI-Bench (arXiv 2412.14171), in lmms-eval, vsibench",
  },
  "video_mmmu@official": {
    "prompt": prompts.video_mmmu,
    "frames": _ENDS_32,
    "pixels": _HARNESS_PIXELS,
    "decoding": DecodingSettings(max_tokens=1024),
    "rule": "video_mmmu",
    "metric": "video_mmmu",
    "counted": _AS_READ,
    "source": "Video-MMMU, in lmms-eval, videommmu; the last frame, the question's, is shown",
  },
  "mmvu@official": {
    **_MMVU,
    "judge": "gpt-4o",
    "judge_reads": "all",
    "counted": _AS_READ,
    "source": "yale-nlp/MMVU, utils/: a judge reads all answers, those of multiple choice, too; "
    "without one, these are read by our rule. Frames of lmms-eval",
  },
  "mmvu@mc": {
    **_MMVU,
    "kinds": ("choice",),
    "source": "the 625 multiple-choice questions of the validation set",
  },
  "vcr_bench@official": {
    "prompt": None,
    "frames": None,
    "pixels": None,
    "decoding": None,
    "rule": "strict",
    "metric": "vcr_bench",
    "judge": "not named",
    "judge_reads": "extracted",
    "counted": _AS_READ,
    "source": "VCR-Bench, eval_code/: a judge extracts each answer; times and boxes are compared "
    "by overlap, letters by rule, others by the judge, who judges the steps, too. Without one, our "
    "rule reads choices, times and boxes. Its prompt of questions isn't published, so the recipe "
    "asks",
  },
}

_VIDEO_R1_COMMON: Mapping[str, Any] = {
  "prompt": prompts.video_r1,
  "frames": frame_choice.FrameChoice(count=16, placement="rounded"),
  "pixels": PixelLimits(least=16 * _TOKEN, most=128 * _TOKEN),
  "decoding": DecodingSettings(max_tokens=1024, temperature=0.1, top_p=0.001),
  "rule": "video_r1",
  "metric": "micro",
  "uses_clip": False,
  "kinds": ("choice",),
  "counted": _AS_READ,
  "source": "Video-R1, src/eval_bench.py as shipped (README: 16 to 64 frames of 256 x 28 x 28 "
  "pixels, temperature 0.01); multiple choice alone, since its records of other formats differ",
}
VIDEO_R1: Mapping[str, Mapping[str, Any]] = {
  **{
    f"{benchmark}@video_r1": _VIDEO_R1_COMMON
    for benchmark in ("mvbench", "video_mme", "mmvu", "tempcompass")
  },
  "video_mmmu@video_r1": {**_VIDEO_R1_COMMON, "metric": "video_mmmu_video_r1"},
  "vsi_bench@video_r1": {
    **_VIDEO_R1_COMMON,
    "metric": "vsi_bench_video_r1",
    "kinds": ("choice", "mra"),
  },
}

_EASY_VIDEO_R1_COMMON: Mapping[str, Any] = {
  "prompt": prompts.easy_video_r1,
  "frames": frame_choice.FrameChoice(count=256, fps=2.0, placement="rounded"),
  "pixels": PixelLimits(least=16 * _TOKEN, most=262_144, total=33_500_000),
  "decoding": DecodingSettings(
    max_tokens=4096, temperature=0.7, top_p=0.8, top_k=20, presence_penalty=1.5
  ),
  "rule": "easy_video_r1",
  "metric": "micro",
  "uses_clip": False,
  "kinds": ("choice",),
  "counted": _AS_READ,
  "source": "cyuQ1n/EasyVideoR1, eval/, for models that reason; it leaves out what failed",
}
EASY_VIDEO_R1: Mapping[str, Mapping[str, Any]] = {
  **{
    f"{benchmark}@easy_video_r1": _EASY_VIDEO_R1_COMMON
    for benchmark in ("mvbench", "video_mme", "mmvu", "mlvu", "lvbench", "longvideobench")
  },
  "vsi_bench@easy_video_r1": {
    **_EASY_VIDEO_R1_COMMON,
    "metric": "vsi_bench_video_r1",
    "kinds": ("choice", "mra"),
  },
}

# A rule's name: none reads a reply. What it boxes is followed, and its masks are scored.
MASKS = "masks"
_MASKS_COMMON: Mapping[str, Any] = {
  "prompt": None,
  "frames": None,
  "pixels": None,
  "decoding": None,
  "rule": MASKS,
  "metric": "masks",
  "counted": _AS_READ,
}
OF_MASKS: Mapping[str, Mapping[str, Any]] = {
  "mevis@official": {
    **_MASKS_COMMON,
    "source": "henghuiding/MeViS: J&F over expressions (valid_u); valid and test by its server. "
    "Here and in all benchmarks of masks the recipe asks, and SAM2 follows the box",
  },
  "ref_youtube_vos@official": {
    **_MASKS_COMMON,
    "source": "Ref-YouTube-VOS: its server scores the masks of every listed frame",
  },
  "ref_davis17@official": {
    **_MASKS_COMMON,
    "merges_objects": True,
    "source": "wjn922/ReferFormer, eval_davis.py: an annotator's objects merged and matched as in "
    "DAVIS's unsupervised task, mean of four annotators",
  },
  "ref_davis17@expressions": {
    **_MASKS_COMMON,
    "source": "cilinyan/VISA: each expression alone, mean over expressions",
  },
  "revos@official": {
    **_MASKS_COMMON,
    "metric": "revos",
    "source": "cilinyan/VISA, tools/eval_revos.py: mean of referring and reasoning expressions; R "
    "counts pixels, visa_R and visa_A as its program does with pixels of 255",
  },
  "reason_vos@official": {
    **_MASKS_COMMON,
    "source": "showlab/VideoLISA, evaluation/reason_vos: J&F over expressions, annotated frames",
  },
}

_METRICS_OF_RECIPES = {
  **{name: "micro" for name in ("egoschema", "longvideobench", "mmvu", "moss_video")},
  **{
    name: name for name in ("mvbench", "video_mme", "mlvu", "lvbench", "tempcompass", "vsi_bench")
  },
  **{name: name for name in ("video_mmmu", "vcr_bench")},
}
RECIPE: Mapping[str, Mapping[str, Any]] = {
  f"{benchmark}@recipe": {
    "prompt": None,
    "frames": None,
    "pixels": None,
    "decoding": None,
    "rule": "strict",
    "metric": metric,
    "source": "the policy's recipe; our strict rule",
  }
  for benchmark, metric in _METRICS_OF_RECIPES.items()
}
