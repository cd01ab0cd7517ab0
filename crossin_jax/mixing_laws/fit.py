"""`crossin fit OUT`: laws of the mixture's shares from the finished points of a sweep.

    OUT/points/*  ->  shares and figures of every run  ->  a law for each figure, checked on
    mixtures left out  ->  the best shares  ->  fit.json, fit.html

It reads only OUT, so it can run while the sweep runs.
"""

from collections.abc import Mapping
import os

import numpy as np

from crossin_jax.mixing_laws import flags, words
from crossin_jax.mixing_laws import points as points_lib
from crossin_jax.mixing_laws.flags import OBJECTIVES
from crossin_jax.mixing_laws.law import Figure, Law, Shares, fit_laws, held_out
from crossin_jax.mixing_laws.proposal import Objective, Region, propose
from crossin_jax.storage.files import write_json
from crossin_jax.workflow import command_line


def fit(
  output_dir: str,
  objective: str | None = None,
  default_shares: Mapping[str, float] | str | None = None,
  *,
  language_weights: Mapping[str, float] | None = None,
  english_accuracy: float | str | None = None,
  english_loss: float | str | None = None,
  share_bounds: Mapping[str, tuple[float, float]] | None = None,
  margin: float = 0.0,
  form: str | None = None,
  fit_questions: str | None = None,
  fit_method: str = 'likelihood',
  resamples: int = 400,
) -> dict:
  """Fits laws to the finished points of a sweep; writes OUT/fit.json.

  Args are the flags of `crossin fit`; `form` 'logistic' is only for fractions, and the means over
  languages of an objective that ends in '_elsewhere' are without English.

  Returns:
    The content of fit.json: {'asked', 'counts', 'components', 'mixtures', 'laws', 'proposal',
    'warnings', 'gin'}.

  Raises:
    ValueError: OUT has no finished point, or an argument names something that does not exist.
  """
  if not 0 <= margin <= 1:
    raise ValueError(f'--margin {margin} must be between 0 and 1')
  if resamples < 20:
    raise ValueError(f'--resamples {resamples} must be at least 20')
  points, counts = points_lib.read_points(output_dir, fit_questions, fit_method)
  shares = Shares([p['shares'] for p in points], seeds=[p['seed'] for p in points])
  figures = points_lib.read_figures(points, output_dir)
  if objective is None:
    objective = 'ac3' if any(name.startswith('ac3') for name in figures) else 'loss'
  goal = _objective(objective, figures, language_weights or {})
  limits = []
  for bound, name in ((english_accuracy, 'accuracy/en'), (english_loss, 'loss/en')):
    if bound is not None:
      if name not in figures:
        raise ValueError(f'a limit on {name} needs that figure; measured are {", ".join(figures)}')
      bound = None if bound == 'default' else float(bound)
      limits.append(Objective({name: 1.0}, name.startswith('accuracy'), bound))
  default = _default(default_shares, shares, points)
  needed = {name for one in (goal, *limits) for name in one.terms}
  laws = fit_laws(shares, figures, form=form, resampled=needed, resamples=resamples)
  region, proposal = Region(shares, margin, share_bounds), None
  if len(shares.mixtures) > 1:
    proposal = propose(laws, goal, default, region, limits)
  runs = np.bincount(shares.mixture)
  result = {
    'asked': {
      'objective': objective,
      'terms': dict(goal.terms),
      'maximise': goal.maximise,
      'default_shares': shares.named(default),
      'default_inside': region.inside(default),
      'bounds': share_bounds,
      'margin': margin,
      'questions': points[0]['questions'],
      'method': fit_method if points[0]['questions'] else None,
      'resamples': resamples,
    },
    'counts': counts | {'seeds': [int(runs.min()), int(runs.max())]},
    'components': {
      name: {'low': float(x.min()), 'high': float(x.max()), 'varied': name in shares.varied}
      for name, x in zip(shares.components, shares.mixtures.T)
    },
    'mixtures': _mixtures(shares, points, laws),
    'laws': [_law_json(name, law) for name, law in laws.items()],
    'proposal': proposal,
  }
  result |= {'warnings': words.warnings(result), 'gin': words.gin_line(proposal)}
  write_json(os.path.join(output_dir, 'fit.json'), result)
  return result


# ---- arguments ----


def _objective(name: str, figures: Mapping[str, Figure], weights: Mapping[str, float]) -> Objective:
  languages = {figure.split('/')[1] for figure in figures if '/' in figure}
  if unknown := set(weights) - languages:
    raise ValueError(
      f'weights: nothing was measured in {", ".join(sorted(unknown))}, only in '
      f'{", ".join(sorted(languages))}'
    )
  if any(not np.isfinite(w) or w < 0 for w in weights.values()):
    raise ValueError(f'weights {dict(weights)} must be finite and not negative')
  terms, (stem, _, elsewhere) = [], name.partition('_')
  if name in OBJECTIVES:
    terms = [figure for figure in figures if figure.startswith((f'{stem}/', f'{stem}_'))]
    terms = [figure for figure in terms if not (elsewhere and figure.endswith('/en'))]
  terms = terms or [figure for figure in figures if figure == name]
  terms = {figure: float(weights.get(figure.partition('/')[2], 1.0)) for figure in terms}
  terms = {figure: weight for figure, weight in terms.items() if weight}
  if not terms:
    raise ValueError(
      f'objective {name!r} is none of {", ".join(OBJECTIVES)} that was measured with a weight '
      f'above 0, nor a figure: {", ".join(figures)}'
    )
  return Objective(terms, figures[next(iter(terms))].kind == 'fraction')


def _default(
  wanted: Mapping[str, float] | str | None, shares: Shares, points: list[dict]
) -> np.ndarray:
  if not isinstance(wanted, str):
    return shares.centre if wanted is None else shares.row(wanted)
  names = [point['name'] for point in points]
  mixtures = {int(m) for m, name in zip(shares.mixture, names) if name.startswith(wanted)}
  if len(mixtures) != 1:
    raise ValueError(
      f'default_shares {wanted!r} {"names several mixtures" if mixtures else "is no point"}; the '
      f'points are {", ".join(names)}'
    )
  return shares.mixtures[mixtures.pop()]


# ---- results ----


def _mixtures(shares: Shares, points: list[dict], laws: Mapping[str, Law]) -> list[dict]:
  # Without the offsets of seeds, since a mixture may lack some.
  means = {
    name: dict(zip(law.data.mixtures.tolist(), law.data.means(law.data.values).tolist()))
    for name, law in laws.items()
  }
  rows = []
  for m, row in enumerate(shares.mixtures):
    runs = [point for point, number in zip(points, shares.mixture) if number == m]
    rows.append(
      {
        'shares': shares.named(row),
        'points': [point['name'] for point in runs],
        'mixtures': sorted({point['mixture'] for point in runs}),
        'mean': {name: mean.get(m) for name, mean in means.items()},
        'predicted': {name: float(law.predict(row)) for name, law in laws.items()},
      }
    )
  return rows


def _law_json(name: str, law: Law) -> dict:
  return {
    'figure': name,
    'kind': law.data.figure.kind,
    'chance': law.data.figure.chance,
    'form': law.form,
    'wanted': law.wanted,
    'mixtures': len(law.data.mixtures),
    'points': len(law.data.values),
    'parameters': law.theta.size,
    'coefficients': law.coefficients(),
    'noise': law.noise,
    'seed_offsets': {str(seed): offset for seed, offset in law.data.offsets.items()},
    'held_out': held_out(law.data),
  }


# ---- the command ----


def main(argv: list[str]) -> int:
  """The command line of `crossin fit`."""
  args = flags.parser().parse_args(argv)
  result = fit(**{name: value for name, value in vars(args).items() if name != 'json'})
  from crossin_jax.mixing_laws import page  # imports Jinja and Matplotlib

  path = os.path.join(args.output_dir, 'fit.html')
  page.write(path, result)
  print(f'{words.terminal(result)}\nPage: {path}')
  return command_line.finish(args, result)
