"""results.json: what a run of a benchmark gave, in one schema for every command.

`{"runs": [run, ...]}`, a run being one model, one seed, one benchmark, one protocol and one method.
All figures are fractions between 0 and 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
import json
import os
from pathlib import Path
import statistics

from crossin_jax.storage import files

METHODS = ('generate', 'likelihood')
_FRACTIONS = ('accuracy', 'unparsed_rate')
_MAPS = ('accuracy_by_language', 'consistency', 'ac3', 'pairwise_consistency')
KEYS = (
    "variant", "seed", "benchmark", "protocol", "method", "accuracy", "accuracy_by_language",
    "consistency", "ac3",
    "pairwise_consistency", "unparsed_rate", "items", "prompts",
)  # fmt: skip


def build_run(
  summary: Mapping,
  *,
  variant: str,
  seed: int | None,
  benchmark: str,
  protocol: str,
  method: str,
  prompt_accuracies: Sequence[float] | None = None,
) -> dict:
  """One entry of "runs", validated.

  Args:
    summary: what `consistency.summarise` returns; further figures in it are kept.
    variant: the model or arm, e.g. 'x2x'.
    seed: seed of the training run; None for a model that was not trained here.
    benchmark: name of the task, e.g. 'cross_mmlu', or 'world/untagged' with the prompt form after
      the slash.
    protocol: 'strict' or 'seaeval'; for the likelihood method, where nothing is extracted,
      'strict'.
    method: 'generate' (text, then extraction) or 'likelihood' (the most probable option).
    prompt_accuracies: accuracy under each prompt form that was tried; None = the one of `summary`.
  """
  accuracies = [summary['accuracy']] if prompt_accuracies is None else list(prompt_accuracies)
  if not accuracies:
    raise ValueError(
      'prompt_accuracies is empty; pass one accuracy per prompt form, or None for a single prompt'
    )
  further = {key: summary[key] for key in summary if key not in KEYS}
  run = {
    'variant': variant,
    'seed': seed,
    'benchmark': benchmark,
    'protocol': protocol,
    'method': method,
    **{key: summary[key] for key in (*_FRACTIONS[:1], *_MAPS, *_FRACTIONS[1:], 'items')},
    'prompts': {
      'median': float(statistics.median(accuracies)),
      'min': float(min(accuracies)),
      'max': float(max(accuracies)),
    },
    **further,
  }
  validate_run(run)
  return run


def median_summary(summaries: Sequence[Mapping]) -> dict:
  """The median of every figure over prompts (METHODS.md C10), as one summary.

  The median of AC3 is not AC3 of the medians. Of two prompts the median is their mean.

  Returns:
    The summary, with 'prompt_figures': {"accuracy": {"median", "min", "max"}, "consistency_2": ...,
      "ac3_2": ...,
    "unparsed_rate": ...} and 'by_prompt': the single summaries.
  """
  median = lambda values: float(statistics.median(values))
  combined, spread = {'items': summaries[0]['items']}, {}
  for key in summaries[0].keys() - {'items'}:
    if isinstance(summaries[0][key], Mapping):
      values = {f'{key}_{name}': [s[key][name] for s in summaries] for name in summaries[0][key]}
      combined[key] = {name: median(values[f'{key}_{name}']) for name in summaries[0][key]}
    else:
      values = {key: [summary[key] for summary in summaries]}
      combined[key] = median(values[key])
    if key in ('accuracy', 'consistency', 'ac3', 'unparsed_rate', 'f1'):
      spread |= {
        name: {'median': median(own), 'min': min(own), 'max': max(own)}
        for name, own in values.items()
      }
  return combined | {
    'prompt_figures': dict(sorted(spread.items())),
    'by_prompt': [dict(s) for s in summaries],
  }


def validate_run(run: Mapping, where: str = 'run') -> None:
  """Raises ValueError naming `where`, the key, what was found and what was expected, if `run`
  breaks the schema.

  Keys beyond the schema are allowed, so that a command may add a note.
  """

  def fail(text: str) -> None:
    raise ValueError(f'{where}: {text}')

  if not isinstance(run, Mapping):
    fail(f'expected an object, found {type(run).__name__}')
  missing = [key for key in KEYS if key not in run]
  if missing:
    fail(f'lacks {", ".join(missing)}')
  for key in ('variant', 'benchmark', 'protocol'):
    if not isinstance(run[key], str) or not run[key]:
      fail(f"'{key}' must be a non-empty text, found {run[key]!r}")
  if run['seed'] is not None and (
    isinstance(run['seed'], bool) or not isinstance(run['seed'], int)
  ):
    fail(f"'seed' must be an integer or null, found {run['seed']!r}")
  if run['method'] not in METHODS:
    fail(f"'method' must be {' or '.join(METHODS)}, found {run['method']!r}")
  if isinstance(run['items'], bool) or not isinstance(run['items'], int) or run['items'] < 1:
    fail(f"'items' must be a count of at least 1, found {run['items']!r}")
  for key in _FRACTIONS:
    _check_fraction(run[key], key, fail)
  for key in (*_MAPS, 'prompts'):
    if not isinstance(run[key], Mapping):
      fail(f"'{key}' must be an object, found {type(run[key]).__name__}")
    for name, value in run[key].items():
      _check_fraction(value, f'{key}.{name}', fail)
  languages = list(run['accuracy_by_language'])
  if not languages:
    fail("'accuracy_by_language' is empty")
  sizes = [str(s) for s in range(2, len(languages) + 1)]
  # Open answers (spans) are not comparable across languages: their runs have no consistency at all.
  if not any(run[key] for key in ('consistency', 'ac3', 'pairwise_consistency')):
    sizes = []
  for key in ('consistency', 'ac3'):
    if sorted(run[key]) != sorted(sizes):
      fail(
        f"'{key}' must have the keys {', '.join(sizes)} for {len(languages)} languages, found "
        f'{", ".join(run[key])}'
      )
  wanted = {frozenset(pair) for pair in combinations(languages, 2)} if sizes else set()
  found = {frozenset(name.split(',')) for name in run['pairwise_consistency']}
  if found != wanted:
    fail(f"'pairwise_consistency' must name each pair of {', '.join(languages)} once, as 'en,zh'")
  if sorted(run['prompts']) != ['max', 'median', 'min']:
    fail(f"'prompts' must have the keys median, min, max, found {', '.join(run['prompts'])}")


def _check_fraction(value: object, key: str, fail) -> None:
  if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value <= 1.0:
    fail(f"'{key}' must be a fraction between 0 and 1, found {value!r}")


def write_results(path: str | os.PathLike, runs: Iterable[Mapping]) -> None:
  """Writes {"runs": [...]} after checking every run. The file appears by rename: whole, or not at
  all.
  """
  runs = list(runs)
  for i, run in enumerate(runs):
    validate_run(run, f'runs[{i}]')
  files.write_json(path, {'runs': runs}, allow_nan=False)


def read_results(path: str | os.PathLike) -> list[dict]:
  """The runs of a results.json. Raises ValueError naming the file and the run where it is damaged."""
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
