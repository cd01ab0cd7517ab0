"""CrossIn's examples: which row, from which language, into which; volumes, presets, rates and
names.
"""

import collections
import dataclasses
import itertools

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from crossin_jax.data.mixture_name import MODES, MixtureName
from seqio_tasks.crossin import Preset, TaskSpec, language_pairs, split_rows
from seqio_tasks.mixtures import RELEASED, MixtureSettings, mixture_entries

LANGUAGES = ('en', 'zh', 'vi', 'es')
DEFAULT = Preset()


@dataclasses.dataclass(frozen=True)
class Rows:
  """A source whose texts say what they are."""

  count: int = 3000
  name: str = 'rows'
  languages: tuple[str, ...] = LANGUAGES

  def __len__(self):
    return self.count

  def ids(self):
    return [f'id{i}' for i in range(self.count)]

  def row(self, index, language):
    return {'instruction': f'ask {index} {language}', 'input': '' if index % 2 else f'in {index} {language}',
            'output': f'answer {index} {language}'}  # fmt: skip

  def set_aside(self):
    return {}

  def digest(self):
    return f'{self.count}'


def settings(vocabulary, source=Rows(), **changes):
  return MixtureSettings(
    **{'parallel': source, 'vocabulary': vocabulary, 'template': 'gemma', **changes}
  )


def entries(name, given):
  return mixture_entries(MixtureName.parse(name), given)


def drawn(entries_, mode):
  """(rank, row, source language, target language) of all examples of a mode within the volume, in
  rank order.
  """
  found = [
    (rank, row, entry.task.source_language, entry.task.target_language)
    for entry in entries_
    if entry.task.mode == mode
    for rank, row in entry.task.items('train')
    if entry.volume is None or rank < entry.volume
  ]
  return sorted(found)


def test_pairs_of_each_mode():
  pairs = lambda mode, preset=DEFAULT: set(language_pairs(mode, ('en', 'zh', 'vi'), preset))
  assert pairs('base') == {('en', 'en')}
  assert pairs('mono') == {('zh', 'zh'), ('vi', 'vi')}
  assert pairs('en2x') == {('en', 'zh'), ('en', 'vi')}
  assert pairs('x2en') == {('zh', 'en'), ('vi', 'en')}
  both = {('en', 'zh'), ('zh', 'en'), ('en', 'vi'), ('vi', 'en'), ('zh', 'vi'), ('vi', 'zh')}
  assert pairs('x2x') == both
  assert pairs('x2x', RELEASED) == both | {('en', 'en'), ('zh', 'zh'), ('vi', 'vi')}
  assert pairs('trans') == pairs('x2en')
  assert pairs('trans', Preset(both_directions=True)) == pairs('x2en') | pairs('en2x')
  assert pairs('text') == {('en', 'en'), ('zh', 'zh'), ('vi', 'vi')}
  with pytest.raises(ValueError, match="'x2y' is not one of base"):
    pairs('x2y')


@pytest.mark.parametrize('mode', ['mono', 'en2x', 'x2en', 'x2x', 'trans'])
def test_n_counts_examples_pooled_over_languages_and_uniform(tiny_vocabulary, mode):
  found = drawn(entries(f'rows.{mode}.1500.en_zh_vi_es.default', settings(tiny_vocabulary)), mode)
  assert [rank for rank, *_ in found] == list(range(1500))
  assert len({row for _, row, *_ in found}) == 1500, 'without replacement'
  counts = collections.Counter(pair for _, _, *pair in map(list, found) for pair in [tuple(pair)])
  pairs = language_pairs(mode, LANGUAGES, Preset())
  assert set(counts) == set(pairs)
  for pair in pairs:
    share = 1 / len(pairs)
    assert abs(counts[pair] - 1500 * share) < 4 * np.sqrt(1500 * share * (1 - share)), (
      pair,
      counts,
    )


@pytest.mark.parametrize('preset', ['default', 'released', 'every'])
def test_a_larger_volume_contains_a_smaller_one(tiny_vocabulary, preset):
  given = settings(tiny_vocabulary, presets=(Preset('every', assignment='every'),))
  previous = []
  for volume in (10, 300, 1000, 2800):
    found = drawn(entries(f'rows.x2x.{volume}.en_zh_vi_es.{preset}', given), 'x2x')
    assert len(found) == volume and found[: len(previous)] == previous
    previous = found


def test_each_mode_draws_its_own_languages(tiny_vocabulary):
  given = settings(tiny_vocabulary)
  language_of = {}
  for mode, side in (('en2x', 3), ('x2en', 2), ('trans', 2)):
    found = drawn(entries(f'rows.{mode}.2500.en_zh_vi_es.default', given), mode)
    language_of[mode] = {item[1]: item[side] for item in found}
  for a, b in itertools.combinations(language_of, 2):
    rows = language_of[a].keys() & language_of[b].keys()
    same = np.mean([language_of[a][row] == language_of[b][row] for row in rows])
    assert abs(same - 1 / 3) < 4 * np.sqrt(2 / 9 / len(rows)), (a, b, same)


def test_released_triplets_share_row_and_language_with_replacement(tiny_vocabulary):
  given = settings(tiny_vocabulary, validation_rows=0)
  found = entries('rows.en2x_x2en_trans_x2x.all.en_zh_vi_es.released', given)
  en2x, x2en, trans, x2x = (drawn(found, mode) for mode in ('en2x', 'x2en', 'trans', 'x2x'))
  assert len(en2x) == len(x2en) == len(trans) == len(x2x) == 3000
  assert [(rank, row, target) for rank, row, _, target in en2x] == [
    (rank, row, source) for rank, row, source, _ in x2en
  ]
  assert x2en == trans
  # n draws with replacement use about 63 % of n rows.
  used = len({row for _, row, *_ in en2x})
  assert abs(used / 3000 - (1 - np.exp(-1))) < 4 * 0.31 / np.sqrt(3000)
  counts = collections.Counter(target for *_, target in en2x)
  assert set(counts) == {'zh', 'vi', 'es'} and all(
    abs(c - 1000) < 4 * np.sqrt(3000 * 2 / 9) for c in counts.values()
  )
  # x2x has a pair of its own, the same language twice among them: 1 in 4.
  same = sum(source == target for *_, source, target in x2x)
  assert abs(same / 3000 - 0.25) < 4 * np.sqrt(0.1875 / 3000)
  independent = np.mean([a[3] == b[3] for a, b in zip(en2x, x2x)])
  assert abs(independent - 0.25) < 0.05


def test_every_assignment_has_every_row_in_every_pair(tiny_vocabulary):
  given = settings(
    tiny_vocabulary, Rows(100), presets=(Preset('every', assignment='every'),), validation_rows=0
  )
  found = drawn(entries('rows.x2x.all.en_zh_vi_es.every', given), 'x2x')
  assert len(found) == 1200 and len({item[1:] for item in found}) == 1200


@hypothesis.given(st.integers(0, 400), st.integers(0, 300), st.integers(0, 5))
@hypothesis.settings(max_examples=15)
def test_splits_part_the_rows(count, wanted, seed):
  train, validation = split_rows(Rows(count), wanted, seed)
  assert sorted([*train, *validation]) == list(range(count))
  assert len(validation) == min(wanted, count // 20)


@pytest.mark.parametrize('preset', ['default', 'released', 'every'])
def test_held_out_rows_are_in_no_training_task_in_any_language(tiny_vocabulary, preset):
  given = settings(
    tiny_vocabulary, Rows(600), validation_rows=30, presets=(Preset('every', assignment='every'),)
  )
  found = entries(f'rows.base_mono_en2x_x2en_x2x_trans.all.en_zh_vi_es.{preset}', given)
  train = {row for entry in found for _, row in entry.task.items('train')}
  held_out = {row for entry in found for _, row in entry.task.items('validation')}
  assert held_out and not train & held_out
  assert held_out <= set(split_rows(given.parallel, 30, 0)[1])
  if preset != 'released':
    assert len(held_out) == 30 and len(train) == 570


def test_seed_and_languages_change_the_draw_and_nothing_else_does(tiny_vocabulary):
  base = drawn(entries('rows.x2x.500.en_zh_vi_es.default', settings(tiny_vocabulary)), 'x2x')
  assert base == drawn(
    entries('rows.base_x2x.500.en_zh_vi_es.default', settings(tiny_vocabulary, template='llama')),
    'x2x',
  )
  assert base != drawn(
    entries('rows.x2x.500.en_zh_vi_es.default', settings(tiny_vocabulary, seed=1)), 'x2x'
  )


def spec(vocabulary, mode, source, target, preset=DEFAULT):
  return TaskSpec(Rows(), mode, mode, source, target, LANGUAGES, preset, 0, 0, 'gemma', vocabulary)


@pytest.mark.parametrize('mode, source, target, row, expected', [
    ('base', 'en', 'en', 2, ('ask 2 en', 'in 2 en', 'answer 2 en', '')),
    ('mono', 'vi', 'vi', 2, ('ask 2 vi', 'in 2 vi', 'answer 2 vi', '')),
    ('en2x', 'en', 'zh', 3, ('ask 3 en', '', 'answer 3 zh', '[zh]')),
    ('x2en', 'es', 'en', 2, ('ask 2 es', 'in 2 es', 'answer 2 en', '[en]')),
    ('x2x', 'es', 'vi', 2, ('ask 2 es', 'in 2 es', 'answer 2 vi', '[vi]')),
    ('trans', 'zh', 'en', 2, ('Translate the following sentence into English.', 'ask 2 zh', 'ask 2 en', '')),
    ('text', 'vi', 'vi', 2, ('ask 2 vi', 'in 2 vi', 'answer 2 vi', '')),
])  # fmt: skip
def test_fields_and_tags(tiny_vocabulary, mode, source, target, row, expected):
  fields = spec(tiny_vocabulary, mode, source, target).fields(row)
  assert tuple(fields[name] for name in ('instruction', 'input', 'output', 'tag')) == expected
  assert fields['id'] == f'id{row}'
  assert spec(tiny_vocabulary, mode, source, target, Preset(tags=False)).fields(row)['tag'] == ''


def test_trans_out_of_english_names_the_language(tiny_vocabulary):
  fields = spec(tiny_vocabulary, 'trans', 'en', 'vi', Preset(both_directions=True)).fields(4)
  assert fields['instruction'] == 'Translate the following sentence into Vietnamese.'
  assert (fields['input'], fields['output']) == ('ask 4 en', 'ask 4 vi')


def test_released_examples_are_cut_from_the_right(tiny_vocabulary):
  cutting = spec(tiny_vocabulary, 'en2x', 'en', 'zh', RELEASED)
  fields = cutting.fields(2)
  whole = cutting.example(fields, None)
  for length in range(len(whole.tokens) - 1, int((whole.loss_weights == 0).sum()), -1):
    cut = cutting.example(fields, length)
    assert cut.tokens.tolist() == whole.tokens[:length].tolist() and cut.shortened == 'output'
    assert cut.loss_weights.tolist() == whole.loss_weights[:length].tolist()
  with pytest.raises(ValueError, match='prompt_too_long'):
    cutting.example(fields, int((whole.loss_weights == 0).sum()))


def rates(name, given):
  found = entries(name, given)
  assert sum(entry.rate for entry in found) == pytest.approx(1)
  totals = collections.defaultdict(float)
  for entry in found:
    totals[entry.task.component] += entry.rate
  return found, dict(totals)


def test_rates_by_hand(tiny_vocabulary):
  source = Rows(1000)  # 950 for training, 50 held out
  given = lambda **changes: settings(tiny_vocabulary, source, validation_rows=50, **changes)
  name = 'rows.base_x2x_trans.380.en_zh_vi_es.default'
  _, counts = rates(name, given())
  assert counts == pytest.approx({'base': 950 / 1710, 'x2x': 380 / 1710, 'trans': 380 / 1710})
  found, shares = rates(name, given(rates='shares', shares={'base': 1, 'x2x': 2, 'trans': 1}))
  assert shares == pytest.approx({'base': 0.25, 'x2x': 0.5, 'trans': 0.25})
  for entry in found:  # within a component by counts
    total = sum(e.examples for e in found if e.task.component == entry.task.component)
    assert entry.rate == pytest.approx(shares[entry.task.component] * entry.examples / total)
  _, epochs = rates(name, given(rates='epochs', epochs={'base': 1, 'x2x': 3, 'trans': 0}))
  assert epochs == pytest.approx({'base': 950 / 2090, 'x2x': 1140 / 2090, 'trans': 0})
  found, _ = rates(name, given(rates='temperature', temperature=3.0))
  weights = [entry.examples ** (1 / 3) for entry in found]
  assert [entry.rate for entry in found] == pytest.approx(
    [weight / sum(weights) for weight in weights]
  )
  found, _ = rates(name, given(rates='temperature', temperature=1e9))
  assert max(entry.rate for entry in found) == pytest.approx(1 / len(found), rel=1e-6)


def test_volumes_of_the_paper(tiny_vocabulary):
  """docs/design/methods.md#a-3-data-composition: Base + n per mode pooled over languages."""
  found = entries(
    'rows.base_en2x_trans.600.en_zh_vi_es.default', settings(tiny_vocabulary, validation_rows=0)
  )
  assert sum(entry.examples for entry in found) == 3000 + 600 + 600


codes = st.sampled_from(['zh', 'vi', 'es', 'fi', 'id', 'th', 'tr', 'bn', 'hi', 'sw', 'ta', 'ur'])
word = st.text(st.sampled_from('abcXYZ019'), min_size=1, max_size=8)


@hypothesis.given(
  st.builds(
    MixtureName,
    st.text(st.sampled_from('abc_1'), min_size=1, max_size=8),
    st.lists(st.one_of(st.sampled_from(sorted(MODES)), word), min_size=1, max_size=4).map(tuple),
    st.one_of(st.none(), st.integers(0, 10**6)),
    st.lists(codes, unique=True, max_size=4).map(lambda rest: ('en', *rest)),
    word,
  )
)
def test_names_come_back(name):
  assert MixtureName.parse(str(name)) == name


@pytest.mark.parametrize('name, message', [
    ('rows.base.all.en', 'is not source.variant.volume.languages.preset'),
    ('rows.base.all.en.default.more', 'is not source.variant.volume.languages.preset'),
    ('rows.ba/se.all.en.default', 'is not source.variant.volume.languages.preset'),
    ('rows.base.many.en.default', "'many' is neither a number nor 'all'"),
    ('rows.base.all.zh_en.default', 'must begin with en'),
    ('rows.base.all.en_zh_zh.default', 'each once'),
    ('rows.base.all.en_xx.default', "unknown language 'xx'"),
    ('rows.base.all.en_zh.unknown', "preset 'unknown' is not one of default, released"),
    ('rows.other.all.en_zh.default', "component 'other' is none of base, mono, en2x"),
    ('else.base.all.en_zh.default', "is over source 'else', MixtureSettings.parallel is 'rows'"),
    ('rows.x2x.2851.en_zh.default', 'volume 2851 is more than the 2850 examples'),
    ('rows.x2x.10.en_zh_fi.default', 'has no rows in fi; it has en, zh, vi, es'),
    ('rows.x2x.0.en_zh.default', 'no example with a rate above 0'),
])  # fmt: skip
def test_errors_say_what_is_wrong(tiny_vocabulary, name, message):
  given = settings(tiny_vocabulary, validation_rows=150)
  with pytest.raises(ValueError, match=message):
    entries(name, given)


def test_settings_refuse_what_cannot_be(tiny_vocabulary):
  for change in ({'rates': 'equal'}, {'temperature': 0}, {'max_length': 1}):
    with pytest.raises(ValueError, match='MixtureSettings'):
      settings(tiny_vocabulary, **change)
  for change in ({'rates': 'shares', 'shares': {'base': 1}}, {'rates': 'epochs'}):
    with pytest.raises(ValueError, match='gives nothing for'):
      entries('rows.base_x2x.10.en_zh.default', settings(tiny_vocabulary, **change))
  with pytest.raises(ValueError, match='must not be negative'):
    entries(
      'rows.base.all.en_zh.default', settings(tiny_vocabulary, rates='shares', shares={'base': -1})
    )
  with pytest.raises(ValueError, match='needs MixtureSettings.parallel'):
    entries('rows.x2x.1.en_zh.default', settings(tiny_vocabulary, None, english=Rows(5)))
  with pytest.raises(ValueError, match="'most' is not 'one'"):
    Preset(assignment='most')
  with pytest.raises(ValueError, match='template'):
    entries('rows.base.all.en_zh.default', settings(tiny_vocabulary, template='alpacca'))
