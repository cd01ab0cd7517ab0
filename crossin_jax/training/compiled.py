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

from crossin_jax.devices import chips
from crossin_jax.errors import Interrupted
from crossin_jax.models import lora
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


# What shortens the step of an 8B model on 16 chips by XLA's own estimate (libtpu 0.0.52,
# benchmarks/tpu_step.py): gathers as a whole beside the products instead of products cut into
# shards; fusions that use more of VMEM; and where a chip has sparse cores, these run the gathers
# and scatters. A v5e has none.
_WHOLE_GATHERS = {'xla_tpu_enable_windowed_einsum_for_all_gather': 'false'}
_SPARSE_CORES = {
  'xla_tpu_enable_sparse_core_collective_offload_all_gather': 'true',
  'xla_tpu_enable_sparse_core_collective_offload_2d_all_gather': 'true',
  'xla_tpu_enable_sparse_core_collective_offload_3d_all_gather': 'true',
  'xla_tpu_enable_windowed_einsum_for_reduce_scatter': 'false',
  'xla_tpu_enable_sparse_core_collective_offload_reduce_scatter': 'true',
  'xla_tpu_enable_sparse_core_collective_offload_nd_reduce_scatter': 'true',
}
_VMEM = 'xla_tpu_scoped_vmem_limit_kib'
# By `DeviceKind.name`. Kinds that are not here were not looked at, and take XLA's own options.
OPTIONS = {
  'v5e': {**_WHOLE_GATHERS, _VMEM: '32768'},
  'v5p': {**_WHOLE_GATHERS, **_SPARSE_CORES, _VMEM: '65536'},
  'v6e': {**_WHOLE_GATHERS, **_SPARSE_CORES, _VMEM: '65536'},
}
OPTIONS |= {'v5 lite': OPTIONS['v5e'], 'v5': OPTIONS['v5p'], 'v6 lite': OPTIONS['v6e']}


@gin.configurable(denylist=['device'])
def compiler_options(device, tpu: Mapping[str, str] | str = 'auto') -> dict[str, str]:
  """Options that the train step is compiled with, name -> value.

  Args:
    device: of the mesh, or the description of one.
    tpu: those on TPUs: {'xla_tpu_scoped_vmem_limit_kib': '65536'} for exactly these, {} for XLA's
      own, 'auto' for those that the table `OPTIONS` has for the chip. On GPUs and CPUs set the
      environment variable XLA_FLAGS.

  Raises:
    ValueError: tpu is neither 'auto' nor a mapping.
  """
  if tpu != 'auto' and not isinstance(tpu, Mapping):
    raise ValueError(
      f"compiler_options.tpu = {tpu!r} is neither 'auto' nor a dictionary of options and values"
    )
  if device.platform != 'tpu':
    return {}
  kind = chips.kind_of(device)
  chosen = OPTIONS.get(kind.name if kind else '', {}) if tpu == 'auto' else tpu
  return dict(chosen)


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


def refuses_ahead(model) -> bool:
  """Whether a program of this model cannot be compiled ahead of time: it would refuse the layout of
  4-bit arguments.
  """
  adapters = lora.of_model(model)
  return bool(adapters) and adapters.base_dtype == 'nf4'


def program_bytes(program: jax.stages.Compiled) -> int:
  """Bytes that a program holds on one device: arguments, new results, temporaries and code."""
  memory = program.memory_analysis()
  fresh = memory.output_size_in_bytes - memory.alias_size_in_bytes
  parts = (memory.temp_size_in_bytes, memory.generated_code_size_in_bytes)
  return memory.argument_size_in_bytes + fresh + sum(parts)


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
