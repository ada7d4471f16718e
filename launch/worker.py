"""One process of a launch: joins the others, then is `vr_jax.main`.

python -m launch.worker <coordinator host:port> <processes> <index> <flags of vr_jax.main>
"""

import os
import sys

import jax

from vr_jax import main as vr_jax


def main() -> None:
  """Runs the command line; ends at once where it fails."""
  coordinator, processes, index = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
  jax.distributed.initialize(coordinator, processes, index)
  code = vr_jax.cli(["vr-jax", *sys.argv[4:]])
  if code:
    # A normal exit would wait for the others, who wait for this process.
    sys.stderr.flush()
    sys.stdout.flush()
    os._exit(code)


if __name__ == "__main__":
  main()
