"""JAX's compilation cache in MODEL_DIR, options of the compiler, and compilation in a thread."""

from collections.abc import Mapping
import contextlib
import functools
import importlib
import os
import pathlib
import re
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
_UNKNOWN_OPTION = re.compile(r"No such compile option: '(\w+)'")


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


@gin.configurable(denylist=['platform'])
def compiler_options(platform: str, tpu: Mapping[str, str] | None = None) -> dict[str, str]:
  """Options that the train step is compiled with, name -> value.

  Args:
    platform: 'cpu', 'gpu' or 'tpu'.
    tpu: those on TPUs: {'xla_tpu_scoped_vmem_limit_kib': '65536'}; None = XLA's own. On GPUs and
      CPUs set the environment variable XLA_FLAGS.
  """
  return dict(tpu or {}) if platform == 'tpu' else {}


def compile_with(lowered: jax.stages.Lowered, options: Mapping[str, object]) -> jax.stages.Compiled:
  """Compiles in a thread; an option that this compiler does not know is left out with a warning.

  Raises:
    jax.errors.JaxRuntimeError: of the compiler. Interrupted: see `in_thread`.
  """
  options = dict(options)
  while True:
    build = functools.partial(lowered.compile, compiler_options=options or None)
    try:
      return in_thread(build)
    except jax.errors.JaxRuntimeError as error:
      unknown = _UNKNOWN_OPTION.search(str(error))
      if unknown is None or options.pop(unknown[1], None) is None:
        raise
      warnings.warn(f'this version of XLA has no compiler option {unknown[1]}; it is left out')


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
