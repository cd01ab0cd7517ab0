"""What `generation_kwargs` of a task mean, with the defaults that transformers would add."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from crossin_jax.decoding.sampling import Sampling
from crossin_jax.evaluation.harness.errors import HarnessError

MAX_GEN_TOKS = 256  # of HFLM
_OF_SAMPLING = ('temperature', 'top_k', 'top_p', 'min_p')
_OF_BOTH = ('repetition_penalty', 'no_repeat_ngram_size')
_TRANSFORMERS = {
  'temperature': 1.0, 'top_k': 50, 'top_p': 1.0, 'min_p': 0.0,
  'repetition_penalty': 1.0, 'no_repeat_ngram_size': 0,
}  # fmt: skip
# Settings with values that change nothing here.
_NEUTRAL = {'use_cache': (True, False), 'num_beams': (1,), 'num_return_sequences': (1,)}


class GenerationSettings(NamedTuple):
  """One request's settings.

  Attributes:
    until: stop texts, with that of the stop token.
    max_gen_toks: most tokens of an answer.
    sampling: how to choose the next token, without stop texts.
  """

  until: list[str]
  max_gen_toks: int
  sampling: Sampling

  @property
  def drawn(self) -> bool:
    """Whether answers are random draws."""
    return not self.sampling.greedy


def read(
  kwargs: Mapping[str, Any], eos: str, defaults: Mapping[str, Any], seed: int
) -> GenerationSettings:
  """The settings as HFLM of lm-evaluation-harness reads them.

  Args:
    kwargs: `generation_kwargs` of a request.
    eos: text of the stop token.
    defaults: generation_config.json of the model, which transformers applies.
    seed: of the draws.

  Raises:
    HarnessError: a setting that has no counterpart here, or a wrong value.
  """
  from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

  rest: dict[str, Any] = dict(normalize_gen_kwargs(dict(kwargs), MAX_GEN_TOKS))
  until = [one for one in handle_stop_sequences(rest.pop('until'), eos=eos) if one]
  max_gen_toks, draws = rest.pop('max_gen_toks'), rest.pop('do_sample')
  known = (*_OF_SAMPLING, *_OF_BOTH)
  for name, value in rest.items():
    if name not in known and value not in _NEUTRAL.get(name, ()):
      raise HarnessError(
        f'generation_kwargs of a task have {name} = {value!r}, which this decoder does not know; '
        f'it knows until, max_gen_toks, do_sample, {", ".join(known)}'
      )
  if draws and not rest.get('temperature'):
    raise HarnessError(
      'generation_kwargs of a task have do_sample without a temperature above 0; give one, for '
      'instance --gen_kwargs do_sample=True,temperature=1.0'
    )
  value = lambda name: next(
    one for one in (rest.get(name), defaults.get(name), _TRANSFORMERS[name]) if one is not None
  )
  chosen = {name: value(name) for name in (*_OF_BOTH, *(_OF_SAMPLING if draws else ()))}
  try:
    sampling = Sampling(**{'temperature': 0.0, **chosen}, seed=seed)
  except ValueError as error:
    raise HarnessError(f'generation_kwargs of a task: {error}') from None
  return GenerationSettings(until, int(max_gen_toks), sampling)
