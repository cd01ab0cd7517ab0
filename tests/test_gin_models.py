"""Every file under gin_configs/models builds the model that it names, to the parameter."""

import dataclasses
import json
import pathlib
import re

import gin
import jax
import jax.numpy as jnp
from models.huggingface.published import CONFIGS
import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
FILES = sorted(
  p for p in (REPOSITORY / 'gin_configs' / 'models').glob('*.gin') if p.stem != 'huggingface'
)
# As counted from the published checkpoints (tied heads once); those of `published.py` by
# `tests/models/huggingface/test_published_configs.py`, with the constants that checkpoints store.
PARAMETERS = {
    'llama2_7b': 6_738_415_616, 'llama2_13b': 13_015_864_320, 'llama3_8b': 8_030_261_248,
    'mistral_7b': 7_241_732_096,
    'gemma_2b': 2_506_172_416, 'gemma_7b': 8_537_680_896, 'gemma2_9b': 9_241_705_984,
    'qwen3_8b': 8_190_735_360,
    'qwen3_0.6b': 596_049_920, 'eurollm_9b': 9_152_319_488, 'phi4': 14_659_507_200,
    'olmo3_7b': 7_298_011_136, 'seed_oss_36b': 36_151_104_512, 'ministral_8b': 8_019_808_256,
    'granite3_8b': 8_170_848_256, 'smollm3_3b': 3_075_098_624, 'ministral3_8b': 8_489_553_920,
    'command_r7b': 8_028_033_024, 'aya_expanse_8b': 8_028_033_024, 'apertus_8b': 8_053_338_240,
    'gemma4_12b': 11_907_350_320, 'qwen3_30b_a3b': 30_532_122_624,
    'mixtral_8x7b': 46_702_792_704, 'olmoe_1b_7b': 6_919_161_856,
    'gpt_oss_20b': 20_914_757_184,
}  # fmt: skip


@pytest.mark.parametrize('path', FILES, ids=lambda p: p.stem)
def test_sizes(path):
  from crossin_jax.models.huggingface import declarations, families

  gin.parse_config_file(str(path))
  model = gin.query_parameter('%MODEL').scoped_configurable_fn()
  if path.stem in PARAMETERS:
    model = model.clone(config=dataclasses.replace(model.config, vocab_multiple=1))
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
  assert families.to_json_config(model.config)['model_type'] in declarations.FAMILIES


# Files of gin_configs/models -> the published config.json that they are from.
PUBLISHED = {name: name for name in CONFIGS} | {'granite3_8b': 'granite_8b'}


@pytest.mark.parametrize('path', [p for p in FILES if p.stem in PUBLISHED], ids=lambda p: p.stem)
def test_a_file_is_the_model_of_its_published_config(path, tmp_path):
  from crossin_jax.models.huggingface import families

  json_config = CONFIGS[PUBLISHED[path.stem]][1]
  (tmp_path / 'config.json').write_text(json.dumps(json_config))
  gin.parse_config_file(str(path))
  config = gin.query_parameter('%MODEL').scoped_configurable_fn().config
  with gin.unlock_config():
    gin.clear_config()
  theirs = families.from_huggingface(str(tmp_path))
  free = {name: getattr(config, name) for name in families.FREE_FIELDS}
  assert config == dataclasses.replace(theirs, **free)
