"""The command `vr-jax serve`: a trained policy behind OpenAI's chat completions.

    vr-jax serve --checkpoint=runs/mine --allowed_root=videos --port=8000

`--checkpoint`, `--config` and `--before_rl` are those of `vr-jax ask`. Clients name videos below
`--allowed_root` as file:// URLs, or send them as data: URLs. docs/serving.md has the requests.

The server listens on this machine alone. To let others connect, give `--host` an address of this
machine and put a token that clients have to send into the environment variable VR_JAX_SERVE_TOKEN.
"""

from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import os
from pathlib import Path
import socket
import sys
from typing import TYPE_CHECKING

from absl import flags
import ml_collections

from vr_jax import ask, errors
from vr_jax.serve import loopback

if TYPE_CHECKING:
  from jaxtyping import PyTree
  import uvicorn

  from vr_jax.serve import app
  from vr_jax.train import run_context

TOKEN_VARIABLE = "VR_JAX_SERVE_TOKEN"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeArguments:
  """A parsed command line.

  workdir: of the run whose checkpoint answers; None if config.model.pretrained is used.
  name: of the model, for clients; "" for that of the checkpoint's directory.
  allowed_root: below which file:// URLs are read; None: nowhere.
  batch: requests that are decoded together.
  max_tokens: of a reply; 0: as config.rl.max_new_tokens.
  reply: what clients get that don't say it: full, answer, or "" for the recipe's default.
  """

  config: ml_collections.ConfigDict
  workdir: Path | None
  before_rl: bool
  name: str
  host: str
  port: int
  token: str = dataclasses.field(repr=False)
  allowed_root: Path | None
  allow_https: bool
  queue: int
  batch: int
  max_tokens: int
  reply: str
  max_body_megabytes: int


def serve(argv: Sequence[str]) -> None:
  """Answers requests until it is interrupted. argv: ["serve", *flags].

  Raises:
    InputError: a flag is wrong, or the address can't be used; names it.
  """
  arguments = parse(argv)
  # As in main.run: a mistyped flag should not wait until JAX has been imported.
  try:
    import starlette
    import uvicorn
  except ModuleNotFoundError as error:
    raise errors.InputError(
      f"vr-jax serve: needs {error.name}, which the extra serve brings: pip install 'vr_jax[serve]'"
    ) from None
  del starlette
  from vr_jax.train import compilations, config_checks, console, run_context

  config, workdir = arguments.config, arguments.workdir or Path()
  config_checks.check(config)
  run_context.configure_compiler(config)  # before the heartbeat, which starts JAX
  with contextlib.ExitStack() as stack:
    listener = stack.enter_context(contextlib.closing(listen(arguments.host, arguments.port)))
    stack.enter_context(console.heartbeat(stream=sys.stderr))
    context = run_context.make_run_context(config, workdir, judged=False, read=False)
    cache = compilations.use_cache(workdir)
    stack.enter_context(compilations.announced(cache, compilations.network(config)))
    with console.doing("loading the weights", announce=True):
      params, policy = ask.load_policy(context, arguments.workdir, before_rl=arguments.before_rl)
    server = stack.enter_context(running(arguments, context, params))
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    print(f"{policy} · {server.model} at http://{shown}:{port}/v1", flush=True)
    uvicorn.Server(uvicorn_config(server)).run(sockets=[listener])


@contextlib.contextmanager
def running(
  arguments: ServeArguments, context: "run_context.RunContext", params: "PyTree"
) -> Iterator["app.ChatServer"]:
  """Within it, a policy answers the requests that its server gets."""
  from vr_jax.serve import app, engine, media, preparation

  max_tokens = arguments.max_tokens or context.config.rl.max_new_tokens
  check_length(context, max_tokens)
  most_bytes = arguments.max_body_megabytes << 20
  rules = media.MediaRules(
    allowed_root=arguments.allowed_root,
    allow_https=arguments.allow_https,
    max_bytes=most_bytes,
  )
  library = media.MediaLibrary(context.config, rules)
  preparer = preparation.Preparer(context, library, max_tokens=max_tokens, reply=arguments.reply)
  decoder = engine.Engine(context, params, rows=arguments.batch, max_tokens=max_tokens)
  with contextlib.closing(decoder):
    settings = app.AppSettings(
      model=arguments.name,
      token=arguments.token,
      queue=arguments.queue,
      max_body_bytes=most_bytes,
      is_local=arguments.host in loopback.NAMES,
    )
    with contextlib.closing(app.ChatServer(decoder, preparer, settings)) as server:
      yield server


def uvicorn_config(server: "app.ChatServer") -> "uvicorn.Config":
  """How the server is run: without a line for each request, whose URLs may be long."""
  import uvicorn

  return uvicorn.Config(
    server.app,
    lifespan="off",
    log_level="warning",
    access_log=False,
    server_header=False,
    timeout_graceful_shutdown=5,
  )


def listen(host: str, port: int) -> socket.socket:
  """A socket that listens. port: 0 for a free one. Raises InputError if it can't."""
  try:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    listener = socket.socket(found[0], socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(found[4])
    listener.listen(2048)
  except OSError as error:
    raise errors.InputError(
      f"--host={host} --port={port}: can't listen there: {error.strerror or error}; choose another"
    ) from error
  return listener


def check_length(context: "run_context.RunContext", max_tokens: int) -> None:
  """Raises InputError if replies of `max_tokens` don't fit the model's context, or the turns."""
  config, model = context.config, context.model
  if context.environment.turns > 1:
    if max_tokens > config.rl.max_new_tokens:
      raise errors.InputError(
        f"--max_tokens={max_tokens}: the turns of this recipe are sized for replies of "
        f"{config.rl.max_new_tokens} (config.rl.max_new_tokens); leave the flag out"
      )
    return
  prompt = max(config.model.prefix_buckets)
  if prompt + max_tokens > model.max_position_embeddings:
    raise errors.InputError(
      f"--max_tokens={max_tokens}: with prompts of up to {prompt} tokens "
      f"(config.model.prefix_buckets) this passes the model's context of "
      f"{model.max_position_embeddings}"
    )


def parse(argv: Sequence[str]) -> ServeArguments:
  """Parses a command line; raises InputError naming the word or flag at fault."""
  values = flags.FlagValues()

  def whole(name: str, default: int, about: str, least: int, most: int = 2**31) -> None:
    flags.DEFINE_integer(
      name, default, about, lower_bound=least, upper_bound=most, flag_values=values
    )

  flags.DEFINE_string("checkpoint", None, "Workdir of a run, or a directory.", flag_values=values)
  flags.DEFINE_boolean("before_rl", False, "Serve the policy before RL.", flag_values=values)
  flags.DEFINE_string("name", "", "Of the model, for clients.", flag_values=values)
  flags.DEFINE_string("host", "127.0.0.1", "Address to listen at.", flag_values=values)
  whole("port", 8000, "To listen at; 0: a free one.", 0, 65535)
  flags.DEFINE_string("allowed_root", None, "Where file:// is read.", flag_values=values)
  flags.DEFINE_boolean("allow_https", False, "Fetch https:// URLs.", flag_values=values)
  whole("queue", 256, "Most requests that wait.", 1)
  whole("batch", 8, "Requests that are decoded together.", 1, 1024)
  whole("max_tokens", 0, "Most tokens of a reply; 0: config.rl.max_new_tokens.", 0)
  choices = ["", "full", "answer"]
  flags.DEFINE_enum("reply", "", choices, "The default of `reply`.", flag_values=values)
  whole("max_body_megabytes", 256, "Of a request, and of a download.", 1, 65536)
  rest, overrides = ask.read_words("serve", values, argv, help_text=__doc__)
  if rest:
    raise errors.InputError(
      f"{rest[0]}: what is it? vr-jax serve --checkpoint=runs/mine --allowed_root=videos"
    )
  token = os.environ.get(TOKEN_VARIABLE, "")
  if values.host not in loopback.NAMES and not token:
    raise errors.InputError(
      f"--host={values.host}: others could connect; put a token that clients have to send into the "
      f"environment variable {TOKEN_VARIABLE}"
    )
  root = None if values.allowed_root is None else Path(values.allowed_root)
  if root is not None and not root.is_dir():
    raise errors.InputError(f"--allowed_root={root}: no such directory")
  checkpoint = None if values.checkpoint is None else Path(values.checkpoint)
  config, workdir = ask.load_config(checkpoint, overrides)
  if values.before_rl and workdir is None:
    raise errors.InputError("--before_rl: needs --checkpoint=<workdir of a run>")
  return ServeArguments(
    config=config,
    workdir=workdir,
    before_rl=values.before_rl,
    name=values.name or (checkpoint or Path(config.model.pretrained)).resolve().name,
    host=values.host,
    port=values.port,
    token=token,
    allowed_root=root,
    allow_https=values.allow_https,
    queue=values.queue,
    batch=values.batch,
    max_tokens=values.max_tokens,
    reply=values.reply,
    max_body_megabytes=values.max_body_megabytes,
  )
