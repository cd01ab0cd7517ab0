"""Errors for logits that are not finite: no token and no option can be chosen from them."""

from collections.abc import Callable
import contextlib

from crossin_jax.decoding.sampling import Sampling
from crossin_jax.errors import CrossinError

_REMEDY = (
  'The weights are damaged, or they overflow in the precision of the model: try '
  'DecoderConfig.dtype=float32'
)


class NonFiniteLogits(CrossinError, ArithmeticError):
  """A row has no next token: its logits are not finite.

  Attributes:
    index: of the prompt.
    sample: from 0.
    step: position in the answer, from 1.
  """

  def __init__(self, row: str, index: int, sample: int, step: int, sampling: Sampling):
    self.index, self.sample, self.step, self._sampling = index, sample, step, sampling
    forbidden = (
      f', or Sampling.no_repeat_ngram_size = {sampling.no_repeat_ngram_size} forbids every token'
      if sampling.no_repeat_ngram_size
      else ''
    )
    super().__init__(
      f'{row}{f", sample {sample}" if sampling.samples > 1 else ""}: the logits are not finite at '
      f'step {step} of the answer{forbidden}. {_REMEDY}'
    )

  def in_row(self, row: str) -> 'NonFiniteLogits':
    """The same error with the caller's name of the row."""
    return NonFiniteLogits(row, self.index, self.sample, self.step, self._sampling)


class NonFiniteLikelihood(CrossinError, ArithmeticError):
  """Options cannot be compared: the log-probability of one is not finite.

  Attention spreads a NaN to everything in the same packed row, so the prefix named is one of those
  beside the cause.

  Attributes:
    index: of the prefix.
  """

  def __init__(self, row: str, index: int):
    self.index = index
    super().__init__(f'{row}: the log-probability of an option is not finite. {_REMEDY}')

  def in_row(self, row: str) -> 'NonFiniteLikelihood':
    """The same error with the caller's name of the row."""
    return NonFiniteLikelihood(row, self.index)


@contextlib.contextmanager
def naming(row: Callable[[int], str]):
  """Errors from the block name the row: `row` maps the index of a prompt to the caller's name."""
  try:
    yield
  except (NonFiniteLogits, NonFiniteLikelihood) as error:
    raise error.in_row(row(error.index)) from None
