"""Whether tokens were made with the tokenizer of the model that is to read them."""

import filecmp

import numpy as np

from crossin_jax.data.prepared import PreparedDataError, PreparedMixture
from crossin_jax.data.vocabulary import Vocabulary

SAMPLE = 200  # ids that are compared
LEAST = 0.9  # share of them that must have the same text: new special tokens may differ


class TokenizerDiffers(PreparedDataError):
  """A mixture that was prepared with another tokenizer than the model's."""


def check_tokenizer(source, mixture: PreparedMixture) -> None:
  """Compares texts of ids of a mixture's tokenizer with those of the model that training starts
  from.

  Args:
    source: a `SavedModel`; one without a tokenizer is not checked.
    mixture: what it will be trained on.

  Raises:
    TokenizerDiffers: fewer than `LEAST` of them are equal.
  """
  try:
    own = source.prompts.vocabulary
  except (PreparedDataError, OSError, ValueError):
    return  # a checkpoint without a tokenizer
  if filecmp.cmp(own.path, mixture.vocabulary_path, shallow=False):
    return
  other = Vocabulary(mixture.vocabulary_path)
  ids = np.unique(np.linspace(0, min(own.size, other.size) - 1, SAMPLE).astype(int)).tolist()
  equal = sum(own.token_text(i) == other.token_text(i) for i in ids)
  if equal < LEAST * len(ids) or other.size < 0.5 * own.size:
    raise TokenizerDiffers(
      f'mixture {mixture.name} was prepared with another tokenizer ({other.size:,} ids) than that '
      f'of {source.folder} ({own.size:,} ids): {equal} of {len(ids)} ids have the same text.\n'
      f'Prepare it again with VOCABULARY={own.path}, or set train.check_tokenizer=False to replace '
      'the tokenizer on purpose'
    )
