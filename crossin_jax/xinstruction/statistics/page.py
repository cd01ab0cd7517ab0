"""Writes statistics.html, a self-contained page about an instruction set."""

from collections.abc import Mapping
import json
import os
from pathlib import Path

from crossin_jax.languages import is_right_to_left
from crossin_jax.pages import plots, words
from crossin_jax.pages.plots import Series
from crossin_jax.storage.files import write_text

LONGEST_SHOWN = 700  # characters of a text
FAR = 0.5  # a mean length this far from the published one, as a share of that, is named
FAITHFUL = 0.95  # below this share of responses in their language it is named


def write_page(path: str | os.PathLike, found: Mapping, title: str = 'Instruction set') -> None:
  """Writes the page, and the figures as JSON beside it (`statistics.html`, `statistics.json`); both
  appear by rename.

  Args:
    path: of the page.
    found: what `statistics.statistics` returned, or its JSON.
    title: of the page.
  """
  from jinja2 import Environment, FileSystemLoader, StrictUndefined

  environment = Environment(
    loader=FileSystemLoader([Path(plots.__file__).parent / 'templates']),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.filters.update(
    percent=words.percent,
    language=words.language_name,
    direction=lambda code: 'rtl' if is_right_to_left(code) else 'ltr',
    shown=lambda text: words.shown(text, LONGEST_SHOWN),
    thousands=lambda n: f'{n:,}',
  )
  page = environment.get_template('statistics.html.j2').render(
    found=found,
    title=title,
    languages=found['by_language'],
    findings=_findings(found),
    colours=plots.COLOURS,
    map=_map(found['map']),
    acceptance=_acceptance(found['rounds']),
    histograms=_histograms(found),
    histogram_rounds=max(
      (one['round'] for own in found['rounds'].values() for one in own if one['histogram']),
      default=0,
    ),
  )
  write_text(
    Path(path).with_suffix('.json'),
    _printable(json.dumps(found, ensure_ascii=False, indent=1)) + '\n',
  )
  write_text(path, page)


def _printable(text: str) -> str:
  """Replaces halves of surrogate pairs, which UTF-8 cannot encode."""
  return text.encode('utf-8', 'replace').decode()


def _findings(report: Mapping) -> list[str]:
  """Notable findings as sentences."""
  remarks, name = [], words.language_name
  summaries = report['by_language']
  rows = [one['rows'] for one in summaries.values()]
  if empty := [name(code) for code, one in summaries.items() if not one['rows']]:
    remarks.append(f'No rows at all in {", ".join(empty)}.')
  if max(rows) > 2 * max(1, min(rows)):
    remarks.append(f'The languages are of unequal size: {min(rows):,} to {max(rows):,} rows.')
  for side, word in (('instruction', 'instructions'), ('output', 'responses')):
    far = [
      f'{name(code)} {one[side]["mean"]:.0f} ({one["published"][side]["mean"]:.0f})'
      for code, one in summaries.items()
      if one['published']
      and one[side]
      and abs(one[side]['mean'] / one['published'][side]['mean'] - 1) > FAR
    ]
    if far:
      remarks.append(
        f'Mean length of the {word} far from the published one: {", ".join(far)} characters.'
      )
  weak = [
    f'{name(code)} {words.percent(one["fidelity"]["share"])} %'
    for code, one in summaries.items()
    if one['fidelity'] and one['fidelity']['share'] < FAITHFUL
  ]
  if weak:
    remarks.append(f'Responses that are identified as their language: {", ".join(weak)}.')
  repeated = [
    f'{name(code)} {words.percent(1 - one["distinct_instructions"] / one["rows"])} %'
    for code, one in summaries.items()
    if one['rows'] and one['distinct_instructions'] < 0.9 * one['rows']
  ]
  if repeated:
    remarks.append(
      f'Rows whose instruction occurs before in the same language: {", ".join(repeated)}.'
    )
  if report['overlap']:
    hit = [row for row in report['overlap']['benchmarks'] if row['found']]
    if hit:
      listed = ', '.join(
        f'{row["benchmark"]} ({name(row["language"])}) {row["found"]} of {row["items"]}'
        for row in hit
      )
      remarks.append(f'Benchmark items whose text stands in the rows too: {listed}.')
  return remarks


def _map(points_map: Mapping | None) -> dict | None:
  """The cluster map as circles in a box of 1000 x 520."""
  if not points_map:
    return None
  xs, ys = ([point[axis] for point in points_map['points']] for axis in (0, 1))
  place = lambda value, values, size: round(
    12 + (value - min(values)) / max(max(values) - min(values), 1e-9) * (size - 24), 1
  )
  return {
    **points_map,
    'circles': [
      (
        place(x, xs, 1000),
        round(520 - place(y, ys, 520), 1),
        plots.COLOURS[group % len(plots.COLOURS)],
        code,
      )
      for x, y, group, code in points_map['points']
    ],
  }


def _acceptance(rounds: Mapping) -> dict | None:
  """Table of the rounds: one row per language, one column per round."""
  if not any(rounds.values()):
    return None
  numbers = sorted({one['round'] for own in rounds.values() for one in own})
  return {
    'rounds': numbers,
    'rows': [
      (code, [next((one for one in own if one['round'] == n), None) for n in numbers])
      for code, own in rounds.items()
    ],
  }


def _histograms(report: Mapping) -> str:
  """Score histograms of the rounds, or of the rows, one panel per language."""
  panels = {}
  for code in report['by_language']:
    histograms = [
      (f'round {one["round"]}', one['histogram'])
      for one in report['rounds'].get(code, ())
      if one['histogram']
    ]
    if not histograms and report['scores'].get(code):
      histograms = [('rows of the set', report['scores'][code])]
    series = [
      Series(
        label,
        style + 1,
        _middles(own['edges']),
        [100 * n / (sum(own['counts']) or 1) for n in own['counts']],
      )
      for style, (label, own) in enumerate(histograms)
    ]
    if series:
      panels[code] = series
  return (
    plots.unique_ids(plots.small_curves(panels, '% of rows', 'score'), 'scores') if panels else ''
  )


def _middles(edges) -> list[float]:
  return [(low + high) / 2 for low, high in zip(edges, edges[1:])]
