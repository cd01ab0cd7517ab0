"""`crossin inspect`: counts of a prepared mixture and of its training batches, and examples."""

import sys

import numpy as np

from crossin_jax import config
from crossin_jax.data import fertility, flags
from crossin_jax.data.prepared import MixtureTask, PreparedMixture
from crossin_jax.data.stream import BatchStream
from crossin_jax.data.vocabulary import Vocabulary
from crossin_jax.workflow import command_line


def inspect(
  mixture: PreparedMixture,
  *,
  batch_size: int = 16,
  length: int = 2048,
  seed: int = 0,
  steps: int | None = None,
) -> dict:
  """Counts of a mixture, and of the first `steps` batches of its stream.

  Args:
    mixture: to inspect.
    batch_size, length, seed: of the stream.
    steps: batches to read; None = those of one window of examples.

  Returns:
    {'mixture', 'tasks': [{'task', 'examples', 'rate', 'share_examples', 'share_tokens',
    'share_loss_tokens', 'epochs_per_1000_steps', 'length': {'mean', 'median', 'p95', 'max'},
    'dropped', 'shortened', 'set_aside'}], 'components': {name: {'rate', 'share_examples',
    'share_loss_tokens'}}, 'steps', 'packing_utilisation', 'examples_per_row',
    'dropped_by_packing'}; shares are fractions of the batches read.
  """
  stream = BatchStream(mixture, batch_size=batch_size, length=length, seed=seed)
  steps = steps or max(1, stream.rows_per_window // batch_size)
  count = len(mixture.tasks)
  tokens, loss_tokens, examples = np.zeros(count), np.zeros(count), np.zeros(count)
  used = 0
  for step in range(steps):
    batch = stream.batch(step)
    real = batch['decoder_segment_ids'] > 0
    used += int(real.sum())
    tasks, weights = batch['decoder_task_ids'], batch['decoder_loss_weights']
    tokens += np.bincount(tasks[real], minlength=count)
    loss_tokens += np.bincount(tasks[real], weights=weights[real], minlength=count)
    first = real & (batch['decoder_positions'] == 0)
    if 'decoder_pair_ids' in batch:  # a pair is one example, and may have several segments
      pairs = batch['decoder_pair_ids']
      first &= (pairs == 0) | (pairs == batch['decoder_segment_ids'])
    examples += np.bincount(tasks[first], minlength=count)
  total_rate = sum(task.rate for task in mixture.tasks)
  per_1000 = stream.epochs(1000)
  rows = [
    {
      'task': task.split.name,
      'examples': task.examples,
      'rate': task.rate / total_rate,
      'share_examples': float(examples[t] / examples.sum()),
      'share_tokens': float(tokens[t] / tokens.sum()),
      'share_loss_tokens': float(loss_tokens[t] / loss_tokens.sum()),
      'epochs_per_1000_steps': per_1000[task.split.name],
      **_static_counts(task),
    }
    for t, task in enumerate(mixture.tasks)
  ]
  component_of = {entry['task']: entry['component'] for entry in mixture.description['tasks']}
  components = {}
  for row in rows:
    sums = components.setdefault(
      component_of[row['task']], {'rate': 0.0, 'share_examples': 0.0, 'share_loss_tokens': 0.0}
    )
    for key in sums:
      sums[key] += row[key]
  return {
    'mixture': mixture.name,
    'tasks': rows,
    'components': components,
    'steps': steps,
    'packing_utilisation': used / (steps * batch_size * length),
    'examples_per_row': float(examples.sum() / (steps * batch_size)),
    'dropped_by_packing': stream.dropped,
  }


def _static_counts(task: MixtureTask) -> dict:
  lengths, manifest = task.split.lengths[: task.examples], task.split.manifest
  return {
    'length': {
      'mean': float(lengths.mean()),
      'median': float(np.median(lengths)),
      'p95': float(np.percentile(lengths, 95)),
      'max': int(lengths.max()),
    },
    'dropped': manifest['splits']['train']['dropped'],
    'shortened': manifest['splits']['train']['shortened'],
    'set_aside': manifest['source_rows_set_aside'],
  }


def marked(
  vocabulary: Vocabulary, tokens, loss_weights, colour: bool, stop_id: int | None = None,
  branches=None,
) -> str:  # fmt: skip
  """An example as text, its trained parts underlined and green or between ⟦ and ⟧.

  Of a preference pair each answer stands on a line of its own behind + or -, the rejected one in
  red. Decodes the ids of each part, so the text is what the model sees, not what the row has.
  Special tokens of a chat template are shown; the stop token that is trained is ⏎stop.
  """
  pieces = []
  trained = np.asarray(loss_weights) > 0
  numbers = np.zeros(len(tokens), int) if branches is None else np.asarray(branches)
  changes = np.diff(trained.astype(int)).astype(bool) | np.diff(numbers).astype(bool)
  edges = [0, *(np.flatnonzero(changes) + 1).tolist(), len(tokens)]
  for start, end in zip(edges, edges[1:]):
    ids = [int(i) for i in tokens[start:end]]
    stop = bool(trained[start]) and ids[-1] in (vocabulary.eos_id, stop_id)
    shown = vocabulary.specials_in(ids[:-1] if stop else ids)
    text = vocabulary.decode(ids[:-1] if stop else ids, shown) + '⏎stop' * stop
    rejected = numbers[start] > 0 and numbers[start] % 2 == 0
    if trained[start]:
      text = f'\033[4;{31 if rejected else 32}m{text}\033[0m' if colour else f'⟦{text}⟧'
    if numbers[start]:
      text = f'\n{"-" if rejected else "+"} {text}'
    elif start and branches is not None:  # the prompt of the second half
      text = f'\n{text}'
    pieces.append(text)
  return ''.join(pieces)


def table(report: dict) -> str:
  """The report of `inspect` as text."""
  width = max(len(row['task']) for row in report['tasks'])
  head = ('examples', 'rate', 'examples', 'tokens', 'trained', 'epochs', 'length', 'p95', 'max')
  lines = [
    f'{"":{width}}{"":>10}{"":>9}{"share realised in":>27}{"per 1000":>10}',
    f'{"task":{width}}' + ''.join(f'{h:>{w}}' for h, w in zip(head, (10, 9, 9, 9, 9, 10, 8, 7, 7))),
  ]
  for row in report['tasks']:
    shares = ''.join(
      f'{row[k]:>9.4f}' for k in ('rate', 'share_examples', 'share_tokens', 'share_loss_tokens')
    )
    length = row['length']
    lines.append(
      f'{row["task"]:{width}}{row["examples"]:>10,}{shares}{row["epochs_per_1000_steps"]:>10.2f}'
      f'{length["mean"]:>8.0f}{length["p95"]:>7.0f}{length["max"]:>7,}'
    )
    for key, name in (('dropped', 'dropped'), ('shortened', 'shortened'), ('set_aside', 'skipped')):
      if row[key]:
        reasons = ', '.join(f'{count:,} {reason}' for reason, count in row[key].items())
        lines.append(f'{"":{width}}  {name}: {reasons}')
  lines += [
    f'component {name}: rate {sums["rate"]:.4f}, {sums["share_examples"]:.4f} of examples, '
    f'{sums["share_loss_tokens"]:.4f} of trained tokens'
    for name, sums in report['components'].items()
  ]
  lines.append(
    f'packing: {report["packing_utilisation"]:.2%} of positions used, '
    f'{report["examples_per_row"]:.1f} examples a row, '
    f'{report["dropped_by_packing"]} examples found no room'
  )
  return '\n'.join(lines)


def main(argv: list[str]) -> int:
  """The command line of `crossin inspect`."""
  args = flags.parser().parse_args(argv)
  config.parse(args)
  mixture = PreparedMixture(args.data_dir, args.mixture)
  report = inspect(
    mixture, batch_size=args.batch_size, length=args.length, seed=args.seed, steps=args.steps
  )
  show = print
  show(f'{report["mixture"]}: {report["steps"]} batches of {args.batch_size} x {args.length}')
  show(table(report))
  words = mixture.description['vocabulary']
  vocabulary = Vocabulary(mixture.vocabulary_path, words['bos_token'], words['eos_token'])
  stop_id, colour = mixture.description['prompts'].get('stop_id'), sys.stderr.isatty()
  stops = {vocabulary.eos_id, stop_id}
  report['languages'] = fertility.fertility(mixture, vocabulary, stop_ids=stops)
  show('\n' + fertility.table(report['languages']))
  for task in mixture.tasks:
    for index in range(min(args.examples, task.examples)):
      tokens, weights = task.split.example(index)
      show(
        f'\n--- {task.split.name}, row {task.split.id(index)}: {len(tokens)} tokens, '
        f'{weights.sum():g} trained'
      )
      branches = task.split.branches(index) if task.split.has_pairs else None
      show(marked(vocabulary, tokens, weights, colour, stop_id, branches))
  return command_line.finish(args, report)
