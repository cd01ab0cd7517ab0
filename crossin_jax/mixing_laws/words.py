"""fit.json in words: its warnings, the table for a terminal, and the line of gin."""

from collections.abc import Mapping
import math
import statistics

from crossin_jax.mixing_laws.flags import FORMS
from crossin_jax.pages.words import aligned

DASH = '\N{EM DASH}'
ERRORS = 'Mean absolute error on mixtures left out; losses in nats, fractions in %.'

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


def gin_line(proposal: Mapping | None) -> str | None:
  """`SHARES = {...}` for a gin file or `SHARES=...`."""
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
  """Of laws that are simpler than wanted, or no better than a baseline on mixtures left out."""
  for law in fit['laws']:
    name, check, kind = law['figure'], law['held_out'], law['kind']
    if law['form'] != law['wanted']:
      changes = max(check['observed']) - min(check['observed']) > 1e-12
      why = f'{law["mixtures"]} mixtures are too few' if changes else 'it never changes'
      yield f'{name}: a {law["form"]} law replaces the {law["wanted"]} one, since {why}.'
    errors = {form: other['error'] for form, other in check['forms'].items() if other}
    own = errors.pop(law['form'], None)
    for form, baseline in _BASELINES.items() if own and name in fit['asked']['terms'] else ():
      if errors.get(form, math.inf) <= own:
        yield (
          f'{name}: on mixtures left out, {baseline} errs no more than the {law["form"]} law '
          f'({number(errors[form], kind)} against {number(own, kind)}).'
        )


def _of_proposal(fit: Mapping):
  proposal = fit['proposal']
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
    yield 'The interval of the gain covers zero: there may be none.'
  if not fit['asked']['default_inside']:
    yield 'The default shares are outside the mixtures that were run: the gain is an extrapolation.'


def _limit(limit: Mapping, kept: bool = False) -> str:
  """'accuracy/en at least 80.0 %'; `kept` adds how the proposal keeps it."""
  kind, side = ('fraction', 'at least') if limit['at_least'] else ('loss', 'at most')
  text = f'{limit["figure"]} {side} {amount(limit["bound"], kind)}'
  if kept:
    text = f'Limit {text}: {number(limit["value"], kind)}'
    part = limit['kept']
    text += '.' if part is None else f', kept in {100 * part:.0f} % of the resamples.'
  return text


# ---- the proposal ----


def sentences(fit: Mapping) -> list[str]:
  """The gain with its interval, and the limits with the values of the proposal."""
  proposal = fit['proposal']
  kind = 'fraction' if fit['asked']['maximise'] else 'loss'
  value, default = (amount(proposal[key], kind) for key in ('value', 'default_value'))
  text = f'Predicted {value} against {default} at the default shares: gain '
  text += f'{amount(proposal["gain"], kind, True)}, '
  if ends := proposal['gain_interval']:
    ends = ' to '.join(amount(end, kind, True) for end in ends)
    text += f'95 % interval {ends}, which allows for the choice among mixtures.'
  else:
    text += 'interval unknown.'
  if (over := proposal['gain_over_best']) is not None:
    text += f' Over the best mixture that was run the laws predict {amount(over, kind, True)}.'
  return [text, *(_limit(limit, kept=True) for limit in proposal['limits'])]


# ---- tables ----


def law_rows(fit: Mapping) -> list[list[str]]:
  """Titles, and a row for each figure: what laws err on mixtures left out, beside the noise."""
  rows = [['figure', 'law', 'mean', *FORMS[1:], 'rank of law', 'noise alone', 'seeds differ by']]
  for law in fit['laws']:
    checks, offsets = law['held_out']['forms'], list(law['seed_offsets'].values())
    errors = [(checks.get(form) or {}).get('error') for form in FORMS]
    rank = (checks.get(law['form']) or {}).get('rank')
    spread = statistics.stdev(offsets) if len(offsets) > 1 else None
    figures = [number(value, law['kind']) for value in (*errors, law['held_out']['noise'], spread)]
    figures.insert(len(FORMS), DASH if rank is None else f'{rank:.2f}')
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
  counts, proposed = fit['counts'], []
  if fit['gin']:
    proposed = [aligned(share_rows(fit)), '', *sentences(fit), '', fit['gin'], '']
  return '\n'.join(
    [
      f'{counts["used"]} of {counts["points"]} points, {len(fit["mixtures"])} mixtures; '
      f'objective: {fit["asked"]["objective"]}\n',
      ERRORS,
      aligned(law_rows(fit)) + '\n',
      *proposed,
      *(f'! {text}' for text in fit['warnings']),
    ]
  ).rstrip()
