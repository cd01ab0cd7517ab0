"""Compiled programs are kept in MODEL_DIR, found again, and never in the way."""

import types
import zlib

import jax
import jax.numpy as jnp
import pytest

from crossin_jax.devices import chips
from crossin_jax.training import compiled
from crossin_jax.training.compiled import _is_complete, compiled_programs


@pytest.fixture
def enabled():
  """The tests run without the compilation cache: switches it on for one of them."""
  jax.config.update('jax_enable_compilation_cache', True)
  yield
  jax.config.update('jax_enable_compilation_cache', False)


def compile_once():
  """Compiles a program that no cache in memory knows; returns how often the cache on disk had it."""
  hits = []
  listen = lambda event, **_: hits.append(event) if event.endswith('/cache_hits') else None
  jax.clear_caches()
  jax.monitoring.register_event_listener(listen)
  try:
    jax.jit(lambda x: jnp.sin(x) @ x.T + 17)(jnp.ones((3, 3))).block_until_ready()
  finally:
    jax.monitoring.unregister_event_listener(listen)
  return len(hits)


def entries(model_dir):
  return sorted((model_dir / 'compiled').glob('*-cache'))


def test_kept_and_found_again(tmp_path, enabled):
  with compiled_programs(str(tmp_path), least_seconds=0):
    assert compile_once() == 0
  kept = entries(tmp_path)
  assert kept and jax.config.jax_compilation_cache_dir is None
  with compiled_programs(str(tmp_path), least_seconds=0):
    assert compile_once() > 0
  # Another run in the same process has a directory of its own.
  with compiled_programs(str(tmp_path / 'other'), least_seconds=0):
    assert compile_once() == 0
  assert entries(tmp_path / 'other') and entries(tmp_path) == kept


def test_a_torn_program_is_compiled_and_kept_again(tmp_path, enabled):
  with compiled_programs(str(tmp_path), least_seconds=0):
    compile_once()
  sizes = {entry: entry.stat().st_size for entry in entries(tmp_path)}
  for entry in sizes:
    entry.write_bytes(entry.read_bytes()[: sizes[entry] // 2])
  with compiled_programs(str(tmp_path), least_seconds=0):
    assert not entries(tmp_path)
    assert compile_once() == 0
  assert {entry: entry.stat().st_size for entry in entries(tmp_path)} == pytest.approx(
    sizes, rel=0.05
  )
  with compiled_programs(str(tmp_path), least_seconds=0):
    assert compile_once() > 0


def test_whole_and_torn_entries():
  for compress in (zlib.compress, *zstd()):
    data = compress(bytes(range(256)) * 400)
    assert _is_complete(data)
    assert not any(_is_complete(data[:cut]) for cut in (0, 1, len(data) // 2, len(data) - 1))
  assert not _is_complete(b'no program')


def zstd():
  """zstd.compress where a module has it."""
  for name in ('compression.zstd', 'zstandard'):
    try:
      return [__import__(name, fromlist=['compress']).compress]
    except ImportError:
      pass
  return []


def test_what_the_user_named_is_used(tmp_path, enabled):
  jax.config.update('jax_compilation_cache_dir', str(tmp_path / 'mine'))
  try:
    with compiled_programs(str(tmp_path)):
      assert jax.config.jax_compilation_cache_dir == str(tmp_path / 'mine')
  finally:
    jax.config.update('jax_compilation_cache_dir', None)
  with compiled_programs(str(tmp_path), keep=False):
    assert jax.config.jax_compilation_cache_dir is None
  jax.config.update('jax_enable_compilation_cache', False)
  with compiled_programs(str(tmp_path)):
    assert jax.config.jax_compilation_cache_dir is None
  assert not (tmp_path / 'compiled').exists()


def test_a_directory_that_cannot_be_written_costs_a_warning(tmp_path, enabled):
  (tmp_path / 'compiled').write_text('in the way')
  with pytest.warns(UserWarning, match='compiled programs are not kept'):
    with compiled_programs(str(tmp_path), least_seconds=0):
      compile_once()


def test_an_option_that_the_compiler_does_not_know_is_left_out():
  lowered = jax.jit(lambda x: x + 1).lower(jnp.float32(1))
  with pytest.warns(UserWarning, match='no compiler option xla_no_such_option'):
    program = compiled.compile_with(lowered, {'xla_no_such_option': '1'})
  assert program(jnp.float32(1)) == 2


def described(platform, device_kind):
  return types.SimpleNamespace(platform=platform, device_kind=device_kind)


def test_options_are_those_of_the_chip():
  v5e, v5p = described('tpu', 'TPU v5 lite'), described('tpu', 'TPU v5')
  options = {'xla_tpu_scoped_vmem_limit_kib': '1024'}
  assert compiled.compiler_options(v5e, tpu=options) == options
  assert compiled.compiler_options(v5e, tpu={}) == {}
  assert compiled.compiler_options(described('cpu', 'cpu'), tpu=options) == {}
  assert compiled.compiler_options(described('tpu', 'TPU v4')) == {}
  # A v5e has no sparse cores.
  offloaded = lambda device: [
    name for name in compiled.compiler_options(device) if 'sparse_core' in name
  ]
  assert offloaded(v5p) and not offloaded(v5e) and compiled.compiler_options(v5e)
  with pytest.raises(ValueError, match="compiler_options.tpu = 'fast' is neither 'auto' nor"):
    compiled.compiler_options(v5e, tpu='fast')


def test_every_kind_with_options_is_in_the_table_of_chips():
  names = {kind.name: kind.sparse_cores for kind in chips.KINDS}
  for name, options in compiled.OPTIONS.items():
    assert names[name] == any('sparse_core' in option for option in options)
