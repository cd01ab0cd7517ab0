"""Results of the X-Instruction quickstart: refinement and response models."""

from collections import Counter
from collections.abc import Sequence
import dataclasses
import os

import numpy as np

from crossin_jax.evaluation.measures import bootstrap
from crossin_jax.languages import english_name
from crossin_jax.xinstruction import rows as rows_lib
from crossin_jax.xinstruction.run import Run

UNSPOILED_WRONG = 'instruction asks for something else'  # the generator's own mistake


@dataclasses.dataclass(frozen=True)
class Span:
  """A share, or a difference of shares, with its 95 % interval."""

  estimate: float
  low: float
  high: float


@dataclasses.dataclass(frozen=True)
class Refinement:
  """Precision and recall of one round; None where nothing was kept.

  Attributes:
    round: from 1.
    candidates, good, kept: numbers; good = not spoiled, and the instruction matches the text.
    precision: with Wilson's interval.
    precision_of_unspoiled: share of the kept that were not spoiled.
    by_flaw: kind -> {'candidates', 'kept', 'level': mean}.
    by_language: language -> {'precision', 'recall', 'kept'}.
  """

  round: int
  candidates: int
  good: int
  kept: int
  precision: Span | None
  recall: float | None
  precision_of_unspoiled: float | None
  by_flaw: dict[str, dict]
  by_language: dict[str, dict]


@dataclasses.dataclass(frozen=True)
class Answers:
  """Answers of one model to the questions in one form.

  Attributes:
    items: questions.
    heard: kind of answer, see `world.documents.ANSWERS` -> number.
    by_language: language -> share that follows.
    follows: one complete sentence of the language about what was asked.
    right: true as well.
  """

  items: int
  heard: dict[str, int]
  by_language: dict[str, float]
  follows: Span
  right: Span


@dataclasses.dataclass(frozen=True)
class Responses:
  """Answers of the response models.

  Attributes:
    models: model -> form -> answers.
    differences: form -> other model -> 'follows' and 'right' of 'kept' minus that model.
  """

  models: dict[str, dict[str, Answers]]
  differences: dict[str, dict[str, dict[str, Span]]]


@dataclasses.dataclass(frozen=True)
class Results:
  """The content of the page and of results.json; fractions 0..1.

  Attributes:
    generator: language -> share of right instructions.
    examples: candidates with their ratings.
    findings: sentences.
  """

  generator: dict[str, float]
  refinement: list[Refinement]
  responses: Responses
  examples: list[dict]
  findings: list[str] = dataclasses.field(default_factory=list)


def results(documents, run: Run, answers: str, models: Sequence[str]) -> Results:
  """Measures a finished quickstart.

  Args:
    documents: `WorldDocuments`.
    run: of the finished pipeline; its candidates have 'flaw'.
    answers: folder with a folder of answers for each model.
    models: names; 'kept' is compared with the others.
  """
  found = Results(
    _generator(documents, run),
    [refinement(documents, run, i) for i in range(run.rounds)],
    responses(documents, run.settings.languages, answers, models),
    _examples(documents, run),
  )
  return dataclasses.replace(found, findings=findings(found))


def refinement(documents, run: Run, i: int) -> Refinement:
  """Precision and recall of round i, from 0."""
  kinds: dict[str, list[tuple[float, bool]]] = {}
  by_language, hits, goods, kept_all = {}, 0, 0, 0
  for language in run.settings.languages:
    level = {
      row['id']: row['score'] for row in rows_lib.read_language(run.folder(f'rate.{i}'), language)
    }
    kept = {row['id'] for row in run.read(f'keep.{i}', language)}
    good = hit = 0
    for row in run.read('pairs', language):
      kind = kind_of(documents, row)
      kinds.setdefault(kind, []).append((level.get(row['id'], np.nan), row['id'] in kept))
      good += kind == 'good'
      hit += kind == 'good' and row['id'] in kept
    by_language[language] = {
      'precision': _share(hit, len(kept)),
      'recall': _share(hit, good),
      'kept': len(kept),
    }
    hits, goods, kept_all = hits + hit, goods + good, kept_all + len(kept)
  by_flaw = {
    kind: {
      'candidates': len(own),
      'kept': sum(k for _, k in own),
      'level': float(np.nanmean([l for l, _ in own])),
    }
    for kind, own in sorted(kinds.items(), key=lambda item: (item[0] != 'good', item[0]))
  }
  unspoiled = sum(own['kept'] for kind, own in by_flaw.items() if kind in ('good', UNSPOILED_WRONG))
  return Refinement(
    i + 1,
    candidates=sum(map(len, kinds.values())),
    good=goods,
    kept=kept_all,
    precision=_wilson(hits, kept_all),
    recall=_share(hits, goods),
    precision_of_unspoiled=_share(unspoiled, kept_all),
    by_flaw=by_flaw,
    by_language=by_language,
  )


def kind_of(documents, row: dict) -> str:
  """'good', the way a candidate was spoiled, or UNSPOILED_WRONG."""
  return row['flaw'] or (
    'good' if documents.asks_for(row['instruction'], row['id']) else UNSPOILED_WRONG
  )


def responses(
  documents, languages: Sequence[str], answers: str, models: Sequence[str]
) -> Responses:
  """Answers of response models to questions about facts that are in none of their training rows."""
  facts = {fact.id: fact for fact in documents.facts('test')}
  correct: dict[tuple[str, str, str], list[bool]] = {}
  summary: dict[str, dict[str, Answers]] = {}
  for model in models:
    heard: dict[str, Counter] = {}
    by_language: dict[str, dict[str, float]] = {}
    for language in languages:
      own: dict[str, list[bool]] = {}
      for row in sorted(
        rows_lib.read_language(os.path.join(answers, model), language), key=lambda row: row['id']
      ):
        form, id_ = row['id'].split('.', 1)
        what = documents.classify(row['output'], facts[id_], language)
        heard.setdefault(form, Counter())[what] += 1
        follows = what in ('right', 'wrong value')
        own.setdefault(form, []).append(follows)
        correct.setdefault((model, form, 'follows'), []).append(follows)
        correct.setdefault((model, form, 'right'), []).append(what == 'right')
      for form, those in own.items():
        by_language.setdefault(form, {})[language] = float(np.mean(those))
    summary[model] = {
      form: Answers(
        sum(counts.values()),
        dict(counts),
        by_language[form],
        *(
          _span(bootstrap.interval([_column(correct[model, form, name])], None))
          for name in ('follows', 'right')
        ),
      )
      for form, counts in heard.items()
    }
  last = 'kept'
  differences = {
    form: {
      other: {
        name: _span(bootstrap.difference(
          [_column(correct[last, form, name])], [_column(correct[other, form, name])], None
        ))
        for name in ('follows', 'right')
      }
      for other in models
      if other != last
    }
    for form in summary[last]
  }  # fmt: skip
  return Responses(summary, differences)


def findings(found: Results) -> list[str]:
  """The results as sentences."""
  percent = lambda share: '-' if share is None else f'{100 * share:.0f} %'
  right = [f'{english_name(code)} {percent(share)}' for code, share in found.generator.items()]
  sentences = [
    f'The generator asks for what a text of unseen facts tells in {", ".join(right)} of the texts.'
  ]
  for one in found.refinement:
    precision = one.precision
    if precision is None:
      sentences.append(f'Round {one.round} keeps none of {one.candidates:,} candidates.')
      continue
    sentences.append(
      f'Round {one.round} keeps {one.kept:,} of {one.candidates:,} candidates, of which '
      f'{one.good:,} are good: precision '
      f'{percent(precision.estimate)} ({percent(precision.low)} to '
      f'{percent(precision.high)}), recall '
      f'{percent(one.recall)}; chance would give {percent(one.good / one.candidates)}.'
    )
  for form, others in found.responses.differences.items():
    models = found.responses.models
    shown = ', '.join(
      f'{model} {percent(own[form].follows.estimate)}' for model, own in models.items()
    )
    asked = 'in English' if form == 'English' else 'in the output language, never met in tuning'
    intro = f'Asked {asked}, answers that are one whole sentence about what was asked: {shown}. '
    if all(own[form].follows.estimate < 0.1 for own in models.values()):
      sentences.append(intro + 'None of the models follows such instructions to speak of.')
      continue
    gain = others['random']['follows']
    verdict = (
      'better'
      if gain.low > 0
      else 'worse'
      if gain.high < 0
      else 'neither better nor worse, as far as can be told,'
    )
    sentences.append(
      f'{intro}The kept set is {verdict} than a random one of its size '
      f'({100 * gain.estimate:+.0f} points, '
      f'{100 * gain.low:+.0f} to {100 * gain.high:+.0f}).'
    )
  return sentences


def _generator(documents, run: Run) -> dict[str, float]:
  shares = {}
  for language in run.settings.languages:
    rows = list(run.read('generate', language))
    shares[language] = sum(documents.asks_for(row['instruction'], row['id']) for row in rows) / max(
      1, len(rows)
    )
  return shares


def _examples(documents, run: Run, each: int = 2) -> list[dict]:
  """Some candidates of every kind, with their levels and the choice of the last round."""
  last, shown = run.rounds - 1, []
  for language in run.settings.languages:
    level = {
      row['id']: row['score']
      for row in rows_lib.read_language(run.folder(f'rate.{last}'), language)
    }
    kept = {row['id'] for row in run.read(f'keep.{last}', language)}
    seen: Counter = Counter()
    for row in sorted(
      run.read('pairs', language), key=lambda row: rows_lib.fraction('example', language, row['id'])
    ):
      kind = kind_of(documents, row)
      if seen[kind] < each:
        seen[kind] += 1
        shown.append({
          'language': language, 'kind': kind, 'instruction': row['instruction'],
          'output': row['output'],
          'level': level.get(row['id']), 'kept': row['id'] in kept,
        })  # fmt: skip
  return sorted(shown, key=lambda row: (row['kind'] != 'good', row['kind'], row['language']))


def _share(part: int, whole: int) -> float | None:
  return part / whole if whole else None


def _wilson(part: int, whole: int, z: float = 1.96) -> Span | None:
  """Wilson's interval of a share (Wilson 1927, JASA 22:209)."""
  if not whole:
    return None
  share = part / whole
  middle = (share + z * z / (2 * whole)) / (1 + z * z / whole)
  half = (
    z / (1 + z * z / whole) * np.sqrt(share * (1 - share) / whole + z * z / (4 * whole * whole))
  )
  return Span(share, float(middle - half), float(middle + half))


def _column(values: Sequence[bool]) -> np.ndarray:
  return np.asarray(values, bool)[:, None]


def _span(interval: bootstrap.Interval) -> Span:
  return Span(interval.estimate, interval.low, interval.high)
