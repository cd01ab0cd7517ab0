"""Flags of the commands that ask an endpoint."""

import argparse
from collections.abc import Sequence
import json
import os

from crossin_jax.endpoint.client import Endpoint


def add_flags(parser: argparse.ArgumentParser, required: bool = True) -> None:
  """Flags of commands that ask an endpoint; what is not given is as gin says, or the default of
  `Endpoint`.
  """
  group = parser.add_argument_group('endpoint')
  group.add_argument(
    '--endpoint', required=required, metavar='URL', help='for instance https://api.openai.com/v1'
  )
  group.add_argument(
    '--api_key_env', metavar='NAME', help='environment variable with the key (OPENAI_API_KEY)'
  )
  group.add_argument(
    '--cache_dir',
    help='where replies are kept (OUTPUT_DIR/cache); may serve several runs, one at a time',
  )
  group.add_argument('--concurrency', type=int, help='requests under way at a time (8)')
  group.add_argument('--requests_per_minute', type=float, help='most requests in a minute')
  group.add_argument('--timeout_seconds', type=float, help='without a byte from the server (120)')
  group.add_argument('--retries', type=int, help='repeats after errors (8)')
  group.add_argument(
    '--budget',
    type=float,
    metavar='USD',
    help='most USD, earlier starts included; needs both prices',
  )
  group.add_argument('--budget_requests', type=int, help='most requests, earlier starts included')
  group.add_argument(
    '--price_in', type=float, action='append', metavar='USD', help='per million tokens sent'
  )
  group.add_argument(
    '--price_out', type=float, action='append', metavar='USD', help='per million tokens received'
  )
  group.add_argument(
    '--parameter',
    action='append',
    default=[],
    metavar='NAME=JSON',
    help='put into every request: max_completion_tokens=2000; null takes one out',
  )
  group.add_argument('--dry_run', action='store_true', help='print the estimate and stop')


def from_flags(args: argparse.Namespace, models: Sequence[str], output_dir: str) -> Endpoint:
  """The endpoint that the flags describe; prices are one for all models or one for each, in their
  order.

  Raises:
    ValueError: a flag that cannot be right.
  """
  names = (
    'api_key_env',
    'concurrency',
    'requests_per_minute',
    'timeout_seconds',
    'retries',
    'budget',
    'budget_requests',
  )
  settings = {name: value for name in names if (value := getattr(args, name)) is not None}
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
  parameters = {}
  for text in args.parameter:
    name, mark, value = text.partition('=')
    try:
      parameters[name] = json.loads(value)
    except ValueError:
      mark = ''
    if not mark:
      raise ValueError(
        f'--parameter {text!r}: write NAME=JSON, for instance max_tokens=null or '
        'reasoning_effort=\'"low"\''
      )
  if parameters:
    settings['parameters'] = parameters
  return Endpoint(
    args.endpoint,
    models[0],
    cache_dir=args.cache_dir or os.path.join(output_dir, 'cache'),
    **settings,
  )


def told(endpoint: Endpoint) -> str:
  """What an endpoint was asked for, in a sentence."""
  found = endpoint.counts()
  errors = ', '.join(f'{kind} {count}' for kind, count in found['errors'].items())
  text = (
    f'{found["sent"]:,} requests sent ({found["repeated"]:,} of them '
    f'repeats{f", after {errors}" if errors else ""}), '
    f'{found["cached"]:,} answered from the cache, {found["refused"]:,} replies not usable, '
    f'{found["failed"]:,} given up; '
    f'{found["prompt_tokens"]:,} tokens in, {found["completion_tokens"]:,} out'
  )
  return text + (f', {found["usd"]:.4f} USD' if found['usd'] is not None else '')
