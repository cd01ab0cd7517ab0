"""PEFT adapters as models: PEFT's own logits and merges, training that goes on, and clear refusals."""

import json
import os
import shutil

import jax
import numpy as np
import pytest

from crossin_jax import cli, config
from crossin_jax.checkpoints.places import CheckpointError
from crossin_jax.checkpoints.saved_model import SavedModel
from crossin_jax.devices.partitioning import Partitioner
from crossin_jax.models.huggingface.adapter import AdapterError
from crossin_jax.training import state as train_state
from crossin_jax.workflow import command_line

REASON = 'the comparison with PEFT needs the extra `test`'
torch = pytest.importorskip('torch', reason=REASON)
transformers = pytest.importorskip('transformers', reason=REASON)
peft = pytest.importorskip('peft', reason=REASON)
safetensors_torch = pytest.importorskip('safetensors.torch', reason=REASON)

from models.huggingface.test_families import ragged, their_logits, their_model  # noqa: E402

TOKENS = ragged(3, 2, 20)[0]


@pytest.fixture(scope='module')
def bases(tmp_path_factory):
  """A function: (name, dtype) -> directory of a small model."""
  made = {}

  def get(name, dtype='float32'):
    if (name, dtype) not in made:
      path = str(tmp_path_factory.mktemp('base') / name)
      their_model(name).to(getattr(torch, dtype)).save_pretrained(path)
      made[name, dtype] = path
    return made[name, dtype]

  return get


def adapter(base, folder, targets='all-linear', **settings):
  """A random adapter that PEFT makes and saves; returns the adapted model in float32."""
  torch.manual_seed(5)
  model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
  settings = {'r': 4, 'lora_alpha': 10, **settings}
  adapted = peft.get_peft_model(
    model, peft.LoraConfig(task_type='CAUSAL_LM', target_modules=targets, **settings)
  )
  with torch.no_grad():
    for parameter in adapted.parameters():
      if parameter.requires_grad:
        parameter.add_(0.1 * torch.randn_like(parameter))
  adapted.save_pretrained(str(folder))
  return adapted.eval()


def opened(folder, *flags):
  """The model of an adapter, as the commands make it, and its parameters."""
  parser = command_line.Parser('x', 'x', 'x', gin=True)
  args = parser.parse_args(config.rewrite(['--gin.DecoderConfig.dtype="float32"', *flags]))
  saved = SavedModel.open(str(folder))
  model = saved.module(args)
  partition = Partitioner(mesh_shape=(1, 1, 1), devices=jax.devices()[:1])
  with partition.activate():
    params = saved.restore(train_state.parameter_shapes(model, partition), model)
  return saved, model, params


def our_logits(folder, *flags):
  _, model, params = opened(folder, *flags)
  return np.asarray(model.apply({'params': params}, TOKENS, TOKENS, enable_dropout=False))


ATTENTION = ['q_proj', 'v_proj']
CASES = [
  ('llama3', {}),
  ('llama3', {'targets': ATTENTION, 'r': 8, 'lora_alpha': 8, 'lora_dropout': 0.1}),
  ('llama3', {'use_rslora': True, 'r': 9}),
  ('llama3', {'targets': ATTENTION, 'rank_pattern': {'q_proj': 2}, 'alpha_pattern': {'v_proj': 3}}),
  ('llama3', {'rank_pattern': {'layers.1.mlp.up_proj': 6}, 'use_rslora': True}),
  ('llama3', {'targets': ATTENTION, 'layers_to_transform': [1], 'layers_pattern': 'layers'}),
  ('llama3', {'targets': r'.*\.0\.(self_attn\.k_proj|mlp\.down_proj)'}),
  ('llama3', {'targets': ATTENTION, 'modules_to_save': ['embed_tokens', 'lm_head']}),
  ('llama3', {'targets': ATTENTION, 'modules_to_save': ['lm_head']}),
  ('llama_biases', {'targets': ['o_proj', 'gate_proj']}),
  ('mistral', {'targets': ['k_proj', 'o_proj']}),
  ('qwen2', {}),
  ('qwen2', {'targets': ATTENTION, 'init_lora_weights': 'gaussian'}),
  ('qwen3', {'targets': ['up_proj']}),
  ('gemma2', {}),
  ('gemma3', {'targets': ATTENTION}),
  ('phi3', {}),
  ('phi3', {'targets': ['qkv_proj'], 'use_rslora': True}),
  ('olmo2', {}),
  ('gpt_oss', {'target_parameters': ['mlp.experts.gate_up_proj', 'mlp.experts.down_proj']}),
  ('gpt_oss', {'targets': ATTENTION, 'target_parameters': ['gate_up_proj'], 'use_rslora': True}),
  ('gpt_oss', {'targets': ['o_proj'], 'target_parameters': ['experts.down_proj'],
               'alpha_pattern': {'down_proj': 3}}),
]  # fmt: skip


@pytest.mark.parametrize('name, settings', CASES, ids=str)
def test_logits_are_those_of_peft(bases, tmp_path, name, settings):
  base = bases(name)
  theirs = adapter(base, tmp_path, **settings)
  plain = transformers.AutoModelForCausalLM.from_pretrained(base).eval()
  wanted = their_logits(theirs, TOKENS)
  assert np.abs(wanted - their_logits(plain, TOKENS)).max() > 0.01, 'the adapter does nothing'
  np.testing.assert_allclose(our_logits(tmp_path), wanted, atol=3e-4)


@pytest.mark.parametrize('name, settings', [CASES[i] for i in (0, 2, 3, 7, 11, 16, 19)], ids=str)
def test_merged_as_peft_merges(bases, tmp_path, name, settings):
  theirs = adapter(bases(name), tmp_path / 'a', **settings)
  out = tmp_path / 'merged'
  assert cli.main(['export-hf', str(tmp_path / 'a'), '--output_dir', str(out)]) == 0
  ours = transformers.AutoModelForCausalLM.from_pretrained(str(out)).eval()
  np.testing.assert_allclose(
    their_logits(ours, TOKENS), their_logits(theirs.merge_and_unload(), TOKENS), atol=2e-4
  )


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
def test_merged_in_the_precision_of_the_base(bases, tmp_path, dtype):
  base = bases('llama3', dtype)
  adapter(base, tmp_path / 'a', ATTENTION)
  out = tmp_path / 'merged'
  assert cli.main(['export-hf', str(tmp_path / 'a'), '--output_dir', str(out)]) == 0
  read = lambda folder: safetensors_torch.load_file(os.path.join(folder, 'model.safetensors'))
  before, after = read(base), read(str(out))
  for tensor, value in after.items():
    assert value.dtype == before[tensor].dtype == getattr(torch, dtype)
    assert torch.equal(value, before[tensor]) == ('q_proj' not in tensor and 'v_proj' not in tensor)


@pytest.mark.parametrize('name, settings', [CASES[i] for i in (0, 3, 7, 16, 19, 20)], ids=str)
def test_an_adapter_is_exported_to_the_same_function(bases, tmp_path, name, settings):
  adapter(bases(name), tmp_path / 'a', **settings)
  out = str(tmp_path / 'again')
  argv = ['export-hf', str(tmp_path / 'a'), '--output_dir', out, '--format', 'peft']
  assert cli.main(argv) == 0
  np.testing.assert_allclose(our_logits(out), our_logits(tmp_path / 'a'), atol=2e-4)
  base = transformers.AutoModelForCausalLM.from_pretrained(bases(name))
  theirs = peft.PeftModel.from_pretrained(base, out).eval()
  np.testing.assert_allclose(their_logits(theirs, TOKENS), our_logits(tmp_path / 'a'), atol=3e-4)


def test_names_of_older_versions_and_of_other_classes(bases, tmp_path):
  """'.default', '.modules_to_save' and a base class without `model.`."""
  theirs = adapter(bases('llama3'), tmp_path, ATTENTION, modules_to_save=['lm_head'])
  wanted, path = their_logits(theirs, TOKENS), str(tmp_path / 'adapter_model.safetensors')
  changes = [
    lambda name: name.replace('.weight', '.default.weight') if 'lora_' in name else name,
    lambda name: name.replace('lm_head.weight', 'lm_head.modules_to_save.default.weight'),
    lambda name: name.replace('base_model.model.model.', 'base_model.model.'),
  ]
  tensors = safetensors_torch.load_file(path)
  for change in changes:
    safetensors_torch.save_file({change(name): value for name, value in tensors.items()}, path)
    np.testing.assert_allclose(our_logits(tmp_path), wanted, atol=3e-4)


def edit(folder, **changes):
  path = os.path.join(folder, 'adapter_config.json')
  with open(path) as f:
    saved = json.load(f)
  with open(path, 'w') as f:
    json.dump({**saved, **changes}, f)


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'use_dora': True}, 'use_dora = True is not supported; merge the adapter with PEFT'),
    ({'peft_type': 'IA3'}, "peft_type = 'IA3' is not supported"),
    ({'bias': 'all'}, "bias = 'all' is not supported"),
    ({'lora_bias': True}, 'lora_bias = True'),
    ({'fan_in_fan_out': True}, 'fan_in_fan_out = True'),
    ({'layer_replication': [[0, 1]]}, 'layer_replication'),
    ({'init_lora_weights': 'pissa_niter_4'}, "'pissa_niter_4' changes the base model too"),
    (
      {'base_model_name_or_path': 'meta-llama/Nowhere'},
      "'meta-llama/Nowhere', and meta-llama/Nowhere: no such folder",
    ),
    ({'base_model_name_or_path': None}, 'names the base model None'),
  ],
  ids=str,
)
def test_settings_that_are_not_supported(bases, tmp_path, changes, message):
  adapter(bases('llama3'), tmp_path, ATTENTION)
  edit(tmp_path, **changes)
  with pytest.raises((AdapterError, CheckpointError), match=message):
    our_logits(tmp_path)


def test_a_base_that_has_moved_is_given_by_a_flag(bases, tmp_path):
  theirs = adapter(bases('llama3'), tmp_path, ATTENTION)
  edit(tmp_path, base_model_name_or_path='someone/a-model')
  flag = f"--gin.from_huggingface.directory='{bases('llama3')}'"
  np.testing.assert_allclose(our_logits(tmp_path, flag), their_logits(theirs, TOKENS), atol=3e-4)
  shutil.copytree(bases('llama3'), tmp_path / 'base')
  edit(tmp_path, base_model_name_or_path='base')  # beside the adapter
  np.testing.assert_allclose(our_logits(tmp_path), their_logits(theirs, TOKENS), atol=3e-4)


def test_damaged_files(bases, tmp_path):
  adapter(bases('llama3'), tmp_path, ATTENTION)
  path = tmp_path / 'adapter_model.safetensors'
  whole = path.read_bytes()
  path.write_bytes(whole[: len(whole) // 2])
  with pytest.raises(AdapterError, match='adapter_model.safetensors is damaged or cut off'):
    our_logits(tmp_path)
  path.rename(tmp_path / 'adapter_model.bin')
  with pytest.raises(AdapterError, match='only adapter_model.bin, which is not opened'):
    our_logits(tmp_path)
  (tmp_path / 'adapter_config.json').write_text('{"r": 4,}')
  with pytest.raises(AdapterError, match='adapter_config.json is not a JSON object'):
    our_logits(tmp_path)


def test_an_adapter_of_another_model_or_of_other_modules(bases, tmp_path):
  adapter(bases('llama3'), tmp_path / 'a', ATTENTION)
  edit(tmp_path / 'a', base_model_name_or_path=bases('smollm'))
  with pytest.raises(AdapterError, match='the base model needs'):
    our_logits(tmp_path / 'a')
  adapter(bases('llama3'), tmp_path / 'b', ['q_proj', 'lm_head'])
  with pytest.raises(AdapterError, match='lm_head with lora_A, lora_B, weight is no adapter of'):
    our_logits(tmp_path / 'b')
  adapter(bases('llama3'), tmp_path / 'c', ['q_proj'], modules_to_save=['norm'])
  with pytest.raises(AdapterError, match='norm with weight is no adapter'):
    our_logits(tmp_path / 'c')


def test_a_directory_that_is_both_is_ambiguous(bases, tmp_path):
  adapter(bases('llama3'), tmp_path, ATTENTION)
  shutil.copy(os.path.join(bases('llama3'), 'model.safetensors'), tmp_path)
  with pytest.raises(CheckpointError, match='an adapter and a model'):
    SavedModel.open(str(tmp_path))


def test_the_digest_is_of_the_adapter_and_its_base(bases, tmp_path):
  adapter(bases('llama3'), tmp_path / 'a', ATTENTION)
  before = SavedModel.open(str(tmp_path / 'a')).digest
  (tmp_path / 'a' / 'README.md').write_text('more')
  assert SavedModel.open(str(tmp_path / 'a')).digest == before
  adapter(bases('llama3'), tmp_path / 'b', ATTENTION, lora_alpha=11)
  shutil.copytree(tmp_path / 'a', tmp_path / 'c')
  edit(tmp_path / 'c', base_model_name_or_path=bases('llama3', 'bfloat16'))
  others = [SavedModel.open(str(tmp_path / name)).digest for name in 'bc']
  assert len({before, *others}) == 3
