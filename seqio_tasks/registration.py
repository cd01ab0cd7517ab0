"""SeqIO Tasks and Mixtures from mixture names, with preprocessors that render exactly what
`prepare` stores.
"""

import functools
import json

import numpy as np
import seqio
import tensorflow as tf

from crossin_jax.data.mixture_name import MixtureName
from crossin_jax.data.prompts import Rejected
from seqio_tasks.crossin import TaskSpec
from seqio_tasks.mixtures import MixtureEntry, MixtureSettings, mixture_entries
from seqio_tasks.pair_task import PairTask
from seqio_tasks.vocabularies import SeqioVocabulary


def register(mixture: str, settings: MixtureSettings | None = None) -> seqio.Mixture:
  """Registers a Mixture and its Tasks with SeqIO and replaces those with the same names.

  Args:
    mixture: name as in `mixtures.MixtureName`.
    settings: None = `MixtureSettings()` as gin has it.

  Returns:
    The seqio.Mixture. Task features are `targets` (int32 ids, prompt and response) and
    `loss_weights` (float32); use it with `feature_converter.CrossInFeatureConverter`. Those of a
    mixture with preference pairs have `branches` too (int32, 0 on rows; see `data.pair_layout`).

  Raises:
    ValueError: see `mixtures.mixture_entries`.
  """
  name = MixtureName.parse(mixture)
  entries = mixture_entries(name, settings or MixtureSettings())
  rates, with_pairs = [], any(isinstance(entry.task, PairTask) for entry in entries)
  for entry in entries:
    if entry.examples:
      rates.append((_register_task(entry, with_pairs).name, entry.rate))
  seqio.MixtureRegistry.remove(mixture)
  return seqio.MixtureRegistry.add(mixture, rates)


def _register_task(entry: MixtureEntry, with_pairs: bool) -> seqio.Task:
  spec, volume = entry.task, entry.volume
  name = spec.name if volume is None else f'{spec.name}.{volume}'
  # The Tasks of a Mixture have the same features; a name may be in Mixtures of both kinds.
  if with_pairs and not isinstance(spec, PairTask):
    name += '.beside_pairs'
  seqio.TaskRegistry.remove(name)
  vocabulary = SeqioVocabulary(spec.vocabulary)
  number = lambda dtype: seqio.Feature(seqio.PassThroughVocabulary(1), add_eos=False, dtype=dtype)
  return seqio.TaskRegistry.add(
    name,
    source=seqio.FunctionDataSource(
      dataset_fn=functools.partial(_rows, spec, volume),
      splits=('train', 'validation'),
      num_input_examples={'train': entry.examples, 'validation': len(spec.items('validation'))},
    ),
    preprocessors=[functools.partial(render, spec=spec, with_branches=with_pairs)],
    output_features={
      'targets': seqio.Feature(vocabulary, add_eos=False, dtype=tf.int32),
      'loss_weights': number(tf.float32),
      **({'branches': number(tf.int32)} if with_pairs else {}),
    },
  )


FIELDS = ('id', 'instruction', 'input', 'output', 'tag', 'messages')


def _rows(spec: TaskSpec, volume, split, shuffle_files=False, seed=None) -> tf.data.Dataset:
  """Rows of a Task as string features, in volume order or shuffled by `seed`."""
  items = spec.items(split)
  if volume is not None and split == 'train':
    items = items[items[:, 0] < volume]
  if shuffle_files:
    np.random.default_rng(seed).shuffle(items)

  def generate():
    for _, row in items:
      fields = spec.fields(row)
      # Tensors hold text: the messages of a conversation are JSON, '' of other rows.
      turns = fields.get('messages')
      yield {**fields, 'messages': json.dumps(turns, ensure_ascii=False) if turns else ''}

  signature = {field: tf.TensorSpec((), tf.string) for field in FIELDS}
  return tf.data.Dataset.from_generator(generate, output_signature=signature)


def render(
  dataset: tf.data.Dataset, sequence_length, spec: TaskSpec, with_branches: bool = False
) -> tf.data.Dataset:
  """Preprocessor from string fields to `targets` and `loss_weights`, and to `branches` if asked;
  drops rejected rows.

  `sequence_length['targets']` is the most tokens of an example, as max_length is in `prepare`.
  """
  dtypes = {'targets': tf.int32, 'loss_weights': tf.float32, 'branches': tf.int32}
  max_length = (sequence_length or {}).get('targets')

  def tokens_of(*values):
    fields = {field: value.decode('utf-8') for field, value in zip(FIELDS, values)}
    fields['messages'] = json.loads(fields['messages'] or '[]')
    try:
      example = spec.example(fields, max_length)
    except Rejected:
      return np.zeros(0, np.int32), np.zeros(0, np.float32), np.zeros(0, np.int32)
    branches = np.zeros(len(example.tokens)) if example.branches is None else example.branches
    return example.tokens, example.loss_weights, branches.astype(np.int32)

  def convert(row):
    arrays = tf.numpy_function(tokens_of, [row[f] for f in FIELDS], [*dtypes.values()])
    for array in arrays:
      array.set_shape((None,))
    named = dict(zip(dtypes, arrays))
    if not with_branches:
      del named['branches']
    return {'id': row['id'], **named}

  dataset = dataset.map(convert, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
  return dataset.filter(lambda features: tf.size(features['targets']) > 0)
