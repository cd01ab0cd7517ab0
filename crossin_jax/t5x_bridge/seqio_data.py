"""Any registered SeqIO Task or Mixture as prepared token files, for `crossin train` to train on.

    python -m crossin_jax.t5x_bridge.seqio_data --mixture my_mixture --module my_tasks --output_dir
    prepared --max_length 2048

It does not need T5X. Prepare this project's own mixtures with `crossin prepare`, which is faster
and keeps languages apart.
"""

import hashlib
import importlib
import os
import sys

import numpy as np

from crossin_jax.data.prepared import (
  PreparedDataError,
  safe_file_name,
  write_manifest,
  write_mixture,
  write_part,
)
from crossin_jax.data.vocabulary import Vocabulary
from crossin_jax.progress import Progress
from crossin_jax.storage.files import read_json
from crossin_jax.workflow import command_line

PART = 8192  # examples in one file
SPLITS = ('train', 'validation')


def prepare(
  mixture: str, output_dir: str, max_length: int, vocabulary: Vocabulary | None = None
) -> dict:
  """Writes one epoch of every Task of a SeqIO Mixture, unshuffled, and the Mixture with its rates.

  A Task has `targets`, and `inputs` (the prompt, not trained) or `loss_weights`, or neither (all is
  trained). What its preprocessors append, such as a stop token, is kept. Examples longer than
  max_length are skipped and counted.

  Args:
    mixture: name of a registered Task or Mixture.
    output_dir: D of `crossin_jax.data.prepared`.
    max_length: most tokens of an example.
    vocabulary: the tokenizer; None = that of `targets`, if it is a SentencePiece file or one of
      this project's.

  Returns:
    {'mixture', 'examples', 'tokens', 'dropped'}.

  Raises:
    PreparedDataError: no such mixture, ids that the tokenizer does not have, a tokenizer that
      cannot be written to a file.
  """
  import seqio

  try:
    registered = seqio.get_mixture_or_task(mixture)
  except ValueError as error:
    raise PreparedDataError(
      f'{error}. Give --module, the Python module that registers {mixture}'
    ) from None
  tasks = seqio.get_subtasks(registered)
  is_mixture = isinstance(registered, seqio.Mixture)
  rates = [float(registered.get_rate(task)) if is_mixture else 1.0 for task in tasks]
  vocabulary = vocabulary or _vocabulary_of(registered.output_features['targets'].vocabulary)
  entries, totals = [], {'examples': 0, 'tokens': 0, 'dropped': 0}
  for task, rate in zip(tasks, rates):
    name = _file_name(task.name)
    manifest = _write_task(task, name, output_dir, max_length, vocabulary)
    entry = {'task': name, 'component': 'seqio', 'rate': rate / sum(rates), 'volume': None}
    entries.append(entry | {'fingerprint': manifest['fingerprint']})
    for split in manifest['splits'].values():
      totals['examples'] += split['examples']
      totals['tokens'] += split['tokens']
      totals['dropped'] += split['dropped']['longer than max_length']
  prompts = {'template': 'plain', 'tags': False, 'chat_template': None}
  write_mixture(
    output_dir, _file_name(mixture), entries, vocabulary, rates='seqio', max_length=max_length,
    languages=[], prompts=prompts | {'stop_id': vocabulary.eos_id},
  )  # fmt: skip
  return {'mixture': _file_name(mixture), **totals}


def _file_name(name: str) -> str:
  """SeqIO's names may have a '#'."""
  return safe_file_name(name.replace('#', '.'))


def _vocabulary_of(vocabulary) -> Vocabulary:
  """The tokenizer file behind a SeqIO vocabulary."""
  wrapped = getattr(vocabulary, '_vocabulary', None)
  if isinstance(wrapped, Vocabulary):
    return wrapped
  path = getattr(vocabulary, 'sentencepiece_model_file', None) or getattr(
    vocabulary, '_sentencepiece_model_file', None
  )
  if path and os.path.isfile(path):
    return Vocabulary(path)
  raise PreparedDataError(
    f'the vocabulary {type(vocabulary).__name__} has no tokenizer file here; give --vocabulary, a '
    'SentencePiece .model or a '
    'tokenizer.json with the same ids'
  )


def _write_task(task, name: str, output_dir: str, max_length: int, vocabulary: Vocabulary) -> dict:
  directory = os.path.join(output_dir, 'tasks', name)
  manifest = os.path.join(directory, 'manifest.json')
  if os.path.exists(manifest):
    if read_json(manifest, 'prepare again').get('task', {}).get('component') != 'seqio':
      raise PreparedDataError(
        f'{directory} was written by `crossin prepare`; give another --output_dir'
      )
    os.unlink(manifest)  # the Task is incomplete from here on
  os.makedirs(directory, exist_ok=True)
  digest = hashlib.sha256()
  splits = {
    split: _write_split(task, split, directory, max_length, vocabulary, digest)
    for split in SPLITS
    if split in task.splits
  }
  parts = {
    'seqio task': task.name,
    'max_length': max_length,
    'vocabulary': vocabulary.digest,
    'examples': digest.hexdigest(),
  }
  info = {'name': name, 'source': name, 'component': 'seqio', 'mode': 'seqio'}
  languages = {'source_language': 'und', 'target_language': 'und'}
  return write_manifest(directory, parts, info | languages, splits)


def _write_split(task, split: str, directory: str, max_length: int, vocabulary, digest) -> dict:
  """Writes the Arrow files of a split, updates the digest with its tokens; returns its counts."""
  parts, part, dropped = [], [], 0
  progress = Progress(task.num_input_examples(split) or 0, f'{task.name} {split}: examples')

  def flush():
    file = f'{split}-{len(parts):05d}.arrow'
    write_part(os.path.join(directory, file), part)
    tokens = int(sum(len(tokens) for _, _, tokens, _ in part))
    loss_tokens = float(sum(weights.sum() for *_, weights in part))
    counts = {'examples': len(part), 'tokens': tokens, 'loss_tokens': loss_tokens}
    parts.append({'file': file, **counts})
    part.clear()

  # Longer than max_length, because SeqIO cuts over-long examples without a message.
  features = [key for key in ('inputs', 'targets', 'loss_weights') if key in task.output_features]
  lengths = dict.fromkeys(features, max_length + 1)
  dataset = task.get_dataset(sequence_length=lengths, split=split, shuffle=False, num_epochs=1)
  for rank, example in enumerate(dataset.as_numpy_iterator()):
    tokens, weights = _tokens(task.name, rank, example, vocabulary)
    progress.show(rank + 1)
    if len(tokens) > max_length:
      dropped += 1
      continue
    digest.update(tokens.tobytes() + weights.tobytes())
    part.append((_id(example, f'{split}/{rank}'), rank, tokens, weights))
    if len(part) == PART:
      flush()
  if part or not parts:
    flush()
  totals = {
    key: sum(record[key] for record in parts) for key in ('examples', 'tokens', 'loss_tokens')
  }
  return {'parts': parts, **totals, 'dropped': {'longer than max_length': dropped}}


def _tokens(
  task: str, rank: int, example: dict, vocabulary: Vocabulary
) -> tuple[np.ndarray, np.ndarray]:
  """Tokens int32 and loss weights float32 of one example."""
  targets = np.asarray(example['targets'], np.int32)
  if 'loss_weights' in example:
    tokens, weights = targets, np.asarray(example['loss_weights'], np.float32)
  else:
    prompt = np.asarray(example.get('inputs', ()), np.int32)
    tokens = np.concatenate([prompt, targets])
    weights = (np.arange(len(tokens)) >= len(prompt)).astype(np.float32)
  if len(tokens) and (tokens.max() >= vocabulary.size or tokens.min() < 0):
    raise PreparedDataError(
      f'task {task}, example {rank} holds id {tokens.max()}, {vocabulary.path} has '
      f'{vocabulary.size}; give the tokenizer that the '
      'task uses with --vocabulary'
    )
  return tokens, weights


def _id(example: dict, otherwise: str) -> str:
  value = example.get('id', otherwise)
  return value.decode('utf-8') if isinstance(value, bytes) else str(value)


def main(argv: list[str]) -> int:
  """The command line."""
  parser = command_line.Parser(
    'python -m crossin_jax.t5x_bridge.seqio_data',
    'Write a registered SeqIO Task or Mixture as token files that `crossin train` reads.',
    'python -m crossin_jax.t5x_bridge.seqio_data --mixture my_mixture --module my_tasks '
    '--output_dir prepared --max_length 2048',
  )
  parser.add_argument('--mixture', required=True, help='name of a registered Task or Mixture')
  parser.add_argument(
    '--module', action='append', default=[], help='Python module that registers it; may be repeated'
  )
  parser.add_argument('--output_dir', required=True, help='where tasks/ and mixtures/ are written')
  parser.add_argument('--max_length', type=int, required=True, help='most tokens of an example')
  parser.add_argument(
    '--vocabulary', help='SentencePiece .model or tokenizer.json (default: that of the mixture)'
  )
  args = parser.parse_args(argv)
  try:
    for module in args.module:
      importlib.import_module(module)
    summary = prepare(
      args.mixture,
      args.output_dir,
      args.max_length,
      Vocabulary(args.vocabulary) if args.vocabulary else None,
    )
  except (ValueError, OSError, ImportError) as error:
    print(f'error: {error}', file=sys.stderr)
    return 1
  print(
    f'{summary["mixture"]}: {summary["examples"]:,} examples, {summary["tokens"]:,} tokens, '
    f'{summary["dropped"]:,} longer than '
    f'{args.max_length} left out -> {args.output_dir}',
    file=sys.stderr,
  )
  return command_line.finish(args, summary)


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
