"""`crossin sweep --fit`: laws of the mixture's shares from the finished points of a sweep, and the
shares that they propose.

    OUT/points/*  ->  shares and figures of every run  ->  a law per figure, checked on mixtures
    left out  ->  fit.json, fit.html

Nothing but OUT is read, so a sweep that is still at work can be looked at.
"""

import argparse
import ast
from collections.abc import Mapping
import json
import os
import sys

import numpy as np

from crossin_jax.mixing_laws import words as fit_words
from crossin_jax.mixing_laws.forms import FORMS
from crossin_jax.mixing_laws.law import SAME, Figure, Law, Shares, default_form, fit_laws, held_out
from crossin_jax.mixing_laws.points import read_figures, read_points
from crossin_jax.mixing_laws.proposal import Limit, Objective, Region, propose
from crossin_jax.storage.files import write_json

OBJECTIVES = ('loss', 'loss_elsewhere', 'accuracy', 'accuracy_elsewhere', 'consistency', 'ac3')


def fit(
  output_dir: str,
  objective: str | None = None,
  default_shares: Mapping[str, float] | str | None = None,
  *,
  weights: Mapping[str, float] | None = None,
  english_accuracy: float | str | None = None,
  english_loss: float | str | None = None,
  bounds: Mapping[str, tuple[float, float]] | None = None,
  margin: float = 0.0,
  form: str | None = None,
  questions: str | None = None,
  method: str = 'likelihood',
  resamples: int = 400,
  seed: int = 0,
) -> dict:
  """Fits laws to the finished points of a sweep; writes OUT/fit.json.

  Args:
    output_dir: OUT of `crossin sweep`.
    objective: one of `OBJECTIVES`, or a figure such as 'loss/vi'; None = 'ac3' where there are
      questions, else 'loss'. 'loss' and 'accuracy' are means over languages, '_elsewhere' without
      English.
    default_shares: what a gain is measured against: shares, or the name of a point; None = the mean
      of the mixtures.
    weights: language -> weight in that mean; a language that is not named weighs 1.
    english_accuracy, english_loss: at least, at most so much; 'default' = as the law has it at the
      default shares.
    bounds: component -> (lowest, highest share).
    margin: see `mixing_proposal.Region`.
    form: of all laws, instead of `default_form`; 'logistic' for fractions only.
    questions, method: which runs of results.json; None = the first.
    resamples, seed: of the bootstrap.

  Returns:
    The object of fit.json; {'asked', 'counts', 'components', 'mixtures', 'laws', 'curves',
    'proposal', 'warnings', 'gin'}.

  Raises:
    ValueError: OUT has no finished point, or something that was asked for is not there.
  """
  points, counts = read_points(output_dir, questions, method)
  shares = Shares.of(
    [point['shares'] for point in points], seeds=[point['seed'] for point in points]
  )
  figures = read_figures(points, output_dir)
  names = list(figures)
  if form and form not in FORMS:
    raise ValueError(f'--form {form!r} is none of {", ".join(FORMS)}')
  forms = {
    name: form
    for name in names
    if form and not (form == 'logistic' and figures[name].kind == 'loss')
  }
  if objective is None:
    objective = 'ac3' if any(name.startswith('ac3') for name in names) else 'loss'
  goal = _objective(objective, figures, weights or {})
  limits = []
  for value, name, at_least in (
    (english_accuracy, 'accuracy/en', True),
    (english_loss, 'loss/en', False),
  ):
    if value is not None:
      if name not in figures:
        raise ValueError(f'a limit on {name} needs that figure; measured are {", ".join(names)}')
      limits.append(Limit(name, at_least, None if value == 'default' else float(value)))
  default = _default(default_shares, shares, points)
  laws = fit_laws(shares, figures, forms=forms, resamples=resamples, seed=seed)
  if missing := [name for name in goal.terms if name not in laws]:
    raise ValueError(f'{", ".join(missing)} was measured at no point; choose another objective')
  region = Region(shares, margin, bounds)
  proposal = None
  if len(shares.mixtures) > 1:
    proposal = propose(laws, goal, default, bounds=bounds, limits=limits, margin=margin, seed=seed)
  checks = {name: held_out(shares, figures[name]) for name in laws}
  found = {
    'asked': {
      'objective': objective,
      'terms': dict(goal.terms),
      'maximise': goal.maximise,
      'default_shares': dict(zip(shares.components, default.tolist())),
      'default_is': default_shares
      if isinstance(default_shares, str)
      else 'given'
      if default_shares
      else 'mean',
      'default_inside': bool(
        region.inside(shares.places(default), 1e-6) and _spanned(shares, default)
      ),
      'bounds': {name: list(ends) for name, ends in (bounds or {}).items()},
      'margin': margin,
      'questions': points[0]['questions'],
      'method': method if points[0]['questions'] else None,
      'resamples': resamples,
      'seed': seed,
    },
    'counts': counts | {'seeds': _seeds(shares)},
    'components': {
      name: {
        'low': float(column.min()),
        'high': float(column.max()),
        'varied': name in shares.varied,
      }
      for name, column in zip(shares.components, shares.mixtures.T)
    },
    'mixtures': _mixtures(shares, points, figures, laws),
    'laws': [_law(name, law, figures[name], checks[name]) for name, law in laws.items()],
    'curves': _curves(shares, laws, proposal),
    'proposal': proposal,
  }
  found['warnings'] = fit_words.warnings(found)
  found['gin'] = fit_words.gin_line(proposal)
  write_json(os.path.join(output_dir, 'fit.json'), found)
  return found


# ---- what was asked ----


def _objective(name: str, figures: Mapping[str, Figure], weights: Mapping[str, float]) -> Objective:
  if name in figures and name not in OBJECTIVES:
    return Objective({name: 1.0}, figures[name].kind == 'fraction')
  stem = name.removesuffix('_elsewhere')
  if name not in OBJECTIVES:
    raise ValueError(
      f'objective {name!r} is none of {", ".join(OBJECTIVES)}, nor a figure: {", ".join(figures)}'
    )
  if stem in ('ac3', 'consistency'):
    terms = {figure: 1.0 for figure in figures if figure.startswith(stem)}
  else:
    languages = [figure.split('/')[1] for figure in figures if figure.startswith(f'{stem}/')]
    if unknown := set(weights) - set(languages):
      raise ValueError(
        f'weights: nothing was measured in {", ".join(sorted(unknown))}, only in '
        f'{", ".join(languages)}'
      )
    if any(not np.isfinite(w) or w < 0 for w in weights.values()):
      raise ValueError(f'weights {dict(weights)} must be finite and not negative')
    skipped = ('en',) if name.endswith('_elsewhere') else ()
    terms = {f'{stem}/{l}': float(weights.get(l, 1.0)) for l in languages if l not in skipped}
    terms = {figure: weight for figure, weight in terms.items() if weight}
    if not terms and name == 'loss' and 'loss' in figures:
      terms = {'loss': 1.0}
  if not terms:
    raise ValueError(
      f'objective {name}: no such figure was measured, or its weights are 0; there are '
      f'{", ".join(figures)}'
    )
  return Objective(terms, figures[next(iter(terms))].kind == 'fraction')


def _default(wanted, shares: Shares, points: list[dict]) -> np.ndarray:
  if wanted is None:
    return shares.centre
  if isinstance(wanted, Mapping):
    return shares.row(wanted)
  found = [shares.mixture[i] for i, point in enumerate(points) if point['name'].startswith(wanted)]
  exact = [
    shares.mixture[i]
    for i, p in enumerate(points)
    if p['name'] == wanted or p['name'].rpartition('-')[0] == wanted
  ]
  found = exact or found
  if len(set(found)) != 1:
    known = ', '.join(point['name'] for point in points)
    raise ValueError(
      f'default_shares {wanted!r} {"names several mixtures" if found else "is no point"}; the '
      f'points are {known}'
    )
  return shares.mixtures[found[0]]


def _spanned(shares: Shares, row: np.ndarray) -> bool:
  return bool(np.abs(shares.shares(shares.places(row)) - row).max() < 2 * SAME)


# ---- what is shown ----


def _seeds(shares: Shares) -> list[int]:
  """Fewest and most runs of a mixture."""
  each = np.bincount(shares.mixture)
  return [int(each.min()), int(each.max())]


def _mixtures(
  shares: Shares, points, figures: Mapping[str, Figure], laws: Mapping[str, Law]
) -> list[dict]:
  rows = []
  for m, row in enumerate(shares.mixtures):
    mine = [i for i in range(len(points)) if shares.mixture[i] == m]
    seen = {name: [float(v) for v in figures[name].values[mine] if np.isfinite(v)] for name in laws}
    # As all seeds on average would have it: a mixture may lack some of them.
    level = lambda name, i: (
      figures[name].values[i] - laws[name].offsets.of_seed.get(points[i]['seed'], 0.0)
    )
    means = {name: [v for i in mine if np.isfinite(v := level(name, i))] for name in laws}
    rows.append({
      'shares': dict(zip(shares.components, row.tolist())),
      'points': [points[i]['name'] for i in mine],
      'mixtures': sorted({points[i]['mixture'] for i in mine}),
      'observed': seen,
      'mean': {name: float(np.mean(some)) if some else None for name, some in means.items()},
      'predicted': {name: float(law.predict(row)) for name, law in laws.items()},
    })  # fmt: skip
  return rows


def _law(name: str, law: Law, figure: Figure, check: Mapping) -> dict:
  return {
    'figure': name, 'kind': law.kind, 'chance': law.chance if law.kind == 'fraction' else None,
    'form': law.form,
    'wanted': law.wanted, 'default_form': default_form(law.kind), 'parameters': law.parameters,
    'mixtures': law.mixtures,
    'points': law.points, 'not_finite': int((~np.isfinite(figure.values)).sum()),
    'noise': law.noise,
    'seed_noise': law.seed_noise,
    'seed_offsets': {str(seed): offset for seed, offset in law.offsets.of_seed.items()},
    'seeds_apart': law.offsets.apart, 'freedom': law.freedom,
    'intervals': bool(len(law.replicates)),
    'coefficients': law.coefficients(), 'held_out': check,
    'constant': bool(np.ptp(figure.values[np.isfinite(figure.values)]) < 1e-12),
  }  # fmt: skip


def _curves(shares: Shares, laws: Mapping[str, Law], proposal: Mapping | None) -> dict:
  """component -> {'x', 'figures': {name: {'y', 'low', 'high'}}}: its share varied, the others' in
  their proportions.

  Through the proposal, else through the centre, as far as the region goes. One of two components
  mirrors the other: the later one is left out.
  """
  if not len(shares.basis):
    return {}
  region = Region(shares)
  start = shares.centre
  if proposal and proposal['shares']:
    start = np.array([proposal['shares'][name] for name in shares.components])
  curves = {}
  varied = [shares.components.index(name) for name in shares.varied]
  for i in varied[1:] if len(varied) == 2 else varied:
    ways = []
    for centre in (start, shares.centre):  # from a corner there may be no way that stays inside
      direction = np.zeros(len(shares.components))
      others = [j for j in varied if j != i]
      total = centre[others].sum()
      direction[others] = -centre[others] / total if total > 1e-9 else -1 / len(others)
      direction[i] = 1.0
      step = direction @ shares.basis.T / shares.scale
      origin = shares.places(centre)
      ways.append((origin, step, *region.line(step, origin)))
    origin, step, low, high = (
      ways[0] if ways[0][3] - ways[0][2] > 0.5 * (ways[1][3] - ways[1][2]) else ways[1]
    )
    rows = shares.shares(origin + np.linspace(low, high, 41)[:, None] * step)
    if np.ptp(rows[:, i]) < 1e-3:
      continue
    figures = {}
    for name, law in laws.items():
      ends = law.interval(rows)
      low_high = (
        {'low': ends[0].tolist(), 'high': ends[1].tolist()} if ends else {'low': None, 'high': None}
      )
      figures[name] = {'y': law.predict(rows).tolist()} | low_high
    curves[shares.components[i]] = {'x': rows[:, i].tolist(), 'figures': figures}
  return curves


# ---- the command ----


def add_flags(parser: argparse.ArgumentParser) -> None:
  """The flags of `crossin sweep --fit`."""
  group = parser.add_argument_group(
    'fit', 'laws of the shares from the finished points, and the best shares'
  )
  group.add_argument(
    '--fit',
    action='store_true',
    help='run nothing; fit what is finished in --output_dir, write fit.json',
  )
  group.add_argument(
    '--objective',
    help=f'{", ".join(OBJECTIVES)}, or a figure such as loss/vi (default: ac3, else loss)',
  )
  group.add_argument(
    '--default_shares',
    metavar='SHARES',
    help='"{\'base\': 0.5, ...}" or the name of a point (default: mean of all mixtures)',
  )
  group.add_argument(
    '--language_weights', metavar='WEIGHTS', help='"{\'vi\': 2}" in the mean over languages'
  )
  group.add_argument(
    '--english_accuracy',
    metavar='X',
    help="at least this fraction, or 'default': as at the default shares",
  )
  group.add_argument('--english_loss', metavar='X', help="at most so many nats, or 'default'")
  group.add_argument(
    '--share_bounds', metavar='BOUNDS', help='"{\'x2x\': (0.1, 0.4)}", within what was observed'
  )
  group.add_argument(
    '--margin',
    type=float,
    default=0.0,
    help='beyond what was observed, as a part (default: %(default)s)',
  )
  group.add_argument(
    '--form',
    choices=sorted(FORMS),
    help='of all laws (default: exponential; of fractions logistic)',
  )
  group.add_argument(
    '--fit_questions', metavar='NAME', help='benchmark of results.json (default: the first)'
  )
  group.add_argument('--fit_method', choices=('likelihood', 'generate'), default='likelihood')
  group.add_argument(
    '--resamples', type=int, default=400, help='of the bootstrap (default: %(default)s)'
  )


def run(args: argparse.Namespace) -> int:
  """Fits as the flags say; writes fit.json and fit.html, the table to stderr, with --json fit.json
  to stdout.
  """
  from crossin_jax.mixing_laws import page as fit_page

  limit = lambda name: (
    value if (value := getattr(args, name)) in (None, 'default') else _number(value, name)
  )
  if not 0 <= args.margin <= 1:
    raise ValueError(f'--margin {args.margin} must lie between 0 and 1')
  if args.resamples < 20:
    raise ValueError(f'--resamples {args.resamples} must be at least 20')
  default = args.default_shares
  found = fit(
    args.output_dir,
    args.objective,
    _literal(default, 'default_shares')
    if default and default.lstrip().startswith('{')
    else default,
    weights=_literal(args.language_weights, 'language_weights'),
    english_accuracy=limit('english_accuracy'),
    english_loss=limit('english_loss'),
    bounds=_literal(args.share_bounds, 'share_bounds'),
    margin=args.margin,
    form=args.form,
    questions=args.fit_questions,
    method=args.fit_method,
    resamples=args.resamples,
  )
  page = os.path.join(args.output_dir, 'fit.html')
  fit_page.write(page, found)
  print(f'{fit_words.terminal(found)}\nPage: {page}', file=sys.stderr)
  if args.json:
    print(json.dumps(found))
  return 0


def _number(text: str, flag: str) -> float:
  try:
    return float(text)
  except ValueError:
    raise ValueError(f"--{flag} {text!r} is neither a number nor 'default'") from None


def _literal(text: str | None, flag: str):
  if text is None:
    return None
  try:
    value = ast.literal_eval(text)
    if isinstance(value, dict):
      return value
  except (SyntaxError, ValueError):
    pass
  raise ValueError(f"--{flag} {text!r} is no dict, such as {{'base': 0.5, 'x2x': 0.5}}")
