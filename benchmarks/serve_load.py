"""Loads a server of `vr-jax serve` with many clients, and says what it lost.

    python -m benchmarks.serve_load --url=http://127.0.0.1:8000 --clients=200 --seconds=600

Without --url it starts a server of its own, of a tiny random policy. Clients ask about videos that
are made for it, each with a seed of its own: some in streams, some hang up before their reply has
come. It reports how many requests were done, refused because the queue was full (429) and lost,
latencies, and the server's memory and slots. It exits with 1 if a request was lost, if a reply
differed from the first one to the same question and seed, or if slots stay taken at the end.
"""

from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import json
import os
from pathlib import Path
import random
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any
import urllib.request

from absl import flags
import numpy as np

_SETTLE = 120.0  # seconds for the last replies, and for slots of clients that hung up
_HANG_UP = 0.1  # of the requests
_SEEDS = 8


@dataclasses.dataclass
class LoadTally:
  """What became of requests. latencies: of those that were done, seconds."""

  done: int = 0
  refused: int = 0
  hung_up: int = 0
  lost: list[str] = dataclasses.field(default_factory=list)
  changed: int = 0
  latencies: list[float] = dataclasses.field(default_factory=list)
  replies: dict[tuple[int, int], str] = dataclasses.field(default_factory=dict)
  lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)


def main(argv: Sequence[str]) -> int:
  """Runs the load, prints a report of one JSON object, and returns the exit code."""
  values = flags.FlagValues()
  flags.DEFINE_string("url", "", "Of a server on this machine.", flag_values=values)
  flags.DEFINE_integer("pid", 0, "Of that server, to read its memory.", flag_values=values)
  flags.DEFINE_string("videos", "", "Below its --allowed_root, with --url.", flag_values=values)
  flags.DEFINE_integer("clients", 200, "At the same time.", flag_values=values)
  flags.DEFINE_float("seconds", 600.0, "Of load.", flag_values=values)
  values(list(argv))
  with contextlib.ExitStack() as stack:
    if values.url:
      videos = sorted(Path(values.videos).glob("*.mp4"))
      url, pid = values.url, values.pid
    else:
      folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
      videos, url, pid = stack.enter_context(tiny_server(folder))
    report = load(url, videos, clients=values.clients, seconds=values.seconds, pid=pid)
  print(json.dumps(report, indent=1))
  return int(bool(report["lost"] or report["changed"] or report["taken_slots"]))


def load(
  url: str, videos: Sequence[Path], *, clients: int, seconds: float, pid: int = 0
) -> dict[str, Any]:
  """Asks for `seconds`, waits for what is under way, and returns the report.

  pid: of the server, to read its memory; 0: unknown.
  """
  import openai

  # The first request compiles; that is no part of the load.
  with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
    _ask(client, videos[0], 0, stream=True, leave=None)
  tally, end, memory = LoadTally(), time.monotonic() + seconds, [_memory(pid)]
  threads = [
    threading.Thread(target=_client, args=(url, videos, number, end, tally), daemon=True)
    for number in range(clients)
  ]
  for thread in threads:
    thread.start()
  time.sleep(seconds / 2)
  memory.append(_memory(pid))
  for thread in threads:
    thread.join(max(0.0, end - time.monotonic()) + _SETTLE)
    if thread.is_alive():
      tally.lost.append("no reply and no error")
  memory.append(_memory(pid))
  health = _settled(url)
  percentiles = np.percentile(tally.latencies or [0.0], [50, 90, 99, 100])
  return {
    "clients": clients,
    "seconds": seconds,
    "done": tally.done,
    "per_second": round(tally.done / seconds, 2),
    "refused": tally.refused,
    "hung_up": tally.hung_up,
    "lost": len(tally.lost),
    "first_losses": tally.lost[:5],
    "changed": tally.changed,
    "latency_seconds": dict(zip(("p50", "p90", "p99", "max"), percentiles.round(3), strict=True)),
    "memory_mib": dict(zip(("start", "middle", "end"), memory, strict=True)),
    "taken_slots": health["running"] + health["waiting"],
    "cancelled": health["cancelled"],
  }


def _client(url: str, videos: Sequence[Path], number: int, end: float, tally: LoadTally) -> None:
  """Asks one question after the other until the time is over."""
  import openai

  rng = random.Random(number)
  client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=600.0)
  while time.monotonic() < end:
    video, seed = rng.randrange(len(videos)), rng.randrange(_SEEDS)
    begun = time.monotonic()
    try:
      reply = _ask(client, videos[video], seed, stream=rng.random() < 0.5, leave=rng)
    except openai.RateLimitError:
      with tally.lock:
        tally.refused += 1
      time.sleep(rng.uniform(0.1, 0.5))
      continue
    except Exception as error:
      with tally.lock:
        tally.lost.append(f"{type(error).__name__}: {error}"[:200])
      continue
    with tally.lock:
      if reply is None:
        tally.hung_up += 1
        continue
      tally.done += 1
      tally.latencies.append(time.monotonic() - begun)
      tally.changed += tally.replies.setdefault((video, seed), reply) != reply


def _ask(
  client: Any, video: Path, seed: int, *, stream: bool, leave: random.Random | None
) -> str | None:
  """The reply to a question; None if the client hung up. leave: decides that; None: it waits."""
  import openai

  content = [
    {"type": "video_url", "video_url": {"url": video.as_uri()}},
    {"type": "text", "text": "What happens?"},
  ]
  messages = [{"role": "user", "content": content}]
  model = client.models.list().data[0].id
  fields: dict[str, Any] = {"model": model, "messages": messages, "seed": seed, "temperature": 1.0}
  hangs_up = leave is not None and leave.random() < _HANG_UP
  if not stream:
    try:
      patience = leave.uniform(0.05, 1.0) if leave and hangs_up else openai.NOT_GIVEN
      return client.chat.completions.create(**fields, timeout=patience).choices[0].message.content
    except openai.APITimeoutError:
      if hangs_up:
        return None
      raise
  pieces = []
  with client.chat.completions.create(**fields, stream=True) as events:
    for event in events:
      pieces.append(event.choices[0].delta.content or "")
      if hangs_up:
        return None
  return "".join(pieces)


def _settled(url: str) -> dict[str, Any]:
  """The server's health once its slots are free, or after a while."""
  end = time.monotonic() + _SETTLE
  while True:
    with urllib.request.urlopen(f"{url}/health", timeout=60) as answer:
      health = json.loads(answer.read())
    if not health["running"] + health["waiting"] or time.monotonic() > end:
      return health
    time.sleep(0.2)


def _memory(pid: int) -> int | None:
  """What a process has in memory, MiB."""
  try:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
  except OSError:
    return None
  return pages * os.sysconf("SC_PAGE_SIZE") >> 20


@contextlib.contextmanager
def tiny_server(folder: Path) -> Iterator[tuple[list[Path], str, int]]:
  """A server of a random policy in a process of its own; yields videos, its address and its pid."""
  from vr_jax import recipe_config
  from vr_jax.train import data_stage, initialization, run_context
  from vr_jax.train import workdir as workdir_lib

  config = recipe_config.load("moss_chatv:tiny")
  config.data.simulate.videos = 12
  run = folder / "tiny"
  workdir_lib.claim(run, config, "sft")
  data_stage.prepare(config, run)
  context = run_context.make_run_context(config, run, judged=False)
  store = initialization.open_checkpoints(context, run / "checkpoints" / "sft")
  store.save(
    1, {"params": initialization.fresh_params(context)}, {"recent": [], "validation": [1.0, 0]}
  )
  store.close()
  videos = sorted((run / "data" / "simulated" / "videos").rglob("*.mp4"))
  words = ["serve", f"--checkpoint={run}", f"--allowed_root={run / 'data'}", "--port=0"]
  process = subprocess.Popen(
    [sys.executable, "-m", "vr_jax.main", *words], stdout=subprocess.PIPE, text=True
  )
  try:
    assert process.stdout
    line = process.stdout.readline()
    if " at http://" not in line:
      raise RuntimeError(f"the server did not start: {line!r}")
    yield videos, line.split(" at ")[1].strip().removesuffix("/v1"), process.pid
  finally:
    process.terminate()
    process.wait(30)


if __name__ == "__main__":
  sys.exit(main(sys.argv))
