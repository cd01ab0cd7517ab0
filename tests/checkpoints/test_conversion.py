"""Hugging Face directories in and out: byte for byte, and read by transformers and PEFT themselves."""

import dataclasses
import json
import os
import re
import shutil

from conftest import REPOSITORY, tiny_config
import jax
import numpy as np
import pytest
import safetensors.numpy

from crossin_jax import cli, config
from crossin_jax.checkpoints import manager, parameters, places, saved_model
from crossin_jax.checkpoints.conversion import ConversionError, export_hf
from crossin_jax.checkpoints.saved_model import SavedModel
from crossin_jax.devices.partitioning import Partitioner
from crossin_jax.models import lora
from crossin_jax.models.decoder import Decoder
from crossin_jax.models.huggingface import families, tensor_files, weights
from crossin_jax.models.lora import LoraConfig
from crossin_jax.training import optimizers
from crossin_jax.training import state as train_state

REASON = 'needs the real models of the extra `test`'
transformers = pytest.importorskip('transformers', reason=REASON)
torch = pytest.importorskip('torch', reason=REASON)

from models.huggingface.test_families import MODELS, our_logits, ragged, their_logits, their_model  # noqa: E402


def tensors_of(directory):
  found = {}
  for name in sorted(os.listdir(directory)):
    if name.endswith('.safetensors'):
      found |= safetensors.numpy.load_file(os.path.join(directory, name))
  return found


def crossin(*argv):
  assert cli.main([str(a) for a in argv]) == 0


@pytest.fixture(scope='module')
def directories(tmp_path_factory):
  """A function: (name, dtype) -> Hugging Face directory."""
  made = {}

  def get(name, dtype='float32'):
    if (name, dtype) not in made:
      path = str(tmp_path_factory.mktemp('hf') / f'{name}_{dtype}')
      their_model(name).to(getattr(torch, dtype)).save_pretrained(path, max_shard_size='60KB')
      made[name, dtype] = path
    return made[name, dtype]

  return get


@pytest.mark.parametrize(
  'name, dtype',
  [*((name, 'bfloat16') for name in MODELS), ('llama3', 'float32'), ('phi3', 'float16')],
)
def test_import_then_export_is_byte_equal(directories, tmp_path, name, dtype):
  source, imported, exported = (
    directories(name, dtype),
    tmp_path / 'imported',
    tmp_path / 'exported',
  )
  crossin('import-hf', source, '--output_dir', imported)
  crossin('export-hf', imported, '--output_dir', exported, '--shard_gigabytes', '0.00006')
  wanted, found = tensors_of(source), tensors_of(exported)
  if 'lm_head.weight' not in found:
    wanted.pop('lm_head.weight', None)
  assert wanted.keys() == found.keys()
  for tensor in wanted:
    assert (
      wanted[tensor].dtype == found[tensor].dtype
      and wanted[tensor].tobytes() == found[tensor].tobytes()
    ), tensor
  assert len([n for n in os.listdir(exported) if n.endswith('.safetensors')]) > 1
  theirs = transformers.AutoModelForCausalLM.from_pretrained(
    str(exported), dtype=getattr(torch, dtype)
  )
  tokens = ragged(5, 1, 12)[0]
  original = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=getattr(torch, dtype))
  np.testing.assert_array_equal(their_logits(theirs, tokens), their_logits(original, tokens))


def trained_lora(directory, tmp_path, **changes):
  """A LoRA run's MODEL_DIR with random adapters (and embeddings), its model and its parameters."""
  adapters = LoraConfig(**{'rank': 4, 'alpha': 10.0, 'base_dtype': 'float32', **changes})
  fields = families.decoder_fields(families.read_json_config(directory))
  model = Decoder(families.DecoderConfig(**fields, lora=adapters))
  partition = Partitioner(mesh_shape=(1, 1, 1), devices=jax.devices()[:1])
  rng = np.random.default_rng(0)
  with partition.activate():
    abstract = train_state.state_shardings(model, optimizers.adamw(10).transform, partition)
    known = weights.load_params(
      directory, model.config, lora.without_adapters(lora.merge(abstract.params, abstract.frozen))
    )
    state = train_state.init_state(model, optimizers.adamw(10).transform, abstract, 0, known)
    noisy = lambda x: x + 0.1 * rng.standard_normal(x.shape).astype(x.dtype)
    state = state.replace(params=jax.tree.map(noisy, state.params))
    model_dir = str(tmp_path / 'run')
    saved = manager.Checkpoints(model_dir, manager.CheckpointConfig())
    saved.save(1, state, {'base': SavedModel.open(directory).base})
    saved.close()
  tensor_files.copy_companions(directory, os.path.join(model_dir, saved_model.COMPANIONS))
  return model_dir, model, state.model_params


@pytest.mark.parametrize('name, changes', [
    ('llama3', {}), ('llama3', {'rs_lora': True, 'targets': ('query', 'down')}),
    ('mistral', {'train_embeddings': True}),
    ('qwen2', {'train_embeddings': True}), ('phi3', {}),
    ('phi3', {'targets': ('key', 'up', 'out'), 'rs_lora': True}),
    ('gemma2', {}), ('olmo3', {}), ('seed_oss', {}), ('ministral3', {}), ('granite', {}),
    ('smollm3', {}), ('cohere_plus', {}), ('cohere2', {}), ('apertus', {}), ('gemma4', {}),
    ('qwen3_moe', {}), ('mixtral', {}), ('olmoe', {'targets': ('query', 'down')}),
    ('gpt_oss', {}), ('gpt_oss', {'targets': ('up', 'value'), 'rs_lora': True}),
    ('gpt_oss', {'targets': ('down',)}),
])  # fmt: skip
def test_peft_and_merged_equal_our_adapters(directories, tmp_path, name, changes):
  peft = pytest.importorskip('peft', reason='the comparison with PEFT needs the extra `test`')
  source = directories(name)
  model_dir, model, params = trained_lora(source, tmp_path, **changes)
  tokens = ragged(6, 2, 14)[0]
  ours = our_logits(model, params, tokens)
  base = transformers.AutoModelForCausalLM.from_pretrained(
    source, attn_implementation='eager'
  ).eval()
  assert np.abs(their_logits(base, tokens) - ours).max() > 0.05, 'the adapters do nothing'
  export_hf(model_dir, str(tmp_path / 'peft'), model, format='peft')
  adapted = peft.PeftModel.from_pretrained(base, str(tmp_path / 'peft')).eval()
  np.testing.assert_allclose(their_logits(adapted, tokens), ours, atol=2e-4)
  export_hf(model_dir, str(tmp_path / 'merged'), model, format='merged', dtype='float32')
  merged = transformers.AutoModelForCausalLM.from_pretrained(
    str(tmp_path / 'merged'), attn_implementation='eager'
  ).eval()
  np.testing.assert_allclose(their_logits(merged, tokens), ours, atol=1e-4)
  folded = lora.folded(params, model.config.lora)
  plain = Decoder(
    families.DecoderConfig(**families.decoder_fields(families.read_json_config(source)))
  )
  np.testing.assert_allclose(our_logits(plain, folded, tokens), ours, atol=1e-4)
  assert not [n for n in os.listdir(tmp_path / 'peft') if n.startswith('model')]


@pytest.mark.parametrize('held', ['bfloat16', 'float32', 'int8'])
@pytest.mark.parametrize(
  'name, dtype', [('llama3', 'float32'), ('qwen2', 'float16'), ('gemma2', 'bfloat16')]
)
def test_a_merged_export_has_the_precision_of_its_directory(
  directories, tmp_path, name, dtype, held
):
  """Tensors without an adapter are those of the directory, bit for bit, the others those of PEFT."""
  peft = pytest.importorskip('peft', reason='the comparison with PEFT needs the extra `test`')
  source = directories(name, dtype)
  targets = {'targets': ('query', 'down')}
  model_dir, model, _ = trained_lora(source, tmp_path, **targets)
  lora_config = dataclasses.replace(model.config.lora, base_dtype=held)
  model = model.clone(config=dataclasses.replace(model.config, lora=lora_config))
  result = export_hf(model_dir, str(tmp_path / 'merged'), model, format='merged')
  assert result['dtype'] == dtype
  export_hf(model_dir, str(tmp_path / 'peft'), model, format='peft')
  before, after = tensors_of(source), tensors_of(tmp_path / 'merged')
  assert before.keys() == after.keys()
  base = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
  merged = peft.PeftModel.from_pretrained(base, str(tmp_path / 'peft')).merge_and_unload()
  theirs = dict(merged.named_parameters())
  for tensor, value in after.items():
    assert value.dtype == before[tensor].dtype
    if 'q_proj' not in tensor and 'down_proj' not in tensor or 'bias' in tensor:
      np.testing.assert_array_equal(value, before[tensor], err_msg=tensor)
      continue
    assert (value != before[tensor]).any(), tensor
    wanted = theirs[tensor].detach().to(getattr(torch, dtype)).float().numpy()
    step = {'float32': 1e-6, 'float16': 1e-3, 'bfloat16': 8e-3}[dtype]
    np.testing.assert_allclose(value.astype(np.float32), wanted, rtol=step, atol=1e-6)


def test_a_merged_export_of_a_trained_embedding_keeps_the_rest(directories, tmp_path):
  source = directories('llama3', 'float16')
  model_dir, model, params = trained_lora(source, tmp_path, train_embeddings=True)
  export_hf(model_dir, str(tmp_path / 'merged'), model, format='merged')
  before, after = tensors_of(source), tensors_of(tmp_path / 'merged')
  np.testing.assert_array_equal(
    after['model.embed_tokens.weight'],
    np.asarray(params['decoder']['token_embedding']).astype(np.float16),
  )
  assert (after['lm_head.weight'] != before['lm_head.weight']).any()
  for tensor in before:
    if 'norm' in tensor:
      np.testing.assert_array_equal(after[tensor], before[tensor], err_msg=tensor)


def test_a_dtype_of_transformers_4_is_read(directories, tmp_path):
  source = str(tmp_path / 'hf')
  shutil.copytree(directories('llama3', 'float16'), source)
  path = os.path.join(source, 'config.json')
  with open(path) as f:
    config = json.load(f)
  config['torch_dtype'] = f'torch.{config.pop("dtype")}'
  with open(path, 'w') as f:
    json.dump(config, f)
  model_dir, model, _ = trained_lora(source, tmp_path)
  result = export_hf(model_dir, str(tmp_path / 'merged'), model, format='merged')
  assert result['dtype'] == 'float16'


def test_a_lora_checkpoint_holds_only_what_was_trained(directories, tmp_path):
  model_dir, model, params = trained_lora(directories('llama3'), tmp_path)
  path = places.latest_checkpoint(model_dir)
  names = {key[-1] for key in manager.traverse_util.flatten_dict(parameters.target_shapes(path))}
  assert names == {'lora_a', 'lora_b'}
  partition = Partitioner(mesh_shape=(1, 2, 2))
  with partition.activate():
    again = SavedModel.open(model_dir).restore(
      train_state.parameter_shapes(model, partition), model
    )
  jax.tree.map(np.testing.assert_array_equal, again, params)
  with pytest.raises(places.CheckpointError, match='--format merged'):
    plain = Decoder(tiny_config())
    SavedModel.open(model_dir).restore(train_state.parameter_shapes(plain, partition), plain)


def test_t5x_format_is_the_whole_merged_tree(directories, tmp_path):
  model_dir, model, params = trained_lora(directories('llama3'), tmp_path)
  export_hf(model_dir, str(tmp_path / 't5x'), model, format='t5x')
  import orbax.checkpoint as ocp

  tree = ocp.PyTreeCheckpointer().restore(str(tmp_path / 't5x' / 'checkpoint_1' / 'state'))
  assert set(tree) == {'target', 'state'} and set(tree['state']) >= {'step'}
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
    tree['target'],
    jax.device_get(lora.folded(params, model.config.lora)),
  )


def test_padded_rows_of_the_vocabulary_get_no_probability_and_are_cut_off(directories, tmp_path):
  source = directories('llama3')
  crossin(
    'import-hf', source, '--output_dir', tmp_path / 'in', '--gin.DecoderConfig.vocab_multiple=64'
  )
  fields = families.decoder_fields(families.read_json_config(source))
  model = Decoder(families.DecoderConfig(**fields, vocab_multiple=64))
  partition = Partitioner(mesh_shape=(1, 1, 1), devices=jax.devices()[:1])
  with partition.activate():
    params = SavedModel.open(str(tmp_path / 'in')).restore(
      train_state.parameter_shapes(model, partition), model
    )
  assert params['decoder']['token_embedding'].shape[0] == 256
  tokens = ragged(6, 1, 9)[0]
  logits = our_logits(model, params, tokens)
  assert logits.shape[-1] == 256 and (logits[..., 199:] < -1e30).all()
  plain = transformers.AutoModelForCausalLM.from_pretrained(source)
  np.testing.assert_allclose(logits[..., :199], their_logits(plain, tokens), atol=2e-4)
  export_hf(str(tmp_path / 'in'), str(tmp_path / 'out'), model)
  wanted, found = tensors_of(source), tensors_of(tmp_path / 'out')
  assert all(wanted[name].tobytes() == found[name].tobytes() for name in wanted)


@pytest.mark.parametrize('mesh', [(1, 4, 1), (1, 2, 2), (2, 1, 2)])
def test_every_mesh_reads_the_same_parameters(directories, mesh):
  source = directories('gemma2')
  model = Decoder(families.from_huggingface(source))
  read = []
  for partition in (
    Partitioner(mesh_shape=mesh),
    Partitioner(mesh_shape=(1, 1, 1), devices=jax.devices()[:1]),
  ):
    with partition.activate():
      abstract = train_state.parameter_shapes(model, partition)
      params = weights.load_params(source, model.config, abstract)
      jax.tree.map(
        lambda p, a: p.sharding == a.sharding or pytest.fail(f'{p.sharding}'), params, abstract
      )
      read.append(jax.device_get(params))
  jax.tree.map(np.testing.assert_array_equal, *read)


def rewrite_tensors(directory, change, file='model.safetensors'):
  path = os.path.join(directory, file)
  tensors = safetensors.numpy.load_file(path)
  change(tensors)
  safetensors.numpy.save_file(tensors, path)


def edit_config(directory, **changes):
  path = os.path.join(directory, 'config.json')
  with open(path) as f:
    found = json.load(f)
  found.update(changes)
  with open(path, 'w') as f:
    json.dump({k: v for k, v in found.items() if v != 'DELETE'}, f)


def edit_index(directory, change):
  path = os.path.join(directory, 'model.safetensors.index.json')
  with open(path) as f:
    found = json.load(f)
  change(found['weight_map'])
  with open(path, 'w') as f:
    json.dump(found, f)


def first_shard(directory):
  return sorted(n for n in os.listdir(directory) if n.endswith('.safetensors'))[0]


def truncate(directory):
  path = os.path.join(directory, first_shard(directory))
  with open(path, 'rb+') as f:
    f.truncate(os.path.getsize(path) - 100)


def only_pickle(directory):
  for name in os.listdir(directory):
    if 'safetensors' in name:
      os.unlink(os.path.join(directory, name))
  with open(os.path.join(directory, 'pytorch_model.bin'), 'wb') as f:
    f.write(b'cos\nsystem\n(S"exit 1"\ntR.')


def move_in_index(weight_map):
  files = sorted(set(weight_map.values()))
  name = next(n for n, file in weight_map.items() if file == files[0])
  weight_map[name] = files[1]


MALFORMED = {
    'missing shard': (lambda d: os.unlink(os.path.join(d, first_shard(d))), r'model-00001-of.*is '
                                                                            r'missing.*Copy it too'),
    'truncated': (truncate, r'model-00001.* is damaged or cut off'),
    'index lies': (lambda d: edit_index(d, move_in_index), r'says that .* is in .*, but it is in'),
    'index names nothing': (lambda d: edit_index(d, lambda m: m.update(ghost=first_shard(d))), 'ghost is in .* no file has it'),
    'index leaves out': (lambda d: edit_index(d, lambda m: m.pop('model.norm.weight')), 'model.norm.weight, which .* does not name'),
    'index outside': (lambda d: edit_index(d, lambda m: m.update({'model.norm.weight': '../x.safetensors'})), 'outside of the directory'),
    'index no json': (lambda d: open(os.path.join(d, 'model.safetensors.index.json'), 'w').write('{'), 'is not an index of safetensors'),
    'pickle only': (only_pickle, r'pytorch_model.bin, which is not opened because it could run code'),
    'no config': (lambda d: os.unlink(os.path.join(d, 'config.json')), 'no config.json'),
    'config no json': (lambda d: open(os.path.join(d, 'config.json'), 'w').write('{'), 'is not JSON'),
    'unknown architecture': (lambda d: edit_config(d, model_type='unheard'), "model_type 'unheard' is "
                                                                             "not supported; "
                                                                             "supported are llama"),
    'another kind of model': (lambda d: edit_config(d, model_type='mamba'), "'mamba' is not supported: "
                                                                            "it has state-space.*what "
                                                                            "works: Granite 3"),
    'unknown field': (lambda d: edit_config(d, attention_chunk=5), 'field attention_chunk = 5 is '
                                                                   'not known for llama'),
    'quantised': (lambda d: edit_config(d, quantization_config={'bits': 4}), 'quantization_config '
                                                                             '= .* is not supported'),
    'dropout': (lambda d: edit_config(d, attention_dropout=0.1), 'attention_dropout = 0.1 is not '
                                                                 'supported'),
    'activation': (lambda d: edit_config(d, hidden_act='relu'), "hidden_act = 'relu' is not one "
                                                                "of silu"),
    'rope type': (lambda d: edit_config(d, rope_parameters={'rope_type': 'dynamic', 'factor': 2.0}), "'dynamic' is not one of default, linear"),
    'rope lacks': (lambda d: edit_config(d, rope_parameters={'rope_type': 'llama3', 'factor': 2.0}), 'lacks high_freq_factor'),
    'no size': (lambda d: edit_config(d, hidden_size='DELETE'), 'hidden_size is missing'),
    'wrong sizes': (lambda d: edit_config(d, intermediate_size=96), r'tensor model.layers.0.mlp.*shape \(80, 48\), config.json says \(96, 48\)'),
    'too few layers': (lambda d: edit_config(d, num_hidden_layers=2), r'tensor model.layers.2.* '
                                                                      r'is not part of the '
                                                                      r'model'),
    'too many layers': (lambda d: edit_config(d, num_hidden_layers=4), r'tensor model.layers.3.* '
                                                                       r'is missing'),
}  # fmt: skip


@pytest.mark.parametrize('case', MALFORMED)
def test_malformed_directories(directories, tmp_path, capsys, case):
  damage, message = MALFORMED[case]
  directory = tmp_path / 'hf'
  shutil.copytree(directories('llama3'), directory)
  damage(str(directory))
  status = cli.main(['import-hf', str(directory), '--output_dir', str(tmp_path / 'out')])
  error = capsys.readouterr().err
  assert status == 1 and re.search(message, error) and 'Traceback' not in error, error
  assert not os.path.exists(tmp_path / 'out') or not os.listdir(tmp_path / 'out')


@pytest.mark.parametrize('change, message', [
    (lambda t: t.update({'model.layers.0.extra.weight': np.ones(3, np.float32)}), 'extra.weight '
                                                                                  'is not part of the '
                                                                                  'model'),
    (lambda t: t.update({'model.norm.weight': np.ones(47, np.float32)}), r'shape \(47,\), '
                                                                         r'config.json says \(48,\)'),
    (lambda t: t.update({'model.norm.weight': np.ones(48, np.int32)}), 'dtype I32.*Quantised '
                                                                       'weights'),
    (lambda t: t.pop('lm_head.weight'), 'lm_head.weight is missing'),
])  # fmt: skip
def test_malformed_tensors(tmp_path, capsys, change, message):
  their_model('llama2').save_pretrained(str(tmp_path / 'hf'))
  rewrite_tensors(tmp_path / 'hf', change)
  assert cli.main(['import-hf', str(tmp_path / 'hf'), '--output_dir', str(tmp_path / 'out')]) == 1
  error = capsys.readouterr().err
  assert re.search(message, error) and 'Traceback' not in error, error


def test_a_directory_without_a_tokenizer_is_said_so(directories, tmp_path, capsys):
  crossin('import-hf', directories('llama3'), '--output_dir', tmp_path / 'in')
  assert re.search(
    r'warning: .*llama3_float32 has no tokenizer \(tokenizer.json or', capsys.readouterr().err
  )
  (tmp_path / 'q.jsonl').write_text(
    json.dumps(
      {'id': '1', 'language': 'en', 'instruction': 'What?', 'choices': ['a', 'b'], 'answer': 0}
    )
    + '\n'
  )
  arguments = ['--questions', str(tmp_path / 'q.jsonl'), '--output_dir', str(tmp_path / 'out')]
  for checkpoint in (directories('llama3'), str(tmp_path / 'in')):
    assert cli.main(['evaluate', '--checkpoint', checkpoint, *arguments]) == 1
    error = capsys.readouterr().err
    assert 'a Hugging Face directory with its tokenizer' in error and 'Traceback' not in error


def test_outputs_are_not_overwritten(directories, tmp_path, capsys):
  source = directories('llama3')
  crossin('import-hf', source, '--output_dir', tmp_path / 'in')
  assert cli.main(['import-hf', source, '--output_dir', str(tmp_path / 'in')]) == 1
  assert 'holds a checkpoint already' in capsys.readouterr().err
  os.makedirs(tmp_path / 'out')
  (tmp_path / 'out' / 'notes').write_text('mine')
  assert cli.main(['export-hf', str(tmp_path / 'in'), '--output_dir', str(tmp_path / 'out')]) == 1
  assert 'is not empty' in capsys.readouterr().err
  assert os.listdir(tmp_path / 'out') == ['notes']
  model = Decoder(families.from_huggingface(source))
  with pytest.raises(ConversionError, match='choose full'):
    export_hf(str(tmp_path / 'in'), str(tmp_path / 'other'), model, format='peft')


@pytest.mark.parametrize('name', MODELS)
def test_a_config_json_can_be_written_for_every_model(directories, name):
  """For models that were not imported: the file that we write means the same model."""
  wanted = families.from_huggingface(directories(name))
  found = families.to_json_config(wanted, max_position_embeddings=96)
  again = families.DecoderConfig(**families.decoder_fields(found))
  assert again == wanted
  assert transformers.AutoConfig.for_model(**json.loads(json.dumps(found))).vocab_size == 199


def test_a_combination_that_no_family_has_is_said_so():
  with pytest.raises(families.ArchitectureError, match='no model family'):
    families.to_json_config(tiny_config(qk_norm='joined', norm_placement='both'))


def test_published_forms_of_config_json():
  """Fields as the published directories have them, which the classes of today would write
  otherwise.
  """
  read = lambda **found: families.DecoderConfig(**families.decoder_fields(found))
  sizes = {
    'vocab_size': 256_000,
    'hidden_size': 64,
    'intermediate_size': 96,
    'num_hidden_layers': 12,
    'num_attention_heads': 4,
  }
  llama3 = read(
      model_type='llama', **sizes, num_key_value_heads=2, rope_theta=500_000.0,
      torch_dtype='bfloat16', pretraining_tp=1,
      rope_scaling={'factor': 8.0, 'low_freq_factor': 1.0, 'high_freq_factor': 4.0, 'rope_type': 'llama3',
                    'original_max_position_embeddings': 8192}, rms_norm_eps=1e-5, hidden_act='silu',
  )  # fmt: skip
  assert (
    dict(llama3.rope_scaling)['factor'] == 8.0
    and not llama3.tie_embeddings
    and llama3.rope_theta == 500_000
  )
  gemma = read(
    model_type='gemma',
    **sizes,
    num_key_value_heads=1,
    head_dim=32,
    hidden_act='gelu',
    rms_norm_eps=1e-6,
  )
  assert gemma.mlp_activation == 'gelu' and gemma.tie_embeddings and gemma.norm_offset == 1
  gemma3 = read(
      model_type='gemma3_text', hidden_size=2560, intermediate_size=10240, num_hidden_layers=34,
      sliding_window=1024,
      rope_scaling={'factor': 8.0, 'rope_type': 'linear'},
  )  # fmt: skip
  assert (
    gemma3.layer_pattern == ('local',) * 5 + ('global',)
    and gemma3.head_dim == 256
    and gemma3.vocab_size == 262_208
  )
  assert (gemma3.rope_theta, gemma3.rope_local_theta, gemma3.num_kv_heads) == (1e6, 1e4, 4)
  assert gemma3.layer_path(29) == ('layers/block_5', 4) and gemma3.layer_path(33) == (
    'tail_3',
    None,
  )
  qwen = read(
    model_type='qwen2',
    **sizes,
    use_sliding_window=False,
    sliding_window=32768,
    max_window_layers=21,
  )
  assert qwen.layer_pattern == ('global',) and qwen.attention_bias == 'qkv'
  mistral = read(model_type='mistral', **sizes, sliding_window=None)
  assert mistral.layer_pattern == ('global',)


def test_parse_errors_name_the_model_dir(tmp_path):
  with pytest.raises(places.CheckpointError, match='neither a checkpoint'):
    import argparse

    parser = argparse.ArgumentParser()
    config.add_flags(parser)
    saved_model.SavedModel.open(str(tmp_path)).module(parser.parse_args([]))


LOAD = """
import json, sys, threading, time
import jax
from crossin_jax.training import state as train_state
from crossin_jax.models.huggingface import families as architectures, weights as huggingface
from crossin_jax.models.decoder import Decoder
from crossin_jax.devices.partitioning import Partitioner

def anonymous():
  with open('/proc/self/status') as f:
    return next(int(line.split()[1]) * 1024 for line in f if line.startswith('RssAnon'))

peak, done = 0, False
def watch():
  global peak
  while not done:
    peak = max(peak, anonymous())
    time.sleep(0.002)

partition, model = Partitioner(), Decoder(architectures.from_huggingface(sys.argv[1]))
with partition.activate():
  abstract = train_state.parameter_shapes(model, partition)
  jax.block_until_ready(huggingface.load_params(sys.argv[1], model.config, abstract))  # compiled now
  before = anonymous()
  thread = threading.Thread(target=watch)
  thread.start()
  params = jax.block_until_ready(huggingface.load_params(sys.argv[1], model.config, abstract))
  done = True
  thread.join()
live = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
print(json.dumps({'beyond': peak - before - live, 'live': live}))
"""


@pytest.mark.skipif(
  not os.path.exists('/proc/self/status'), reason='memory is read from /proc: run on Linux'
)
def test_reading_takes_no_more_than_a_tensor_beyond_the_arrays(tmp_path):
  """Stacked layers never lie on the host as a whole: 80 MB a leaf here, of 3 MB a layer."""
  import subprocess
  import sys

  config = transformers.LlamaConfig(
      vocab_size=4000, hidden_size=512, intermediate_size=1600, num_hidden_layers=24,
      num_attention_heads=8,
      num_key_value_heads=8, tie_word_embeddings=True,
  )  # fmt: skip
  transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(str(tmp_path))
  run = subprocess.run(
    [sys.executable, '-c', LOAD, str(tmp_path)],
    capture_output=True,
    text=True,
    check=True,
    cwd=REPOSITORY,
  )
  found = json.loads(run.stdout.splitlines()[-1])
  largest = 4000 * 512 * 4
  assert found['live'] > 330e6
  assert found['beyond'] < largest + 40e6, found
