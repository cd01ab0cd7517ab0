"""The protocol `strict`: the option that a text names, never a guess.

docs/guides/evaluation.md#strict lists the steps; this file follows them. `options` has what texts
are compared with, `mentions` finds it in a text, `reading` what is said of it.
"""

from collections.abc import Sequence

from crossin_jax.data.thoughts import without_thoughts
from crossin_jax.evaluation.answers.cleaning import clean, fold
from crossin_jax.evaluation.answers.mentions import Mention
from crossin_jax.evaluation.answers.options import options_of
from crossin_jax.evaluation.answers.reading import Reading
from crossin_jax.evaluation.measures.consistency import UNPARSED


def strict(prediction: str, choices: Sequence[str], language: str = '') -> int:
  """The option that the text names unambiguously, else -1.

  Args:
    prediction: the generated text; thoughts of a reasoning model are left out.
    choices: option texts as shown to the model, with or without '(A) '.
    language: its words are looked for too, whatever the text is in.

  Example:
    choices = ["(A) Paris", "(B) Lima"]
    "paris." -> 0   "b" -> 1   "It is Lima, surely." -> 1   "Paris. Lima." -> -1   "" -> -1
  """
  options = options_of(tuple(choices))
  prediction = without_thoughts(prediction)
  if (option := options.equal(prediction)) is not None:
    return option
  text = clean(prediction)
  folded = fold(text)
  if len(prediction) < 64:
    option = options.labels.get(folded.strip(' .,:;!。()[]"\''))
    if option is not None:
      return option
  reading = Reading(text, folded, options, language)
  for step in (_last_stated, _complete_line, _leading_letter, _only_mentioned):
    if reading.mentions and (option := step(reading)) is not None:
      return option
  return UNPARSED


def _last_stated(reading: Reading) -> int | None:
  """The option that was stated last as the answer; UNPARSED = two at once; None = none was."""
  for mention in reversed(reading.mentions):
    if mention.stated and not mention.negated:
      return UNPARSED if mention.option is None else mention.option
  return None


def _complete_line(reading: Reading) -> int | None:
  """The only option that is a complete line."""
  firsts = [first for first, rest in reading.line_starts() if not rest.strip('.:,;!。、 ')]
  return None if any(first.negated for first in firsts) else _only(firsts)


def _leading_letter(reading: Reading) -> int | None:
  """The only option whose letter leads a line: 'B. Because ...'."""
  firsts = [first for first, rest in reading.line_starts() if _leads(first, rest, reading)]
  return None if any(first.negated for first in firsts) else _only(firsts)


def _leads(first: Mention, rest: str, reading: Reading) -> bool:
  if not first.lettered or rest and rest[0] not in '.:,;-–—)。、،\ue0ff(':
    return False
  is_tied = first.label and rest[:1] in ('.', ':')
  return not is_tied or all(mention.start != first.end for mention in reading.mentions)


def _only_mentioned(reading: Reading) -> int | None:
  """The only option that is mentioned, negations and questions aside."""
  return _only([mention for mention in reading.mentions if mention.firm and not mention.negated])


def _only(mentions: Sequence[Mention]) -> int | None:
  """The option, if all name the same one."""
  named = {mention.option for mention in mentions}
  return named.pop() if len(named) == 1 else None
