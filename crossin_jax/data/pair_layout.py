"""Preference pairs: a prompt with a chosen and a rejected answer as one example, and its place in a
packed row.

    tokens    p1 p2 p3  c1 c2  r1        the prompt, the chosen and the rejected answer
    branches   0  0  0   1  1   2

A row of direct consistency has two halves in one example: the same question in two languages, the
second one with branches 3 and 4 behind its own prompt.
"""

import dataclasses
import re

import numpy as np

LAYOUTS = ('branches', 'plain')
ANSWERS = 5  # values of a branch: the prompt, two answers, and the two of the second half

# Only in batches of a mixture with pairs. In the layout 'plain' the branches are called
# `decoder_answers`, because attention must not read them.
PAIR_FEATURES = {'decoder_branches': np.int32, 'decoder_pair_ids': np.int32}
REFERENCE = 'decoder_reference_logps'


@dataclasses.dataclass(frozen=True)
class Half:
  """A prompt and its two answers, as slices of the tokens of an example.

  Attributes:
    prompt: may be empty.
    answers: number of the branch -> slice; (1, 2) or (3, 4), the chosen one first.
  """

  prompt: slice
  answers: dict[int, slice]


def halves(branches: np.ndarray) -> list[Half]:
  """The one or two halves of an example.

      0 0 0 1 1 2:  prompt 0 to 2, answers {1: 3 to 4, 2: 5}

  Args:
    branches: int [tokens].

  Raises:
    ValueError: the branches are not prompt, 1, 2 and perhaps prompt, 3, 4.
  """
  edges = [0, *(np.flatnonzero(np.diff(branches)) + 1).tolist(), len(branches)]
  order = branches[edges[:-1]].tolist() if len(branches) else []
  if not re.fullmatch('0?12(0?34)?', ''.join(map(str, order))):
    raise ValueError(
      f'the parts of a pair are {order}, not 0 (prompt), 1 (chosen), 2 (rejected), and for a '
      'second language 0, 3, 4'
    )
  found, prompt = [], slice(0, 0)
  for number, start, end in zip(order, edges, edges[1:]):
    if number == 0:
      prompt = slice(start, end)
    elif number % 2:
      found.append(Half(prompt, {number: slice(start, end)}))
    else:
      found[-1].answers[number] = slice(start, end)
      prompt = slice(end, end)
  return found


def sequences(
  tokens: np.ndarray, loss_weights: np.ndarray, branches: np.ndarray
) -> dict[int, tuple[np.ndarray, np.ndarray]]:
  """Each answer behind its prompt: number of the branch -> (tokens, loss weights)."""
  return {
    number: tuple(np.concatenate([x[half.prompt], x[answer]]) for x in (tokens, loss_weights))
    for half in halves(branches)
    for number, answer in half.answers.items()
  }


def features(layout: str | None, reference: bool) -> dict[str, type]:
  """Names and dtypes of what pairs add to a batch.

  Args:
    layout: of LAYOUTS; None = there are no pairs.
    reference: whether log-probabilities of the reference are stored.
  """
  if layout is None:
    return {}
  names = dict(PAIR_FEATURES)
  if layout == 'plain':
    names['decoder_answers'] = names.pop('decoder_branches')
  return names | ({REFERENCE: np.float32} if reference else {})


def lengths(layout: str | None, tokens: np.ndarray, prompts: np.ndarray) -> np.ndarray:
  """Columns that examples take: in 'plain' every prompt stands twice."""
  return tokens + prompts if layout == 'plain' else tokens


def write(batch, row, start, segment, tokens, loss_weights, branches, bos_id, task, logps=None):
  """Writes a pair into a row of a batch, in place: in the layout that the batch has features for.

      tokens p1 p2 c1 c2 r1, branches 0 0 1 1 2, BOS b
      'branches': inputs b p1 p2 c1 p2   targets p1 p2 c1 c2 r1   positions 0 1 2 3 2   segment 1
      'plain':    inputs b p1 p2 c1 b p1 p2   targets p1 p2 c1 c2 p1 p2 r1    segments 1 1 1 1 2 2 2

  The last token of the prompt is the first input of each branch and no input of the prompt, so that
  every column has one target.

  Args:
    batch, row, start, segment, tokens, loss_weights, bos_id, task: as in `stream.write_segment`.
    branches: int [n], see `halves`.
    logps: float [4], log-probabilities of the answers under the reference; None = not stored.

  Returns:
    (column behind it, next segment).

  Raises:
    ValueError: without BOS a prompt is empty; see `halves`.
  """
  branched, pair = 'decoder_branches' in batch, segment
  numbers = batch['decoder_branches' if branched else 'decoder_answers']
  for half in halves(branches):
    first = np.array([] if bos_id is None else [bos_id], np.int32)
    known = len(first) + half.prompt.stop - half.prompt.start - 1  # inputs before the answers
    if known < 0:
      raise ValueError('a pair with an empty prompt needs a tokenizer with BOS')
    skipped = 0
    for number, answer in half.answers.items():
      text = np.concatenate([first, tokens[half.prompt], tokens[answer]])
      size = len(text) - 1 - skipped
      span, begins = slice(start, start + size), start + known - skipped
      batch['decoder_input_tokens'][row, span] = text[skipped:-1]
      batch['decoder_target_tokens'][row, span] = text[1 + skipped :]
      batch['decoder_loss_weights'][row, begins : span.stop] = loss_weights[answer]
      batch['decoder_segment_ids'][row, span] = segment
      batch['decoder_positions'][row, span] = np.arange(skipped, len(text) - 1)
      batch['decoder_task_ids'][row, span] = task
      batch['decoder_pair_ids'][row, span] = pair
      numbers[row, begins : span.stop] = number
      if logps is not None:
        batch[REFERENCE][row, begins] = logps[number - 1]
      start = span.stop
      if branched:
        skipped = known
      else:
        segment += 1
    segment += branched
  return start, segment
