"""Answers of a model to questions: the most likely option, and generated text."""

from collections.abc import Sequence
import dataclasses
from dataclasses import dataclass

import numpy as np

from crossin_jax import config
from crossin_jax.checkpoints.saved_prompts import Prompts
from crossin_jax.data.vocabulary import Vocabulary
from crossin_jax.decoding import nonfinite
from crossin_jax.decoding.generation import Generator
from crossin_jax.decoding.sampling import Sampling
from crossin_jax.decoding.schedule import Prompt
from crossin_jax.decoding.scoring import continuation_losses
from crossin_jax.devices.partitioning import Partitioner
from crossin_jax.evaluation.answers.predictions import Predictions
from crossin_jax.evaluation.measures import consistency
from crossin_jax.evaluation.measures.consistency import Summary
from crossin_jax.evaluation.measures.rankc import rankc
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
    """Choices by loss per character of what was scored (acc_norm of lm-evaluation-harness);
    shape as `chosen`.
    """
    scored = lambda row: row.get('continuations', row['choices'])
    per_character = [
      [losses / [len(text.strip()) for text in scored(row)] for losses, row in zip(*item)]
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
    return [], vocabulary.encode_with_specials(context + continuation)
  before = vocabulary.encode_with_specials(stripped)
  return before, vocabulary.encode_with_specials(context + continuation)[len(before) :]


def _plain_text(row: dict, prompts: Prompts) -> str | None:
  """The prompt of a row that needs no template; None for a row that does."""
  return row.get('prompt', row.get('raw') if prompts.untaught else None)


def _naming_items(questions: Questions):
  """Errors for a prompt, counted over all items and languages, name item and language."""

  def name(index: int) -> str:
    item, language = divmod(index, len(questions.languages))
    return f'{questions.name}, item {questions.ids[item]!r} in {questions.languages[language]}'

  return nonfinite.naming(name)


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
  """Loss of every choice in nats, [item][language][option]; with `Questions.per_token` per token.

  With a template the loss includes the stop token. Rows get longer and fewer if a prompt with its
  choice is longer than `length`.

  Raises:
    NonFiniteLikelihood: names item and language.
  """
  prefixes, options = [], []
  for row in (row for item in questions.rows for row in item):
    if (text := _plain_text(row, prompts)) is not None:
      continuations = row.get('continuations', row['choices'])
      pairs = [
        pair_tokens(prompts.vocabulary, text, continuation) for continuation in continuations
      ]
      prefixes.append(prompts.with_bos(pairs[0][0]))
      options.append([continuation for _, continuation in pairs])
    else:
      prefixes.append(prompts.tokens(row))
      options.append([prompts.response(row, choice) for choice in row['choices']])
  longest = max(len(prefix) + max(map(len, ids)) for prefix, ids in zip(prefixes, options))
  packed = max(length, longest)
  shape = {'length': packed, 'rows': max(1, rows * length // packed)}
  with _naming_items(questions):
    losses = iter(
      continuation_losses(model, params, partition, prefixes, options, bos_id=None, **shape)
    )
    if questions.per_token:
      losses = (own / list(map(len, ids)) for own, ids in zip(losses, options, strict=True))
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
    return prompts.tokens(row) if text is None else prompts.plain(text)

  generate = Generator(
    model,
    params,
    partition,
    bos_id=None,
    stop_ids=(prompts.stop_id,),
    sampling=Sampling(
      max_new_tokens=questions.max_new_tokens or max_new_tokens, stop=questions.stop
    ),
    decode=vocabulary.decode,
    rows=rows,
  )
  with _naming_items(questions):
    answers = iter(generate([Prompt(tokens(row)) for item in questions.rows for row in item]))
  return [[next(answers).text for _ in item] for item in questions.rows]


@config.configurable(commands=('train', 'evaluate'))
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
    NonFiniteLikelihood, NonFiniteLogits: name item and language.
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
  """Figures, and the choices, int64 [items, languages]; by likelihood with RankC, and with
  `accuracy_norm` where sums were compared.
  """

  def summarise(chosen_NL: np.ndarray) -> Summary:
    return consistency.summarise(chosen_NL, questions.answers, questions.languages)

  if answers.losses is None:
    chosen_NL = choice_predictions(questions, answers).extract('strict', prompt=questions.prompt)
    return summarise(chosen_NL), chosen_NL
  chosen_NL = answers.chosen()
  summary = dataclasses.replace(summarise(chosen_NL), rankc=_rankc(questions, answers.losses))
  if not questions.per_token:
    normalised = summarise(answers.normalised(questions))
    summary = dataclasses.replace(
      summary,
      accuracy_norm=normalised.accuracy,
      accuracy_norm_by_language=normalised.accuracy_by_language,
    )
  return summary, chosen_NL


def summary_of_languages(results: Sequence[tuple[Questions, Answers]]) -> Summary:
  """Figures of questions with options, where each language may have items of its own: then nothing
  is compared between them.
  """
  parts = [choice_summary(questions, answers)[0] for questions, answers in results]
  if len(parts) == 1:
    return parts[0]

  def by_language(name: str) -> dict[str, float] | None:
    values = [getattr(part, name) for part in parts]
    return None if None in values else {k: v for value in values for k, v in value.items()}

  mean = lambda values: float(np.mean(list(values)))
  norm = by_language('accuracy_norm_by_language')
  return Summary(
    accuracy=mean(by_language('accuracy_by_language').values()),
    accuracy_by_language=by_language('accuracy_by_language'),
    consistency={},
    ac3={},
    pairwise_consistency={},
    unparsed_rate=mean(part.unparsed_rate for part in parts),
    items=max(part.items for part in parts),
    accuracy_norm=None if norm is None else mean(norm.values()),
    accuracy_norm_by_language=norm,
  )


def _rankc(questions: Questions, losses: list[list[np.ndarray]]) -> dict[str, float] | None:
  """RankC of every two languages; None for one language, or where options are not the same."""
  counts = ({len(options) for options in item} for item in losses)
  if len(questions.languages) < 2 or any(len(count) > 1 for count in counts):
    return None
  return consistency.by_pair(rankc(losses), questions.languages)
