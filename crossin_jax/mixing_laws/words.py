"""fit.json in words: its warnings, the table for a terminal, and the line of gin."""

from collections.abc import Mapping
import statistics

from crossin_jax.pages.words import aligned

DASH = '\N{EM DASH}'
FORM_NAMES = {'constant': 'mean'} | {
  form: form for form in ('linear', 'quadratic', 'exponential', 'logistic')
}

_BASELINES = {'constant': 'the mean of the others', 'linear': 'a straight line'}


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


# ---- warnings ----


def warnings(fit: Mapping) -> list[str]:
  """Reasons not to trust the fit, most serious first."""
  if len(fit['mixtures']) == 1:
    return ['All points have the same shares: there is nothing to fit and nothing to propose.']
  return [*_of_points(fit), *_of_laws(fit), *_of_proposal(fit)]


def _of_points(fit: Mapping):
  counts = fit['counts']
  reasons = {
    'unfinished': 'not finished',
    'without_mixture': 'their prepared mixture under data/ no longer exists',
    'other_settings': 'trained or measured with other settings; fit one setting at a time',
  }
  if left_out := [f'{counts[key]} ({why})' for key, why in reasons.items() if counts[key]]:
    yield f'Points left out: {", ".join(left_out)}.'
  lost = [law for law in fit['laws'] if law['points'] < counts['used']]
  if lost := [f'{law["figure"]} {counts["used"] - law["points"]}' for law in lost]:
    yield f'Points without a finite value are left out: {", ".join(lost)}.'
  names = {name for mixture in fit['mixtures'] for name in mixture['mixtures']}
  source, _, *rest = zip(*(name.split('.') for name in names))  # without the variant
  if mixed := [', '.join(sorted(set(part))) for part in (source, *rest) if len(set(part)) > 1]:
    yield (
      f'The mixtures differ in more than shares ({"; ".join(mixed)}). The laws attribute the '
      'effect of that to the shares.'
    )


def _of_laws(fit: Mapping):
  """Of laws that are simpler than wanted, and of predictions of mixtures left out."""
  for law in fit['laws']:
    name, check, kind = law['figure'], law['held_out'], law['kind']
    if law['form'] != law['wanted']:
      changes = max(check['observed']) - min(check['observed']) > 1e-12
      why = f'{law["mixtures"]} mixtures are too few' if changes else 'it never changes'
      yield f'{name}: a {law["form"]} law replaces the {law["wanted"]} one, since {why}.'
    errors = {form: other['error'] for form, other in check['forms'].items() if other}
    own = errors.pop(law['form'], None)
    for form, error in errors.items() if own and name in fit['asked']['terms'] else ():
      against = f'than the {law["form"]} law ({number(error, kind)} against {number(own, kind)}).'
      if form in _BASELINES and error <= own:
        yield f'{name}: on mixtures left out, {_BASELINES[form]} errs no more {against}'
      elif form not in _BASELINES and error < 0.8 * own:
        yield (
          f'{name}: on mixtures left out, the {form} form errs less {against} See what '
          f'--form={form} proposes.'
        )


def _of_proposal(fit: Mapping):
  proposal, kind = fit['proposal'], kind_of(fit)
  if proposal['shares'] is None:
    limits = ', '.join(_limit(limit) for limit in proposal['limits'])
    yield f'No proposal: by the laws, no mixture inside the bounds has {limits or "such shares"}.'
    return
  edges = []
  for name, share in proposal['shares'].items():
    low, high, varied = fit['components'][name].values()
    for end, value in (('lowest', low), ('highest', high)):
      if varied and abs(share - value) <= 0.01 * (high - low) and 1e-6 < value < 1 - 1e-6:
        edges.append(f'{name} at its {end} ({value:.3g})')
  if edges:
    where = ', '.join(edges)
    yield f'The proposal is at the edge of what was run: {where}. The best may be outside.'
  if (ends := proposal['gain_interval']) and ends[0] <= 0:
    interval = ' to '.join(amount(end, kind, True) for end in ends)
    yield f'The interval of the gain covers zero ({interval}): there may be none.'
  if not fit['asked']['default_inside']:
    yield 'The default shares are outside the mixtures that were run: the gain is an extrapolation.'
  for limit in proposal['limits']:
    if limit['kept'] is not None and limit['kept'] < 0.9:
      yield (
        f'The limit {_limit(limit)} is kept in only {100 * limit["kept"]:.0f} % of the resamples. '
        'Set a stricter limit to be safe.'
      )


def _limit(limit: Mapping) -> str:
  kind, side = ('fraction', 'at least') if limit['at_least'] else ('loss', 'at most')
  return f'{limit["figure"]} {side} {amount(limit["bound"], kind)}'


# ---- the proposal ----


def limits(fit: Mapping) -> list[str]:
  """The limits in words, with the values of the proposal."""
  value = lambda limit: number(limit['value'], 'fraction' if limit['at_least'] else 'loss')
  return [f'Limit {_limit(limit)}: {value(limit)}.' for limit in fit['proposal']['limits']]


def gain(fit: Mapping) -> str:
  """The gain and its interval in a sentence."""
  proposal, kind = fit['proposal'], kind_of(fit)
  text = (
    f'Predicted {amount(proposal["value"], kind)} against '
    f'{amount(proposal["default_value"], kind)} at the default shares: gain '
    f'{amount(proposal["gain"], kind, True)}, '
  )
  if ends := proposal['gain_interval']:
    ends = ' to '.join(amount(end, kind, True) for end in ends)
    text += f'95 % interval {ends}, which allows for the choice among mixtures.'
  else:
    text += 'interval unknown.'
  if (over := proposal['gain_over_best']) is not None:
    text += f' Over the best mixture that was run the laws predict {amount(over, kind, True)}.'
  return text


# ---- tables ----


def law_rows(fit: Mapping) -> list[list[str]]:
  """Titles, and a row for each figure: what laws err on mixtures left out, beside the noise."""
  rows = [['figure', 'law', *FORM_NAMES.values(), 'rank of law', 'noise alone', 'seeds differ by']]
  for law in fit['laws']:
    checks, offsets = law['held_out']['forms'], list(law['seed_offsets'].values())
    errors = [(checks.get(form) or {}).get('error') for form in FORM_NAMES]
    rank = (checks.get(law['form']) or {}).get('rank')
    spread = statistics.stdev(offsets) if len(offsets) > 1 else None
    figures = [number(value, law['kind']) for value in (*errors, law['held_out']['noise'], spread)]
    figures.insert(len(FORM_NAMES), DASH if rank is None else f'{rank:.2f}')
    rows.append([law['figure'], law['form'], *figures])
  return rows


def share_rows(fit: Mapping) -> list[list[str]]:
  """Titles, and a row for each component of the proposal."""
  rows = [['component', 'proposed', '95 % interval', 'default', 'observed']]
  for name, share in fit['proposal']['shares'].items():
    ends, observed = fit['proposal']['intervals'], fit['components'][name]
    interval = f'{ends[name][0]:.3f} to {ends[name][1]:.3f}' if ends else DASH
    interval = interval if observed['varied'] else 'fixed'
    default, seen = fit['asked']['default_shares'][name], (observed['low'], observed['high'])
    rows.append(
      [name, f'{share:.3f}', interval, f'{default:.3f}', '{:.3f} to {:.3f}'.format(*seen)]
    )
  return rows


def terminal(fit: Mapping) -> str:
  """Tables and warnings as text."""
  counts, lines = fit['counts'], []
  if fit['proposal'] and fit['proposal']['shares']:
    lines = [aligned(share_rows(fit)), '', gain(fit), *limits(fit), '', fit['gin'], '']
  return '\n'.join(
    [
      f'{counts["used"]} of {counts["points"]} points, {len(fit["mixtures"])} mixtures; '
      f'objective: {fit["asked"]["objective"]}\n',
      'Mean absolute error on mixtures left out (losses in nats, fractions in %):',
      aligned(law_rows(fit)) + '\n',
      *lines,
      *(f'! {text}' for text in fit['warnings']),
    ]
  ).rstrip()
