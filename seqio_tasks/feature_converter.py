"""Converts SeqIO examples to decoder features; keeps tokens of id 0 and loss weights."""

from collections.abc import Mapping

import numpy as np
import seqio
import tensorflow as tf

from crossin_jax.data.stream import FEATURES, empty_rows, write_segment

_SPEC = seqio.FeatureConverter.FeatureSpec
# The features of SeqIO; the task of a token exists only in this project's stream.
_FEATURES = {name: dtype for name, dtype in FEATURES.items() if name != 'decoder_task_ids'}
# The prompt mask of T5X: 1 on BOS and the prompt.
PROMPT = 'decoder_causal_attention'


class CrossInFeatureConverter(seqio.FeatureConverter):
  """Packs greedily in stream order (or pads), from `targets` and `loss_weights`.

  seqio's own packer takes id 0 for padding and its decoder converter derives loss weights from ids;
  both lose real tokens. Features are those of our own loader, so either trains the same model:

      targets 7 8 2 | 9 2, weights 0 1 1 | 0 1, length 6, BOS 1
      decoder_target_tokens   7 8 2 9 2 0      decoder_input_tokens  1 7 8 1 9 0
      decoder_loss_weights    0 1 1 0 1 0      decoder_segment_ids   1 1 1 2 2 0
      decoder_positions       0 1 2 0 1 0
  """

  TASK_FEATURES = {'targets': _SPEC(dtype=tf.int32), 'loss_weights': _SPEC(dtype=tf.float32)}
  MODEL_FEATURES = {name: _SPEC(dtype=tf.as_dtype(dtype)) for name, dtype in _FEATURES.items()}
  PACKING_FEATURE_DTYPES = {}

  def __init__(self, pack: bool = True, bos_id: int | None = 1, **kwargs):
    """Args:
    pack: several examples in a row, or one.
    bos_id: the vocabulary's BOS; None = none (see `write_segment`).
    **kwargs: as in seqio.FeatureConverter.
    """
    super().__init__(pack=pack, bos_id=bos_id, **kwargs)

  def _convert_features(
    self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]
  ) -> tf.data.Dataset:
    length = task_feature_lengths['targets']
    if 'branches' in ds.element_spec:
      raise ValueError(
        'the mixture has preference pairs, which no converter of SeqIO packs: train on the files '
        'of `crossin prepare` with train.objective = @Preference() or @DirectConsistency()'
      )

    def rows():
      row, start, segment = empty_rows(1, length), 0, 1
      for example in ds.as_numpy_iterator():
        tokens, weights = example['targets'], example['loss_weights']
        if start and (start + len(tokens) > length or not self.pack):
          yield {name: row[name][0] for name in _FEATURES}
          row, start, segment = empty_rows(1, length), 0, 1
        write_segment(row, 0, start, segment, tokens, weights, self._bos_id, 0)
        start, segment = start + len(tokens), segment + 1
      if start:
        yield {name: row[name][0] for name in _FEATURES}

    signature = {
      name: tf.TensorSpec((length,), tf.as_dtype(dtype)) for name, dtype in _FEATURES.items()
    }
    return tf.data.Dataset.from_generator(rows, output_signature=signature)

  def get_model_feature_lengths(self, task_feature_lengths: Mapping[str, int]) -> Mapping[str, int]:
    return {name: task_feature_lengths['targets'] for name in _FEATURES}


class PromptFeatureConverter(seqio.FeatureConverter):
  """One example per row with its prompt marked, for decoding or scoring by T5X.

  Of Tasks with `inputs` (the prompt) and `targets`, or with `targets` and `loss_weights` (the
  prompt is what comes before the first token of weight):

      inputs 7 8, targets 5 2, lengths 3 and 3, BOS 1
      decoder_target_tokens     7 8 5 2 0 0      decoder_input_tokens  1 7 8 5 0 0
      decoder_loss_weights      0 0 1 1 0 0      decoder_segment_ids   1 1 1 1 0 0
      decoder_causal_attention  1 1 1 0 0 0      decoder_positions     0 1 2 3 0 0
  """

  TASK_FEATURES = {'inputs': _SPEC(dtype=tf.int32), 'targets': _SPEC(dtype=tf.int32)}
  MODEL_FEATURES = {**CrossInFeatureConverter.MODEL_FEATURES, PROMPT: _SPEC(dtype=tf.int32)}
  PACKING_FEATURE_DTYPES = {}

  def __init__(self, bos_id: int | None = 1, weighted: bool = False, **kwargs):
    """Args:
    bos_id: the vocabulary's BOS; None = none.
    weighted: the Task has `loss_weights` instead of `inputs`.
    **kwargs: as in seqio.FeatureConverter.
    """
    if weighted:
      self.TASK_FEATURES = CrossInFeatureConverter.TASK_FEATURES  # SeqIO's name
    super().__init__(**{**kwargs, 'pack': False}, bos_id=bos_id)

  def _convert_features(
    self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]
  ) -> tf.data.Dataset:
    length, names = self._length(task_feature_lengths), list(self.TASK_FEATURES)

    def row_of(first, second):
      example = dict(zip(names, (first, second)))
      tokens = example['targets']
      if 'inputs' in example:
        prompt = len(example['inputs'])
        tokens = np.concatenate([example['inputs'], tokens])
        weights = (np.arange(len(tokens)) >= prompt).astype(np.float32)
      else:
        weights = example['loss_weights']
        prompt = int(np.argmax(weights > 0)) if (weights > 0).any() else len(tokens)
      row = empty_rows(1, length)
      write_segment(row, 0, 0, 1, tokens, weights, self._bos_id, 0)
      read = prompt + (self._bos_id is not None)
      return [*(row[name][0] for name in _FEATURES), (np.arange(length) < read).astype(np.int32)]

    def convert(example):
      dtypes = [spec.dtype for spec in self.MODEL_FEATURES.values()]
      values = tf.numpy_function(row_of, [example[name] for name in names], dtypes)
      return {
        name: tf.ensure_shape(value, (length,)) for name, value in zip(self.MODEL_FEATURES, values)
      }

    # A map, not a generator: T5X's evaluation asks the dataset for its length.
    return ds.map(convert, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)

  def get_model_feature_lengths(self, task_feature_lengths: Mapping[str, int]) -> Mapping[str, int]:
    return dict.fromkeys(self.MODEL_FEATURES, self._length(task_feature_lengths))

  def _length(self, lengths: Mapping[str, int]) -> int:
    return lengths['targets'] + (lengths['inputs'] if 'inputs' in self.TASK_FEATURES else 0)


class AnyTaskFeatureConverter(seqio.FeatureConverter):
  """The FEATURE_CONVERTER_CLS of T5X for both kinds of Tasks.

  Tasks with `inputs` and `targets` are never packed.
  """

  TASK_FEATURES = PromptFeatureConverter.TASK_FEATURES
  MODEL_FEATURES = PromptFeatureConverter.MODEL_FEATURES
  PACKING_FEATURE_DTYPES = {}

  def __init__(self, pack: bool = True, bos_id: int | None = 1, **kwargs):
    super().__init__(pack=pack, bos_id=bos_id, **kwargs)
    weighted = CrossInFeatureConverter if pack else PromptFeatureConverter
    options = {} if pack else {'weighted': True}
    self._weighted = weighted(pack=pack, bos_id=bos_id, **options, **kwargs)
    self._prompted = PromptFeatureConverter(bos_id=bos_id, **kwargs)

  def __call__(
    self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]
  ) -> tf.data.Dataset:
    return self._of(task_feature_lengths)(ds, task_feature_lengths)

  def _convert_features(
    self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]
  ) -> tf.data.Dataset:
    raise NotImplementedError('the converter that __call__ chooses does it')

  def get_model_feature_lengths(self, task_feature_lengths: Mapping[str, int]) -> Mapping[str, int]:
    return self._of(task_feature_lengths).get_model_feature_lengths(task_feature_lengths)

  def _of(self, task_feature_lengths: Mapping[str, int]) -> seqio.FeatureConverter:
    return self._prompted if 'inputs' in task_feature_lengths else self._weighted
