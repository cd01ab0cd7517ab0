"""Compiled programs kept on disk, so that a run that is started again need not compile again."""

import contextlib
import importlib
import os
import pathlib
import threading
import warnings
import zlib

import gin
import jax
from jax.experimental.compilation_cache import compilation_cache

from crossin_jax.errors import Interrupted
from crossin_jax.processes import interruption
from crossin_jax.storage import remote

_ZSTD = b'\x28\xb5\x2f\xfd'


@gin.configurable
@contextlib.contextmanager
def compiled_programs(model_dir: str, keep: bool = True, least_seconds: float = 0.5):
  """While entered, JAX keeps what it compiles in MODEL_DIR/compiled, on gs:// too, and looks there
  before it compiles.

  JAX writes from process 0 only; the others read. A directory that was named otherwise
  (JAX_COMPILATION_CACHE_DIR) is used instead, and JAX_ENABLE_COMPILATION_CACHE=false turns both
  off. A file system that cannot take the programs costs a warning and the time to compile, nothing
  else.

  Args:
    model_dir: of the run.
    keep: False compiles anew at each start.
    least_seconds: what compiles faster than this is not kept.
  """
  directory = os.path.join(remote.absolute(model_dir), 'compiled')
  is_remote = remote.use(jax.config.jax_compilation_cache_dir or directory)
  if (
    not keep or jax.config.jax_compilation_cache_dir or not jax.config.jax_enable_compilation_cache
  ):
    yield
    return
  try:
    if not is_remote:  # an object is there whole or not at all
      os.makedirs(directory, exist_ok=True)
      if jax.process_index() == 0:
        _remove_torn(directory)
  except OSError as error:
    warnings.warn(f'compiled programs are not kept: {error}')
    yield
    return
  settings = {
    'jax_compilation_cache_dir': directory,
    'jax_persistent_cache_min_compile_time_secs': least_seconds,
    'jax_persistent_cache_min_entry_size_bytes': 0,
  }
  before = {name: getattr(jax.config, name) for name in settings}
  try:
    _configure(settings)
    yield
  finally:
    _configure(before)


def _configure(settings: dict) -> None:
  for name, value in settings.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()  # or the first directory of a process would stay in use


def _remove_torn(directory: str) -> None:
  """Removes what a kill cut off in the middle: JAX would warn of it at every start, and never write
  it again.
  """
  for entry in pathlib.Path(directory).glob('*-cache'):
    if not _is_whole(entry.read_bytes()):
      entry.unlink(missing_ok=True)


def _is_whole(data: bytes) -> bool:
  """Whether a compressed entry has its end; JAX compresses with zstd where a module for it is
  installed.
  """
  try:
    if not data.startswith(_ZSTD):
      stream = zlib.decompressobj()
      stream.decompress(data)
      return stream.eof
    for name in ('compression.zstd', 'zstandard'):
      with contextlib.suppress(ImportError):
        zstd = importlib.import_module(name)
        stream = zstd.ZstdDecompressor()
        stream = stream.decompressobj() if hasattr(stream, 'decompressobj') else stream
        stream.decompress(data)
        return stream.eof
    return True
  except Exception:  # each library has errors of its own
    return False


def in_thread(function):
  """Runs a function in a thread and waits in small steps.

  Python runs no signal handler while XLA compiles on the main thread.

  Raises:
    Interrupted: this (only) host was told to stop; the thread is left behind. With several hosts
      the function is waited for, so that all of them leave together.
  """
  box = {}
  mesh = jax.sharding.get_mesh()

  def target():
    try:
      with contextlib.nullcontext() if mesh.empty else jax.set_mesh(mesh):
        box['value'] = function()
    except BaseException as error:  # raised again below
      box['error'] = error

  thread = threading.Thread(target=target, daemon=True, name='compile')
  thread.start()
  while thread.is_alive():
    thread.join(0.2)
    if interruption.interrupted_alone():
      raise Interrupted
  if 'error' in box:
    raise box['error']
  return box['value']


def left_behind() -> bool:
  """Whether a thread of `in_thread` still runs: the interpreter must then be left without its usual
  clean-up.
  """
  return any(thread.name == 'compile' for thread in threading.enumerate())
