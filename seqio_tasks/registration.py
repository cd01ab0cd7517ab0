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
from seqio_tasks.vocabularies import SeqioVocabulary


def register(mixture: str, settings: MixtureSettings | None = None) -> seqio.Mixture:
  """Registers a Mixture and its Tasks with SeqIO and replaces those with the same names.

  Args:
    mixture: name as in `mixtures.MixtureName`.
    settings: None = `MixtureSettings()` as gin has it.

  Returns:
    The seqio.Mixture. Task features are `targets` (int32 ids, prompt and response) and
    `loss_weights` (float32); use it with `feature_converter.CrossInFeatureConverter`.

  Raises:
    ValueError: see `mixtures.mixture_entries`.
  """
  name = MixtureName.parse(mixture)
  entries = mixture_entries(name, settings or MixtureSettings())
  rates = []
  for entry in entries:
    if entry.examples:
      rates.append((_register_task(entry).name, entry.rate))
  seqio.MixtureRegistry.remove(mixture)
  return seqio.MixtureRegistry.add(mixture, rates)


def _register_task(entry: MixtureEntry) -> seqio.Task:
  spec, volume = entry.task, entry.volume
  name = spec.name if volume is None else f'{spec.name}.{volume}'
  seqio.TaskRegistry.remove(name)
  vocabulary = SeqioVocabulary(spec.vocabulary)
  return seqio.TaskRegistry.add(
    name,
    source=seqio.FunctionDataSource(
      dataset_fn=functools.partial(_rows, spec, volume),
      splits=('train', 'validation'),
      num_input_examples={'train': entry.examples, 'validation': len(spec.items('validation'))},
    ),
    preprocessors=[functools.partial(render, spec=spec)],
    output_features={
      'targets': seqio.Feature(vocabulary, add_eos=False, dtype=tf.int32),
      'loss_weights': seqio.Feature(
        seqio.PassThroughVocabulary(1), add_eos=False, dtype=tf.float32
      ),
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


def render(dataset: tf.data.Dataset, sequence_length, spec: TaskSpec) -> tf.data.Dataset:
  """Preprocessor from string fields to `targets` and `loss_weights`; drops rejected rows.

  `sequence_length['targets']` is the most tokens of an example, as max_length is in `prepare`.
  """
  max_length = (sequence_length or {}).get('targets')

  def tokens_of(*values):
    fields = {field: value.decode('utf-8') for field, value in zip(FIELDS, values)}
    fields['messages'] = json.loads(fields['messages'] or '[]')
    try:
      example = spec.example(fields, max_length)
    except Rejected:
      return np.zeros(0, np.int32), np.zeros(0, np.float32)
    return example.tokens, example.loss_weights

  def convert(features):
    targets, weights = tf.numpy_function(
      tokens_of, [features[f] for f in FIELDS], (tf.int32, tf.float32)
    )
    targets.set_shape((None,))
    weights.set_shape((None,))
    return {'id': features['id'], 'targets': targets, 'loss_weights': weights}

  dataset = dataset.map(convert, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
  return dataset.filter(lambda features: tf.size(features['targets']) > 0)
