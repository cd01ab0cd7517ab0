"""SeqIO examples to decoder features, with real tokens of id 0 kept and the loss weights as they were made."""

from collections.abc import Mapping

import seqio
import tensorflow as tf

from crossin_jax.data.stream import FEATURES, empty_rows, write_segment

_SPEC = seqio.FeatureConverter.FeatureSpec
# What SeqIO knows of; the task of a token is a feature of our own stream.
_FEATURES = {name: dtype for name, dtype in FEATURES.items() if name != 'decoder_task_ids'}


class CrossInFeatureConverter(seqio.FeatureConverter):
  """Packs greedily in stream order (or pads), from `targets` and `loss_weights`.

  seqio's own packer takes id 0 for padding and its decoder converter derives loss weights from ids; both
  lose real tokens. Features are those of our own loader, so either trains the same model:

      targets 7 8 2 | 9 2, weights 0 1 1 | 0 1, length 6, BOS 1
      decoder_target_tokens   7 8 2 9 2 0      decoder_input_tokens  1 7 8 1 9 0
      decoder_loss_weights    0 1 1 0 1 0      decoder_segment_ids   1 1 1 2 2 0
      decoder_positions       0 1 2 0 1 0
  """

  TASK_FEATURES = {'targets': _SPEC(dtype=tf.int32), 'loss_weights': _SPEC(dtype=tf.float32)}
  MODEL_FEATURES = {name: _SPEC(dtype=tf.as_dtype(dtype)) for name, dtype in _FEATURES.items()}
  PACKING_FEATURE_DTYPES = {}

  def __init__(self, pack: bool = True, bos_id: int = 1, **kwargs):
    """bos_id: the vocabulary's BOS. Other arguments as in seqio.FeatureConverter."""
    super().__init__(pack=pack, bos_id=bos_id, **kwargs)

  def _convert_features(self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]) -> tf.data.Dataset:
    length = task_feature_lengths['targets']

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

    signature = {name: tf.TensorSpec((length,), tf.as_dtype(dtype)) for name, dtype in _FEATURES.items()}
    return tf.data.Dataset.from_generator(rows, output_signature=signature)

  def get_model_feature_lengths(self, task_feature_lengths: Mapping[str, int]) -> Mapping[str, int]:
    return {name: task_feature_lengths['targets'] for name in _FEATURES}
