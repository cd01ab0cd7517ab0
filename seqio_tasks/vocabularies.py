"""A tokenizer file of this project as a seqio.Vocabulary, with the same ids."""

import seqio
import tensorflow as tf

from crossin_jax.data.vocabulary import Vocabulary


class SeqioVocabulary(seqio.Vocabulary):
  """Wraps `crossin_jax.data.vocabulary.Vocabulary`.

  SeqIO reserves id 0 for padding in places; here id 0 may be a real token, and nothing of ours
  reads `pad_id` (loss weights and segment ids say what is padding).
  """

  def __init__(self, vocabulary: Vocabulary):
    super().__init__(extra_ids=0)
    self._vocabulary = vocabulary

  @property
  def bos_id(self) -> int | None:
    return self._vocabulary.bos_id

  @property
  def eos_id(self) -> int:
    return self._vocabulary.eos_id

  @property
  def unk_id(self) -> int | None:
    return None

  @property
  def _base_vocab_size(self) -> int:
    return self._vocabulary.size

  def _encode(self, s: str) -> list[int]:
    return self._vocabulary.encode(s)

  def _decode(self, ids) -> str:
    return self._vocabulary.decode(ids)

  def decode(self, ids) -> str:
    # SeqIO cuts at eos and replaces unknown ids by unk; here the tokenizer decides.
    ids = list(ids)
    if self.eos_id in ids:
      ids = ids[: ids.index(self.eos_id)]
    return self._decode(ids)

  def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
    encode = lambda text: tf.constant(
      self._vocabulary.encode(text.numpy().decode('utf-8')), tf.int32
    )
    ids = tf.py_function(encode, [s], tf.int32)
    ids.set_shape((None,))
    return ids

  def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
    return tf.py_function(lambda x: self.decode(x.numpy().tolist()), [ids], tf.string)

  def __eq__(self, other) -> bool:
    return (
      isinstance(other, SeqioVocabulary) and other._vocabulary.digest == self._vocabulary.digest
    )

  def __hash__(self) -> int:
    return hash(self._vocabulary.digest)
