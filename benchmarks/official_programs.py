"""The benchmarks' own programs: where they are, and how they are read for `official_side`.

Imports nothing of vr_jax, nor what the programs import: most load a model and decode videos where
they are imported. So the functions that score, and the loops over questions, become a module of
their own, as they stand.
"""

import ast
from collections.abc import Iterator
import dataclasses
import hashlib
import importlib.util
import json
from pathlib import Path
import re
import sys
import textwrap
from typing import Any


@dataclasses.dataclass(frozen=True)
class OfficialProgram:
  """A file of a repository, and what of it is run.

  repository, commit: where it was read for the record.
  path: of the file in the clone.
  names: of functions and constants.
  rest: whether the statements behind the last of these functions are run, too: the loop over
    questions.
  """

  repository: str
  commit: str
  path: str
  names: tuple[str, ...]
  rest: bool = False


_MLVU, _TEMPCOMPASS = "JUNJIE99/MLVU", "llyx97/TempCompass"
_TEMPCOMPASS_COMMIT = "75361fdd1809dad66bcc3a44f4f1197d838afcb5"
_VIDEO_R1 = ("extract_answer", "normalize_number", "mean_relative_accuracy", "reward_fn")
PROGRAMS = {
  "mvbench": OfficialProgram(
    "OpenGVLab/Ask-Anything",
    "4631cd62923152988c4d850ddcb5227f24231393",
    "video_chat2/mvbench.ipynb",
    ("infer_mvbench", "check_ans"),
    rest=True,
  ),
  "mlvu": OfficialProgram(
    _MLVU,
    "0b16f40f19ecbac56bcd30736bbfa3a020091d8a",
    "videochat2/choice_bench.py",
    ("check_ans",),
    rest=True,
  ),
  "mlvu_sub_scene": OfficialProgram(
    _MLVU,
    "ae66ef9c20880ef5b38f323a8b6f05207d68d7db",
    "generation_evaluation/calculate.py",
    ("extract_scores",),
    rest=True,
  ),
  "mlvu_summary": OfficialProgram(
    _MLVU,
    "ae66ef9c20880ef5b38f323a8b6f05207d68d7db",
    "generation_evaluation/calculate_sum.py",
    ("extract_scores",),
    rest=True,
  ),
  "video_mme": OfficialProgram(
    "deeplearning-LI/parse_answer",  # a fork of thanku-all/parse_answer
    "0379c42c7d633aa1fac4dddf89156d39ee188796",
    "eval_your_results.py",
    (
      *("CATEGORIES", "SUB_CATEGORIES", "TASK_CATEGORIES"),
      *("extract_characters_regex", "eval_your_results"),
    ),
  ),
  "lvbench": OfficialProgram(
    "THUDM/LVBench",
    "1dd4612d63907c2836627c665a7bbccc050df3b8",
    "lvbench/utils/answer_util.py",
    ("polish_answer",),
  ),
  "lvbench_accuracy": OfficialProgram(
    "THUDM/LVBench",
    "dd7d99db5fefe0da59bfe9415a4afb64ed1f4801",
    "lvbench/metrics/compute_accuracy.py",
    ("compute_accuracy",),
  ),
  "tempcompass": OfficialProgram(
    _TEMPCOMPASS, _TEMPCOMPASS_COMMIT, "utils/eval_utils.py", ("print_result",)
  ),
  "tempcompass_multi-choice": OfficialProgram(
    _TEMPCOMPASS, _TEMPCOMPASS_COMMIT, "eval_multi-choice.py", ("main",)
  ),
  "tempcompass_caption_matching": OfficialProgram(
    _TEMPCOMPASS,
    _TEMPCOMPASS_COMMIT,
    "eval_caption_matching.py",
    ("check_ans", "eval_rule", "main"),
  ),
  "tempcompass_yes_no": OfficialProgram(
    _TEMPCOMPASS, _TEMPCOMPASS_COMMIT, "eval_yes_no.py", ("extract_pred", "main")
  ),
  "vsi_bench": OfficialProgram(
    "vision-x-nyu/thinking-in-space",
    "e6a72f397d7abf3608bb51f5edcb74753f87d234",
    "lmms_eval/tasks/vsibench/utils.py",
    (
      *("MCA_QUESTION_TYPES", "NA_QUESTION_TYPES", "METRICS_FOR_MCA", "METRICS_FOR_NA"),
      *("fuzzy_matching", "exact_match", "abs_dist_norm", "mean_relative_accuracy"),
      *("WORST_CASE_FOR_METRICS", "to_float"),
      *("vsibench_process_results", "vsibench_aggregate_results"),
    ),
  ),
  "vcr_bench": OfficialProgram(
    "zhishuifeiqian/VCR-Bench",
    "4e564b77ec3afff0d43da2b539fc288266766147",
    "eval_code/eval.py",
    (
      *("calculate_time_iou", "is_valid_time_interval", "is_valid_space_interval"),
      *("string_to_list", "extract_json_between_backticks", "calculate_recall"),
      *("calculate_space_iou", "calculate_precision", "match_answer", "recall", "precision"),
    ),
  ),
  "vcr_bench_totals": OfficialProgram(
    "zhishuifeiqian/VCR-Bench",
    "5821d784a225895e94ef93d39558c3345aca91fe",
    "eval_code/cau_total.py",
    ("calculate_metrics",),
  ),
  "mmvu": OfficialProgram(
    "yale-nlp/MMVU",
    "f5bc479081726208704965536374833df08ab701",
    "utils/eval_utils.py",
    ("get_acc_async",),
  ),
  "video_r1": OfficialProgram(
    "willisguo14/Video-R1",  # a fork of tulerfeng/Video-R1
    "07ad2db6fd0540615a5b512f48a4e94e6ee400c3",
    "src/eval_bench.py",
    _VIDEO_R1,
  ),
  "easy_video_r1": OfficialProgram(
    "cyuQ1n/EasyVideoR1",
    "65fb76d3261498502f804f6a002776bd004fe177",
    "eval/code/AsyncLLMEngine_eval_videobench_qwen3vl_multi_task.py",
    ("extract_between", "extract_think", *_VIDEO_R1),
  ),
}


@dataclasses.dataclass(frozen=True)
class ProgramCode:
  """What is run of a program, as a module of its own, and a checksum of its text."""

  module: Path
  checksum: str

  def load(self, **given: Any) -> dict[str, Any]:
    """Imports it, and returns what it defines.

    given: what the program has by its imports, and what takes the place of its model and data.
    """
    spec = importlib.util.spec_from_file_location(self.module.stem, self.module)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    vars(module).update(given)
    spec.loader.exec_module(module)
    return vars(module)


def read(file: Path, program: OfficialProgram, module: Path) -> ProgramCode:
  """Writes what is run of a file as a module. Exits with one line if a name isn't there."""
  text = file.read_text()
  if file.suffix == ".ipynb":
    cells = ["".join(c["source"]) for c in json.loads(text)["cells"] if c["cell_type"] == "code"]
    text = re.sub(r"(?m)^[%!].*$", "", "\n".join(cells))
  body = ast.parse(text).body
  chosen = [node for node in _statements(body) if _name(node) in program.names]
  missing = {*program.names} - {_name(node) for node in chosen}
  if missing:
    sys.exit(f"{file}: has no {min(missing)}; check out {program.commit}")
  ends = max(node.end_lineno or 0 for node in chosen)
  rest = [node for node in body if node.lineno > ends] if program.rest else []
  segments = (ast.get_source_segment(text, node, padded=True) or "" for node in [*chosen, *rest])
  lines = [line for each in segments for line in textwrap.dedent(each).splitlines()]
  module.write_text("\n".join(lines) + "\n")
  bare = "\n".join(line.rstrip() for line in lines)
  return ProgramCode(module, hashlib.sha256(bare.encode()).hexdigest()[:16])


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
  """Statements of a file, and those within its loops and branches, but not within definitions."""
  for node in body:
    yield node
    if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
      yield from _statements(getattr(node, "body", []))


def _name(node: ast.stmt) -> str | None:
  if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
    return node.name
  target = node.targets[0] if isinstance(node, ast.Assign) else None
  return target.id if isinstance(target, ast.Name) else None
