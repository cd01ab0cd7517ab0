"""The flags of `crossin fit`."""

import argparse
import ast

from crossin_jax.workflow import command_line

OBJECTIVES = ('loss', 'loss_elsewhere', 'accuracy', 'accuracy_elsewhere', 'consistency', 'ac3')
FORMS = ('constant', 'linear', 'quadratic', 'exponential', 'logistic')  # see `forms.forms_of`


def parser() -> command_line.Parser:
  """The flags of `crossin fit`."""
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
    '--default_shares', metavar='SHARES', type=_shares,
    help='reference of the gain: "{\'base\': 0.5, ...}" or the name of a point (default: mean of '
    'all mixtures)',
  )  # fmt: skip
  weights = '"{\'vi\': 2}" in the mean over languages'
  add('--language_weights', metavar='WEIGHTS', type=_dict, help=weights)
  at_least = "lower limit, or 'default': as at default_shares"
  add('--english_accuracy', metavar='X', type=_limit, help=at_least)
  add('--english_loss', metavar='X', type=_limit, help="upper limit in nats, or 'default'")
  bounds = '"{\'x2x\': (0.1, 0.4)}", inside the observed range'
  add('--share_bounds', metavar='BOUNDS', type=_dict, help=bounds)
  add('--margin', type=float, default=0.0, help='outside the observed range, as a part of it')
  forms = 'of all laws (default: exponential; fractions logistic)'
  add('--form', choices=sorted(FORMS), help=forms)
  add('--fit_questions', metavar='NAME', help='benchmark in results.json (default: the first)')
  add('--fit_method', choices=('likelihood', 'generate'), default='likelihood', help='')
  add('--resamples', type=int, default=400, help='of the bootstrap')
  return parser


def _limit(text: str) -> float | str:
  try:
    return text if text == 'default' else float(text)
  except ValueError:
    raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor 'default'") from None


def _dict(text: str) -> dict:
  try:
    value = ast.literal_eval(text)
  except (SyntaxError, ValueError):
    value = None
  if not isinstance(value, dict):
    raise argparse.ArgumentTypeError(f"{text!r} is no dict, such as {{'base': 0.5, 'x2x': 0.5}}")
  return value


def _shares(text: str) -> dict | str:
  return _dict(text) if text.lstrip().startswith('{') else text
