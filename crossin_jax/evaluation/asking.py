"""Questions to a model: what it finds likeliest, and what it writes."""

from dataclasses import dataclass

import gin
import numpy as np

from crossin_jax.checkpoints.saved_prompts import Prompts
from crossin_jax.data.vocabulary import Vocabulary
from crossin_jax.decoding.generation import Generator
from crossin_jax.decoding.sampling import Sampling
from crossin_jax.decoding.schedule import Prompt
from crossin_jax.decoding.scoring import continuation_losses
from crossin_jax.devices.partitioning import Partitioner
from crossin_jax.evaluation.answers.predictions import Predictions
from crossin_jax.evaluation.measures import consistency
from crossin_jax.evaluation.questions import Questions
from crossin_jax.evaluation.results import METHODS


@dataclass
class Answers:
  """What a model answered by one method.

  Attributes:
    texts: [item][language]; by likelihood the text of the choice.
    losses: by likelihood the loss of every choice in nats, [item][language][option]; else None.
  """

  texts: list[list[str]]
  losses: list[list[np.ndarray]] | None = None

  def normalised(self, questions: Questions) -> np.ndarray:
    """Choices by loss per character of the option, int64 [items, languages] (lm-evaluation-harness'
    acc_norm).
    """
    by_length = lambda losses, row: int(
      np.argmin(losses / [len(choice) for choice in row['choices']])
    )
    pairs = zip(self.losses, questions.rows)
    return np.array(
      [[by_length(l, row) for l, row in zip(losses, rows)] for losses, rows in pairs], np.int64
    )


def pair_tokens(
  vocabulary: Vocabulary, context: str, continuation: str
) -> tuple[list[int], list[int]]:
  """Ids of a text and of what is scored behind it, divided as lm-evaluation-harness does.

  Both are tokenised together, because a word may be cut otherwise at its beginning; white space at
  the end of the context belongs to the continuation.

      ('Answer: ', '7') -> ids of 'Answer:', and of ' 7' as it stands behind it
  """
  stripped = context.rstrip()
  if not stripped:
    return [], vocabulary.encode(context + continuation)
  before = vocabulary.encode(stripped)
  return before, vocabulary.encode(context + continuation)[len(before) :]


def _plain_text(row: dict, prompts: Prompts) -> str | None:
  """The prompt of a row that is not rendered with a template."""
  return row.get('prompt', row.get('raw') if prompts.untaught else None)


def choose_by_likelihood(
  model,
  params,
  partition: Partitioner,
  questions: Questions,
  prompts: Prompts,
  *,
  length: int,
  rows: int,
) -> list[list[np.ndarray]]:
  """Loss of every choice in nats, [item][language][option]; behind a template the stop token is
  included.

  Raises:
    ValueError: a prompt with its choice is longer than `length`.
  """
  prefixes, options, vocabulary = [], [], prompts.vocabulary
  for row in (row for item in questions.rows for row in item):
    if (text := _plain_text(row, prompts)) is not None:
      pairs = [
        pair_tokens(vocabulary, text, choice) for choice in row.get('continuations', row['choices'])
      ]
      prefixes.append(pairs[0][0])
      options.append([continuation for _, continuation in pairs])
    else:
      prefixes.append(prompts.tokens(row))
      options.append([[*vocabulary.encode(choice), prompts.stop_id] for choice in row['choices']])
  longest = max(len(prefix) + max(map(len, own)) for prefix, own in zip(prefixes, options))
  losses = iter(
    continuation_losses(
      model, params, partition, prefixes, options,
      bos_id=vocabulary.bos_id, length=max(length, longest),
      rows=max(1, rows * length // max(length, longest)),
    )
  )  # fmt: skip
  return [[next(losses) for _ in item] for item in questions.rows]


def generate_answers(
  model,
  params,
  partition: Partitioner,
  questions: Questions,
  prompts: Prompts,
  *,
  max_new_tokens: int,
  rows: int,
) -> list[list[str]]:
  """Greedy answers as text, [item][language]."""
  vocabulary = prompts.vocabulary

  def tokens(row: dict) -> list[int]:
    text = _plain_text(row, prompts)
    return prompts.tokens(row) if text is None else vocabulary.encode(text)

  sampling = Sampling(
    max_new_tokens=questions.max_new_tokens or max_new_tokens, stop=questions.stop
  )
  generate = Generator(
      model, params, partition, bos_id=vocabulary.bos_id, stop_ids=(prompts.stop_id,),
      sampling=sampling, decode=vocabulary.decode, rows=rows,
  )  # fmt: skip
  texts = iter(
    answer.text
    for answer in generate([Prompt(tokens(row)) for item in questions.rows for row in item])
  )
  return [[next(texts) for _ in item] for item in questions.rows]


@gin.configurable
def answer_questions(
  model,
  params,
  partition: Partitioner,
  questions: Questions,
  prompts: Prompts,
  *,
  methods: tuple[str, ...] = METHODS,
  length: int = 512,
  rows: int = 32,
  max_new_tokens: int = 32,
) -> dict[str, Answers]:
  """Answers by each method.

  Args:
    model, params, partition: the model on its mesh.
    questions: the items.
    prompts: template and tokenizer.
    methods: of 'likelihood' (kind 'choice' only, left out of others) and 'generate'.
    length, rows: shape of the packed batches that score choices; longer questions get longer rows
      and fewer of them.
    max_new_tokens: most tokens of a generated answer, unless the questions say.

  Returns:
    method -> Answers.

  Raises:
    ValueError: an unknown method.
  """
  results = {}
  for method in methods:
    if method not in METHODS:
      raise ValueError(f'method {method!r} is not one of {METHODS}')
    if method == 'generate':
      results[method] = Answers(
        generate_answers(
          model, params, partition, questions, prompts, max_new_tokens=max_new_tokens, rows=rows * 4
        )
      )
    elif questions.kind == 'choice':
      losses = choose_by_likelihood(
        model, params, partition, questions, prompts, length=length, rows=rows
      )
      texts = [
        [row['choices'][int(np.argmin(found))] for row, found in zip(item, own)]
        for item, own in zip(questions.rows, losses)
      ]
      results[method] = Answers(texts, losses)
  return results


def choice_predictions(questions: Questions, answers: Answers) -> Predictions:
  """What was answered, as a file of predictions holds it."""
  return Predictions(
    questions.ids, questions.languages, questions.choices, questions.answers, answers.texts
  )


def choice_summary(questions: Questions, answers: Answers) -> tuple[dict, np.ndarray]:
  """Figures under the keys of results.json, and the choices, int64 [items, languages].

  By likelihood 'accuracy_norm' and 'accuracy_norm_by_language' are those of the loss per character.
  """
  if answers.losses is None:
    chosen_NL = choice_predictions(questions, answers).extract('strict', prompt=questions.prompt)
    return consistency.summarise(chosen_NL, questions.answers, questions.languages), chosen_NL
  # Not from the texts: two options may read the same.
  chosen_NL = np.array(
    [[int(np.argmin(losses)) for losses in item] for item in answers.losses], np.int64
  )
  summary = consistency.summarise(chosen_NL, questions.answers, questions.languages)
  by_length = consistency.summarise(
    answers.normalised(questions), questions.answers, questions.languages
  )
  further = {
    'accuracy_norm': by_length['accuracy'],
    'accuracy_norm_by_language': by_length['accuracy_by_language'],
  }
  return summary | further, chosen_NL
