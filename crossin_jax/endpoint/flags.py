"""Flags of the commands that send requests to an endpoint; `session` reads them."""

import argparse


def add_flags(parser: argparse.ArgumentParser, required: bool = True) -> None:
  """Adds the flags of an endpoint; gin or the defaults of `Endpoint` fill in the others."""
  add = parser.add_argument_group('endpoint').add_argument
  add('--endpoint', required=required, metavar='URL', help='such as https://api.openai.com/v1')
  add('--api_key_env', metavar='NAME', help='environment variable with the key (OPENAI_API_KEY)')
  add(
    '--cache_dir',
    help='where replies are stored (OUTPUT_DIR/cache); several runs can use it, one at a time',
  )
  add('--concurrency', type=int, help='requests at a time (8)')
  add('--requests_per_minute', type=float, help='upper limit')
  add('--timeout_seconds', type=float, help='without a byte from the server (120)')
  add('--retries', type=int, help='repeats after errors (8)')
  usd = {'type': float, 'metavar': 'USD'}
  add('--budget', help='USD limit, including earlier starts; needs both prices', **usd)
  add('--budget_requests', type=int, help='limit of requests, including earlier starts')
  add('--price_in', action='append', help='per million tokens sent', **usd)
  add('--price_out', action='append', help='per million tokens received', **usd)
  add(
    '--parameter',
    action='append',
    default=[],
    metavar='NAME=JSON',
    help='added to every request: max_completion_tokens=2000; null removes one',
  )
  add('--dry_run', action='store_true', help='print the estimate and stop')
