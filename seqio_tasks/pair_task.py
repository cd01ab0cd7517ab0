"""Tasks of preference pairs: from a pair to tokens, loss weights and branches."""

import collections
from collections.abc import Sequence
import dataclasses
import functools
from typing import Any

import numpy as np

from crossin_jax.data.prompts import Example, Rejected, render_example
from seqio_tasks.crossin import TaskSpec, split_rows
from seqio_tasks.pair_files import PairFiles


@functools.lru_cache(maxsize=64)
def _items(source: PairFiles, split: str, validation_rows: int, seed: int) -> dict:
  """Kind, see `PairFiles.kinds` -> rank and number of each instance, int64 [n, 2]."""
  order = split_rows(source, validation_rows, seed)[('train', 'validation').index(split)]
  kinds, found = source.kinds, collections.defaultdict(list)
  for at in enumerate(order.tolist()):
    found[kinds[at[1]]].append(at)
  return {kind: np.array(items, np.int64) for kind, items in found.items()}


@dataclasses.dataclass(frozen=True)
class PairTask(TaskSpec):
  """The pairs of a source that have one mode and two languages, see `PairFiles.kinds`.

  `mode` is 'pairs' or 'consistency', `source` is `PairFiles`; a volume does not cut them.
  """

  def items(self, split: str) -> np.ndarray:
    """As `TaskSpec.items`: rank and number of each instance."""
    found = _items(self.source, split, self.validation_rows, self.seed)
    mine = self.mode, self.source_language, self.target_language
    return found.get(mine, np.zeros((0, 2), np.int64))

  def fields(self, row: int) -> dict[str, Any]:
    """As `TaskSpec.fields`: 'id', and as 'messages' the halves, each the instruction rows of both
    answers (`PairRow.example`).
    """
    instance = self.source.instance(row)
    halves = [[half.example(half.chosen), half.example(half.rejected)] for half in instance]
    empty = dict.fromkeys(('instruction', 'input', 'output', 'tag'), '')
    return {**empty, 'id': instance[0].id, 'messages': halves}

  def example(self, fields: dict[str, Any], max_length: int | None) -> Example:
    """Tokens, weights and branches of one pair; see `data.pair_layout`.

    Answers that are too long together lose their ends, the longest first.

    Raises:
      Rejected: as `render_example`, and 'prompts_differ', 'equal_answers'.
    """
    halves = [self._half(*half) for half in fields['messages']]
    room = None if max_length is None else max_length - sum(len(prompt) for prompt, _ in halves)
    lengths = [len(answer) for _, answers in halves for answer in answers]
    most = max(lengths) if room is None else _most(lengths, room)
    tokens, weights, branches = [], [], []
    for number, (prompt, answers) in enumerate(halves):
      cut = [answer[:most] for answer in answers]
      if cut[0] == cut[1]:
        raise Rejected('equal_answers', f'within {max_length} tokens')
      parts = [(0, prompt), *enumerate(cut, start=1 + 2 * number)]
      for branch, part in parts:
        tokens += part
        weights += [float(branch > 0)] * len(part)
        branches += [branch] * len(part)
    return Example(
      np.asarray(tokens, np.int32),
      np.asarray(weights, np.float32),
      'output' if most < max(lengths) else '',
      np.asarray(branches, np.int8),
    )

  def _half(self, chosen: dict, rejected: dict) -> tuple[list[int], list[list[int]]]:
    """Tokens of the prompt, and of both answers."""
    examples = [
      render_example(self.vocabulary, self.template, row, '', max_length=None, trained_turns='last')
      for row in (chosen, rejected)
    ]
    prompts, answers = [], []
    for example in examples:
      start = int(np.argmax(example.loss_weights > 0))
      prompts.append(example.tokens[:start].tolist())
      answers.append(example.tokens[start:].tolist())
    if prompts[0] != prompts[1]:
      raise Rejected('prompts_differ', 'the template writes the prompt of both answers differently')
    return prompts[0], answers


def _most(lengths: Sequence[int], room: int) -> int:
  """The largest number of tokens of an answer with which all fit.

  _most([10, 3, 8], 17) == 7

  Raises:
    Rejected: not even one token of each fits.
  """
  low, high = 0, max(lengths)
  while low < high:
    middle = (low + high + 1) // 2
    if sum(min(length, middle) for length in lengths) <= room:
      low = middle
    else:
      high = middle - 1
  if not low:
    raise Rejected('prompt_too_long', 'the prompt leaves no room for the answers')
  return low


def pair_tasks(source: PairFiles, languages: Sequence[str], **settings) -> list[PairTask]:
  """A Task for each mode and two languages that the source has among `languages`.

  Args:
    source: the pairs.
    languages: of the mixture.
    **settings: of `TaskSpec`.
  """
  kinds = [kind for kind in dict.fromkeys(source.kinds) if set(kind[1:]) <= set(languages)]
  return [
    PairTask(
      source=source, mode=mode, source_language=first, target_language=second,
      languages=tuple(languages), **settings,
    )
    for mode, first, second in sorted(kinds)
  ]  # fmt: skip
