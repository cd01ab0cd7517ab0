"""gin on the command line, as T5X has it."""

import argparse

import gin
import pytest

from crossin_jax import config, languages
from crossin_jax.training import optimizers


def parse(*argv):
  parser = argparse.ArgumentParser()
  config.add_flags(parser)
  config.parse(parser.parse_args(config.rewrite(list(argv))))


def test_flags_are_rewritten_as_t5x_does():
  assert config.rewrite(["--gin.MODEL_DIR='a=b'", '--gin.f.x=1\n2', '--gin_file=a.gin', '--other', 'gin.x=1']) == [
      "--gin_bindings=MODEL_DIR = 'a=b'", '--gin_bindings=f.x = 1\n2', '--gin_file=a.gin',
      '--other', 'gin.x=1'
  ]  # fmt: skip
  with pytest.raises(config.ConfigError, match='in one piece'):
    config.rewrite(['--gin.MODEL_DIR', 'x'])


def test_bindings_reach_what_they_name_and_later_ones_win(tmp_path):
  (tmp_path / 'a.gin').write_text('PEAK = 1.0\nschedule.peak = %PEAK\nschedule.warmup_steps = 0\n')
  (tmp_path / 'b.gin').write_text("include 'a.gin'\nPEAK = 2.0\n")
  parse('--gin_file=b.gin', f'--gin_search_paths={tmp_path}')
  assert float(optimizers.schedule(10)(0)) == 2.0
  assert config.macro('PEAK') == 2.0 and config.macro('NOTHING') is None
  parse('--gin_file=b.gin', f'--gin_search_paths={tmp_path}', '--gin.PEAK=3.0')
  assert float(optimizers.schedule(10)(0)) == 3.0
  assert config.bound('schedule.warmup_steps') == 0 and config.bound('schedule.decay') is None
  # What was parsed before is forgotten.
  parse('--gin.schedule.warmup_steps=1')
  assert config.macro('PEAK') is None


@pytest.mark.parametrize('binding, near', [
    ('schedule.peek=1', 'peak'), ('adamv.b1=0.9', 'adamw'), ('train.total_step=3', 'total_steps'),
    ('train.optimizer=@adamww', 'adamw'), ('DecoderConfig.embed_dims=3', 'embed_dim'),
])  # fmt: skip
def test_an_unknown_name_is_an_error_with_the_nearest(binding, near):
  import crossin_jax.models.decoder
  import crossin_jax.train  # noqa: F401  # to be configured

  with pytest.raises(config.ConfigError, match=rf'the nearest (is|are) [\w., ]*\b{near}\b'):
    parse(f'--gin.{binding}')


def test_a_missing_file_names_where_it_was_looked_for(tmp_path):
  with pytest.raises(config.ConfigError, match=f"'nothing.gin' does not exist .*{tmp_path}"):
    parse('--gin_file=nothing.gin', f'--gin_search_paths={tmp_path}')


@pytest.mark.parametrize(
  'binding',
  ['schedule.peak=', 'schedule.peak=[1', 'schedule.peak=open("/etc/passwd")', 'schedule.peak=x'],
)
def test_a_value_that_is_none_is_an_error(binding):
  with pytest.raises(config.ConfigError):
    parse(f'--gin.{binding}')


def test_a_broken_file_is_named(tmp_path):
  (tmp_path / 'broken.gin').write_text('schedule.peak = (1,\n')
  with pytest.raises(config.ConfigError, match='broken.gin'):
    parse(f'--gin_file={tmp_path / "broken.gin"}')


def test_repository_files_are_found_from_anywhere(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  parse('--gin_file=gin_configs/models/world_1m.gin')
  assert gin.query_parameter('DecoderConfig.vocab_size') == 1536


def test_a_gin_file_may_begin_with_a_byte_order_mark(tmp_path):
  path = tmp_path / 'a.gin'
  path.write_bytes(b"\xef\xbb\xbflanguages.added = {'nds': {'name': 'Low German'}}\r\n")
  parse(f'--gin_file={path}')
  assert languages.english_name('nds') == 'Low German'


def test_a_bound_value_is_that_of_the_scope_in_force():
  """A run's config.gin has the settings of a model inside the macro MODEL, not outside it."""
  gin.parse_config('schedule.peak = 1\nMODEL/schedule.peak = 2\nMODEL/schedule.warmup_ratio = 3')
  assert config.bound('schedule.peak') == 1 and config.bound('schedule.warmup_ratio') is None
  with gin.config_scope('MODEL'), gin.config_scope('inner'):
    assert config.bound('schedule.peak') == 2 and config.bound('schedule.warmup_ratio') == 3
