"""Preference pairs as Tasks: prepared files, SeqIO and inspection have the same tokens."""

import json
import pickle

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest
import seqio
import tensorflow as tf

from crossin_jax.data import inspection, pair_layout
from crossin_jax.data.prepared import PreparedMixture
from crossin_jax.data.prompts import Rejected, render_example
from crossin_jax.data.source_errors import SourceError
from seqio_tasks import pair_task
from seqio_tasks.feature_converter import CrossInFeatureConverter
from seqio_tasks.mixtures import MixtureSettings
from seqio_tasks.pair_files import PairFiles
from seqio_tasks.prepare import prepare
from seqio_tasks.registration import register


def row(id_, language, chosen, rejected, **changes):
  prompt = {'en': 'Which month is hot', 'es': 'Qué mes es caluroso', 'vi': 'Tháng nào nóng'}
  fields = {'id': id_, 'prompt': f'{prompt[language]}, {id_}?', 'language': language}
  return fields | {'chosen': chosen, 'rejected': rejected} | changes


ROWS = [
  *(row(f'{i}.{code}', code, f'July {i}', 'May') for i in range(30) for code in ('en', 'es')),
  row('implicit', 'es', 'julio', 'mayo', prompt_language='en'),
  *(row('both', code, *two, how='options') for code, two in (('en', 'ab'), ('es', 'cd'))),
  row('same', 'es', 'julio', ' julio'),
  row('half', 'en', 'July', 'May', how='options'),
  row('other', 'vi', 'July', 'May'),
]


def write(path, rows=ROWS):
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows), encoding='utf-8')
  return str(path)


@pytest.fixture
def settings(tmp_path, tiny_world, tiny_vocabulary):
  from crossin_jax.world.sources import WorldInstructions

  source = PairFiles(write(tmp_path / 'pairs.jsonl'), name='tuned')
  return MixtureSettings(
    parallel=WorldInstructions(tiny_world), pairs={'pairs': (source,)}, vocabulary=tiny_vocabulary,
    template='gemma', validation_rows=2, max_length=96,
  )  # fmt: skip


MIXTURE = 'world.base_pairs.all.en_es.default'


def test_prepared_pairs_are_the_prompt_with_each_answer(settings, tmp_path, tiny_vocabulary):
  (source,) = settings.pairs['pairs']
  assert pickle.loads(pickle.dumps(source)).digest() == source.digest()
  summary = prepare(MIXTURE, str(tmp_path / 'D'), settings, workers=1)
  counts = {'es: equal_answers': 1, 'en: half_missing': 1}
  assert summary['set_aside']['tuned'] == counts and not summary['dropped']
  (note,) = summary['notes']
  assert note.startswith('tuned: 1 of 63 pairs left out') and note.endswith('among en, es')
  tasks = {
    task.split.name: task.split
    for task in PreparedMixture(str(tmp_path / 'D'), MIXTURE).tasks
    if task.split.has_pairs
  }
  assert set(tasks) == {
    'tuned.pairs.en.en.default', 'tuned.pairs.es.es.default', 'tuned.pairs.en.es.default',
    'tuned.pairs.consistency.en.es.default',
  }  # fmt: skip
  by_id = {}
  for own in ROWS:
    by_id.setdefault(own['id'], []).append(own)
  held_out = 0
  for split in tasks.values():
    held_out += split.manifest['splits']['validation']['examples']
    for i in range(len(split)):
      tokens, weights = split.example(i)
      halves = pair_layout.halves(split.branches(i))
      rows = by_id[split.id(i)]
      assert len(halves) == len(rows)
      for half, own in zip(halves, rows):
        for answer, text in zip(half.answers.values(), (own['chosen'], own['rejected'])):
          fields = {'instruction': own['prompt'], 'input': '', 'output': text}
          wanted = render_example(tiny_vocabulary, 'gemma', fields, '', None)
          np.testing.assert_array_equal(
            np.concatenate([tokens[half.prompt], tokens[answer]]), wanted.tokens
          )
          np.testing.assert_array_equal(
            np.concatenate([weights[half.prompt], weights[answer]]), wanted.loss_weights
          )
  assert held_out == 2
  report = inspection.inspect(PreparedMixture(str(tmp_path / 'D'), MIXTURE), length=96, steps=400)
  for task in report['tasks']:
    assert task['share_examples'] == pytest.approx(task['rate'], abs=0.002)
  shown = inspection.marked(
    tiny_vocabulary, *split.example(0), False, branches=split.branches(0)
  )  # fmt: skip
  assert '\n+ ⟦' in shown and '\n- ⟦' in shown


def test_seqio_reads_the_same(settings, tmp_path):
  prepare(MIXTURE, str(tmp_path / 'D'), settings, workers=1)
  register(MIXTURE, settings)
  for task in PreparedMixture(str(tmp_path / 'D'), MIXTURE).tasks:
    name = task.split.name + ('' if task.split.has_pairs else '.beside_pairs')
    found = list(
      seqio.get_mixture_or_task(name)
      .get_dataset({'targets': 96, 'loss_weights': 96, 'branches': 96}, 'train', shuffle=False)
      .as_numpy_iterator()
    )
    assert len(found) == len(task.split)
    for i, example in enumerate(found):
      tokens, weights = task.split.example(i)
      np.testing.assert_array_equal(example['targets'], tokens)
      np.testing.assert_array_equal(example['loss_weights'], weights)
      wanted = task.split.branches(i) if task.split.has_pairs else 0 * tokens
      np.testing.assert_array_equal(example['branches'], wanted)
  lengths = {'targets': 96, 'loss_weights': 96, 'branches': 96}
  mixed = seqio.get_mixture_or_task(MIXTURE).get_dataset(lengths, 'train', num_epochs=1)
  assert {'targets', 'loss_weights', 'branches'} <= set(mixed.element_spec)
  with pytest.raises(ValueError, match='preference pairs'):
    CrossInFeatureConverter()(mixed, {'targets': 96, 'loss_weights': 96})
  assert isinstance(mixed, tf.data.Dataset)


@given(st.lists(st.integers(1, 40), min_size=2, max_size=4), st.integers(0, 120))
def test_the_longest_answers_lose_their_ends(lengths, room):
  if room < len(lengths):
    with pytest.raises(Rejected, match='prompt_too_long'):
      pair_task._most(lengths, room)
    return
  most = pair_task._most(lengths, room)
  total = lambda most: sum(min(length, most) for length in lengths)
  assert total(most) <= room and (most == max(lengths) or total(most + 1) > room)


def test_long_pairs_are_cut_or_dropped(settings, tmp_path):
  long = [row('a', 'en', 'July is hot. ' * 40, 'May is cold. ' * 40), row('b', 'en', 'July', 'May')]
  long += [row('c', 'en', 'July ' * 60 + 'x', 'July ' * 60 + 'y'), row('d', 'en', 'J', 'M')]
  long[3]['prompt'] = 'Which month? ' * 100
  source = PairFiles(write(tmp_path / 'long.jsonl', long), name='long')
  settings = MixtureSettings(
    pairs={'pairs': (source,)},
    vocabulary=settings.vocabulary,
    max_length=96,
    validation_rows=0,
    template='gemma',
  )
  summary = prepare('any.pairs.all.en.default', str(tmp_path / 'D'), settings, workers=1)
  assert summary['dropped'] == {'equal_answers': 1, 'prompt_too_long': 1}
  assert summary['shortened'] == {'output': 1}
  (task,) = PreparedMixture(str(tmp_path / 'D'), 'any.pairs.all.en.default').tasks
  assert sorted(map(task.split.id, range(2))) == ['a', 'b']
  assert task.split.lengths.max() <= 96


def test_what_cannot_be_prepared_is_named(settings, tmp_path):
  (source,) = settings.pairs['pairs']
  with pytest.raises(ValueError, match="component 'pairs' has no pair whose languages .* en, es"):
    prepare('world.pairs.all.en_zh.default', str(tmp_path), MixtureSettings(
      pairs={'pairs': (PairFiles(write(tmp_path / 'es.jsonl', ROWS[1:2]), name='x'),
                       PairFiles(write(tmp_path / 'e.jsonl', ROWS[60:61]), name='y'))},
      vocabulary=settings.vocabulary,
    ))  # fmt: skip
  twice = MixtureSettings(
    pairs={'pairs': (source, PairFiles(write(tmp_path / 'more.jsonl', ROWS[:2]), name='tuned'))},
    vocabulary=settings.vocabulary,
  )
  with pytest.raises(ValueError, match="two sources of 'pairs' have the name 'tuned'"):
    prepare('tuned.pairs.all.en_es.default', str(tmp_path), twice)
  with pytest.raises(SourceError, match="PairFiles.language = 'qqq'"):
    PairFiles(source.path, language='qqq')
  bare = write(tmp_path / 'bare.jsonl', [{'prompt': 'a', 'chosen': 'b', 'rejected': 'c'}])
  with pytest.raises(SourceError, match="field 'language' is missing"):
    PairFiles(bare).ids()
  assert PairFiles(bare, language='es').kinds == [('pairs', 'es', 'es')]
