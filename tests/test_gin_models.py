"""Every file under gin_configs/models builds the model that it names, to the parameter."""

import pathlib
import re

import gin
import jax
import jax.numpy as jnp
import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
FILES = sorted(
  p for p in (REPOSITORY / 'gin_configs' / 'models').glob('*.gin') if p.stem != 'huggingface'
)
# As counted from the published checkpoints (tied heads once).
PARAMETERS = {
    'llama2_7b': 6_738_415_616, 'llama2_13b': 13_015_864_320, 'llama3_8b': 8_030_261_248,
    'mistral_7b': 7_241_732_096,
    'gemma_2b': 2_506_172_416, 'gemma_7b': 8_537_680_896, 'gemma2_9b': 9_241_705_984,
    'qwen3_8b': 8_190_735_360,
    'qwen3_0.6b': 596_049_920,
}  # fmt: skip


@pytest.mark.parametrize('path', FILES, ids=lambda p: p.stem)
def test_sizes(path):
  from crossin_jax.models.huggingface import families

  gin.parse_config_file(str(path))
  model = gin.query_parameter('%MODEL').scoped_configurable_fn()
  tokens = jnp.zeros((1, 8), jnp.int32)
  shapes = jax.eval_shape(
    lambda key: model.init(key, tokens, tokens, enable_dropout=False)['params'], jax.random.key(0)
  )
  count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
  if path.stem in PARAMETERS:
    assert count == PARAMETERS[path.stem]
    assert f'{count:,} parameters' in path.read_text()
  else:
    said = re.search(r'([\d.]+) (b|m)illion parameters', path.read_text())
    assert (
      count == pytest.approx(float(said[1]) * {'b': 1e9, 'm': 1e6}[said[2]], rel=0.03)
      if said
      else path.stem == 'world_1m'
    )
  # It can go to transformers.
  assert families.to_json_config(model.config)['model_type'] in families.FAMILIES
