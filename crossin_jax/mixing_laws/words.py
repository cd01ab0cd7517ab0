"""fit.json in words: its warnings, the table for a terminal, and the line of gin."""

from collections.abc import Mapping
import statistics

from crossin_jax.pages.words import figure_title

DASH = '\N{EM DASH}'
BASELINES = {'constant': 'the mean of the other mixtures', 'linear': 'linear regression'}
FORM_NAMES = {'constant': 'mean'} | {
  form: form for form in ('linear', 'quadratic', 'exponential', 'logistic')
}
_WIDE = 0.6  # an interval wider than this part of the observed range says next to nothing


def title(figure: str) -> str:
  """'loss/vi' -> 'loss, vi'; 'ac3_3' -> 'AC3_3'."""
  if figure == 'loss':
    return 'loss, all'
  return figure.replace('/', ', ') if '/' in figure else figure_title(figure)


def number(value: float | None, kind: str, signed: bool = False) -> str:
  """Nats with three decimals, fractions as per cent with one."""
  if value is None:
    return DASH
  sign = '+' if signed else ''
  text = f'{100 * value:{sign}.1f}' if kind == 'fraction' else f'{value:{sign}.3f}'
  return text.replace('-', '\N{MINUS SIGN}')


def amount(value: float | None, kind: str, signed: bool = False) -> str:
  """With its unit; a difference of fractions is in points."""
  unit = ' nats' if kind == 'loss' else ' points' if signed else ' %'
  return number(value, kind, signed) + unit


def kind_of(fit: Mapping) -> str:
  """Kind of the objective."""
  return 'fraction' if fit['asked']['maximise'] else 'loss'


def gin_line(proposal: Mapping | None) -> str | None:
  """`SHARES = {...}` for a gin file or `--gin.SHARES`."""
  if not proposal or not proposal['shares']:
    return None
  shares = ', '.join(f'{name!r}: {round(share, 4):g}' for name, share in proposal['shares'].items())
  return f'SHARES = {{{shares}}}'


def _many(count: int, one: str, several: str) -> str:
  return f'{count} {one if count == 1 else several}'


# ---- warnings ----


def warnings(fit: Mapping) -> list[str]:
  """Reasons not to trust the fit, most serious first."""
  if len(fit['mixtures']) == 1:
    return ['All points have the same shares: there is nothing to fit and nothing to propose.']
  return [*_of_points(fit), *_of_laws(fit), *_of_checks(fit), *_of_proposal(fit)]


def _of_points(fit: Mapping):
  counts = fit['counts']
  if count := counts['unfinished']:
    yield (
      f'{_many(count, "point is", "points are")} not finished; the fit may change when they are.'
    )
  if count := counts['without_mixture']:
    yield (
      f'{_many(count, "finished point is", "finished points are")} left out: the prepared mixture '
      'under data/ no longer exists, so the shares are unknown.'
    )
  if count := counts['other_settings']:
    yield (
      f'{_many(count, "point", "points")} left out: trained or measured with other settings than '
      f'the {counts["used"]} used (the largest group). Fit one setting at a time.'
    )
  names = [name.split('.') for mixture in fit['mixtures'] for name in mixture['mixtures']]
  parts = dict(zip(('source', 'variant', 'volume', 'languages', 'preset'), map(set, zip(*names))))
  del parts['variant']
  mixed = [f'{part} ({", ".join(sorted(v))})' for part, v in parts.items() if len(v) > 1]
  if mixed:
    yield (
      f'The mixtures differ in more than shares: {"; ".join(mixed)}. The laws attribute the '
      'effect of that to the shares.'
    )
  if counts['seeds'][1] == 1:
    yield (
      'Every mixture was run with one seed: only the distances of the points from the laws show '
      'how much seeds differ.'
    )


def _of_laws(fit: Mapping):
  name = lambda laws: ', '.join(title(law['figure']) for law in laws)
  laws = [law for law in fit['laws'] if not law['constant']]
  simple = [law for law in laws if law['form'] != law['wanted']]
  for form in dict.fromkeys(law['wanted'] for law in simple):
    same = [law for law in simple if law['wanted'] == form]
    yield (
      f'{_many(same[0]["mixtures"], "mixture is", "mixtures are")} fewer than the parameters of '
      f'the {form} law; a simpler one ({same[0]["form"]}) replaces it: {name(same)}.'
    )
  fitted = [law for law in laws if law['form'] == law['wanted']]
  if tight := [law for law in fitted if law['mixtures'] - law['parameters'] < 3]:
    yield (
      f'Hardly more mixtures ({tight[0]["mixtures"]}) than parameters ({tight[0]["parameters"]}): '
      f'such a law fits any data, so its fit proves nothing. Run more mixtures: {name(tight)}.'
    )
  if blind := [law for law in laws if not law['intervals']]:
    yield (
      'No intervals, since the noise is unknown (as many mixtures as parameters, and no seeds to '
      f'compare): {name(blind)}.'
    )
  if flat := [law for law in fit['laws'] if law['constant']]:
    yield f'Never changes at all: {name(flat)}.'
  if apart := [law for law in laws if law['seeds_apart']]:
    yield (
      'Some seeds share no mixture with the others, so the laws attribute the effect of those '
      f'seeds to the shares; run the missing points: {name(apart)}.'
    )
  if lost := [law for law in fit['laws'] if law['not_finite']]:
    counts = ', '.join(f'{title(law["figure"])} {law["not_finite"]}' for law in lost)
    yield f'Points without a finite value are left out: {counts}.'


def _of_checks(fit: Mapping):
  """Of the predictions of mixtures left out."""
  terms = fit['asked']['terms']
  laws = [law for law in fit['laws'] if not law['constant']]
  checked = [law for law in laws if law['held_out']['forms'].get(law['form'])]
  error = lambda law, form: law['held_out']['forms'][form]['error']
  for baseline, what in BASELINES.items():
    worse = [
      law
      for law in checked
      if law['form'] not in BASELINES
      and law['held_out']['forms'][baseline]
      and error(law, baseline) <= error(law, law['form'])
    ]
    if worse:
      names = ', '.join(title(law['figure']) for law in worse)
      here = any(law['figure'] in terms for law in worse)
      yield (
        f'On mixtures left out, the law is no better than {what}: {names}.'
        f'{" These are part of the objective." if here else ""}'
      )
  for law in checked:
    for form, check in law['held_out']['forms'].items():
      if law['figure'] not in terms or not check or form in (*BASELINES, law['form']):
        continue
      if check['error'] < 0.8 * error(law, law['form']):
        yield (
          f'{title(law["figure"])}: the {form} form errs less on mixtures left out '
          f'({amount(check["error"], law["kind"])} against '
          f'{amount(error(law, law["form"]), law["kind"])}). The form was not changed; see what '
          f'--form={form} proposes.'
        )
  if unchecked := [law for law in laws if law not in checked]:
    names = ', '.join(title(law['figure']) for law in unchecked)
    yield f'Could not be checked on mixtures left out, since too few remain: {names}.'


def _of_proposal(fit: Mapping):
  proposal, kind = fit['proposal'], kind_of(fit)
  if proposal['shares'] is None:
    limits = ', '.join(_limit(fit, limit) for limit in proposal['limits'])
    yield (
      'No proposal: by the laws, no mixture inside the bounds has '
      f'{limits or "shares that the bounds allow"}.'
    )
    return
  if edges := [edge for edge in proposal['edges'] if 1e-6 < edge['value'] < 1 - 1e-6]:
    where = ', '.join(
      f'{edge["component"]} at its {"lowest" if edge["end"] == "low" else "highest"} '
      f'({edge["value"]:.3g})'
      for edge in edges
    )
    yield (
      f'The proposal is at the edge of what was run: {where}. The best may be outside; run '
      'mixtures there.'
    )
  elif proposal['on_border']:
    yield (
      'The proposal is at the border of the mixtures that were run; the best may be outside it.'
    )
  gain, optimism = proposal['gain'], proposal['optimism']
  if (ends := proposal['gain_interval']) and ends[0] <= 0:
    yield (
      f'The interval of the gain covers zero ({amount(ends[0], kind, True)} to '
      f'{amount(ends[1], kind, True)}): the data do not show that the proposal is better than the '
      'default.'
    )
  if optimism and optimism > 0.5 * max(gain, 0):
    yield (
      'The same points choose the shares and judge them. That alone adds '
      f'{amount(optimism, kind, True)} to the predicted gain of {amount(gain, kind, True)}. The '
      'interval allows for it.'
    )
  observed = {name: range_ for name, range_ in fit['components'].items() if range_['varied']}
  wide = [
    name
    for name, (low, high) in (proposal['intervals'] or {}).items()
    if name in observed and high - low > _WIDE * (observed[name]['high'] - observed[name]['low'])
  ]
  if wide:
    yield (
      'The best share is hardly known: its interval covers most of the observed range for '
      f'{", ".join(wide)}.'
    )
  if not fit['asked']['default_inside']:
    yield (
      'The default shares are outside the mixtures that were run: the gain over them is an '
      'extrapolation.'
    )
  if margin := fit['asked']['margin']:
    yield f'With --margin {margin:g}, the proposal may be outside what was run.'
  for limit in proposal['limits']:
    if limit['kept'] is not None and limit['kept'] < 0.9:
      yield (
        f'The limit {_limit(fit, limit)} is kept in only {100 * limit["kept"]:.0f} % of the '
        'resamples: where a limit binds, the prediction equals it, and the odds are about even. '
        'Set a stricter limit to be safe.'
      )


def _limit(fit: Mapping, limit: Mapping) -> str:
  kind = next(law['kind'] for law in fit['laws'] if law['figure'] == limit['figure'])
  side = 'at least' if limit['at_least'] else 'at most'
  return f'{title(limit["figure"])} {side} {amount(limit["bound"], kind)}'


def limits(fit: Mapping) -> list[str]:
  """The limits in words, with the values of the proposal."""
  lines = []
  for limit in (fit['proposal'] or {'limits': []})['limits']:
    if limit['value'] is not None:
      value = number(limit['value'], 'fraction' if limit['at_least'] else 'loss')
      kept = limit['kept']
      often = '' if kept is None else f', kept in {100 * kept:.0f} % of the resamples'
      lines.append(f'{_limit(fit, limit)}: {value}{often}')
  return lines


def objective(fit: Mapping) -> str:
  """'highest AC3_3', 'lowest mean of loss, vi; loss, zh (weight 2)'."""
  terms = [
    title(name) + (f' (weight {weight:g})' if weight != 1 else '')
    for name, weight in fit['asked']['terms'].items()
  ]
  best = 'highest' if fit['asked']['maximise'] else 'lowest'
  return f'{best} {terms[0] if len(terms) == 1 else "mean of " + "; ".join(terms)}'


def gain(fit: Mapping) -> str:
  """The gain and its interval in a sentence."""
  proposal, kind = fit['proposal'], kind_of(fit)
  text = (
    f'Predicted {amount(proposal["value"], kind)} against '
    f'{amount(proposal["default_value"], kind)} at the default shares: gain '
    f'{amount(proposal["gain"], kind, True)}'
  )
  if ends := proposal['gain_interval']:
    text += (
      f', 95 % interval {amount(ends[0], kind, True)} to {amount(ends[1], kind, True)}, which '
      'allows for the choice among mixtures.'
    )
  else:
    text += ', interval unknown.'
  if proposal['gain_over_best'] is not None:
    text += (
      f' Over the best mixture that was run{" and keeps the limits" if proposal["limits"] else ""} '
      f'the laws predict {amount(proposal["gain_over_best"], kind, True)}.'
    )
  return text


# ---- the terminal ----


def law_rows(fit: Mapping) -> list[dict]:
  """A row for each figure.

  Returns:
    [{'figure', 'form', 'kind', 'between_seeds': standard deviation of the offsets, 'noise_alone',
    'errors': {form: error or None}, 'ranks': likewise, 'law': the law in fit.json}].
  """
  rows = []
  for law in fit['laws']:
    checks, offsets = law['held_out']['forms'], list(law['seed_offsets'].values())
    rows.append(
      {
        'figure': title(law['figure']),
        'form': law['form'],
        'kind': law['kind'],
        'between_seeds': statistics.stdev(offsets) if len(offsets) > 1 else None,
        'noise_alone': law['held_out']['noise'],
        'errors': {form: check and check['error'] for form, check in checks.items()},
        'ranks': {form: check and check['rank'] for form, check in checks.items()},
        'law': law,
      }
    )
  return rows


def terminal(fit: Mapping) -> str:
  """Tables and warnings as text."""
  counts, proposal = fit['counts'], fit['proposal']
  rows = [['figure', 'law', *FORM_NAMES.values(), 'rank of law', 'noise alone', 'seeds differ by']]
  for row in law_rows(fit):
    figure = lambda value, kind=row['kind']: number(value, kind)
    rank = row['ranks'].get(row['form'])
    rows.append(
      [
        row['figure'],
        row['form'],
        *[figure(row['errors'].get(form)) for form in FORM_NAMES],
        DASH if rank is None else f'{rank:.2f}',
        figure(row['noise_alone']),
        figure(row['between_seeds']),
      ]
    )
  lines = [
    f'{counts["used"]} of {counts["points"]} points, {len(fit["mixtures"])} mixtures; '
    f'objective: {objective(fit)}\n',
    'Mean absolute error on mixtures left out (losses in nats, fractions in %):',
    _columns(rows) + '\n',
  ]
  if proposal and proposal['shares']:
    rows = [['component', 'proposed', '95 % interval', 'default', 'observed']]
    for name, share in proposal['shares'].items():
      ends, observed = (proposal['intervals'] or {}).get(name), fit['components'][name]
      interval = f'{ends[0]:.3f} to {ends[1]:.3f}' if ends else DASH
      rows.append(
        [
          name,
          f'{share:.3f}',
          interval if observed['varied'] else 'fixed',
          f'{fit["asked"]["default_shares"][name]:.3f}',
          f'{observed["low"]:.3f} to {observed["high"]:.3f}',
        ]
      )
    lines += [_columns(rows), '', gain(fit), *limits(fit), '', fit['gin'], '']
  lines += [f'! {text}' for text in fit['warnings']]
  return '\n'.join(lines).rstrip()


def _columns(rows: list[list[str]]) -> str:
  widths = [max(map(len, column)) for column in zip(*rows)]
  return '\n'.join(
    '  '.join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in rows
  )
