"""The steps that the commands with the flags of an endpoint share."""

import argparse
from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
import json
import os
import sys

from crossin_jax.endpoint.client import Endpoint, Estimate, Request, stoppable


def from_flags(args: argparse.Namespace, models: Sequence[str], output_dir: str) -> Endpoint:
  """The endpoint that the flags describe; prices are for all models or one for each, in order.

  Raises:
    ValueError: an invalid flag.
  """
  names = (
    'api_key_env concurrency requests_per_minute timeout_seconds retries budget budget_requests'
  )
  settings = {name: value for name in names.split() if (value := getattr(args, name)) is not None}
  for name in ('price_in', 'price_out'):
    prices = getattr(args, name)
    if prices is None:
      continue
    if len(prices) not in (1, len(models)):
      raise ValueError(
        f'--{name} is given {len(prices)} times for {len(models)} models; give it once, or once '
        'for each'
      )
    settings[name] = prices[0] if len(prices) == 1 else dict(zip(models, prices, strict=True))
  if args.parameter:
    settings['parameters'] = dict(map(_parameter, args.parameter))
  cache = args.cache_dir or os.path.join(output_dir, 'cache')
  return Endpoint(args.endpoint, models[0], cache_dir=cache, **settings)


def _parameter(text: str) -> tuple[str, object]:
  name, mark, value = text.partition('=')
  try:
    if mark:
      return name, json.loads(value)
  except ValueError:
    pass
  raise ValueError(
    f'--parameter {text!r}: write NAME=JSON, for instance max_tokens=null or '
    'reasoning_effort=\'"low"\''
  )


@dataclasses.dataclass(frozen=True)
class Session:
  """An open endpoint, the estimate of its requests, and the `check` for `Endpoint.complete`."""

  endpoint: Endpoint
  estimate: Estimate
  check: Callable[[], None]

  def dry_run(self) -> dict:
    """What `--dry_run --json` reports."""
    estimate = self.estimate
    return {'requests': estimate.requests, 'cached': estimate.cached, 'usd': estimate.usd}


@contextlib.contextmanager
def session(
  args: argparse.Namespace,
  models: Sequence[str],
  output_dir: str,
  requests: Sequence[Request],
  what: str = 'estimate',
) -> Iterator[Session]:
  """Opens the endpoint of the flags, prints the estimate, and prints a summary at the end.

  Args:
    args, models, output_dir: see `from_flags`.
    requests: all that the command will send.
    what: text before the estimate.

  Raises:
    BudgetError: the estimate exceeds the budget.
  """
  with stoppable() as check, from_flags(args, models, output_dir) as endpoint:
    estimate = endpoint.estimate(requests)
    print(f'{what}: {estimate}', file=sys.stderr)
    endpoint.check_budget(estimate)
    try:
      yield Session(endpoint, estimate, check)
    finally:
      if not args.dry_run:
        print(summary(endpoint), file=sys.stderr)


def summary(endpoint: Endpoint) -> str:
  """What an endpoint was sent and answered, in a sentence."""
  counts = endpoint.counts()
  errors = ', '.join(f'{kind} {count}' for kind, count in counts.errors.items())
  usd = '' if counts.usd is None else f', {counts.usd:.4f} USD'
  return (
    f'{counts.sent:,} requests sent ({counts.repeated:,} of them '
    f'repeats{f", after {errors}" if errors else ""}), '
    f'{counts.cached:,} answered from the cache, {counts.refused:,} unusable replies, '
    f'{counts.failed:,} failed; '
    f'{counts.prompt_tokens:,} tokens in, {counts.completion_tokens:,} out{usd}'
  )
