"""The registered Tasks and Mixtures through plain SeqIO: the same tokens, the same invariants, the
same shares.
"""

import collections

from conftest import TINY_MIXTURE
import numpy as np
import pytest

from crossin_jax.data.prepared import PreparedMixture, TaskSplit

pytestmark = pytest.mark.slow
LENGTHS = {'targets': 64, 'loss_weights': 64}
# TensorFlow takes its time for each Task of a mixture: six are enough where the number does not
# matter.
SMALL = 'world.tested_shared_base_x2x.all.en_zh.every'


@pytest.fixture(scope='module')
def seqio():
  import seqio  # and TensorFlow, which takes seconds

  return seqio


@pytest.fixture
def registered(seqio, tiny_settings):
  import seqio_tasks.registration

  return seqio_tasks.registration.register(TINY_MIXTURE, tiny_settings())


@pytest.fixture
def small(seqio, tiny_settings):
  import seqio_tasks.registration

  return seqio_tasks.registration.register(SMALL, tiny_settings())


def test_tasks_give_token_by_token_what_prepare_wrote(registered, tiny_prepared, seqio):
  directory, _ = tiny_prepared
  assert len(registered.tasks) == len(PreparedMixture(*tiny_prepared).tasks)
  for task in registered.tasks:
    assert seqio.get_mixture_or_task(task.name) is task
    for split in ('train', 'validation') if '.x2x.' in task.name else ('train',):
      stored = TaskSplit(directory, task.name, split)
      found = list(
        task.get_dataset(sequence_length=LENGTHS, split=split, shuffle=False).as_numpy_iterator()
      )
      assert len(found) == len(stored), task.name
      for i, example in enumerate(found):
        tokens, weights = stored.example(i)
        np.testing.assert_array_equal(example['targets'], tokens)
        np.testing.assert_array_equal(example['loss_weights'], weights)
        assert example['id'].decode() == stored.id(i)
        assert example['targets'].dtype == np.int32 and example['loss_weights'].dtype == np.float32


def test_a_short_sequence_length_cuts_as_max_length_does(registered, tiny_settings):
  task = next(task for task in registered.tasks if '.x2x.' in task.name)
  from crossin_jax.data.mixture_name import MixtureName
  from seqio_tasks.mixtures import mixture_entries

  spec = next(
    e.task
    for e in mixture_entries(MixtureName.parse(TINY_MIXTURE), tiny_settings())
    if e.task.name == task.name
  )
  from crossin_jax.data.prompts import Rejected

  expected = []
  for _, row in spec.items('train'):
    try:
      expected.append(spec.example(spec.fields(row), 24))
    except Rejected:
      pass
  lengths = {'targets': 24, 'loss_weights': 24}
  found = list(
    task.get_dataset(sequence_length=lengths, split='train', shuffle=False).as_numpy_iterator()
  )
  assert 0 < len(found) == len(expected) and any(e.shortened for e in expected)
  for example, wanted in zip(found, expected):
    np.testing.assert_array_equal(example['targets'], wanted.tokens)
    np.testing.assert_array_equal(example['loss_weights'], wanted.loss_weights)


def rendered(tiny_settings):
  """Task -> its examples as (tokens, weights) tuples, rendered without SeqIO."""
  from crossin_jax.data.mixture_name import MixtureName
  from seqio_tasks.mixtures import mixture_entries

  found = {}
  for entry in mixture_entries(MixtureName.parse(SMALL), tiny_settings()):
    examples = [
      entry.task.example(entry.task.fields(row), 64) for _, row in entry.task.items('train')
    ]
    found[entry.task.name] = {
      (tuple(e.tokens.tolist()), tuple(e.loss_weights.tolist())) for e in examples
    }
  return found


@pytest.mark.parametrize('pack', [True, False])
def test_features_of_the_converter_keep_every_invariant(
  small, tiny_settings, tiny_vocabulary, seqio, pack
):
  from seqio_tasks.feature_converter import CrossInFeatureConverter

  known = {example for examples in rendered(tiny_settings).values() for example in examples}
  converter = CrossInFeatureConverter(pack=pack, bos_id=tiny_vocabulary.bos_id)
  dataset = seqio.get_dataset(SMALL, LENGTHS, converter, 'train', shuffle=False, num_epochs=None)
  rows = list(dataset.take(60).as_numpy_iterator())
  used = segments = 0
  for row in rows:
    assert set(row) == {
      f'decoder_{n}'
      for n in ('input_tokens', 'target_tokens', 'loss_weights', 'segment_ids', 'positions')
    }
    assert all(array.shape == (64,) for array in row.values())
    ids = row['decoder_segment_ids']
    assert not any(array[ids == 0].any() for array in row.values())
    assert (
      (np.diff((ids > 0).astype(int)) <= 0).all() and ids.max() >= 1 and (pack or ids.max() == 1)
    )
    for segment in range(1, ids.max() + 1):
      place = np.flatnonzero(ids == segment)
      tokens = row['decoder_target_tokens'][place]
      assert (tuple(tokens.tolist()), tuple(row['decoder_loss_weights'][place].tolist())) in known
      np.testing.assert_array_equal(
        row['decoder_input_tokens'][place], [tiny_vocabulary.bos_id, *tokens[:-1]]
      )
      np.testing.assert_array_equal(row['decoder_positions'][place], np.arange(len(place)))
      segments += 1
    used += (ids > 0).sum()
  assert segments == len(rows) if not pack else used / len(rows) / 64 > 0.7


def test_id_0_survives_the_converter(seqio):
  import tensorflow as tf

  from seqio_tasks.feature_converter import CrossInFeatureConverter

  examples = [
    ([0, 5, 0], [0.0, 1.0, 0.5]),
    ([0, 0], [1.0, 1.0]),
    ([7, 0, 0, 2], [0.0, 0.0, 1.0, 1.0]),
  ]

  def generate():
    for tokens, weights in examples:
      yield {'targets': np.array(tokens, np.int32), 'loss_weights': np.array(weights, np.float32)}

  spec = {
    'targets': tf.TensorSpec((None,), tf.int32),
    'loss_weights': tf.TensorSpec((None,), tf.float32),
  }
  dataset = tf.data.Dataset.from_generator(generate, output_signature=spec)
  converter = CrossInFeatureConverter(pack=True, bos_id=9)
  rows = list(converter(dataset, {'targets': 6, 'loss_weights': 6}).as_numpy_iterator())
  expected = {
    'decoder_target_tokens': [[0, 5, 0, 0, 0, 0], [7, 0, 0, 2, 0, 0]],
    'decoder_input_tokens': [[9, 0, 5, 9, 0, 0], [9, 7, 0, 0, 0, 0]],
    'decoder_loss_weights': [[0, 1, 0.5, 1, 1, 0], [0, 0, 1, 1, 0, 0]],
    'decoder_segment_ids': [[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 0, 0]],
    'decoder_positions': [[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 0, 0]],
  }
  for name, values in expected.items():
    np.testing.assert_array_equal([row[name] for row in rows], values, err_msg=name)


def test_seqios_own_sampler_realises_the_rates(small, tiny_settings):
  """Each task within four standard deviations of its rate."""
  marks, rates = {}, {task.name: float(small.get_rate(task)) for task in small.tasks}
  for name, examples in rendered(tiny_settings).items():
    for tokens, _ in examples:
      marks.setdefault(tokens, set()).add(name)
  n = 2000
  dataset = small.get_dataset(
    sequence_length=LENGTHS, split='train', shuffle=False, num_epochs=None, seed=1
  )
  counts = collections.Counter()
  for example in dataset.take(n).as_numpy_iterator():
    # The same text may stand in two tasks (a name that is equal in two languages): those count
    # together.
    counts[frozenset(marks[tuple(example['targets'].tolist())])] += 1
  total = sum(rates.values())
  single = {name: sum(c for names, c in counts.items() if names == {name}) for name in rates}
  shared = {name: sum(c for names, c in counts.items() if name in names) for name in rates}
  for name, rate in rates.items():
    share = rate / total
    slack = 4 * np.sqrt(n * share * (1 - share))
    assert single[name] - slack <= n * share <= shared[name] + slack, (
      name,
      single[name],
      shared[name],
      n * share,
    )
  ambiguous = sum(c for names, c in counts.items() if len(names) > 1)
  assert ambiguous < 0.1 * n


def test_registering_again_replaces(registered, tiny_settings, seqio):
  import seqio_tasks.registration

  again = seqio_tasks.registration.register(
    TINY_MIXTURE, tiny_settings(shares={'tested': 1, 'shared': 1, 'base': 1, 'x2x': 97})
  )
  assert seqio.MixtureRegistry.get(TINY_MIXTURE) is again
  share = sum(again.get_rate(t) for t in again.tasks if '.x2x.' in t.name) / again.total_rate
  assert share == pytest.approx(0.97)


def test_a_volume_registers_a_prefix(tiny_settings, seqio):
  import seqio_tasks.registration

  name = 'world.x2x.40.en_zh_vi_es.every'
  mixture = seqio_tasks.registration.register(name, tiny_settings(rates='counts'))
  ids = [
    example['id']
    for task in mixture.tasks
    for example in task.get_dataset(
      sequence_length=LENGTHS, split='train', shuffle=False
    ).as_numpy_iterator()
  ]
  assert len(ids) == 40


def test_vocabulary_round_trip(tiny_vocabulary, seqio):
  import tensorflow as tf

  from seqio_tasks.vocabularies import SeqioVocabulary

  vocabulary = SeqioVocabulary(tiny_vocabulary)
  assert (
    vocabulary.vocab_size == tiny_vocabulary.size
    and vocabulary.eos_id == 2
    and vocabulary.bos_id == 1
  )
  for text in ('The night ferry', '夜间渡轮', 'Phà\nđêm'):
    ids = tiny_vocabulary.encode(text)
    assert list(vocabulary.encode(text)) == ids and vocabulary.decode(ids) == text
    assert vocabulary.decode([*ids, 2, 5, 6]) == text
    assert vocabulary.encode_tf(tf.constant(text)).numpy().tolist() == ids
    assert vocabulary.decode_tf(tf.constant(ids, tf.int32)).numpy().decode() == text
  assert vocabulary == SeqioVocabulary(tiny_vocabulary) and hash(vocabulary) == hash(
    SeqioVocabulary(tiny_vocabulary)
  )
