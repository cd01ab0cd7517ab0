"""`crossin prepare`: tokenises the Tasks of a Mixture once, in parts, on all cores."""

import argparse
import collections
from collections.abc import Mapping
import concurrent.futures
import contextlib
import importlib
import json
import multiprocessing
import os
import sys
import time

import numpy as np

from crossin_jax import config
from crossin_jax.data import prepared
from crossin_jax.data.mixture_name import MixtureName
from crossin_jax.data.prepared import (
  FORMAT,
  PreparedDataError,
  safe_file_name,
  write_manifest,
  write_mixture,
  write_part,
)
from crossin_jax.data.prompts import CHAT, Rejected, stop_id
from crossin_jax.progress import Progress
from crossin_jax.storage import hub_names, mirror, remote
from crossin_jax.storage.files import load_json, write_json
from crossin_jax.workflow import command_line
from seqio_tasks import flags
from seqio_tasks.crossin import TaskSpec
from seqio_tasks.mixtures import MixtureSettings, mixture_entries
from seqio_tasks.pair_files import PairFiles

PART = 8192  # examples tokenised by one job and stored in one file
TOGETHER = 256  # examples given to the tokenizer at once
# Values that a run needs; the file of a `crossin run` includes both.
OF_RUNS = {
  'MODEL_DIR': "'model'",
  'DATA_DIR': "'prepared'",
  'MIXTURE_OR_TASK_NAME': "'mixture'",
  'TRAIN_STEPS': '1',
}


def prepare(
  mixture: str,
  output_dir: str,
  settings: MixtureSettings,
  workers: int | None = None,
  overwrite: bool = False,
) -> dict:
  """Writes the token files of a Mixture's Tasks, and the Mixture.

  Existing Tasks are kept if they are up to date; an incomplete one is continued.

  Args:
    mixture: name as in `mixtures.MixtureName`.
    output_dir: D of `data.prepared`; files of a remote one are pushed every 30 s, manifests after
      their parts.
    settings: sources, vocabulary, template, rates.
    workers: processes; None = all cores this process may use.
    overwrite: write stale Tasks again instead of raising an error.

  Returns:
    {'mixture', 'tasks': number, 'examples', 'tokens', 'loss_tokens', 'dropped', 'shortened':
    {reason: examples}, 'set_aside': {source: {'language: reason': rows}}, 'notes', 'seconds',
    'tokenised': number of Tasks that were written}.

  Raises:
    PreparedDataError: a Task exists with other settings (names the differences and the remedy), or
      no example is left.
    ValueError: see `mixture_entries`.
  """
  started = time.monotonic()
  name = MixtureName.parse(mixture)
  entries = mixture_entries(name, settings)
  specs = {entry.task.name: entry.task for entry in entries}
  for spec in specs.values():
    safe_file_name(spec.name)
  with _written(output_dir, specs) as files:
    todo, manifests = _write(files, mixture, name, entries, settings, workers, overwrite)
  dropped, shortened, totals = (collections.Counter() for _ in range(3))
  set_aside = {
    manifest['task']['source']: manifest['source_rows_set_aside']
    for manifest in manifests.values()
    if manifest['source_rows_set_aside']
  }
  sources = {spec.source.name: spec.source for spec in specs.values()}
  # Users' own sources may have none.
  notes = [note for source in sources.values() for note in getattr(source, 'notes', list)()]
  notes += [
    f'{source.name}: {count:,} of {len(source):,} pairs left out, because their languages are not '
    f'all among {", ".join(name.languages)}'
    for source in sources.values()
    if isinstance(source, PairFiles) and (count := source.outside(name.languages))
  ]
  for manifest in manifests.values():
    for split in manifest['splits'].values():
      dropped.update(split['dropped'])
      shortened.update(split['shortened'])
      totals.update({key: split[key] for key in ('examples', 'tokens', 'loss_tokens')})
  if not totals['examples']:
    raise PreparedDataError(
      f'mixture {mixture} has no example left: {_reasons(dropped)} dropped; source rows set aside: '
      f'{counts_of(set_aside)}. Raise max_length, or give other rows'
    )
  return {
    'mixture': mixture,
    'output_dir': output_dir,
    'tasks': len(specs),
    'tokenised': len(todo),
    **totals,
    'dropped': dict(dropped),
    'shortened': dict(shortened),
    'set_aside': set_aside,
    'notes': notes,
    'seconds': round(time.monotonic() - started, 3),
  }


def estimate(mixture: str, settings: MixtureSettings, sample: int = 256) -> dict:
  """Counts examples, and tokens from the first examples of every Task; writes nothing.

  Args:
    mixture, settings: as in `prepare`.
    sample: examples of each Task that are tokenised.

  Returns:
    {'mixture', 'tasks', 'examples', 'tokens', 'loss_tokens'}, those of examples that are not
    dropped.

  Raises:
    PreparedDataError: no example is left. ValueError: see `mixture_entries`.
  """
  totals, dropped = collections.Counter(), collections.Counter()
  entries = mixture_entries(MixtureName.parse(mixture), settings)
  for entry in entries:
    rows = [entry.task.fields(row) for _, row in entry.task.items('train')[:sample].tolist()]
    made = []
    for example in entry.task.examples(rows, settings.max_length):
      if isinstance(example, Rejected):
        dropped[example.reason] += 1
      else:
        made.append(example)
    share = entry.examples / max(1, len(rows))
    totals['examples'] += len(made) * share
    totals['tokens'] += sum(len(example.tokens) for example in made) * share
    totals['loss_tokens'] += float(sum(example.loss_weights.sum() for example in made)) * share
  if not totals['examples']:
    raise PreparedDataError(f'mixture {mixture} has no example left: {_reasons(dropped)} dropped')
  counts = {name: round(totals[name]) for name in ('examples', 'tokens', 'loss_tokens')}
  return {'mixture': mixture, 'tasks': len(entries), **counts}


def _written(output_dir: str, specs: dict[str, TaskSpec]):
  """The folder to write in; of a remote one the Mirror, with the manifests of finished Tasks and
  all of those that were begun.
  """
  if not remote.is_remote(output_dir):
    return contextlib.nullcontext(mirror.Folder(output_dir))

  def pull(names: set[str]) -> set[str]:
    wanted = set()
    for task in specs:
      manifest = f'tasks/{task}/manifest.json'
      wanted |= (
        {manifest}
        if manifest in names
        else {name for name in names if name.startswith(f'tasks/{task}/')}
      )
    return wanted

  return mirror.Mirror(output_dir, pull=pull, markers=('tasks/*/manifest.json', 'mixtures/*.json'))


def _write(
  files: mirror.Folder, mixture: str, name: MixtureName, entries, settings, workers, overwrite
):
  """Writes what is missing; returns the written Tasks and all manifests."""
  output_dir, specs = files.path, {entry.task.name: entry.task for entry in entries}
  todo = {}
  for task, spec in specs.items():
    if not _is_prepared(files, spec, settings.max_length, overwrite):
      todo[task] = spec
  try:
    _tokenise(todo, files, settings.max_length, workers or len(os.sched_getaffinity(0)))
    manifests = {task: _read_manifest(files, task) for task in specs}
    tasks = [
      {
        'task': entry.task.name,
        'component': entry.task.component,
        'rate': entry.rate,
        'volume': entry.volume,
        'fingerprint': manifests[entry.task.name]['fingerprint'],
      }
      for entry in entries
    ]
    vocabulary = settings.vocabulary.with_template(settings.template)
    prompts = {
      'template': settings.template,
      'tags': settings.preset(name.preset).tags,
      'chat_template': vocabulary.chat if settings.template == CHAT else None,
      'chat_options': dict(vocabulary.chat_options),
      'special_tokens_in_text': vocabulary.special_tokens_in_text,
      'system_role': vocabulary.system_role,
      'stop_id': stop_id(vocabulary, settings.template),
    }
    write_mixture(
      output_dir, mixture, tasks, vocabulary, rates=settings.rates,
      max_length=settings.max_length, languages=list(name.languages), prompts=prompts,
    )  # fmt: skip
  except remote.RemoteError:
    raise
  except OSError as error:
    other = (
      'give another --output_dir'
      if output_dir == files.url
      else 'set CROSSIN_CACHE to a folder on another disk'
    )
    raise PreparedDataError(
      f'cannot write in {output_dir} ({error.strerror or error}). Make room there, or {other}; '
      'finished parts are kept'
    ) from error
  return todo, manifests


def _is_prepared(files: mirror.Folder, spec: TaskSpec, max_length: int, overwrite: bool) -> bool:
  manifest = _read_manifest(files, spec.name)
  if manifest is None:
    return False
  wanted = spec.fingerprint_parts(max_length)
  if manifest.get('format') == FORMAT and manifest['fingerprint'] == prepared.fingerprint(wanted):
    return True
  if overwrite:
    return False
  saved = manifest.get('fingerprint_parts', {})
  differences = [
    f'{key} was {_short(saved.get(key))}, now {_short(wanted.get(key))}'
    for key in {**wanted, **saved}
    if saved.get(key) != wanted.get(key)
  ] or ['written by another version']
  raise PreparedDataError(
    f'{os.path.join(files.url, "tasks", spec.name)} is stale: {"; ".join(differences)}. '
    'Give --overwrite to write it again, or another --output_dir'
  )


def _short(value) -> str:
  text = str(value)
  return text if len(text) <= 60 else text[:28] + ' ... ' + text[-28:]


def _read_manifest(files: mirror.Folder, task: str) -> dict | None:
  try:
    with open(os.path.join(files.path, 'tasks', task, 'manifest.json'), encoding='utf-8') as f:
      return json.load(f)
  except FileNotFoundError:
    return None
  except ValueError as error:
    path = os.path.join(files.url, 'tasks', task, 'manifest.json')
    raise PreparedDataError(
      f'{path} is not valid JSON ({error}); delete {os.path.dirname(path)} and prepare again'
    ) from None


def _tokenise(
  specs: dict[str, TaskSpec], files: mirror.Folder, max_length: int, workers: int
) -> None:
  """Writes all parts of all Tasks, then their manifests."""
  jobs, parts, output_dir = [], {}, files.path
  for task, spec in specs.items():
    directory = os.path.join(output_dir, 'tasks', task)
    os.makedirs(directory, exist_ok=True)
    fingerprint = prepared.fingerprint(spec.fingerprint_parts(max_length))
    manifest = os.path.join(directory, 'manifest.json')
    if os.path.exists(manifest):
      os.unlink(manifest)  # --overwrite: the Task is incomplete from here on
    for split in ('train', 'validation'):
      parts[task, split] = []
      count = len(spec.items(split))
      for start in range(0, count, PART):
        base = os.path.join(directory, f'{split}-{start // PART:05d}')
        parts[task, split].append(base)
        if not _finished(base, fingerprint):
          jobs.append((task, split, start, min(start + PART, count), base, fingerprint))
  files.push()  # a manifest must not exist while its parts change
  if jobs:
    _run_jobs(jobs, specs, max_length, workers)
  for task, spec in specs.items():
    splits = {}
    for split in ('train', 'validation'):
      records = []
      for base in parts[task, split]:
        with open(f'{base}.json', encoding='utf-8') as f:
          records.append(json.load(f))
      splits[split] = {
        'parts': [
          {key: r[key] for key in ('file', 'examples', 'tokens', 'loss_tokens')} for r in records
        ],
        **{
          key: sum(r[key] for r in records) for key in ('rows', 'examples', 'tokens', 'loss_tokens')
        },
        **{
          key: dict(sum((collections.Counter(r[key]) for r in records), collections.Counter()))
          for key in ('dropped', 'shortened')
        },
      }
    skipped = {f'{language}: {why}': n for (language, why), n in spec.source.set_aside().items()}
    directory = os.path.join(output_dir, 'tasks', task)
    parts_of = spec.fingerprint_parts(max_length)
    write_manifest(directory, parts_of, spec.info, splits, source_rows_set_aside=skipped)
    for split in splits:
      for base in parts[task, split]:
        os.unlink(f'{base}.json')


def _finished(base: str, fingerprint: str) -> bool:
  try:
    with open(f'{base}.json', encoding='utf-8') as f:
      return json.load(f)['fingerprint'] == fingerprint and os.path.exists(f'{base}.arrow')
  except (OSError, ValueError, KeyError):
    return False


def _run_jobs(jobs, specs, max_length, workers) -> None:
  os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')  # a process for each core is enough
  progress = Progress(sum(job[3] - job[2] for job in jobs), 'prepare: examples')
  progress.show(0)
  done = 0
  if workers == 1 or sum(job[3] - job[2] for job in jobs) < 2 * PART:
    # Starting processes costs more than this work.
    for job in jobs:
      done += _tokenise_part(specs[job[0]], job, max_length)
      progress.show(done)
    return
  # A forked worker shares the rows that this process read. A process with the threads of JAX,
  # TensorFlow or gcsfs must not fork; its workers read the rows again.
  threaded = {'jax', 'tensorflow', 'gcsfs'} & sys.modules.keys()
  context = multiprocessing.get_context('spawn' if threaded else 'fork')
  with concurrent.futures.ProcessPoolExecutor(
    workers, context, _start_worker, (specs, max_length)
  ) as pool:
    futures = [pool.submit(_job, job) for job in jobs]
    try:
      for future in concurrent.futures.as_completed(futures):
        done += future.result()
        progress.show(done)
    except BaseException:
      pool.shutdown(wait=False, cancel_futures=True)
      raise


_worker: tuple | None = None


def _start_worker(specs, max_length):
  global _worker  # set once per worker process
  _worker = specs, max_length


def _job(job) -> int:
  specs, max_length = _worker
  return _tokenise_part(specs[job[0]], job, max_length)


def _tokenise_part(spec: TaskSpec, job, max_length: int) -> int:
  """Writes one part and its record; returns how many items it covered."""
  _, split, start, end, base, fingerprint = job
  examples, dropped, shortened = [], collections.Counter(), collections.Counter()
  items = spec.items(split)[start:end].tolist()
  for first in range(0, len(items), TOGETHER):
    some = items[first : first + TOGETHER]
    rows = [spec.fields(row) for _, row in some]
    for (rank, _), row, example in zip(some, rows, spec.examples(rows, max_length)):
      if isinstance(example, Rejected):
        dropped[example.reason] += 1
        continue
      if example.shortened:
        shortened[example.shortened] += 1
      branches = () if example.branches is None else (example.branches,)
      examples.append((row['id'], rank, example.tokens, example.loss_weights, *branches))
  write_part(f'{base}.arrow', examples)
  write_json(
    f'{base}.json',
    {
      'fingerprint': fingerprint,
      'file': os.path.basename(base) + '.arrow',
      'rows': end - start,
      'examples': len(examples),
      'tokens': int(sum(len(e[2]) for e in examples)),
      'loss_tokens': float(np.concatenate([np.zeros(0), *(e[3] for e in examples)]).sum()),
      'dropped': dropped,
      'shortened': shortened,
    },
  )
  return end - start


def main(argv: list[str]) -> int:
  """The command line of `crossin prepare`."""
  args = flags.prepare_parser().parse_args(argv)
  if args.reference:
    # Models have settings too, which must be known before any is read.
    importlib.import_module('crossin_jax.decoding.reference')
  config.parse_with(args, OF_RUNS)
  if args.dry_run:
    summary = estimate(args.mixture, MixtureSettings())
    print(
      f'{summary["mixture"]}: {summary["tasks"]} tasks, about {summary["examples"]:,} examples and '
      f'{summary["tokens"]:,} tokens ({summary["loss_tokens"]:,} trained); nothing is written'
    )
    return command_line.finish(args, summary)
  described = os.path.join(args.output_dir, 'mixtures', f'{args.mixture}.json')
  if not args.overwrite and remote.exists(described):  # names on the hub mean what they did
    hub_names.keep(' '.join(load_json(described).get('hub', ())))
  summary = prepare(args.mixture, args.output_dir, MixtureSettings(), args.workers, args.overwrite)
  if args.reference:
    summary['reference'] = _store_reference(args)
  counts = f'dropped: {_reasons(summary["dropped"])}'
  if summary['shortened']:
    counts += f', shortened: {_reasons(summary["shortened"])}'
  print(
    f'{summary["mixture"]}: {summary["tasks"]} tasks ({summary["tokenised"]} new), '
    f'{summary["examples"]:,} examples, '
    f'{summary["tokens"]:,} tokens ({summary["loss_tokens"]:,.0f} trained), {counts}, '
    f'{summary["seconds"]:.1f} s -> {args.output_dir}',
    *(
      [f'rows of the sources set aside: {counts_of(summary["set_aside"])}']
      * bool(summary['set_aside'])
    ),
    *summary['notes'],
    *(
      f'reference {args.reference}: log-probabilities of {stored["pairs"]:,} pairs '
      f'({stored["computed"]:,} new)'
      for stored in [summary.get('reference')]
      if stored
    ),
    sep='\n',
    file=sys.stderr,
  )
  return command_line.finish(args, summary)


def _store_reference(args) -> dict:
  """Stores the log-probabilities of the pairs under a checkpoint, see `store_reference`."""
  # Here, because they take seconds to import.
  from crossin_jax.checkpoints.saved_model import SavedModel
  from crossin_jax.decoding.reference import store_reference
  from crossin_jax.devices.partitioning import Partitioner

  mixture = prepared.PreparedMixture(args.output_dir, args.mixture)
  if not mixture.has_pairs:
    raise PreparedDataError(f'--reference: mixture {args.mixture} has no preference pairs')
  source = SavedModel.open(args.reference)
  # The gin files are those of the mixture, the configuration of the model is its own.
  own = argparse.Namespace(
    gin_file=[],
    gin_search_paths=args.gin_search_paths,
    gin_bindings=list(args.gin_bindings),
    known_macros=tuple(config.macros()),
  )
  return store_reference(mixture, source, source.module(own), Partitioner())


def _reasons(counts: Mapping[str, int]) -> str:
  return ', '.join(f'{count:,} {reason}' for reason, count in counts.items()) or 'none'


def counts_of(set_aside: Mapping[str, Mapping[str, int]]) -> str:
  """'alpaca (es: control_characters 96, zh: null_field 2)'; 'none'."""
  return (
    ', '.join(
      f'{source} ({", ".join(f"{why} {count:,}" for why, count in reasons.items())})'
      for source, reasons in set_aside.items()
    )
    or 'none'
  )
