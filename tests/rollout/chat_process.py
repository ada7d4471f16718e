"""One of several processes that play episodes of `chat.Chat` and draw replies together.

python -m tests.rollout.chat_process <coordinator> <processes> <index> <file>.npz <axis> <layout> \
  [<fails>]

coordinator: host:port.
axis: the mesh axis of all devices. Only data and fsdp split prompts; there are as many as devices.
layout: of decoding.
fails: the process that can't make an observation.
"""

from concurrent import futures
import sys
from typing import Any

import jax
import numpy as np

from vr_jax.parallel import mesh as mesh_lib
from vr_jax.rollout import multi_turn_sampler, sampler


def main() -> None:
  """Writes what the rows of this process are."""
  coordinator, processes, index = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
  jax.distributed.initialize(coordinator, processes, index)
  from tests.rollout import chat  # it computes

  axis, decode_layout = sys.argv[5:7]
  fails = [int(process) for process in sys.argv[7:]]
  mesh = mesh_lib.make_mesh([-1 if name == axis else 1 for name in mesh_lib.AXES])
  graphdef, params = chat.network(mesh, decode_layout)
  share, shares = mesh_lib.process_shard(mesh)
  prompts = jax.device_count() // shares
  own = slice(share * prompts, (share + 1) * prompts)
  prompt = mesh_lib.put_batch(chat.batch(chat.opening(jax.device_count())[own]), mesh)
  with futures.ThreadPoolExecutor(2) as threads:
    played = multi_turn_sampler.play(
      graphdef,
      params,
      prompt,
      chat.ALLOWED,
      jax.random.key(3),
      chat.Chat(first=own.start, slow=0.02 * index, fails=index in fails),
      decoding=chat.decoding(),
      schedule=chat.SCHEDULE,
      threads=threads,
    )
  rollout = played.rollout
  arrays = {name: getattr(rollout, name) for name in ("tokens", "kind", "turn", "log_probs")}
  arrays |= {
    name: getattr(rollout.episode_inputs, name) for name in ("positions", "media_index", "media")
  }
  arguments = (graphdef, params, prompt, chat.ALLOWED, jax.random.key(7))
  arrays["replies"] = sampler.sample(*arguments, decoding=chat.decoding()).tokens
  local: dict[str, Any] = {name: mesh_lib.local_rows(x) for name, x in arrays.items()}
  np.savez(sys.argv[4], **local)


if __name__ == "__main__":
  main()
