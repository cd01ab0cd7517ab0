"""`crossin serve`: an OpenAI-compatible server on a checkpoint, and a page to ask it."""

import argparse
import asyncio
import contextlib
import os
import signal
import socket
import sys

from crossin_jax import config
from crossin_jax.languages import code_of
from crossin_jax.processes import host_memory
from crossin_jax.serve import flags, page, served
from crossin_jax.serve.flags import KEY
from crossin_jax.workflow import command_line


def _check(args: argparse.Namespace) -> list[str]:
  """The languages of the page; raises ConfigError."""
  for name, least in (('port', 0), ('queue', 0), ('drain_seconds', 0), ('max_length', 2)):
    value = getattr(args, name)
    if value is not None and value < least:
      raise config.ConfigError(f'--{name} {value} must be at least {least}')
  if args.port > 65535:
    raise config.ConfigError(f'--port {args.port} must be at most 65535')
  if args.compare_name and not args.compare:
    raise config.ConfigError('--compare_name names a second model; give it with --compare')
  try:
    return [code_of(name) for name in args.languages.split(',') if name.strip()]
  except ValueError as error:
    raise config.ConfigError(f'--languages: {error}') from None


def _listening(host: str, port: int) -> socket.socket:
  """A socket that listens, before the model is loaded: a port in use shows at once."""
  family = socket.AF_INET6 if ':' in host else socket.AF_INET
  listener = socket.socket(family, socket.SOCK_STREAM)
  listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
  try:
    listener.bind((host, port))
  except (OSError, OverflowError) as error:
    listener.close()
    raise config.ConfigError(
      f'cannot listen at {host}:{port} ({error}); choose another --port or --host'
    ) from None
  return listener


def _serve(app, listener: socket.socket, drain_seconds: int, ready: str) -> None:
  """Serves until SIGTERM or SIGINT; then finishes what runs, up to `drain_seconds`."""
  import uvicorn

  class Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self):  # uvicorn's own raises the signal again at the end
      previous = {number: signal.signal(number, self.handle_exit) for number in _SIGNALS}
      try:
        yield
      finally:
        for number, handler in previous.items():
          signal.signal(number, handler)

    async def startup(self, sockets=None):
      await super().startup(sockets)
      print(ready, file=sys.stderr, flush=True)

  settings = uvicorn.Config(
    app, log_level='warning', access_log=False, lifespan='off', server_header=False,
    timeout_graceful_shutdown=drain_seconds, h11_max_incomplete_event_size=1 << 16,
  )  # fmt: skip
  asyncio.run(Server(settings).serve(sockets=[listener]))


_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def main(argv: list[str]) -> int:
  """The command line of `crossin serve`."""
  args = flags.parser().parse_args(argv)
  host_memory.keep_freed()  # before the devices are asked for
  languages = _check(args)
  try:
    import starlette  # noqa: F401
    import uvicorn  # noqa: F401
  except ImportError:
    raise ValueError('the server needs an extra: pip install crossin-jax[serve]') from None
  from crossin_jax.serve.app import LOOPBACK, App

  with contextlib.closing(_listening(args.host, args.port)) as listener:
    paths = [args.checkpoint, *([args.compare] if args.compare else [])]
    limits = served.Limits(args.queue, args.max_length)
    models = served.load_all(paths, [args.name, args.compare_name], args, limits)
    key, is_local = os.environ.get(KEY, ''), args.host in LOOPBACK
    if not is_local and not key:
      print(
        f'warning: everybody who reaches {args.host} can use the model; set {KEY}', file=sys.stderr
      )
    host, port = listener.getsockname()[:2]
    url = f'http://{f"[{host}]" if ":" in host else host}:{port}'
    text = page.render(models.values(), languages, needs_key=bool(key))
    app = App(models, text, key, only_loopback=is_local)
    try:
      for model in models.values():
        model.engine.start()
        model.engine.warm_up()
      _serve(
        app, listener, args.drain_seconds,
        f'serving {", ".join(models)} at {url}/v1 and {url}/ (a page)',
      )  # fmt: skip
    finally:
      ended = [model.engine.close() for model in models.values()]
      for model in models.values():
        model.close()
  if not all(ended):  # XLA compiles; the interpreter cannot be left in the usual way
    sys.stderr.flush()
    os._exit(0)
  return command_line.finish(args, {'status': 0})
