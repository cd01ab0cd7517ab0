"""Published models at full size: their config.json is read, and the parameters are counted."""

import json

import jax
import jax.numpy as jnp
from models.huggingface.published import CONFIGS
import pytest

from crossin_jax.models.decoder import Decoder
from crossin_jax.models.huggingface import families

REASON = 'the comparison with the real models needs the extra `test`'
torch = pytest.importorskip('torch', reason=REASON)
transformers = pytest.importorskip('transformers', reason=REASON)

# As their authors or the Hub write it.
PARAMETERS = {
  'salamandra_7b': 7_768_117_248,  # the model card
  'llama31_8b': 8_030_261_248,
  'qwen3_8b': 8_190_735_360,
  'apertus_8b': 8_053_338_176,
}
# To the digits that are written. EuroLLM's and Aya's: the card, and the Open LLM Leaderboard;
# gpt-oss: the model card.
BILLIONS = {
  'eurollm_9b': (9.15, 2), 'aya_expanse_8b': (8.028, 3), 'gpt_oss_20b': (20.9, 1),
  'gpt_oss_120b': (116.8, 1),
}  # fmt: skip


def our_count(config) -> int:
  tokens = jax.ShapeDtypeStruct((1, 8), jnp.int32)
  init = lambda key, tokens: Decoder(config).init(key, tokens, tokens, enable_dropout=False)
  shapes = jax.eval_shape(init, jax.random.key(0), tokens)['params']
  return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def their_count(directory: str) -> tuple[int, int]:
  """Parameters, and constants that checkpoints store too."""
  config = transformers.AutoConfig.from_pretrained(directory).get_text_config()
  with torch.device('meta'):
    model = transformers.AutoModelForCausalLM.from_config(config)
  stored, buffers = model.state_dict(), dict(model.named_buffers())
  constants = sum(value.numel() for name, value in buffers.items() if name in stored)
  return sum(parameter.numel() for parameter in model.parameters()), constants


@pytest.mark.parametrize('name', CONFIGS)
def test_a_published_config_is_read_and_counts_like_transformers(tmp_path, name):
  (tmp_path / 'config.json').write_text(json.dumps(CONFIGS[name][1]))
  config = families.from_huggingface(str(tmp_path))
  parameters, constants = their_count(str(tmp_path))
  assert our_count(config) == parameters + constants
  if name in PARAMETERS:
    assert parameters == PARAMETERS[name]
  if name in BILLIONS:
    billions, digits = BILLIONS[name]
    assert round(parameters / 1e9, digits) == billions
