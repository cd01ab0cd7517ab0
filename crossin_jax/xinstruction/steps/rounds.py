"""Steps of a refinement round: response model, responses, rater, ratings, kept candidates.

See docs/design/methods.md#c-16 and docs/design/methods.md#c-17.
"""

from collections.abc import Callable, Mapping
import os

import numpy as np

from crossin_jax.xinstruction import levels
from crossin_jax.xinstruction import rows as rows_lib
from crossin_jax.xinstruction.run import Run
from crossin_jax.xinstruction.settings import XInstruction

TEACHER_TOKENS = 256  # of a rating, as of the judge's


def train_response(run: Run, i: int, folder: str) -> Mapping:
  """Tunes a response model on the seed and the rows kept in the previous round."""

  def rows(language):
    own = [
      row | {'instruction': rows_lib.assistant(row['instruction'], language)}
      for row in run.read('seed', language)
    ]
    if i:
      own += [
        row | {'instruction': rows_lib.plain(row['instruction'], language)}
        for row in run.read(f'keep.{i - 1}', language)
      ]
    return own

  return run.train(folder, 'response', 'xinstruction', rows)


def respond(run: Run, i: int, folder: str) -> Mapping:
  """Answers the instructions of the seed with that model: the examples of level 2."""
  asked, chunk = os.path.join(folder, 'asked'), run.settings.chunk
  for language in run.settings.languages:
    rows = [
      {'id': row['id'], 'instruction': rows_lib.assistant(row['instruction'], language)}
      for row in run.read('seed', language)
    ]
    for n in range(0, len(rows), chunk):
      path = os.path.join(asked, language, f'{n // chunk:05d}.jsonl')
      if not os.path.exists(path):
        rows_lib.write(path, rows[n : n + chunk])
  answers = os.path.join(folder, 'answers')
  run.answer('respond', f'train-response.{i}', asked, answers, run.settings.response_tokens)
  return run.counted(answers, 'output', 'responses')


def train_rater(run: Run, i: int, folder: str) -> Mapping:
  """Tunes a rater on the three levels."""

  def rows(language):
    answers = os.path.join(run.folder(f'respond.{i}'), 'answers')
    written = {row['id']: row['output'] for row in rows_lib.read_language(answers, language)}
    seed = {code: list(run.read('seed', code)) for code in run.settings.languages}
    return levels.rating_rows(seed, language, written, run.settings.flaws)

  return run.train(folder, 'rater', 'xrate', rows, rater_before(run.settings, i))


def rater_before(settings: XInstruction, i: int) -> str | None:
  """The step whose rater is tuned further in round i; None = the base model is tuned."""
  return f'train-rater.{i - 1}' if i and settings.rater_from == 'before' else None


def rate(run: Run, i: int, folder: str) -> Mapping:
  """Rates every candidate; one for which a teacher names no level stays unrated."""
  asked = {}
  if run.settings.rater == 'endpoint':
    asked = run.teach('rate', run.folder('pairs'), folder, TEACHER_TOKENS)
  else:
    run.answer('rate', f'train-rater.{i}', run.folder('pairs'), folder)
  counts = run.counted(folder, 'score', 'rated')
  scores = [
    score
    for language in run.settings.languages
    for score in _scores(run, folder, language).values()
  ]
  mean = {'mean_level': round(float(np.mean(scores)), 4) if scores else None}
  unrated = {'unrated': counts.pop('empty')} if asked else {}
  return {'rated': counts.pop('rated')} | unrated | counts | mean | asked


def keep(run: Run, i: int, folder: str) -> Mapping:
  """Keeps the best candidates."""
  s = run.settings
  if settled(run, i):
    return _kept_before(run, i, folder)
  counts, same, total = {}, 0, 0
  for language in s.languages:
    score = _scores(run, run.folder(f'rate.{i}'), language)
    # NB: texts stay on disk until it is known which are kept.
    ids = list(score)
    best = levels.kept(np.array([score[id_] for id_ in ids]), ids, s.keep_fraction, s.least_level)
    chosen = {ids[k] for k in best}
    rows = (
      row | {'score': score[row['id']]}
      for row in run.read('pairs', language)
      if row['id'] in chosen
    )
    rows_lib.write(os.path.join(folder, language, '00000.jsonl'), rows)
    histogram = np.histogram(list(score.values()), bins=20, range=(1, 3))[0].tolist()
    counts[language] = {'candidates': len(ids), 'kept': len(chosen), 'score_histogram': histogram}
    if i:
      before = {row['id'] for row in run.read(f'keep.{i - 1}', language)}
      same, total = same + len(before & chosen), total + len(before | chosen)
  changed = {'changed': round(1 - same / total, 4)} if total else {}
  summed = {key: sum(c[key] for c in counts.values()) for key in ('candidates', 'kept')}
  return summed | changed | {'by_language': counts}


def _scores(run: Run, folder: str, language: str) -> dict[str, float]:
  """id -> level of the candidates that were rated."""
  rows = rows_lib.read_language(folder, language)
  return {row['id']: row['score'] for row in rows if row['score'] is not None}


def settled(run: Run, i: int) -> bool:
  """Whether the kept set changed so little before round i that the rounds end here.

  See docs/design/methods.md#c-17.
  """
  before = run.steps.manifest(f'keep.{i - 1}') if i else None
  return before is not None and before['counts'].get('changed', 1.0) < run.settings.settled


def unless_settled(step: Callable[[Run, int, str], Mapping]) -> Callable[[Run, int, str], Mapping]:
  """The step, skipped once the rounds have settled."""
  counts = lambda i: {'settled': f'round {i - 1} changed the kept set too little'}
  return lambda run, i, folder: counts(i) if settled(run, i) else step(run, i, folder)


def _kept_before(run: Run, i: int, folder: str) -> Mapping:
  counts = run.steps.manifest(f'keep.{i - 1}')['counts']
  for language in run.settings.languages:
    rows_lib.write(
      os.path.join(folder, language, '00000.jsonl'), run.read(f'keep.{i - 1}', language)
    )
  return counts | {'settled': 'as in the round before'}
