"""MXFP4 as published: numbers as transformers makes them, and directories in and out."""

import json
import os

import jax
import numpy as np
import pytest
import safetensors.numpy

from crossin_jax import cli
from crossin_jax.devices.partitioning import Partitioner
from crossin_jax.models.decoder import Decoder
from crossin_jax.models.huggingface import families, mxfp4, weights
from crossin_jax.training import state as train_state

REASON = 'the comparison with the real models needs the extra `test`'
torch = pytest.importorskip('torch', reason=REASON)
transformers = pytest.importorskip('transformers', reason=REASON)
theirs = pytest.importorskip('transformers.integrations.mxfp4', reason=REASON)

from models.huggingface.test_families import load, our_logits, ragged, their_logits, their_model  # noqa: E402

QUANTISED = {
  'quant_method': 'mxfp4',
  'modules_to_not_convert': ['model.layers.*.self_attn', 'model.layers.*.mlp.router', 'lm_head'],
}


def test_every_byte_and_scale_is_read_as_transformers_reads_it():
  rng = np.random.default_rng(0)
  blocks = rng.integers(0, 256, (2, 256, 3, 16)).astype(np.uint8)
  blocks[0, :, 0, 0] = np.arange(256)
  scales = rng.integers(100, 150, (2, 256, 3)).astype(np.uint8)
  wanted = theirs.convert_moe_packed_tensors(
    torch.tensor(blocks), torch.tensor(scales), dtype=torch.float32
  )
  found = mxfp4.dequantised(blocks, scales).swapaxes(1, 2)
  np.testing.assert_array_equal(found, wanted.numpy())
  assert np.unique(found).size > 200


def test_scales_at_both_ends():
  """OCP MX 1.0, 5.4.1: 0 is 2^-127, 254 is 2^127, 255 is not a number."""
  blocks = np.full((3, 16), 0x22, np.uint8)  # ones
  found = mxfp4.dequantised(blocks, np.array([0, 254, 255], np.uint8)).reshape(3, 32)
  assert (found[0] == 2.0**-127).all() and (found[1] == 2.0**127).all() and np.isnan(found[2]).all()


@pytest.fixture(scope='module')
def published(tmp_path_factory):
  """A directory as the published ones are: experts in MXFP4, the rest in bf16, no dtype."""
  directory = str(tmp_path_factory.mktemp('published') / 'gpt_oss')
  sizes = {'hidden_size': 64, 'intermediate_size': 96, 'head_dim': 16}
  their_model('gpt_oss', **sizes).to(torch.bfloat16).save_pretrained(directory)
  path = os.path.join(directory, 'model.safetensors')
  tensors = safetensors.numpy.load_file(path)
  rng = np.random.default_rng(1)
  for name in [name for name in tensors if name.endswith('_proj') and 'experts' in name]:
    experts, inputs, outputs = tensors.pop(name).shape
    groups = (experts, outputs, inputs // 32)
    tensors[f'{name}_blocks'] = rng.integers(0, 256, (*groups, 16)).astype(np.uint8)
    tensors[f'{name}_scales'] = rng.integers(121, 125, groups).astype(np.uint8)
  safetensors.numpy.save_file(tensors, path, metadata={'format': 'pt'})
  edit_config(directory, quantization_config=QUANTISED, dtype=None)
  return directory


def edit_config(directory, **changes):
  path = os.path.join(directory, 'config.json')
  with open(path) as f:
    config = {**json.load(f), **changes}
  with open(path, 'w') as f:
    json.dump({key: value for key, value in config.items() if value is not None}, f)


def their_dequantised(directory):
  return transformers.AutoModelForCausalLM.from_pretrained(
    directory, attn_implementation='eager', dtype=torch.float32,
    quantization_config=transformers.Mxfp4Config(dequantize=True),
  ).eval()  # fmt: skip


def test_logits_are_those_of_the_dequantised_model(published):
  config = families.from_huggingface(published)
  tokens = ragged()[0][:1]
  expected = their_logits(their_dequantised(published), tokens)
  assert np.abs(expected).max() > 1
  found = our_logits(Decoder(config), load(published, config), tokens)
  np.testing.assert_allclose(found, expected, atol=2e-4)


@pytest.mark.parametrize('mesh', [(1, 4, 1), (1, 2, 2)])
def test_every_mesh_reads_the_same_numbers(published, mesh):
  """Shards whose edges are within a group of 32, too."""
  config = families.from_huggingface(published)
  partition = Partitioner(mesh, devices=jax.devices()[: int(np.prod(mesh))])
  with partition.activate():
    abstract = train_state.parameter_shapes(Decoder(config), partition)
    found = jax.device_get(weights.load_params(published, config, abstract))
  jax.tree.map(np.testing.assert_array_equal, found, jax.device_get(load(published, config)))


def test_an_export_is_plain_bfloat16_and_the_same_model(published, tmp_path):
  imported, exported = str(tmp_path / 'imported'), str(tmp_path / 'exported')
  assert cli.main(['import-hf', published, '--output_dir', imported]) == 0
  assert cli.main(['export-hf', imported, '--output_dir', exported]) == 0
  with open(os.path.join(exported, 'config.json')) as f:
    config = json.load(f)
  assert 'quantization_config' not in config and config['dtype'] == 'bfloat16'
  plain = transformers.AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32)
  wanted = their_dequantised(published).state_dict()
  found = plain.state_dict()
  assert wanted.keys() == found.keys()
  for name, value in wanted.items():
    assert torch.equal(found[name], value), name
  tensors = safetensors.numpy.load_file(os.path.join(exported, 'model.safetensors'))
  assert {str(tensor.dtype) for tensor in tensors.values()} == {'bfloat16'}


def test_scales_that_are_missing_or_do_not_fit(published, tmp_path):
  tensors = safetensors.numpy.load_file(os.path.join(published, 'model.safetensors'))
  name = 'model.layers.0.mlp.experts.down_proj'
  config = families.from_huggingface(published)
  for i, scales in enumerate((None, np.ones((5, 64, 2), np.uint8))):
    directory = tmp_path / str(i)
    directory.mkdir()
    with open(os.path.join(published, 'config.json')) as f:
      (directory / 'config.json').write_text(f.read())
    changed = {**tensors, f'{name}_scales': scales}
    changed = {key: value for key, value in changed.items() if value is not None}
    safetensors.numpy.save_file(changed, directory / 'model.safetensors')
    with pytest.raises(weights.WeightsError, match=f'{name} is missing.*_blocks is not part'):
      load(str(directory), config)


def test_other_quantisations_are_refused(published, tmp_path):
  with open(os.path.join(published, 'config.json')) as f:
    (tmp_path / 'config.json').write_text(f.read())
  edit_config(tmp_path, quantization_config={'quant_method': 'bitsandbytes'})
  with pytest.raises(families.ArchitectureError, match='only mxfp4 is'):
    families.from_huggingface(str(tmp_path))
