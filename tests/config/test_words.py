"""Settings as words: FILE.gin NAME=VALUE."""

import string
import typing

import gin
from hypothesis import given
from hypothesis import strategies as st
import pytest

from crossin_jax import config
from crossin_jax.config import messages, words
from crossin_jax.workflow import command_line

GIN = """
TEXT = %gin.REQUIRED    # the place of it
LANGUAGES = ('en', 'zh')
NUMBER = 3
FREE = None
EMPTY = ()
INSIDE = 'a'
PARTS = {'x': %INSIDE}
settings_of_words.text = %TEXT
settings_of_words.texts = %LANGUAGES
settings_of_words.number = %NUMBER
settings_of_words.free = %FREE
settings_of_words.empty = %EMPTY
settings_of_words.parts = %PARTS
"""


@gin.configurable
def settings_of_words(
  text: str, texts: tuple[str, ...] = (), number: int | None = None, free=None, empty=(),
  either: str | tuple[str, ...] = '', rate: float = 0.0, flag: bool = False, shape: tuple = (),
  parts: dict | None = None,
):  # fmt: skip
  """Of this test.

  Args:
    text: A place. More of it.
    texts, number, free, empty, either, rate, flag, shape, parts: what was given.
  """
  return locals()


def parser(**options):
  return command_line.Parser('train', 'Trains', 'crossin train', **{'gin': True} | options)


@pytest.fixture
def parse(tmp_path):
  """Parses words behind the gin file above, and calls what they configure."""
  path = tmp_path / 'words.gin'
  path.write_text(GIN)

  def run(*argv):
    config.parse(parser().parse_args(config.rewrite([str(path), *argv])))
    return settings_of_words()

  return run


@pytest.mark.parametrize('word, name, value', [
  ('TEXT=runs/a', 'text', 'runs/a'),
  ('TEXT=runs/a,b', 'text', 'runs/a,b'),
  ('TEXT=7', 'text', '7'),
  ('TEXT=1,2', 'text', '1,2'),
  ('TEXT=True', 'text', 'True'),
  ('TEXT=2026-12-01', 'text', '2026-12-01'),
  ('TEXT=gs://bucket/a=b', 'text', 'gs://bucket/a=b'),
  ("TEXT='quoted'", 'text', 'quoted'),
  ('TEXT=', 'text', ''),
  ('TEXT=a#b', 'text', 'a#b'),
  ('LANGUAGES=en,zh,vi', 'texts', ('en', 'zh', 'vi')),
  ('LANGUAGES=zh', 'texts', ('zh',)),
  ('LANGUAGES=zh,', 'texts', ('zh',)),
  ('LANGUAGES=7', 'texts', ('7',)),
  ('LANGUAGES=1,2', 'texts', ('1', '2')),
  ("LANGUAGES=('en', 'vi')", 'texts', ('en', 'vi')),
  ('LANGUAGES=(en,vi)', 'texts', ('en', 'vi')),
  ('LANGUAGES=', 'texts', ()),
  ('NUMBER=12', 'number', 12),
  ('NUMBER=None', 'number', None),
  ('NUMBER=%NINE', 'number', 9),
  ('FREE=en,zh', 'free', ('en', 'zh')),
  ('FREE=1,4,2', 'free', (1, 4, 2)),
  ('FREE=7#b', 'free', '7#b'),
  ('EMPTY=a.jsonl', 'empty', ('a.jsonl',)),
  ('INSIDE=a,b', 'parts', {'x': 'a,b'}),
  ('settings_of_words.either=a', 'either', 'a'),
  ('settings_of_words.either=a,b', 'either', ('a', 'b')),
  ('settings_of_words.rate=1e-4', 'rate', 1e-4),
  ('settings_of_words.rate=1', 'rate', 1),
  ('settings_of_words.flag=True', 'flag', True),
  ('settings_of_words.shape=1,-1,1', 'shape', (1, -1, 1)),
  ('settings_of_words.shape=3', 'shape', (3,)),
  ("settings_of_words.parts={'a': 0.5}", 'parts', {'a': 0.5}),
])  # fmt: skip
def test_a_value_is_what_its_parameter_takes(parse, word, name, value):
  given = [] if word.startswith('TEXT=') else ['TEXT=x']
  found = parse('--gin.NINE=9', *given, word) if 'NINE' in word else parse(*given, word)
  assert found[name] == value and type(found[name]) is type(value)


PRINTED = st.text(string.printable)
VALUES = st.recursive(
  st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
  | PRINTED,
  lambda inner: st.lists(inner).map(tuple) | st.dictionaries(PRINTED, inner),
)  # fmt: skip


@given(VALUES)
def test_what_gin_writes_is_read_back(value):
  found = words.read(repr(value))
  assert found == value and type(found) is type(value)


@given(PRINTED)
def test_a_text_is_read_as_it_stands(text):
  """Except where it has gin's own marks: quotes around it, @ and %."""
  found = words.read(text, str)
  if text.strip()[:1] in ('@', '%', '"', "'"):
    assert isinstance(found, str)
  else:
    assert found == text


@given(st.lists(st.text(string.ascii_letters + string.digits + '/._-', min_size=1), min_size=1))
def test_texts_are_read_between_commas(parts):
  assert words.read(','.join(parts), tuple[str, ...]) == tuple(parts)
  assert words.read(','.join(parts), str) == ','.join(parts)
  assert words.read(f'{",".join(parts)},', tuple[str, ...]) == tuple(parts)


@given(st.lists(st.integers(), min_size=2))
def test_numbers_are_read_between_commas(numbers):
  for annotation in (typing.Any, tuple, tuple[int, ...]):
    assert words.read(','.join(map(str, numbers)), annotation) == tuple(numbers)


@given(PRINTED)
def test_a_word_reaches_gin_as_its_value(text):
  """The whole way: command line, argparse, gin, call."""
  text = text.replace('%', '').replace('@', '')  # they would name what does not exist
  config.parse(parser().parse_args([f'settings_of_words.text={text}x']))
  assert settings_of_words()['text'] == words.read(f'{text}x', str)


def test_references_and_scopes(parse):
  found = parse('TEXT=x', 'FREE=@settings_of_words,@settings_of_words')
  assert [f.__name__ for f in found['free']] == ['settings_of_words'] * 2
  assert parse('TEXT=x', 'FREE=@settings_of_words')['free'].__name__ == 'settings_of_words'
  parse('TEXT=x', 'a/settings_of_words.number=5')
  with gin.config_scope('a'):
    assert settings_of_words()['number'] == 5
  assert settings_of_words()['number'] == 3


def test_words_stand_where_flags_do(tmp_path):
  """In order with --gin_file; not where they are the value of another flag."""
  p = parser()
  p.add_argument('what')
  p.add_argument('--benchmark')
  p.add_argument('--dry_run', action='store_true')
  args = p.parse_args(
    'a.gin run --gin_file b.gin X=1 --benchmark Y=q.gin --dry-run Z=2 gs://bucket/c.gin '
    '--benchm W=3 --gin_bindings V=4'.split()
  )
  assert args.gin_file == ['a.gin', 'b.gin', 'gs://bucket/c.gin'] and args.what == 'run'
  assert args.gin_bindings == ['X=1', 'Z=2', 'V=4'] and args.benchmark == 'W=3'
  assert list(map(config.argument, args.gin_bindings)) == ['X=1', 'Z=2', '--gin_bindings=V=4']


@pytest.mark.parametrize('options, word, text', [
  ({}, 'runs/a', "'runs/a' is not understood; settings are given as FILE.gin or NAME=VALUE"),
  ({}, '--strange', 'unrecognized arguments: --strange'),
  ({'gin': 'settings'}, 'a.gin', "'a.gin' is not understood; settings are given as NAME=VALUE"),
  ({'gin': False}, 'X=1', 'unrecognized arguments: X=1'),
])  # fmt: skip
def test_a_stray_word_is_one_line(capsys, options, word, text):
  with pytest.raises(SystemExit) as error:
    parser(**options).parse_args([word])
  assert error.value.code == 2
  assert capsys.readouterr().err == f'crossin train: error: {text} (see crossin train --help)\n'


@pytest.mark.parametrize('word, text', [
  ('BATCHSIZE=2', 'BATCHSIZE=2: nothing uses BATCHSIZE here'),
  ('--gin.BATCHSIZE=2', 'BATCHSIZE=2: nothing uses BATCHSIZE here'),
  ('LANGUAGE=zh', 'LANGUAGE=zh: nothing uses LANGUAGE here; the nearest is LANGUAGES'),
  ('--gin.Numbre=3', 'Numbre=3: nothing uses Numbre here; the nearest is NUMBER'),
  ('number=3', 'number=3: nothing uses number here; the nearest is NUMBER'),
  ('settings_of_words.numbre=3',
   'settings_of_words has no parameter numbre; the nearest is number'),
  ('settings_of_word.number=3',
   'settings_of_word is no configurable; the nearest is settings_of_words'),
  ('FREE=@settings_of_word', '@settings_of_word is no configurable; the nearest is settings_of_'),
  ('NUMBER=many', "settings_of_words.number = 'many' is a str, it must be int | None"),
  ('--gin.TEXT=runs/a', "--gin.TEXT=runs/a is not in gin's syntax, where a text has quotes of its "
   'own; write TEXT=runs/a without --gin'),
  ('--gin.LANGUAGES=en,zh', "--gin.LANGUAGES=en,zh is not in gin's syntax, where a text has quotes "
   'of its own; write LANGUAGES=en,zh without --gin'),
])  # fmt: skip
def test_wrong_settings_are_one_sentence(parse, word, text):
  with pytest.raises(config.ConfigError) as error:
    parse('TEXT=x', word)
  assert str(error.value).startswith(text) and '\n' not in str(error.value)


def test_every_missing_setting_has_a_sentence(parse, tmp_path):
  with pytest.raises(config.ConfigError) as error:
    parse()
  assert str(error.value) == 'TEXT is not set (the place of it): give TEXT=VALUE'
  assert error.value.missing == ('TEXT',)
  two = tmp_path / 'two.gin'
  two.write_text(
    '# crossin train two.gin ONE=runs/a\n'
    'ONE = %gin.REQUIRED\nTWO = %gin.REQUIRED\n'
    'settings_of_words.text = %ONE\nsettings_of_words.free = %TWO\n'
  )
  with pytest.raises(config.ConfigError) as error:
    parse('TEXT=x', str(two))
  assert str(error.value) == (
    'ONE is not set (A place): give it, for example ONE=runs/a\n'
    'TWO is not set (what was given): give TWO=VALUE'
  )


def test_a_macro_that_no_file_sets_is_missing(parse):
  with pytest.raises(config.ConfigError) as error:
    parse('TEXT=x', 'NUMBER=%NUMBRE')
  assert str(error.value) == (
    'NUMBRE is not set (what was given): give NUMBRE=VALUE; the nearest is NUMBER'
  )
  with pytest.raises(config.ConfigError) as error:
    parse('TEXT=x', 'FREE=%MODEL')
  assert str(error.value) == 'MODEL is not set: give a file of gin_configs/models'


def test_what_a_call_lacks_has_a_sentence(tmp_path):
  @gin.configurable(module='words')
  def needs(here: str = gin.REQUIRED, there: str = gin.REQUIRED):
    """Needs.

    Args:
      here: The first place. Else nothing.
      there: the second
    """

  with pytest.raises(RuntimeError) as error:
    needs()
  assert str(messages.of_call(error.value)) == (
    'needs.here is not set (The first place): give needs.here=VALUE\n'
    'needs.there is not set (the second): give needs.there=VALUE'
  )
  gin.clear_config()
  with pytest.raises(TypeError) as error:
    settings_of_words()
  text = 'settings_of_words.text is not set (A place): give settings_of_words.text=VALUE'
  assert str(messages.of_call(error.value)) == text
  assert str(messages.of_call(error.value, files=False)) == (
    f'{text}\nA gin file sets most of what a command needs: see gin_configs'
  )
  assert messages.of_call(TypeError('settings_of_words() is no number')) is None


def test_an_unused_macro_of_ones_own_file_is_a_warning(parse, tmp_path):
  own = tmp_path / 'own.gin'
  # TRAIN_STEPS is of the shipped files: a file may be shared by several commands.
  own.write_text('NUMBR = 3\nTRAIN_STEPS = 7\n')
  with pytest.warns(UserWarning) as found:
    parse('TEXT=x', str(own))
  assert [str(w.message) for w in found] == [
    f'{own}: nothing uses NUMBR; the nearest is NUMBER'
  ]  # fmt: skip


def test_a_missing_file_has_the_nearest_names(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'mine.gin').write_text('')
  for word, near in (
    ('world_tune.gin', 'do you mean gin_configs/runs/world_tune.gin?'),
    ('gin_configs/runs/world_tun.gin', 'the nearest are gin_configs/runs/world_tune.gin, '),
    ('mien.gin', 'the nearest is mine.gin'),
  ):
    with pytest.raises(config.ConfigError) as error:
      config.parse(parser().parse_args([word]))
    assert f"gin file '{word}' does not exist" in str(error.value)
    assert f'; {near}' in str(error.value), str(error.value)
