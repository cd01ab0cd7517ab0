"""`crossin fit OUT`: laws of the mixture's shares from the finished points of a sweep.

    OUT/points/*  ->  shares and figures of every run  ->  a law for each figure, checked on
    mixtures left out  ->  the best shares  ->  fit.json, fit.html

It reads only OUT, so it can run while the sweep runs.
"""

import ast
from collections.abc import Mapping
import os
import sys

import numpy as np

from crossin_jax.mixing_laws import points as points_lib
from crossin_jax.mixing_laws import words
from crossin_jax.mixing_laws.forms import FORMS
from crossin_jax.mixing_laws.law import SAME, Figure, Law, Shares, default_form, fit_laws, held_out
from crossin_jax.mixing_laws.proposal import Limit, Objective, Region, propose
from crossin_jax.storage.files import write_json
from crossin_jax.workflow import command_line

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
    objective: one of `OBJECTIVES`, or a figure such as 'loss/vi'; None = 'ac3' if there are
      questions, else 'loss'. 'loss' and 'accuracy' are means over languages, '_elsewhere' without
      English.
    default_shares: reference of the gain: shares, or the name of a point; None = the mean of the
      mixtures.
    weights: language -> weight in that mean; default 1.
    english_accuracy, english_loss: lower and upper limit; 'default' = prediction at the default
      shares.
    bounds: component -> (lowest, highest share).
    margin: see `proposal.propose`.
    form: of all laws, instead of `default_form`; 'logistic' only for fractions.
    questions, method: which runs of results.json; None = the first.
    resamples, seed: of the bootstrap.

  Returns:
    The content of fit.json: {'asked', 'counts', 'components', 'mixtures', 'laws', 'curves',
    'proposal', 'warnings', 'gin'}.

  Raises:
    ValueError: OUT has no finished point, or an argument names something that does not exist.
  """
  points, counts = points_lib.read_points(output_dir, questions, method)
  shares = Shares.of([p['shares'] for p in points], seeds=[p['seed'] for p in points])
  figures = points_lib.read_figures(points, output_dir)
  if form and form not in FORMS:
    raise ValueError(f'--form {form!r} is none of {", ".join(FORMS)}')
  if objective is None:
    objective = 'ac3' if any(name.startswith('ac3') for name in figures) else 'loss'
  goal = _objective(objective, figures, weights or {})
  limits = []
  for value, name in ((english_accuracy, 'accuracy/en'), (english_loss, 'loss/en')):
    if value is None:
      continue
    if name not in figures:
      raise ValueError(f'a limit on {name} needs that figure; measured are {", ".join(figures)}')
    bound = None if value == 'default' else float(value)
    limits.append(Limit(name, name.startswith('accuracy'), bound))
  default = _default(default_shares, shares, points)
  losses = lambda name: figures[name].kind == 'loss'
  forms = {name: form for name in figures if form and not (form == 'logistic' and losses(name))}
  laws = fit_laws(shares, figures, forms=forms, resamples=resamples, seed=seed)
  if missing := [name for name in goal.terms if name not in laws]:
    raise ValueError(f'{", ".join(missing)} was measured at no point; choose another objective')
  region = Region(shares, margin, bounds)
  proposal = None
  if len(shares.mixtures) > 1:
    proposal = propose(laws, goal, default, bounds=bounds, limits=limits, margin=margin, seed=seed)
  runs = np.bincount(shares.mixture)
  z = shares.coordinates(default)
  spanned = np.abs(shares.shares(z) - default).max() < 2 * SAME
  if not isinstance(default_shares, str):
    default_is = 'given' if default_shares else 'mean'
  result = {
    'asked': {
      'objective': objective,
      'terms': dict(goal.terms),
      'maximise': goal.maximise,
      'default_shares': dict(zip(shares.components, default.tolist())),
      'default_is': default_shares if isinstance(default_shares, str) else default_is,
      'default_inside': bool(region.inside(z, 1e-6) and spanned),
      'bounds': {name: list(ends) for name, ends in (bounds or {}).items()},
      'margin': margin,
      'questions': points[0]['questions'],
      'method': method if points[0]['questions'] else None,
      'resamples': resamples,
      'seed': seed,
    },
    'counts': counts | {'seeds': [int(runs.min()), int(runs.max())]},
    'components': {
      name: {'low': float(x.min()), 'high': float(x.max()), 'varied': name in shares.varied}
      for name, x in zip(shares.components, shares.mixtures.T)
    },
    'mixtures': _mixtures(shares, points, figures, laws),
    'laws': [_law_json(name, law, shares, figures[name]) for name, law in laws.items()],
    'curves': _curves(shares, laws, proposal),
    'proposal': proposal,
  }
  result['warnings'] = words.warnings(result)
  result['gin'] = words.gin_line(proposal)
  write_json(os.path.join(output_dir, 'fit.json'), result)
  return result


# ---- arguments ----


def _objective(name: str, figures: Mapping[str, Figure], weights: Mapping[str, float]) -> Objective:
  if name in figures and name not in OBJECTIVES:
    return Objective({name: 1.0}, figures[name].kind == 'fraction')
  if name not in OBJECTIVES:
    raise ValueError(
      f'objective {name!r} is none of {", ".join(OBJECTIVES)}, nor a figure: {", ".join(figures)}'
    )
  stem = name.removesuffix('_elsewhere')
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
    excluded = 'en' if name.endswith('_elsewhere') else None
    terms = {f'{stem}/{l}': float(weights.get(l, 1.0)) for l in languages if l != excluded}
    terms = {figure: weight for figure, weight in terms.items() if weight}
    if not terms and name == 'loss' and 'loss' in figures:
      terms = {'loss': 1.0}
  if not terms:
    raise ValueError(
      f'objective {name}: no such figure was measured, or its weights are 0; there are '
      f'{", ".join(figures)}'
    )
  return Objective(terms, figures[next(iter(terms))].kind == 'fraction')


def _default(
  wanted: Mapping[str, float] | str | None, shares: Shares, points: list[dict]
) -> np.ndarray:
  if wanted is None:
    return shares.centre
  if isinstance(wanted, Mapping):
    return shares.row(wanted)
  names = [point['name'] for point in points]
  exact = [i for i, name in enumerate(names) if wanted in (name, name.rpartition('-')[0])]
  matches = exact or [i for i, name in enumerate(names) if name.startswith(wanted)]
  mixtures = {int(shares.mixture[i]) for i in matches}
  if len(mixtures) != 1:
    raise ValueError(
      f'default_shares {wanted!r} {"names several mixtures" if mixtures else "is no point"}; the '
      f'points are {", ".join(names)}'
    )
  return shares.mixtures[mixtures.pop()]


# ---- results ----


def _mixtures(
  shares: Shares, points: list[dict], figures: Mapping[str, Figure], laws: Mapping[str, Law]
) -> list[dict]:
  rows = []
  for m, row in enumerate(shares.mixtures):
    runs = [i for i in range(len(points)) if shares.mixture[i] == m]
    observed, mean = {}, {}
    for name, law in laws.items():
      measured = [i for i in runs if np.isfinite(figures[name].values[i])]
      observed[name] = [float(figures[name].values[i]) for i in measured]
      # Without the offsets, since a mixture may lack some seeds.
      offsets = [law.offsets.of_seed.get(points[i]['seed'], 0.0) for i in measured]
      mean[name] = float(np.mean(np.subtract(observed[name], offsets))) if measured else None
    rows.append(
      {
        'shares': dict(zip(shares.components, row.tolist())),
        'points': [points[i]['name'] for i in runs],
        'mixtures': sorted({points[i]['mixture'] for i in runs}),
        'observed': observed,
        'mean': mean,
        'predicted': {name: float(law.predict(row)) for name, law in laws.items()},
      }
    )
  return rows


def _law_json(name: str, law: Law, shares: Shares, figure: Figure) -> dict:
  finite = np.isfinite(figure.values)
  return {
    'figure': name,
    'kind': law.kind,
    'chance': law.chance if law.kind == 'fraction' else None,
    'form': law.form,
    'wanted': law.wanted,
    'default_form': default_form(law.kind),
    'parameters': law.parameters,
    'mixtures': law.mixtures,
    'points': law.points,
    'not_finite': int((~finite).sum()),
    'noise': law.noise,
    'seed_noise': law.seed_noise,
    'seed_offsets': {str(seed): offset for seed, offset in law.offsets.of_seed.items()},
    'seeds_apart': law.offsets.apart,
    'freedom': law.freedom,
    'intervals': bool(len(law.replicates)),
    'coefficients': law.coefficients(),
    'held_out': held_out(shares, figure),
    'constant': bool(np.ptp(figure.values[finite]) < 1e-12),
  }


def _curves(shares: Shares, laws: Mapping[str, Law], proposal: Mapping | None) -> dict:
  """The laws along each share, with the other shares in proportion, as far as the region extends.

  The line goes through the proposal, or through the centre if the proposal leaves less than half as
  much room. Of two components, the later one mirrors the first and is omitted.

  Returns:
    component -> {'x', 'figures': {name: {'y', 'low', 'high'}}}.
  """
  if not len(shares.basis):
    return {}
  starts = [shares.centre]
  if proposal and proposal['shares']:
    starts.insert(0, np.array([proposal['shares'][name] for name in shares.components]))
  varied = [shares.components.index(name) for name in shares.varied]
  curves = {}
  for i in varied[1:] if len(varied) == 2 else varied:
    lines = [_line(shares, start, i, varied) for start in starts]
    rows = lines[0] if np.ptp(lines[0][:, i]) > 0.5 * np.ptp(lines[-1][:, i]) else lines[-1]
    if np.ptp(rows[:, i]) < 1e-3:
      continue
    figures = {}
    for name, law in laws.items():
      low, high = law.interval(rows) or (None, None)
      figures[name] = {
        'y': law.predict(rows).tolist(),
        'low': None if low is None else low.tolist(),
        'high': None if high is None else high.tolist(),
      }
    curves[shares.components[i]] = {'x': rows[:, i].tolist(), 'figures': figures}
  return curves


def _line(shares: Shares, start: np.ndarray, i: int, varied: list[int]) -> np.ndarray:
  """Shares [41, C] through `start` along component i."""
  others = [j for j in varied if j != i]
  direction = np.zeros(len(shares.components))
  total = start[others].sum()
  direction[others] = -start[others] / total if total > 1e-9 else -1 / len(others)
  direction[i] = 1.0
  step, origin = direction @ shares.basis.T / shares.scale, shares.coordinates(start)
  low, high = Region(shares).line(step, origin)
  return shares.shares(origin + np.linspace(low, high, 41)[:, None] * step)


# ---- the command ----


def main(argv: list[str]) -> int:
  """The command line of `crossin fit`."""
  parser = command_line.Parser(
    'fit',
    'Fit laws of the shares to the finished points of a sweep and propose the best shares.',
    'crossin fit runs/world_volume --objective ac3 --english_accuracy default',
  )
  add = parser.add_argument
  add('output_dir', help='--output_dir of the sweep; fit.json and fit.html go there')
  objectives = f'{", ".join(OBJECTIVES)}, or a figure such as loss/vi'
  add('--objective', help=f'{objectives} (default: ac3, else loss)')
  add(
    '--default_shares',
    metavar='SHARES',
    help='reference of the gain: "{\'base\': 0.5, ...}" or the name of a point (default: mean of '
    'all mixtures)',
  )
  add('--language_weights', metavar='WEIGHTS', help='"{\'vi\': 2}" in the mean over languages')
  add('--english_accuracy', metavar='X', help="lower limit, or 'default': as at default_shares")
  add('--english_loss', metavar='X', help="upper limit in nats, or 'default'")
  add('--share_bounds', metavar='BOUNDS', help='"{\'x2x\': (0.1, 0.4)}", inside the observed range')
  add('--margin', type=float, default=0.0, help='outside the observed range, as a part of it')
  add(
    '--form', choices=sorted(FORMS), help='of all laws (default: exponential; fractions logistic)'
  )
  add('--fit_questions', metavar='NAME', help='benchmark in results.json (default: the first)')
  add('--fit_method', choices=('likelihood', 'generate'), default='likelihood', help='')
  add('--resamples', type=int, default=400, help='of the bootstrap')
  args = parser.parse_args(argv)
  if not 0 <= args.margin <= 1:
    raise ValueError(f'--margin {args.margin} must be between 0 and 1')
  if args.resamples < 20:
    raise ValueError(f'--resamples {args.resamples} must be at least 20')
  default = args.default_shares
  if default and default.lstrip().startswith('{'):
    default = _literal(default, 'default_shares')
  result = fit(
    args.output_dir,
    args.objective,
    default,
    weights=_literal(args.language_weights, 'language_weights'),
    english_accuracy=_limit(args.english_accuracy, 'english_accuracy'),
    english_loss=_limit(args.english_loss, 'english_loss'),
    bounds=_literal(args.share_bounds, 'share_bounds'),
    margin=args.margin,
    form=args.form,
    questions=args.fit_questions,
    method=args.fit_method,
    resamples=args.resamples,
  )
  from crossin_jax.mixing_laws import page  # imports Jinja and Matplotlib

  path = os.path.join(args.output_dir, 'fit.html')
  page.write(path, result)
  print(f'{words.terminal(result)}\nPage: {path}', file=sys.stderr)
  return command_line.finish(args, result)


def _limit(text: str | None, flag: str) -> float | str | None:
  if text in (None, 'default'):
    return text
  try:
    return float(text)
  except ValueError:
    raise ValueError(f"--{flag} {text!r} is neither a number nor 'default'") from None


def _literal(text: str | None, flag: str) -> dict | None:
  if text is None:
    return None
  try:
    value = ast.literal_eval(text)
    if isinstance(value, dict):
      return value
  except (SyntaxError, ValueError):
    pass
  raise ValueError(f"--{flag} {text!r} is no dict, such as {{'base': 0.5, 'x2x': 0.5}}")
