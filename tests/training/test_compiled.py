"""Compiled programs are kept in MODEL_DIR, found again, and never in the way."""

import zlib

import jax
import jax.numpy as jnp
import pytest

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


def test_options_are_those_of_the_platform():
  options = {'xla_tpu_scoped_vmem_limit_kib': '65536'}
  assert compiled.compiler_options('tpu', tpu=options) == options
  assert compiled.compiler_options('cpu', tpu=options) == compiled.compiler_options('tpu') == {}
