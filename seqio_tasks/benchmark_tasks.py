"""The benchmarks as SeqIO Tasks with this project's metrics, one per language and prompt.

    from seqio_tasks import benchmark_tasks
    names = benchmark_tasks.register('xcopa', 'data/xcopa', Vocabulary('tokenizer.model'),
    languages=('sw', 'th')) # ['xcopa.sw.p1.likelihood', 'xcopa.th.p1.likelihood']

`<benchmark>.<language>.p<n>.generate` has an example for each item: `inputs` is the prompt,
`targets` the right answer; its metrics read the decoded text. `... .likelihood` has one for each
option: `targets` is the option and `is_right` its worth; its metrics compare the scores
(log-likelihoods) of the options of an item, the score being the sum over the target's tokens.
"""

from collections.abc import Sequence
import functools

import numpy as np
import seqio
import tensorflow as tf

from crossin_jax.data.vocabulary import Vocabulary
from crossin_jax.evaluation.answers import extraction, open_answers
from crossin_jax.evaluation.asking import pair_tokens
from crossin_jax.evaluation.benchmarks.declarations import LoadedBenchmark
from crossin_jax.evaluation.measures import consistency
from crossin_jax.evaluation.questions import Questions
from seqio_tasks.vocabularies import SeqioVocabulary


def register(
  benchmark: str,
  path: str,
  vocabulary: Vocabulary,
  *,
  languages: Sequence[str] | None = None,
  prompts: Sequence[int] | None = None,
  split: str | None = None,
  protocol: str = 'strict',
) -> list[str]:
  """Registers the Tasks of a benchmark and replaces Tasks with the same names.

  Args:
    benchmark: of `crossin_jax.evaluation.benchmarks.declarations.BENCHMARKS`.
    path: its file or folder.
    vocabulary: tokenizer.
    languages: codes; None = all that it has.
    prompts: forms of the prompt, from 1; None = all.
    split: part of the files' names, where there are several.
    protocol: 'strict' or 'seaeval', for generated answers to questions with options.

  Returns:
    Names of the Tasks; their only split is 'test'.

  Raises:
    ValueError: see `LoadedBenchmark`.
  """
  loaded = LoadedBenchmark(benchmark, path, languages, split)
  names = []
  for prompt in prompts or range(1, len(loaded.declaration.prompts) + 1):
    for questions in loaded.questions(prompt):
      for column, language in enumerate(questions.languages):
        for method in loaded.declaration.methods:
          name = f'{benchmark}.{language}.p{prompt}.{method}'
          _add(name, questions, column, method, vocabulary, protocol)
          names.append(name)
  return names


def _add(
  name: str, questions: Questions, column: int, method: str, vocabulary: Vocabulary, protocol: str
) -> None:
  rows = [item[column] for item in questions.rows]
  language = questions.languages[column]
  make = _generation_examples if method == 'generate' else _option_examples
  examples = make(rows, vocabulary)
  features = {
    key: seqio.Feature(SeqioVocabulary(vocabulary), add_eos=False, dtype=tf.int32)
    for key in ('inputs', 'targets')
  }
  if method == 'generate':
    metric = _metric_of_texts(
      functools.partial(_figures_of_texts, rows, questions, language, protocol)
    )
  else:
    metric = _metric_of_scores(functools.partial(_figures_of_scores, rows))
  seqio.TaskRegistry.remove(name)
  seqio.TaskRegistry.add(
    name,
    source=seqio.FunctionDataSource(
      functools.partial(_dataset, examples),
      splits=('test',),
      num_input_examples={'test': len(examples)},
    ),
    preprocessors=[],
    output_features=features,
    postprocess_fn=_postprocess,
    metric_fns=[metric],
  )


def _generation_examples(rows: list[dict], vocabulary: Vocabulary) -> list[dict]:
  """Prompt and correct answer of each item."""
  right = lambda row: row['choices'][row['answer']] if 'choices' in row else row['answers'][0]
  return [
    {
      'inputs': vocabulary.encode(_prompt(row)),
      'targets': vocabulary.encode(right(row)),
      'item': i,
      'option': 0,
      'is_right': True,
    }
    for i, row in enumerate(rows)
  ]


def _option_examples(rows: list[dict], vocabulary: Vocabulary) -> list[dict]:
  """Prompt and option, for every option of every item, divided as `pair_tokens` says."""
  examples = []
  for i, row in enumerate(rows):
    for option, text in enumerate(row.get('continuations', row['choices'])):
      before, after = pair_tokens(vocabulary, _prompt(row), text)
      right = option == row['answer']
      examples.append(
        {'inputs': before, 'targets': after, 'item': i, 'option': option, 'is_right': right}
      )
  return examples


def _prompt(row: dict) -> str:
  return row.get('prompt', row.get('raw', ''))


def _dataset(examples: list[dict], split, shuffle_files=False, seed=None) -> tf.data.Dataset:
  del split, shuffle_files, seed
  signature = {
    'inputs': tf.TensorSpec((None,), tf.int32),
    'targets': tf.TensorSpec((None,), tf.int32),
    'item': tf.TensorSpec((), tf.int32),
    'option': tf.TensorSpec((), tf.int32),
    'is_right': tf.TensorSpec((), tf.bool),
  }
  return tf.data.Dataset.from_generator(lambda: iter(examples), output_signature=signature)


def _postprocess(decoded, example=None, is_target=False, **_):
  """Inputs of the metrics: item and option of a target, text of a prediction."""
  if not is_target:
    return decoded
  number = lambda key: int(np.asarray(example[key]))
  return number('item'), number('option')


def _figures_of_texts(
  rows, questions: Questions, language: str, protocol: str, targets, predictions
) -> dict:
  """Accuracy (exact match) and unparsed rate, F1 for spans."""
  texts = {item: text for (item, _), text in zip(targets, predictions)}
  if questions.kind != 'choice':
    ids = {str(item) for item in texts}
    found = open_answers.OpenPredictions(
      {language: {str(item): text for item, text in texts.items()}},
      {language: {item: rows[int(item)]['answers'] for item in ids}},
    )
    summary = open_answers.summarise(found, open_answers.PROTOCOLS[questions.name][0])
  else:
    extracted = [
      extraction.extract(
        text,
        rows[item]['choices'],
        protocol,
        item_id=questions.ids[item],
        language=language,
        prompt=questions.prompt,
      )
      for item, text in texts.items()
    ]
    answers = np.array([rows[item]['answer'] for item in texts])
    summary = consistency.summarise(np.array(extracted)[:, None], answers, [language])
  figures = summary.as_json()
  return {key: figures[key] for key in ('accuracy', 'unparsed_rate', 'f1') if key in figures}


def _figures_of_scores(rows, targets, scores) -> dict:
  """Accuracy of the option with the highest score, in total and per character."""
  table = [np.full(len(row['choices']), -np.inf) for row in rows]
  for (item, option), score in zip(targets, scores):
    table[item][option] = score
  right = [int(np.argmax(own)) == row['answer'] for own, row in zip(table, rows)]
  per_character = [
    int(np.argmax(own / [len(c) for c in row['choices']])) == row['answer']
    for own, row in zip(table, rows)
  ]
  return {'accuracy': float(np.mean(right)), 'accuracy_norm': float(np.mean(per_character))}


# SeqIO distinguishes text metrics from score metrics by their argument names.


def _metric_of_texts(figures):
  def answered(targets, predictions):
    return figures(targets, predictions)

  return answered


def _metric_of_scores(figures):
  def likeliest(targets, scores):
    return figures(targets, scores)

  return likeliest
