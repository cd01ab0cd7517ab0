"""Writes any registered SeqIO Task or Mixture as prepared token files for `crossin train`.

    python -m crossin_jax.t5x_bridge.seqio_data --mixture my_mixture --module my_tasks
        --output_dir prepared --max_length 2048

It does not need T5X. For mixtures of this project use `crossin prepare`, which is faster and keeps
languages separate.
"""

import hashlib
import importlib
import os
import sys

import numpy as np

from crossin_jax.data import prepared
from crossin_jax.data.prepared import PreparedDataError, safe_file_name, write_part
from crossin_jax.data.vocabulary import Vocabulary
from crossin_jax.progress import Progress
from crossin_jax.storage.files import read_json
from crossin_jax.workflow import command_line

PART = 8192  # examples in one file
SPLITS = ('train', 'validation')
_TOO_LONG = 'longer than max_length'


def prepare(
  mixture: str, output_dir: str, max_length: int, vocabulary: Vocabulary | None = None
) -> dict:
  """Writes one unshuffled epoch of every Task of a SeqIO Mixture, and the Mixture with its rates.

  A Task has `targets`, and `inputs` (the prompt, not trained) or `loss_weights`, or neither (all
  tokens are trained). Tokens that its preprocessors append, such as the stop token, are kept.
  Examples longer than max_length are dropped and counted.

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
    found = seqio.get_mixture_or_task(mixture)
  except ValueError as error:
    raise PreparedDataError(
      f'{error}. Give --module, the Python module that registers {mixture}'
    ) from None
  tasks = seqio.get_subtasks(found)
  rates = [
    float(found.get_rate(task)) if isinstance(found, seqio.Mixture) else 1.0 for task in tasks
  ]
  vocabulary = vocabulary or _vocabulary_of(found.output_features['targets'].vocabulary)
  entries, totals, name = [], {'examples': 0, 'tokens': 0, 'dropped': 0}, _file_name(mixture)
  for task, rate in zip(tasks, rates):
    manifest = _write_task(task, output_dir, max_length, vocabulary)
    entries.append({
      'task': manifest['task']['name'], 'component': 'seqio', 'rate': rate / sum(rates),
      'volume': None, 'fingerprint': manifest['fingerprint'],
    })  # fmt: skip
    for split in manifest['splits'].values():
      totals['examples'] += split['examples']
      totals['tokens'] += split['tokens']
      totals['dropped'] += split['dropped'][_TOO_LONG]
  prompts = {
    'template': 'plain', 'tags': False, 'chat_template': None, 'stop_id': vocabulary.eos_id,
  }  # fmt: skip
  prepared.write_mixture(
    output_dir, name, entries, vocabulary, rates='seqio', max_length=max_length, languages=[],
    prompts=prompts,
  )  # fmt: skip
  return {'mixture': name, **totals}


def _file_name(name: str) -> str:
  """SeqIO's names may have a '#'."""
  return safe_file_name(name.replace('#', '.'))


def _vocabulary_of(vocabulary) -> Vocabulary:
  """The tokenizer file behind a SeqIO vocabulary."""
  own = getattr(vocabulary, '_vocabulary', None)
  if isinstance(own, Vocabulary):
    return own
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


def _write_task(task, output_dir: str, max_length: int, vocabulary: Vocabulary) -> dict:
  """Writes the parts and the manifest of a Task; returns the manifest."""
  name = _file_name(task.name)
  directory = os.path.join(output_dir, 'tasks', name)
  manifest = os.path.join(directory, 'manifest.json')
  if os.path.exists(manifest):
    if read_json(manifest, 'prepare again').get('task', {}).get('component') != 'seqio':
      raise PreparedDataError(
        f'{directory} was written by `crossin prepare`; give another --output_dir'
      )
    os.unlink(manifest)  # the Task is unfinished from here on
  os.makedirs(directory, exist_ok=True)
  digest = hashlib.sha256()
  splits = {
    split: _write_split(task, split, directory, max_length, vocabulary, digest)
    for split in SPLITS
    if split in task.splits
  }
  parts = {
    'seqio task': task.name, 'max_length': max_length, 'vocabulary': vocabulary.digest,
    'examples': digest.hexdigest(),
  }  # fmt: skip
  info = {
    'name': name, 'source': name, 'component': 'seqio', 'mode': 'seqio', 'source_language': 'und',
    'target_language': 'und',
  }  # fmt: skip
  return prepared.write_manifest(output_dir, name, parts, info, splits)


def _write_split(
  task, split: str, directory: str, max_length: int, vocabulary: Vocabulary, digest
) -> dict:
  """Writes the parts of a split and adds its examples to the digest; returns its counts."""
  records, part, dropped = [], [], 0
  progress = Progress(task.num_input_examples(split) or 0, f'{task.name} {split}: examples')

  def flush():
    file = f'{split}-{len(records):05d}.arrow'
    write_part(os.path.join(directory, file), part)
    records.append({
      'file': file, 'examples': len(part),
      'tokens': int(sum(len(tokens) for _, _, tokens, _ in part)),
      'loss_tokens': float(sum(weights.sum() for *_, weights in part)),
    })  # fmt: skip
    part.clear()

  # With a length of max_length, SeqIO would truncate longer examples silently.
  features = ('inputs', 'targets', 'loss_weights')
  lengths = {key: max_length + 1 for key in features if key in task.output_features}
  examples = task.get_dataset(sequence_length=lengths, split=split, shuffle=False, num_epochs=1)
  for rank, example in enumerate(examples.as_numpy_iterator()):
    tokens, weights = _tokens(task.name, rank, example, vocabulary)
    progress.show(rank + 1)
    if len(tokens) > max_length:
      dropped += 1
      continue
    digest.update(tokens.tobytes() + weights.tobytes())
    part.append((_id(example, f'{split}/{rank}'), rank, tokens, weights))
    if len(part) == PART:
      flush()
  if part or not records:
    flush()
  totals = ('examples', 'tokens', 'loss_tokens')
  return {
    'parts': records,
    **{key: sum(record[key] for record in records) for key in totals},
    'dropped': {_TOO_LONG: dropped},
  }


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
