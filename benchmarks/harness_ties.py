"""Whether two answers of greedy decoding part at a tie: at tokens whose logits rounding exchanges.

Each side of `harness_speed.py tasks` records its prompts and answers as ids. Where both answers
part, the common prefix goes through both libraries in float32 and in float64. The two candidates
are tied if float64 has them nearer to each other than float32 is exact there.
"""

import contextlib
import dataclasses
import json
import pathlib

import jax
import numpy as np

from crossin_jax.checkpoints.saved_model import SavedModel
from crossin_jax.devices.partitioning import Partitioner
from crossin_jax.models.decoder import Decoder
from crossin_jax.models.huggingface import families
from crossin_jax.training import state as train_state

Answers = dict[tuple[int, ...], tuple[int, ...]]  # ids of a prompt -> ids of its answer
Logits = dict[tuple[str, str], np.ndarray]  # library, dtype -> logits of the next token
DTYPES = ('float32', 'float64')


@contextlib.contextmanager
def recording_harness(path: str):
  """Records what `--model hf` generates as JSON Lines, for `read`."""
  from lm_eval.models.huggingface import HFLM

  generate = HFLM._model_generate
  with pathlib.Path(path).open('w', encoding='utf-8') as file:

    def recorded(self, context, *args, attention_mask, **kwargs):
      made = generate(self, context, *args, attention_mask=attention_mask, **kwargs)
      for row, mask, ids in zip(context, attention_mask, made):
        _write(file, row[mask.bool()].tolist(), ids[context.shape[1] :].tolist())
      return made

    HFLM._model_generate = recorded
    try:
      yield
    finally:
      HFLM._model_generate = generate


@contextlib.contextmanager
def recording_crossin(path: str):
  """Records what `crossin harness` generates as JSON Lines, for `read`."""
  from crossin_jax.evaluation.harness.engine import Engine

  answers = Engine.answers
  with pathlib.Path(path).open('w', encoding='utf-8') as file:

    def recorded(self, prompts, sampling):
      for answer in answers(self, prompts, sampling):
        _write(file, list(prompts[answer.index].tokens), answer.tokens)
        yield answer

    Engine.answers = recorded
    try:
      yield
    finally:
      Engine.answers = answers


def _write(file, prompt: list[int], answer: list[int]) -> None:
  file.write(json.dumps({'prompt': prompt, 'answer': list(map(int, answer))}) + '\n')


def read(path: str) -> Answers:
  """What a side recorded."""
  rows = map(json.loads, pathlib.Path(path).read_text(encoding='utf-8').splitlines())
  return {tuple(row['prompt']): tuple(row['answer']) for row in rows}


def partings(ours: Answers, theirs: Answers) -> list[tuple[list[int], int, int]]:
  """(common ids, our next token, theirs) of the answers that part before either ends.

  Behind a stop text or token only one side goes on, which makes no other text.

  partings({(1, 2): (3, 4, 5)}, {(1, 2): (3, 6, 7)}) == [([1, 2, 3], 4, 6)]
  """
  if ours.keys() != theirs.keys():
    raise ValueError('the sides read other prompts')
  found = []
  for prompt, own in ours.items():
    for i, (a, b) in enumerate(zip(own, theirs[prompt])):
      if a != b:
        found.append(([*prompt, *own[:i]], a, b))
        break
  return found


def next_logits(directory: str, prefixes: list[list[int]]) -> list[Logits]:
  """Logits behind each prefix, by transformers and by this project, in float32 and float64."""
  import torch
  import transformers

  found: list[Logits] = [{} for _ in prefixes]
  for dtype in DTYPES:
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
      directory, dtype=getattr(torch, dtype)
    ).eval()
    if dtype == 'float64':
      make_double(theirs)
    for ids, logits in zip(prefixes, found):
      with torch.no_grad():
        logits['transformers', dtype] = theirs(torch.tensor([ids])).logits[0, -1].numpy()
    with jax.enable_x64(dtype == 'float64'):
      for logits, own in zip(found, _own_logits(directory, prefixes, dtype)):
        logits['crossin', dtype] = own
  return found


def make_double(model) -> None:
  """Makes a Llama of transformers compute in float64 throughout, in place.

  As transformers has it, norms and rotary angles are in float32 whatever the dtype of the model:
  5e-7 of a logit, which is as much as the ties that are looked for.
  """
  import torch

  class Rotary(torch.nn.Module):
    def __init__(self, dim: int, theta: float):
      super().__init__()
      self.frequencies = theta ** -(torch.arange(0, dim, 2, dtype=torch.float64) / dim)

    def forward(self, x, position_ids):
      angles = position_ids[..., None].double() * self.frequencies
      angles = torch.cat((angles, angles), dim=-1)
      return angles.cos(), angles.sin()

  config = model.config
  model.model.rotary_emb = Rotary(config.head_dim, config.rope_parameters['rope_theta'])
  for name, module in list(model.named_modules()):
    if type(module).__name__ == 'LlamaRMSNorm':
      norm = torch.nn.RMSNorm(config.hidden_size, config.rms_norm_eps, dtype=torch.float64)
      norm.weight = module.weight
      parent, _, own = name.rpartition('.')
      setattr(model.get_submodule(parent), own, norm)


def _own_logits(directory: str, prefixes, dtype: str) -> list[np.ndarray]:
  partition = Partitioner(mesh_shape=(1, 1, 1), devices=jax.devices()[:1])
  config = families.from_huggingface(directory)
  model = Decoder(dataclasses.replace(config, dtype=dtype, param_dtype=dtype))
  with partition.activate():
    shapes = train_state.parameter_shapes(model, partition)
    params = SavedModel.open(directory).restore(shapes, model)
    apply = jax.jit(
      lambda params, ids_BL: model.apply({'params': params}, ids_BL, ids_BL, enable_dropout=False)
    )
    return [np.asarray(apply(params, np.array([ids], np.int32))[0, -1]) for ids in prefixes]


def table(directory: str, ours: Answers, theirs: Answers) -> list[dict]:
  """One row for each pair of answers that part.

  Returns:
    'prefix' (tokens), 'candidates' (ours, theirs), 'logits' and 'difference' (ours less theirs) by
    library and dtype, 'best' (the two best tokens in float64), 'rounding' (how far float32 is from
    float64 at most, by library) and 'tied'.
  """
  parted = partings(ours, theirs)
  rows = []
  for (prefix, a, b), logits in zip(parted, next_logits(directory, [one[0] for one in parted])):
    exact = logits['transformers', 'float64']
    rounding = {
      library: float(np.abs(logits[library, 'float32'] - logits[library, 'float64']).max())
      for library in ('crossin', 'transformers')
    }
    named = {f'{library} {dtype}': values for (library, dtype), values in logits.items()}
    difference = {name: float(values[a]) - float(values[b]) for name, values in named.items()}
    best = np.argsort(-exact)[:2].tolist()
    rows.append(
      {
        'prefix': len(prefix),
        'candidates': [a, b],
        'logits': {name: [float(values[a]), float(values[b])] for name, values in named.items()},
        'difference': difference,
        'best': best,
        'rounding': rounding,
        'tied': is_tie(difference['transformers float64'], rounding, best, (a, b)),
      }
    )
  return rows


def is_tie(difference: float, rounding: dict, best: list[int], candidates: tuple) -> bool:
  """Whether the candidates are the two best ones, and rounding can exchange them: each logit of
  each library may be off by its `rounding`.
  """
  return set(best) == set(candidates) and abs(difference) <= 2 * max(rounding.values())
