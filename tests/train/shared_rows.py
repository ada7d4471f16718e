"""`python -m tests.train.shared_rows …`: vr_jax.main for VideoP2R, whose judge is always asked.

Replies of an untrained network have no observation, so each is given one, which differs from all
others. And each process notes what it does, in <workdir>/noted/<process>.jsonl.
"""

import dataclasses
import json
from pathlib import Path
import sys
from typing import Any
import zlib

import jax

from vr_jax import main
from vr_jax.envs import environment, videop2r
from vr_jax.train import experience

DIRECTORY = "noted"


def watch(note: Any) -> None:
  """Gives replies an observation, and notes what was scored and what was read ahead.

  note: called with the fields of a line.
  """
  score, prefetch = videop2r.VideoP2R.score, experience.Collector.prefetch

  def score_observed(task: Any, examples: Any, replies: environment.Replies) -> Any:
    texts = [
      [
        videop2r.format_reply(f"seen {row} {zlib.crc32(text.encode())} {number}", "So.", "A")
        for number, text in enumerate(group)
      ]
      for row, group in enumerate(replies.texts)
    ]
    note(scored=sum(map(len, texts)))
    return score(
      task,
      examples,
      dataclasses.replace(
        environment.Replies.from_texts(texts, replies.segment), shuffled=replies.shuffled
      ),
    )

  def prefetch_noted(source: Any, params: Any) -> None:
    prefetch(source, params)
    prompt = source.read_ahead[-1].featurized.prompt
    note(ahead=list(prompt.tokens.shape))

  videop2r.VideoP2R.score = score_observed
  experience.Collector.prefetch = prefetch_noted


def read(workdir: Path, name: str) -> dict[int, list[Any]]:
  """What each process has noted under a name."""
  return {
    int(path.stem): [
      line[name] for line in map(json.loads, path.read_text().splitlines()) if name in line
    ]
    for path in sorted((workdir / DIRECTORY).iterdir())
  }


def _note(directory: Path, **fields: Any) -> None:
  directory.mkdir(exist_ok=True, parents=True)
  with (directory / f"{jax.process_index()}.jsonl").open("a") as file:
    print(json.dumps(fields), file=file)


if __name__ == "__main__":
  (place,) = (Path(each.partition("=")[2]) for each in sys.argv if each.startswith("--workdir="))
  watch(lambda **fields: _note(place / DIRECTORY, **fields))
  sys.exit(main.cli())
