"""results.json: figures of benchmark runs, in one schema for every command.

The file is `{"runs": [run, ...]}`. A run is one model, one seed, one benchmark, one protocol and
one method. All figures are fractions between 0 and 1.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
import json
import os
from pathlib import Path
import statistics

from crossin_jax.evaluation.measures.consistency import Summary
from crossin_jax.storage import files

METHODS = ('generate', 'likelihood')
_FRACTIONS = ('accuracy', 'unparsed_rate')
_MAPS = ('accuracy_by_language', 'consistency', 'ac3', 'pairwise_consistency')
_FIGURES = ('accuracy', *_MAPS, 'unparsed_rate', 'items')
KEYS = ('variant', 'seed', 'benchmark', 'protocol', 'method', *_FIGURES, 'prompts')


def build_run(
  summary: Summary, *, variant: str, seed: int | None, benchmark: str, protocol: str, method: str
) -> dict:
  """One entry of "runs", validated. 'prompts' is the spread of the accuracy over the prompts.

  Args:
    summary: the figures.
    variant: the model or arm, e.g. 'x2x'.
    seed: seed of the training run; None for a model of other origin.
    benchmark: name of the task, e.g. 'cross_mmlu', or 'world/untagged' with the prompt form after
      the slash.
    protocol: 'strict' or 'seaeval'; 'strict' for the likelihood method, which extracts nothing.
    method: 'generate' (text, then extraction) or 'likelihood' (the most probable option).
  """
  figures = summary.as_json()
  run = {
    'variant': variant,
    'seed': seed,
    'benchmark': benchmark,
    'protocol': protocol,
    'method': method,
    **{key: figures.pop(key) for key in _FIGURES},
    'prompts': _spread([one.accuracy for one in summary.by_prompt or [summary]]),
    **figures,
  }
  validate_run(run)
  return run


def _spread(values: Sequence[float]) -> dict[str, float]:
  return {'median': statistics.median(values), 'min': min(values), 'max': max(values)}


def median_summary(summaries: Sequence[Summary]) -> Summary:
  """The median of every figure over prompts (docs/design/methods.md#c-10).

  The median of AC3 is not AC3 of the medians. The median of two prompts is their mean.
  """
  combined, spread = {}, {}
  for key, first in summaries[0].as_json().items():
    values = [getattr(summary, key) for summary in summaries]
    if isinstance(first, Mapping):
      by_name = {name: [value[name] for value in values] for name in first}
      combined[key] = {name: statistics.median(column) for name, column in by_name.items()}
      by_name = {f'{key}_{name}': column for name, column in by_name.items()}
    else:
      by_name = {key: values}
      combined[key] = statistics.median(values)
    if key in ('accuracy', 'consistency', 'ac3', 'unparsed_rate', 'f1'):
      spread |= {name: _spread(column) for name, column in by_name.items()}
  combined |= {'items': summaries[0].items, 'prompt_figures': dict(sorted(spread.items()))}
  return Summary(**combined, by_prompt=list(summaries))


def validate_run(run: Mapping, where: str = 'run') -> None:
  """Checks the schema of a run; further keys are allowed.

  Raises:
    ValueError: names `where`, the key, what was found and what was expected.
  """

  def check(ok: bool, text: str) -> None:
    if not ok:
      raise ValueError(f'{where}: {text}')

  def must(key: str, ok: bool, wanted: str) -> None:
    check(ok, f"'{key}' must be {wanted}, found {run[key]!r}")

  check(isinstance(run, Mapping), f'expected an object, found {type(run).__name__}')
  missing = [key for key in KEYS if key not in run]
  check(not missing, f'lacks {", ".join(missing)}')
  for key in ('variant', 'benchmark', 'protocol'):
    must(key, isinstance(run[key], str) and run[key], 'a non-empty string')
  must('seed', run['seed'] is None or _is_int(run['seed']), 'an integer or null')
  must('method', run['method'] in METHODS, ' or '.join(METHODS))
  must('items', _is_int(run['items']) and run['items'] >= 1, 'a count of at least 1')
  fractions = {key: run[key] for key in _FRACTIONS}
  for key in (*_MAPS, 'prompts'):
    ok = isinstance(run[key], Mapping)
    check(ok, f"'{key}' must be an object, found {type(run[key]).__name__}")
    fractions |= {f'{key}.{name}': value for name, value in run[key].items()}
  for key, value in fractions.items():
    ok = not isinstance(value, bool) and isinstance(value, (int, float)) and 0.0 <= value <= 1.0
    check(ok, f"'{key}' must be a fraction between 0 and 1, found {value!r}")
  languages = list(run['accuracy_by_language'])
  check(languages, "'accuracy_by_language' is empty")
  # The spans of open answers are not comparable across languages: they have no consistency.
  comparable = any(run[key] for key in ('consistency', 'ac3', 'pairwise_consistency'))
  sizes = [str(s) for s in range(2, len(languages) + 1)] if comparable else []
  for key in ('consistency', 'ac3'):
    check(
      sorted(run[key]) == sorted(sizes),
      f"'{key}' must have the keys {', '.join(sizes)} for {len(languages)} languages, found "
      f'{", ".join(run[key])}',
    )
  check(
    {frozenset(name.split(',')) for name in run['pairwise_consistency']}
    == {frozenset(pair) for pair in combinations(languages if sizes else (), 2)},
    f"'pairwise_consistency' must name each pair of {', '.join(languages)} once, as 'en,zh'",
  )
  ok = sorted(run['prompts']) == ['max', 'median', 'min']
  check(ok, f"'prompts' must have the keys median, min, max, found {', '.join(run['prompts'])}")


def _is_int(value: object) -> bool:
  return isinstance(value, int) and not isinstance(value, bool)


def write_results(path: str | os.PathLike, runs: Iterable[Mapping]) -> None:
  """Validates the runs and writes {"runs": [...]} atomically."""
  runs = list(runs)
  for i, run in enumerate(runs):
    validate_run(run, f'runs[{i}]')
  files.write_json(path, {'runs': runs}, allow_nan=False)


def read_results(path: str | os.PathLike) -> list[dict]:
  """The validated runs of a results.json.

  Raises:
    ValueError: names the file and the malformed run.
  """
  try:
    content = json.loads(Path(path).read_text(encoding='utf-8'))
  except (json.JSONDecodeError, UnicodeDecodeError) as error:
    raise ValueError(
      f'{path} is not valid JSON ({error}); write it again with `crossin evaluate`'
    ) from error
  if not isinstance(content, dict) or not isinstance(content.get('runs'), list):
    raise ValueError(f'{path}: expected {{"runs": [...]}}; is this a results.json?')
  for i, run in enumerate(content['runs']):
    validate_run(run, f'{path}: runs[{i}]')
  return content['runs']
