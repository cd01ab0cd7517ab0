"""Choice confusion: whether a model has memorised right answers, in whatever language.

Yao et al. 2024 (arXiv 2406.13236): in place of its wrong options an item gets right answers of
other items. They have little to do with the question, so a model that understands it finds the
answer more easily. One that has memorised which texts are right, from a translation too, takes all
options for right and gains nothing.
"""

from collections.abc import Mapping, Sequence
import copy

import numpy as np

from crossin_jax.evaluation.answers.choices import choice_text
from crossin_jax.evaluation.benchmarks.declarations import LoadedBenchmark
from crossin_jax.evaluation.measures import bootstrap
from crossin_jax.evaluation.measures.bootstrap import Interval

SUFFIX = '/confused'


def confused(loaded: LoadedBenchmark, seed: int = 0) -> LoadedBenchmark:
  """The benchmark with right answers of other items in place of the wrong options.

  The items that an item takes them from are the same in all languages.

  Args:
    loaded: a benchmark with options.
    seed: of the draws.

  Raises:
    ValueError: it has no options, or too few different answers.
  """
  changed = copy.copy(loaded)
  fields = loaded.fields
  if loaded.declaration.parallel:
    changed.fields = _confused(loaded.name, fields, seed)
  else:
    changed.fields = {
      code: _confused(loaded.name, {code: items}, seed)[code] for code, items in fields.items()
    }
  return changed


def _confused(name: str, fields: Mapping[str, Mapping[str, dict]], seed: int) -> dict:
  """Language -> ID -> fields of the item; all languages have all items."""
  ids = list(next(iter(fields.values())))
  if not all('choices' in item for items in fields.values() for item in items.values()):
    raise ValueError(
      f'{name} has no choices of its own per item; --confuse_choices needs some, as cross_mmlu, '
      'belebele, global_mmlu, include and xcsqa have'
    )
  right = {
    id_: [choice_text(items[id_]['choices'][items[id_]['answer']]) for items in fields.values()]
    for id_ in ids
  }
  changed: dict = {code: {} for code in fields}
  for number, id_ in enumerate(ids):
    count = min(len(items[id_]['choices']) for items in fields.values())
    donors = _donors(right, id_, count - 1, np.random.default_rng([seed, number]))
    if len(donors) < count - 1:
      raise ValueError(f'{name} has too few different answers to confuse {count} choices')
    for column, (code, items) in enumerate(fields.items()):
      texts = [right[donor][column] for donor in donors]
      changed[code][id_] = items[id_] | {'choices': _replaced(items[id_], texts)}
  return changed


def _donors(right: Mapping[str, Sequence[str]], id_: str, count: int, rng) -> list[str]:
  """Other items; in every language their answers differ from that of the item and each other."""
  taken, donors = [set(texts) for texts in zip(right[id_])], []
  others = list(right)
  for i in rng.permutation(len(others)):
    texts = right[others[i]]
    if len(donors) == count:
      break
    if any(text in known for text, known in zip(texts, taken)):
      continue
    donors.append(others[i])
    for text, known in zip(texts, taken):
      known.add(text)
  return donors


def _replaced(item: Mapping, texts: Sequence[str]) -> list[str]:
  """The choices with other texts in place of the wrong ones; labels such as '(A) ' stay."""
  rest = iter(texts)
  choices = []
  for i, choice in enumerate(item['choices']):
    label = choice[: len(choice) - len(choice_text(choice))] if choice_text(choice) else ''
    choices.append(choice if i == item['answer'] else label + next(rest, choice_text(choice)))
  return choices


def changes(original_NL: np.ndarray, confused_NL: np.ndarray, languages: Sequence[str]) -> dict:
  """What the replacement changes.

  Args:
    original_NL, confused_NL: bool [items, languages], whether the answers are correct.
    languages: codes.

  Returns:
    'all' (mean over languages) and each language -> {'original', 'confused': accuracy,
    'change', 'low', 'high': 95 % interval, paired over items}.
  """
  found = {}
  columns = {'all': None} | {code: [i] for i, code in enumerate(languages)}
  for name, column in columns.items():
    part = slice(None) if column is None else column
    change: Interval = bootstrap.difference([confused_NL], [original_NL], None, columns=column)
    found[name] = {
      'original': float(original_NL[:, part].mean()),
      'confused': float(confused_NL[:, part].mean()),
      'change': change.estimate,
      'low': change.low,
      'high': change.high,
    }
  return found


def sentence(benchmark: str, method: str, found: Mapping[str, Mapping[str, float]]) -> str:
  """The changes in one line."""
  told = [
    f'{name} {100 * one["change"]:+.1f} ({100 * one["low"]:+.1f} to {100 * one["high"]:+.1f})'
    for name, one in found.items()
  ]
  return (
    f'{benchmark} by {method}, wrong options replaced by right answers of other items: points '
    f'{", ".join(told)}. A model that has memorised the answers gains nothing; compare with one '
    'that has not seen them'
  )
