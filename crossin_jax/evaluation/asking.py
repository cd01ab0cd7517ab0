"""Answers of a model to questions: the most likely option, and generated text."""

import dataclasses
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
from crossin_jax.evaluation.measures.consistency import Summary
from crossin_jax.evaluation.questions import Questions
from crossin_jax.evaluation.results import METHODS


@dataclass
class Answers:
  """Answers of a model by one method.

  Attributes:
    texts: [item][language]; by likelihood the text of the choice.
    losses: by likelihood the loss of every choice in nats, [item][language][option]; else None.
  """

  texts: list[list[str]]
  losses: list[list[np.ndarray]] | None = None

  def chosen(self) -> np.ndarray:
    """Choices of the lowest loss, int64 [items, languages]."""
    # Not from the texts: two options may have the same text.
    return np.array([[int(np.argmin(losses)) for losses in item] for item in self.losses], np.int64)

  def normalised(self, questions: Questions) -> np.ndarray:
    """Choices by loss per character (acc_norm of lm-evaluation-harness); shape as `chosen`."""
    per_character = [
      [losses / [len(choice) for choice in row['choices']] for losses, row in zip(*item)]
      for item in zip(self.losses, questions.rows)
    ]
    return Answers([], per_character).chosen()


def pair_tokens(
  vocabulary: Vocabulary, context: str, continuation: str
) -> tuple[list[int], list[int]]:
  """IDs of a context and of its continuation, split as in lm-evaluation-harness.

  The two are tokenised as one text, because the first word of the continuation may be split
  differently without context. White space at the end of the context moves to the continuation.

      ('Answer: ', '7') -> IDs of 'Answer:', and of ' 7' in that context
  """
  stripped = context.rstrip()
  if not stripped:
    return [], vocabulary.encode(context + continuation)
  before = vocabulary.encode(stripped)
  return before, vocabulary.encode(context + continuation)[len(before) :]


def _plain_text(row: dict, prompts: Prompts) -> str | None:
  """The prompt of a row that needs no template; None for a row that does."""
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
  """Loss of every choice in nats, [item][language][option].

  With a template the loss includes the stop token. Rows get longer and fewer if a prompt with its
  choice is longer than `length`.
  """
  prefixes, options, vocabulary = [], [], prompts.vocabulary
  for row in (row for item in questions.rows for row in item):
    if (text := _plain_text(row, prompts)) is not None:
      continuations = row.get('continuations', row['choices'])
      pairs = [pair_tokens(vocabulary, text, continuation) for continuation in continuations]
      prefixes.append(pairs[0][0])
      options.append([continuation for _, continuation in pairs])
    else:
      prefixes.append(prompts.tokens(row))
      options.append([[*vocabulary.encode(choice), prompts.stop_id] for choice in row['choices']])
  longest = max(len(prefix) + max(map(len, ids)) for prefix, ids in zip(prefixes, options))
  packed = max(length, longest)
  shape = {'length': packed, 'rows': max(1, rows * length // packed)}
  losses = iter(
    continuation_losses(
      model, params, partition, prefixes, options, bos_id=vocabulary.bos_id, **shape
    )
  )
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

  generate = Generator(
    model,
    params,
    partition,
    bos_id=vocabulary.bos_id,
    stop_ids=(prompts.stop_id,),
    sampling=Sampling(
      max_new_tokens=questions.max_new_tokens or max_new_tokens, stop=questions.stop
    ),
    decode=vocabulary.decode,
    rows=rows,
  )
  answers = iter(generate([Prompt(tokens(row)) for item in questions.rows for row in item]))
  return [[next(answers).text for _ in item] for item in questions.rows]


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
    methods: of 'likelihood' (only for kind 'choice', otherwise skipped) and 'generate'.
    length, rows: shape of the packed batches that score choices; longer questions get longer and
      fewer rows.
    max_new_tokens: maximum length of a generated answer, unless the questions set it.

  Raises:
    ValueError: an unknown method.
  """
  results, model_and_prompts = {}, (model, params, partition, questions, prompts)
  for method in methods:
    if method not in METHODS:
      raise ValueError(f'method {method!r} is not one of {METHODS}')
    if method == 'generate':
      texts = generate_answers(*model_and_prompts, max_new_tokens=max_new_tokens, rows=rows * 4)
      results[method] = Answers(texts)
    elif questions.kind == 'choice':
      answers = Answers([], choose_by_likelihood(*model_and_prompts, length=length, rows=rows))
      answers.texts = [
        [row['choices'][chosen] for row, chosen in zip(*item)]
        for item in zip(questions.rows, answers.chosen())
      ]
      results[method] = answers
  return results


def choice_predictions(questions: Questions, answers: Answers) -> Predictions:
  """The answers in the form of a prediction file."""
  return Predictions(
    questions.ids, questions.languages, questions.choices, questions.answers, answers.texts
  )


def choice_summary(questions: Questions, answers: Answers) -> tuple[Summary, np.ndarray]:
  """Figures, and the choices, int64 [items, languages]; by likelihood with `accuracy_norm`."""

  def summarise(chosen_NL: np.ndarray) -> Summary:
    return consistency.summarise(chosen_NL, questions.answers, questions.languages)

  if answers.losses is None:
    chosen_NL = choice_predictions(questions, answers).extract('strict', prompt=questions.prompt)
    return summarise(chosen_NL), chosen_NL
  chosen_NL, normalised = answers.chosen(), summarise(answers.normalised(questions))
  summary = dataclasses.replace(
    summarise(chosen_NL),
    accuracy_norm=normalised.accuracy,
    accuracy_norm_by_language=normalised.accuracy_by_language,
  )
  return summary, chosen_NL
