"""SeqIO Tasks of this project for T5X's gin files, and the results of T5X's inference."""

import gin
import numpy as np

from crossin_jax.data.vocabulary import Vocabulary
from crossin_jax.storage.files import write_jsonl


@gin.configurable
def t5x_mixture(name: str) -> str:
  """Registers a CrossIn mixture and its Tasks with SeqIO, from `MixtureSettings` as gin has it;
  returns the name.
  """
  import seqio_tasks

  seqio_tasks.register(name)
  return name


@gin.configurable
def t5x_benchmark(
  benchmark: str,
  path: str,
  vocabulary: Vocabulary,
  languages: tuple[str, ...] | None = None,
  prompts: tuple[int, ...] | None = (1,),
  split: str | None = None,
  method: str = 'likelihood',
  protocol: str = 'strict',
) -> str:
  """Registers a benchmark's Tasks of one method with SeqIO, and a Mixture of them; returns the
  Mixture's name.

  Args:
    method: 'likelihood' or 'generate'.
    benchmark, path, vocabulary, languages, prompts, split, protocol: see
    `seqio_tasks.benchmark_tasks.register`.

  Raises:
    ValueError: the benchmark has no such method, and see there.
  """
  import seqio

  from seqio_tasks import benchmark_tasks

  names = benchmark_tasks.register(
    benchmark,
    path,
    vocabulary,
    languages=languages,
    prompts=prompts,
    split=split,
    protocol=protocol,
  )
  chosen = [name for name in names if name.endswith(f'.{method}')]
  if not chosen:
    known = sorted({name.rsplit('.', 1)[1] for name in names})
    raise ValueError(f't5x_benchmark.method = {method!r}: {benchmark} has {", ".join(known)}')
  mixture = f'{benchmark}.{method}'
  seqio.MixtureRegistry.remove(mixture)
  seqio.MixtureRegistry.add(mixture, chosen, default_rate=1.0)
  return mixture


@gin.configurable
def t5x_predictions(path, inferences, task_ds, mode: str, vocabulary=None) -> None:
  """Writes what `t5x.infer` found as JSONL: {"id", "prediction"}, or {"id", "score"} in mode
  'score'.

  T5X's own writer knows no ids and cuts ids of tokens at the first 0.

  Args:
    path: of the file.
    inferences: (predictions, auxiliary values).
    task_ds: the examples that they belong to, in order.
    mode: 'predict', 'predict_with_aux' or 'score'.
    vocabulary: a SeqIO vocabulary, for predictions.
  """
  predictions, _ = inferences
  lines = []
  for i, example in enumerate(task_ds.as_numpy_iterator()):
    found = predictions[i]
    name = example['id'].decode('utf-8') if 'id' in example else str(i)
    if mode == 'score':
      lines.append({'id': name, 'score': float(found)})
    else:
      lines.append({'id': name, 'prediction': vocabulary.decode(np.asarray(found).tolist())})
  write_jsonl(path, lines)
