"""JAX's compilation cache in MODEL_DIR, and compilation in a thread."""

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
  """Puts JAX's compilation cache into MODEL_DIR/compiled, also on gs://.

  Process 0 writes, the others read. JAX_COMPILATION_CACHE_DIR names another directory;
  JAX_ENABLE_COMPILATION_CACHE=false turns the cache off. If the file system cannot store programs,
  a warning is printed and the run continues without the cache.

  Args:
    model_dir: of the run.
    keep: False disables the cache.
    least_seconds: programs that compile faster are not stored.
  """
  directory = os.path.join(remote.absolute(model_dir), 'compiled')
  is_remote = remote.prepare(jax.config.jax_compilation_cache_dir or directory)
  if (
    not keep or jax.config.jax_compilation_cache_dir or not jax.config.jax_enable_compilation_cache
  ):
    yield
    return
  try:
    if not is_remote:  # objects of gs:// are always complete
      os.makedirs(directory, exist_ok=True)
      if jax.process_index() == 0:
        _remove_truncated(directory)
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
  compilation_cache.reset_cache()  # otherwise the first directory of the process stays in use


def _remove_truncated(directory: str) -> None:
  """Removes truncated entries of a killed run: JAX would warn at every start and never replace
  them.
  """
  for entry in pathlib.Path(directory).glob('*-cache'):
    if not _is_complete(entry.read_bytes()):
      entry.unlink(missing_ok=True)


def _is_complete(data: bytes) -> bool:
  """Whether a compressed entry is complete; JAX uses zstd where a module for it is installed."""
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
  except Exception:  # each library has its own classes
    return False


def in_thread(function):
  """Runs a function in a thread and waits in small steps.

  Python runs no signal handler while XLA compiles on the main thread.

  Raises:
    Interrupted: the run consists of this process and was interrupted; the thread keeps running. In
      a run of several processes the function is finished first, so that all stop together.
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
