"""`crossin harness`: tasks of lm-evaluation-harness on a checkpoint."""

import contextlib
import importlib.util
import json
import logging
import os
import tempfile
from typing import Any

import jax

from crossin_jax import config
from crossin_jax.checkpoints.saved_model import SavedModel
from crossin_jax.devices.partitioning import Partitioner
from crossin_jax.evaluation.harness import answered, flags, parallel, tasks
from crossin_jax.evaluation.harness.engine import Engine
from crossin_jax.evaluation.harness.errors import HarnessError
from crossin_jax.evaluation.results import write_results
from crossin_jax.processes import distributed, interruption
from crossin_jax.storage import mirror
from crossin_jax.workflow import command_line

MARKERS = ('results.json',)  # uploaded last to a remote output directory
BOOTSTRAPS = 100_000  # of the harness, for standard errors without a formula


def require() -> None:
  """Raises HarnessError without the package lm-eval; silences what it logs."""
  if importlib.util.find_spec('lm_eval') is None:
    raise HarnessError("lm-eval is not installed; install it with: pip install -e '.[harness]'")
  import datasets
  from lm_eval.tasks import TaskManager

  if not hasattr(TaskManager, 'load'):
    raise HarnessError("this lm-eval is older than 0.4.12; install: pip install -e '.[harness]'")
  # Both only log what they do; errors of tasks are reported here.
  for name in ('lm_eval', 'datasets'):
    logging.getLogger(name).setLevel(logging.ERROR)
  datasets.disable_progress_bars()


def main(argv: list[str]) -> int:
  """The command line of `crossin harness`."""
  args = flags.parser().parse_args(argv)
  require()
  if args.fewshot_as_multiturn and not args.apply_chat_template:
    raise config.ConfigError('--fewshot_as_multiturn needs --apply_chat_template')
  for flag, value, least in (
    ('--max_length', args.max_length, 2),
    ('--num_fewshot', args.num_fewshot, 0),
    ('--limit', args.limit, 1e-9),
  ):
    if value is not None and not value >= least:
      raise config.ConfigError(
        f'{flag} {value}: give {"more than 0" if 0 < least < 1 else f"at least {least}"}'
      )
  source = SavedModel.open(args.checkpoint)
  patterns = [name.strip() for name in args.tasks.split(',') if name.strip()]
  manager = tasks.task_manager(args.include_path, patterns, {'pretrained': args.checkpoint})
  names = tasks.matched(manager, patterns)
  model = source.module(args)
  distributed.initialize(args)
  chief = jax.process_index() == 0
  with contextlib.ExitStack() as stack:
    # All processes compute the same answers; only those of the first one are kept.
    if chief:
      output_dir = stack.enter_context(mirror.written(args.output_dir, MARKERS)).path
      os.makedirs(output_dir, exist_ok=True)
    else:
      output_dir = stack.enter_context(tempfile.TemporaryDirectory())
    stack.enter_context(interruption.StopSignal())
    results, loaded = _evaluate(args, source, model, manager, names, output_dir, chief)
    if not chief:
      return 0
    variant = args.variant or source.name
    benchmarks, skipped = parallel.benchmarks(results['samples'], loaded)
    runs = [benchmark.run(variant) for benchmark in benchmarks]
    for benchmark in benchmarks:
      benchmark.write(os.path.join(output_dir, 'predictions'))
    if runs:
      write_results(os.path.join(output_dir, 'results.json'), runs)
  for line in (*skipped, *map(parallel.sentence, benchmarks)):
    print(line)
  figures = json.loads(json.dumps(results['results'], default=str))
  return command_line.finish(args, {'runs': runs, 'results': figures})


def _evaluate(args, source, model, manager, names, output_dir: str, chief: bool):
  """(results of `simple_evaluate` with samples, what the task manager loaded)."""
  from lm_eval.evaluator import simple_evaluate
  from lm_eval.loggers import EvaluationTracker

  from crossin_jax.evaluation.harness.lm import CrossinLM

  # Its own processes would be forked from one with many threads.
  os.environ.setdefault('DISABLE_MULTIPROC', '1')
  engine = Engine(source, model, Partitioner(), args.max_length)
  tracker = EvaluationTracker(output_path=output_dir)
  path = os.path.join(output_dir, 'answers.jsonl')
  settings = _settings(args, source)
  with answered.opened(
    path, os.path.join(args.output_dir, 'answers.jsonl'), engine, settings
  ) as known:
    lm = CrossinLM(
      engine, known, add_bos_token=_boolean(args.add_bos_token), seed=args.seed,
      shows_progress=chief,
    )  # fmt: skip
    multiturn = args.fewshot_as_multiturn
    with tasks.naming_the_harness():
      results = simple_evaluate(
        lm, model_args={'pretrained': source.name}, tasks=names, num_fewshot=args.num_fewshot,
        limit=_limit(args.limit), log_samples=True, evaluation_tracker=tracker,
        system_instruction=args.system_instruction, apply_chat_template=args.apply_chat_template,
        fewshot_as_multiturn=args.apply_chat_template if multiturn is None else multiturn,
        gen_kwargs=args.gen_kwargs, task_manager=manager, torch_random_seed=None,
        fewshot_random_seed=args.seed, bootstrap_iters=BOOTSTRAPS if chief else 0,
        confirm_run_unsafe_code=args.run_unsafe_code,
      )  # fmt: skip
  if chief:
    _write(tracker, results, args.log_samples)
  return results, manager.loaded


def _settings(args, source: SavedModel) -> dict[str, Any]:
  """What answers depend on beside model and requests."""
  return {
    '--add_bos_token': args.add_bos_token,
    '--seed': args.seed,
    'stop tokens': list(source.generation_stop_ids),
    'generation_config.json': source.generation_config,
  }


def _boolean(text: str | None) -> bool | None:
  return None if text is None else text == 'true'


def _limit(limit: float | None) -> float | int | None:
  return int(limit) if limit is not None and limit >= 1 else limit


def _write(tracker, results: dict[str, Any], log_samples: bool) -> None:
  """The harness' own files, which it writes without reporting failures.

  Raises:
    OSError: a file is missing.
  """
  samples = results['samples']
  own = {key: value for key, value in results.items() if key != 'samples'}
  tracker.save_results_aggregated(results=own, samples=samples)
  date = tracker.date_id
  folder = os.path.join(tracker.output_path, tracker.general_config_tracker.model_name_sanitized)
  files = [f'results_{date}.json']
  if log_samples:
    for name in own['configs']:
      # It changes what it writes.
      tracker.save_results_samples(name, [dict(sample) for sample in samples[name]])
    files += [f'samples_{name}_{date}.jsonl' for name in own['configs']]
  for name in files:
    if not os.path.exists(path := os.path.join(folder, name)):
      raise OSError(f'{path} could not be written; make room there, or choose another --output_dir')
