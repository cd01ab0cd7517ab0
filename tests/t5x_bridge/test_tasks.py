"""SeqIO's side of the bridge: converters with prompts, and registered mixtures as prepared files."""

import json
import os
import types

from conftest import TINY_MIXTURE
import numpy as np
import pytest

from crossin_jax.data.prepared import PreparedDataError, PreparedMixture
from crossin_jax.data.stream import BatchStream
from crossin_jax.t5x_bridge import seqio_data, tasks

pytestmark = pytest.mark.slow
PAIRS = [([7, 8], [5, 2]), ([0, 0, 9], [0, 2]), ([], [4, 0, 2]), ([3], [0] * 9)]


@pytest.fixture(scope='module')
def seqio():
  import seqio  # and TensorFlow, which takes seconds

  return seqio


@pytest.fixture
def pairs_task(seqio, tiny_vocabulary):
  """A Task of somebody else: `inputs` and `targets`, ids 0 among them."""
  import tensorflow as tf

  def dataset(split, shuffle_files=False, seed=None):
    spec = tf.TensorSpec((None,), tf.int32)
    rows = lambda: (
      {'inputs': np.array(i, np.int32), 'targets': np.array(t, np.int32)} for i, t in PAIRS
    )
    return tf.data.Dataset.from_generator(rows, output_signature={'inputs': spec, 'targets': spec})

  vocabulary = seqio.SentencePieceVocabulary(tiny_vocabulary.path)
  feature = seqio.Feature(vocabulary, add_eos=False, dtype=tf.int32)
  seqio.TaskRegistry.remove('others#pairs')
  return seqio.TaskRegistry.add(
    'others#pairs',
    source=seqio.FunctionDataSource(
      dataset, splits=('train',), num_input_examples={'train': len(PAIRS)}
    ),
    preprocessors=[],
    output_features={'inputs': feature, 'targets': feature},
  )


def test_prompts_are_marked(pairs_task):
  from seqio_tasks.feature_converter import AnyTaskFeatureConverter

  dataset = pairs_task.get_dataset(
    sequence_length={'inputs': 3, 'targets': 3}, split='train', shuffle=False
  ).take(3)
  rows = list(
    AnyTaskFeatureConverter(pack=False, bos_id=1)(
      dataset, {'inputs': 3, 'targets': 3}
    ).as_numpy_iterator()
  )
  expected = {
    'decoder_target_tokens': [[7, 8, 5, 2, 0, 0], [0, 0, 9, 0, 2, 0], [4, 0, 2, 0, 0, 0]],
    'decoder_input_tokens': [[1, 7, 8, 5, 0, 0], [1, 0, 0, 9, 0, 0], [1, 4, 0, 0, 0, 0]],
    'decoder_loss_weights': [[0, 0, 1, 1, 0, 0], [0, 0, 0, 1, 1, 0], [1, 1, 1, 0, 0, 0]],
    'decoder_segment_ids': [[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 0]],
    'decoder_positions': [[0, 1, 2, 3, 0, 0], [0, 1, 2, 3, 4, 0], [0, 1, 2, 0, 0, 0]],
    'decoder_causal_attention': [[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0], [1, 0, 0, 0, 0, 0]],
  }
  assert set(rows[0]) == set(expected)
  for name, values in expected.items():
    np.testing.assert_array_equal([row[name] for row in rows], values, err_msg=name)


def test_weighted_tasks_are_packed_or_prompted(seqio):
  import tensorflow as tf

  from seqio_tasks.feature_converter import AnyTaskFeatureConverter

  examples = [([0, 5, 0], [0.0, 1.0, 0.5]), ([0, 0], [1.0, 1.0]), ([7, 0], [0.0, 0.0])]
  spec = {
    'targets': tf.TensorSpec((None,), tf.int32),
    'loss_weights': tf.TensorSpec((None,), tf.float32),
  }
  rows = lambda: (
    {'targets': np.array(t, np.int32), 'loss_weights': np.array(w, np.float32)} for t, w in examples
  )
  dataset = tf.data.Dataset.from_generator(rows, output_signature=spec)
  lengths = {'targets': 5, 'loss_weights': 5}
  packed = list(AnyTaskFeatureConverter(pack=True, bos_id=9)(dataset, lengths).as_numpy_iterator())
  assert 'decoder_causal_attention' not in packed[0]
  np.testing.assert_array_equal(packed[0]['decoder_segment_ids'], [1, 1, 1, 2, 2])
  converter = AnyTaskFeatureConverter(pack=False, bos_id=9)
  alone = list(converter(dataset, lengths).as_numpy_iterator())
  found = [row['decoder_causal_attention'].tolist() for row in alone]
  assert found == [[1, 1, 0, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 0, 0]]
  np.testing.assert_array_equal(alone[0]['decoder_loss_weights'], [0, 1, 0.5, 0, 0])
  assert converter.get_model_feature_lengths(lengths)['decoder_causal_attention'] == 5


def test_any_seqio_mixture_becomes_batches(pairs_task, tmp_path, capsys):
  arguments = [
    '--mixture',
    'others#pairs',
    '--output_dir',
    str(tmp_path),
    '--max_length',
    '8',
    '--json',
  ]
  assert seqio_data.main(arguments) == 0
  assert json.loads(capsys.readouterr().out) == {
    'mixture': 'others.pairs',
    'examples': 3,
    'tokens': 12,
    'dropped': 1,
  }
  mixture = PreparedMixture(str(tmp_path), 'others.pairs')
  split = mixture.tasks[0].split
  for i, (prompt, answer) in enumerate(PAIRS[:3]):
    tokens, weights = split.example(i)
    assert tokens.tolist() == prompt + answer and weights.tolist() == [0] * len(prompt) + [1] * len(
      answer
    )
  batch = BatchStream(mixture, batch_size=2, length=8).batch(0)
  assert batch['decoder_loss_weights'].sum() > 0 and mixture.bos_id == 1
  # Once more over the same files; but never over those of `crossin prepare`.
  assert seqio_data.main(arguments) == 0
  path = tmp_path / 'tasks' / 'others.pairs' / 'manifest.json'
  path.write_text(path.read_text().replace('"component": "seqio"', '"component": "x2x"'))
  assert (
    seqio_data.main(arguments) == 1 and 'written by `crossin prepare`' in capsys.readouterr().err
  )
  assert seqio_data.main(['--mixture', 'nothing', *arguments[2:]]) == 1
  assert 'Give --module' in capsys.readouterr().err


def test_our_own_mixtures_come_out_as_prepare_wrote_them(seqio, tiny_settings, tmp_path):
  from seqio_tasks.prepare import prepare
  import seqio_tasks.registration

  name = 'world.x2x.all.en_zh.every'
  seqio_tasks.registration.register(name, tiny_settings(rates='counts'))
  found = seqio_data.prepare(name, str(tmp_path / 'seqio'), 64)
  prepare(name, str(tmp_path / 'prepared'), tiny_settings(rates='counts'), workers=1)
  for split in ('train', 'validation'):
    mixtures = [PreparedMixture(str(tmp_path / way), name, split) for way in ('seqio', 'prepared')]
    assert [task.rate for task in mixtures[0].tasks] == pytest.approx(
      [task.rate for task in mixtures[1].tasks]
    )
    for mine, theirs in zip(*(mixture.tasks for mixture in mixtures), strict=True):
      assert mine.split.name == theirs.split.name and len(mine.split) == len(theirs.split) > 0
      for i in range(len(mine.split)):
        assert mine.split.id(i) == theirs.split.id(i)
        for a, b in zip(mine.split.example(i), theirs.split.example(i)):
          np.testing.assert_array_equal(a, b)
  assert found['examples'] and found['dropped'] == 0


def test_a_vocabulary_without_a_file_is_an_error():
  with pytest.raises(PreparedDataError, match='give --vocabulary'):
    seqio_data._vocabulary_of(types.SimpleNamespace())


@pytest.mark.parametrize('mode', ['predict', 'score'])
def test_predictions_have_ids(mode, tmp_path):
  rows = [{'id': b'a/1'}, {'id': 'ä'.encode()}]
  dataset = types.SimpleNamespace(as_numpy_iterator=lambda: iter(rows))
  vocabulary = types.SimpleNamespace(decode=lambda ids: f'{ids}')
  found = (np.array([-1.5, 2.0]) if mode == 'score' else np.array([[0, 3], [4, 0]]), {})
  path = tmp_path / 'out.jsonl'
  tasks.t5x_predictions(str(path), found, dataset, mode, vocabulary)
  lines = [json.loads(line) for line in path.read_text(encoding='utf-8').splitlines()]
  wanted = {'score': [-1.5, 2.0], 'predict': ['[0, 3]', '[4, 0]']}[mode]
  key = 'score' if mode == 'score' else 'prediction'
  assert lines == [{'id': 'a/1', key: wanted[0]}, {'id': 'ä', key: wanted[1]}]
  assert os.listdir(tmp_path) == ['out.jsonl']


def test_mixtures_are_registered_by_name(seqio, tiny_settings, monkeypatch):
  import seqio_tasks

  asked = []
  monkeypatch.setattr(seqio_tasks, 'register', asked.append)
  assert tasks.t5x_mixture(TINY_MIXTURE) == TINY_MIXTURE and asked == [TINY_MIXTURE]
