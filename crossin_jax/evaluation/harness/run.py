"""The command `lm_eval` with `--model crossin`:

python -m crossin_jax.evaluation.harness.run --model crossin --model_args path=runs/a --tasks xcopa
"""

import sys

from crossin_jax.errors import CrossinError


def main() -> int:
  """Runs lm-evaluation-harness' own command line."""
  from crossin_jax.evaluation.harness import command

  try:
    command.require()
    from lm_eval.__main__ import cli_evaluate

    from crossin_jax.evaluation.harness import registered

    registered.register()
    cli_evaluate()
  except CrossinError as error:
    print(f'lm_eval: {error}', file=sys.stderr)
    return error.exit_status
  return 0


if __name__ == '__main__':
  sys.exit(main())
