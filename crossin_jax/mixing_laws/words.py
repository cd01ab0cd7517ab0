"""What fit.json says, in words: its warnings, the table for a terminal, and the line of gin."""

from collections.abc import Mapping
import statistics

from crossin_jax.sweep.words import title as _title

BASELINES = ('constant', 'linear')
FORM_NAMES = {
  'constant': 'mean',
  'linear': 'linear',
  'quadratic': 'quadratic',
  'exponential': 'exponential',
  'logistic': 'logistic',
}
_WIDE = 0.6  # an interval over more than this part of what was observed says next to nothing


def title(figure: str) -> str:
  """'loss/vi' -> 'loss, vi'; 'ac3_3' -> 'AC3_3'."""
  if figure == 'loss':
    return 'loss, all'
  return figure.replace('/', ', ') if '/' in figure else _title(figure)


def number(value: float | None, kind: str, signed: bool = False) -> str:
  """Nats with three decimals, fractions as per cent with one."""
  if value is None:
    return '\N{EM DASH}'
  text = (
    f'{100 * value:{"+" if signed else ""}.1f}'
    if kind == 'fraction'
    else f'{value:{"+" if signed else ""}.3f}'
  )
  return text.replace('-', '\N{MINUS SIGN}')


def unit(kind: str) -> str:
  return ' %' if kind == 'fraction' else ' nats'


def kind_of(found: Mapping) -> str:
  """Kind of the objective."""
  return 'fraction' if found['asked']['maximise'] else 'loss'


def amount(value: float | None, kind: str, signed: bool = False) -> str:
  """With its unit; a difference of fractions is in points."""
  return number(value, kind, signed) + (' points' if signed and kind == 'fraction' else unit(kind))


def gin_line(proposal: Mapping | None) -> str | None:
  """`SHARES = {...}`, which a gin file or `--gin.SHARES` takes."""
  if not proposal or not proposal['shares']:
    return None
  shares = ', '.join(f'{name!r}: {round(share, 4):g}' for name, share in proposal['shares'].items())
  return f'SHARES = {{{shares}}}'


def warnings(found: Mapping) -> list[str]:
  """What in the data speaks against trusting the fit, most serious first."""
  return [*_of_points(found), *_of_laws(found), *_of_proposal(found)]


def _of_points(found: Mapping) -> list[str]:
  counts, said = found['counts'], []
  mixtures = found['mixtures']
  if len(mixtures) == 1:
    return ['All points have the same shares: there is nothing to fit and nothing to propose.']
  if counts['unfinished']:
    said.append(
      f'{_many(counts["unfinished"], "point is", "points are")} not finished; the fit may change '
      'when they are.'
    )
  if counts['without_mixture']:
    said.append(
      f'{_many(counts["without_mixture"], "finished point has", "finished points have")} no '
      'prepared mixture under data/ any '
      'more, so the shares are unknown and they are left out.'
    )
  if counts['other_settings']:
    said.append(
      f'{_many(counts["other_settings"], "point", "points")} left out: trained or measured with '
      'other settings than the '
      f'{counts["used"]} used (the largest group). Fit one setting at a time.'
    )
  parts = {}
  for one in mixtures:
    for name in one['mixtures']:
      source, _, volume, languages, preset = name.split('.')
      for part, value in (
        ('source', source),
        ('volume', volume),
        ('languages', languages),
        ('preset', preset),
      ):
        parts.setdefault(part, set()).add(value)
  if mixed := [
    f'{part} ({", ".join(sorted(values))})' for part, values in parts.items() if len(values) > 1
  ]:
    said.append(
      f'The mixtures differ in more than shares: {"; ".join(mixed)}. The laws take what that does '
      'for an effect of the shares.'
    )
  if counts['seeds'][1] == 1:
    said.append(
      'Every mixture was run with one seed: what seeds do is told only by how far points lie from '
      'the laws.'
    )
  return said


def _of_laws(found: Mapping) -> list[str]:
  said, terms = [], set(found['asked']['terms'])
  laws = [law for law in found['laws'] if not law['constant']]
  if len(found['mixtures']) == 1:
    return said
  name = lambda some: ', '.join(title(law['figure']) for law in some)
  if simple := [law for law in laws if law['form'] != law['wanted']]:
    needs = (
      f'{_many(simple[0]["mixtures"], "mixture is", "mixtures are")} fewer than the parameters of'
    )
    for form in dict.fromkeys(law['wanted'] for law in simple):
      mine = [law for law in simple if law['wanted'] == form]
      said.append(
        f'{needs} the {form} law; a simpler one ({mine[0]["form"]}) stands for it: {name(mine)}.'
      )
  if tight := [
    law for law in laws if law['form'] == law['wanted'] and law['mixtures'] - law['parameters'] < 3
  ]:
    said.append(
      f'Hardly more mixtures ({tight[0]["mixtures"]}) than parameters ({tight[0]["parameters"]}): '
      'such a law bends to any data, '
      f'and its own fit proves nothing. Run more mixtures: {name(tight)}.'
    )
  if blind := [law for law in laws if not law['intervals']]:
    said.append(
      'No intervals, since nothing tells the noise (as many mixtures as parameters, and no seeds '
      f'to compare): {name(blind)}.'
    )
  if flat := [law for law in found['laws'] if law['constant']]:
    said.append(f'Never changes at all: {name(flat)}.')
  if apart := [law for law in laws if law['seeds_apart']]:
    said.append(
      'Some seeds share no mixture with the others, so what seeds do passes there for an effect '
      'of the shares; run the missing '
      f'points: {name(apart)}.'
    )
  if lost := [law for law in found['laws'] if law['not_finite']]:
    said.append(
      'Points without a finite value are left out: '
      + ', '.join(f'{title(l["figure"])} {l["not_finite"]}' for l in lost)
      + '.'
    )
  worse, unchecked = {}, []
  for law in laws:
    forms = law['held_out']['forms']
    own = forms.get(law['form'])
    if own is None:
      unchecked.append(law)
      continue
    for baseline in BASELINES:
      other = forms[baseline]
      if law['form'] not in BASELINES and other and other['error'] <= own['error']:
        worse.setdefault(baseline, []).append(law)
  words = {'constant': 'the mean of the other mixtures', 'linear': 'linear regression'}
  for baseline, some in worse.items():
    here = ' These are part of the objective.' if terms & {law['figure'] for law in some} else ''
    said.append(
      f'On mixtures left out, the law is no better than {words[baseline]}: {name(some)}.{here}'
    )
  better = [
    (law, form, one['error'])
    for law in laws
    if law['figure'] in terms and (own := law['held_out']['forms'].get(law['form']))
    for form, one in law['held_out']['forms'].items()
    if one and form not in BASELINES and form != law['form'] and one['error'] < 0.8 * own['error']
  ]
  for law, form, error in better:
    own = law['held_out']['forms'][law['form']]['error']
    said.append(
      f'{title(law["figure"])}: the {form} form errs less on mixtures left out '
      f'({amount(error, law["kind"])} against '
      f'{amount(own, law["kind"])}). Nothing was decided by that; see what --form={form} proposes.'
    )
  if unchecked:
    said.append(
      f'Could not be checked on mixtures left out, which leaves too few: {name(unchecked)}.'
    )
  return said


def _of_proposal(found: Mapping) -> list[str]:
  said, proposal, kind = [], found['proposal'], kind_of(found)
  if proposal is None:
    return said
  if proposal['shares'] is None:
    limits = ', '.join(_limit(found, limit) for limit in proposal['limits'])
    return [
      'No proposal: no mixture inside the bounds has, by the laws, '
      f'{limits or "shares that the bounds allow"}.'
    ]
  ranges = found['components']
  open_ends = [edge for edge in proposal['edges'] if 1e-6 < edge['value'] < 1 - 1e-6]
  if open_ends:
    where = ', '.join(
      f'{edge["component"]} at its '
      f'{"lowest" if edge["end"] == "low" else "highest"} ({edge["value"]:.3g})'
      for edge in open_ends
    )
    said.append(
      f'The proposal lies at the edge of what was run: {where}. The best may lie beyond; run '
      'mixtures there.'
    )
  elif proposal['on_border']:
    said.append(
      'The proposal lies at the border of the mixtures that were run; the best may lie beyond it.'
    )
  if ends := proposal['gain_interval']:
    if ends[0] <= 0:
      said.append(
        f'The interval of the gain covers zero ({amount(ends[0], kind, True)} to '
        f'{amount(ends[1], kind, True)}): the data do not '
        'show that the proposal is better than the default.'
      )
  if proposal['optimism'] and proposal['optimism'] > 0.5 * max(proposal['gain'], 0):
    said.append(
      'The same points chose the shares and judge them: that alone is worth '
      f'{amount(proposal["optimism"], kind, True)} of the '
      f'predicted gain of {amount(proposal["gain"], kind, True)}. The interval allows for it.'
    )
  if proposal['intervals']:
    wide = [
      name for name, (low, high) in proposal['intervals'].items()
      if ranges[name]['varied'] and high - low > _WIDE * (ranges[name]['high'] - ranges[name]['low'])
    ]  # fmt: skip
    if wide:
      said.append(
        'The best share is hardly known: the interval covers most of what was run for '
        f'{", ".join(wide)}.'
      )
  if not found['asked']['default_inside']:
    said.append(
      'The default shares lie outside the mixtures that were run: the gain over them is an '
      'extrapolation.'
    )
  if found['asked']['margin']:
    said.append(
      f'A margin of {found["asked"]["margin"]:g} was asked for: the proposal may lie outside what '
      'was run.'
    )
  for limit in proposal['limits']:
    if limit['kept'] is not None and limit['kept'] < 0.9:
      said.append(
        f'The limit {_limit(found, limit)} is kept in only {100 * limit["kept"]:.0f} % of the '
        'resamples: where a limit binds, the '
        'law stands exactly at it, and the odds are about even. Ask for more to be safe.'
      )
  return said


def _limit(found: Mapping, limit: Mapping) -> str:
  kind = next(law['kind'] for law in found['laws'] if law['figure'] == limit['figure'])
  return f'{title(limit["figure"])} {"at least" if limit["at_least"] else "at most"} {amount(limit["bound"], kind)}'


def limits(found: Mapping) -> list[str]:
  """The limits in words, with what the proposal has."""
  return [
    f'{_limit(found, limit)}: {number(limit["value"], "fraction" if limit["at_least"] else "loss")}'
    + (
      f', kept in {100 * limit["kept"]:.0f} % of the resamples' if limit['kept'] is not None else ''
    )
    for limit in (found['proposal'] or {'limits': []})['limits']
    if limit['value'] is not None
  ]


def _many(count: int, one: str, several: str) -> str:
  return f'{count} {one if count == 1 else several}'


def objective(found: Mapping) -> str:
  """'highest AC3_3', 'lowest mean of loss, vi; loss, zh (weight 2)'."""
  terms = found['asked']['terms']
  told = [
    title(name) + (f' (weight {weight:g})' if weight != 1 else '') for name, weight in terms.items()
  ]
  return ('highest ' if found['asked']['maximise'] else 'lowest ') + (
    told[0] if len(told) == 1 else f'mean of {"; ".join(told)}'
  )


# ---- the terminal ----


def law_rows(found: Mapping) -> list[dict]:
  """A row a figure: {'figure', 'form', 'kind', 'between_seeds', 'noise_alone', 'errors': {form:
  error or None}, 'ranks', 'best'}.
  """
  rows = []
  for law in found['laws']:
    forms = law['held_out']['forms']
    errors = {form: one and one['error'] for form, one in forms.items()}
    known = [error for error in errors.values() if error is not None]
    rows.append(
      {
        'figure': title(law['figure']),
        'form': law['form'],
        'kind': law['kind'],
        'between_seeds': _between_seeds(law),
      }
      | {
        'noise_alone': law['held_out']['noise'],
        'errors': errors,
        'best': min(known) if known else None,
      }
      | {'ranks': {form: one and one['rank'] for form, one in forms.items()}, 'law': law}
    )
  return rows


def _between_seeds(law: Mapping) -> float | None:
  """Standard deviation of the seeds' offsets."""
  offsets = list(law['seed_offsets'].values())
  return statistics.stdev(offsets) if len(offsets) > 1 else None


def terminal(found: Mapping) -> str:
  """Tables and warnings as text."""
  counts, proposal = found['counts'], found['proposal']
  lines = [
    f'{counts["used"]} of {counts["points"]} points, {len(found["mixtures"])} mixtures; '
    f'objective: {objective(found)}',
    '',
  ]
  head = [
    'figure',
    'law',
    *[FORM_NAMES[form] for form in FORM_NAMES],
    'rank of law',
    'noise alone',
    'seeds differ by',
  ]
  rows = []
  for row in law_rows(found):
    errors = [number(row['errors'].get(form), row['kind']) for form in FORM_NAMES]
    rank = row['ranks'].get(row['form'])
    rows.append(
      [
        row['figure'],
        row['form'],
        *errors,
        '\N{EM DASH}' if rank is None else f'{rank:.2f}',
        number(row['noise_alone'], row['kind']),
        number(row['between_seeds'], row['kind']),
      ]
    )
  lines += [
    'Mean absolute error on mixtures left out (losses in nats, fractions in %):',
    _columns([head, *rows]),
    '',
  ]
  if proposal and proposal['shares']:
    head = ['component', 'proposed', '95 % interval', 'default', 'observed']
    rows = []
    for name, share in proposal['shares'].items():
      ends = (proposal['intervals'] or {}).get(name)
      seen = found['components'][name]
      rows.append([
        name, f'{share:.3f}',
        f'{ends[0]:.3f} to {ends[1]:.3f}' if ends and seen['varied'] else 'fixed' if not seen['varied'] else '\N{EM DASH}',
        f'{found["asked"]["default_shares"][name]:.3f}', f'{seen["low"]:.3f} to {seen["high"]:.3f}',
      ])  # fmt: skip
    lines += [_columns([head, *rows]), '', gain(found), *limits(found), '', found['gin'], '']
  lines += [f'! {text}' for text in found['warnings']]
  return '\n'.join(lines).rstrip()


def gain(found: Mapping) -> str:
  """The gain and its interval in a sentence."""
  proposal, kind = found['proposal'], kind_of(found)
  ends = proposal['gain_interval']
  text = (
    f'Predicted {amount(proposal["value"], kind)} against '
    f'{amount(proposal["default_value"], kind)} at the default shares: gain '
    f'{amount(proposal["gain"], kind, True)}'
  )
  text += (
    f', 95 % interval {amount(ends[0], kind, True)} to {amount(ends[1], kind, True)}, which '
    'allows for the choice among mixtures.'
    if ends
    else ', interval unknown.'
  )
  if proposal['gain_over_best'] is None:
    return text
  return (
    text + ' Over the best mixture that was '
    f'run{" and keeps the limits" if proposal["limits"] else ""} the laws predict '
    + f'{amount(proposal["gain_over_best"], kind, True)}.'
  )


def _columns(rows: list[list[str]]) -> str:
  widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
  return '\n'.join(
    '  '.join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in rows
  )
