"""Greedy generation against transformers' `generate`, token for token, on every family."""

import importlib.util
import pathlib

import jax
import numpy as np
import pytest

from crossin_jax.decoding.generation import Generator
from crossin_jax.decoding.sampling import Sampling
from crossin_jax.decoding.schedule import Prompt
from crossin_jax.devices.partitioning import Partitioner
from crossin_jax.models.decoder import Decoder
from crossin_jax.models.huggingface import families as architectures

torch = pytest.importorskip(
  'torch', reason='the comparison with the real models needs the extra `test`'
)

_path = pathlib.Path(__file__).parents[1] / 'models' / 'huggingface' / 'test_families.py'
_spec = importlib.util.spec_from_file_location('models_test_architectures', _path)
families = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(families)

BOS, NEW = 1, 128
QUICK = ('llama3', 'gemma2')
# One of each family, and what decoding treats in a way of its own.
FAMILIES = (
  'llama2',
  'llama3',
  'mistral',
  'qwen2',
  'qwen3',
  'gemma',
  'gemma2',
  'gemma3',
  'phi3',
  'phi3_long',
  'olmo2',
  'olmo3',
  'seed_oss',
  'ministral',
  'ministral3',
  'granite',
  'smollm3',
  'cohere_plus',
  'cohere2',
  'apertus',
  'gemma4',
  'qwen3_moe',
  'mixtral',
  'olmoe',
  'gpt_oss',
)


def their_tokens(model, prompts):
  """`generate` on one left-padded batch, int [prompts, NEW]."""
  width = 1 + max(map(len, prompts))
  tokens, mask = np.zeros((2, len(prompts), width), int)
  for row, prompt in enumerate(prompts):
    tokens[row, width - 1 - len(prompt) :] = [BOS, *prompt]
    mask[row, width - 1 - len(prompt) :] = 1
  model.generation_config.eos_token_id = None
  with torch.no_grad():
    found = model.generate(
      torch.tensor(tokens),
      attention_mask=torch.tensor(mask),
      max_new_tokens=NEW,
      do_sample=False,
      pad_token_id=0,
    )
  return found[:, width:].numpy()


@pytest.mark.parametrize(
  'name',
  [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES],
)
def test_greedy_equals_generate_for_128_tokens_on_16_ragged_prompts(name, tmp_path):
  theirs = families.their_model(name, max_position_embeddings=256)
  theirs.save_pretrained(tmp_path)
  config = architectures.from_huggingface(str(tmp_path))
  rng = np.random.default_rng(0)
  # For most families the prompts are of two buckets of lengths and begin together, because tracing
  # is what takes the time. LongRoPE turns by other factors from 24 positions on; in transformers the
  # longest row of a batch decides for all.
  few = name in QUICK
  short = rng.integers(34, 47, 8) if name == 'phi3_long' else rng.integers(1, 15, 8)
  lengths = rng.integers(1, 60, 16) if few else [*short, *rng.integers(34, 47, 8)]
  prompts = [rng.integers(3, 199, n).tolist() for n in lengths]
  partition = Partitioner(mesh_shape=(1, 1, 1), devices=jax.devices()[:1])
  with partition.activate():
    generator = Generator(
        Decoder(config), families.load(str(tmp_path), config, partition), partition,
        bos_id=BOS, stop_ids=(-1,), sampling=Sampling(max_new_tokens=NEW), rows=8 if few else 16,
    )  # fmt: skip
    ours = [answer.tokens for answer in generator([Prompt(prompt) for prompt in prompts])]
  np.testing.assert_array_equal(np.array(ours), their_tokens(theirs, prompts))
