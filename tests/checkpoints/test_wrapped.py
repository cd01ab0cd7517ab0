"""Text models inside multimodal directories: tuned, and written back for the multimodal class of
transformers or as a text model.
"""

import json
import os
import shutil

import jax
import numpy as np
import pytest

from crossin_jax import cli
from crossin_jax.checkpoints import parameters, run_directory, wrapped
from crossin_jax.checkpoints.conversion import ConversionError, export_hf
from crossin_jax.checkpoints.saved_model import COMPANIONS, SavedModel
from crossin_jax.data.prepared import PreparedMixture
from crossin_jax.devices.partitioning import Partitioner
from crossin_jax.models.decoder import Decoder
from crossin_jax.models.huggingface import families
from crossin_jax.training import state as train_state

REASON = 'needs the real models of the extra `test`'
transformers = pytest.importorskip('transformers', reason=REASON)
torch = pytest.importorskip('torch', reason=REASON)

from checkpoints.test_conversion import tensors_of, trained_lora  # noqa: E402
from models.huggingface.test_families import SIZES, our_logits, ragged, randomised, their_logits  # noqa: E402

TEXT = {**SIZES, 'vocab_size': 210}
VISION = {
    'hidden_size': 32, 'intermediate_size': 32, 'num_hidden_layers': 1, 'num_attention_heads': 2,
    'image_size': 28, 'patch_size': 14, 'head_dim': 16,
}  # fmt: skip
_GEMMA4 = {
    'sliding_window': 6, 'num_hidden_layers': 6, 'global_head_dim': 24,
    'num_global_key_value_heads': 1, 'attention_k_eq_v': True, 'hidden_size_per_layer_input': 0,
}  # fmt: skip
_SIGLIP = {**VISION, 'model_type': 'siglip_vision_model'}
# name -> (class, text class, changes of the text model, vision_config, changes of the whole).
MODELS = {
  'gemma3': ('Gemma3', 'Gemma3Text', {'sliding_window': 6}, _SIGLIP, {'mm_tokens_per_image': 4}),
  'mistral3': ('Mistral3', 'Mistral', {}, {**VISION, 'model_type': 'pixtral'}, {}),
  'ministral3': ('Mistral3', 'Ministral3', {}, {**VISION, 'model_type': 'pixtral'}, {}),
  'gemma4': (
      'Gemma4', 'Gemma4Text', _GEMMA4,
      {**VISION, 'num_key_value_heads': 2, 'global_head_dim': 16, 'model_type': 'gemma4_vision'},
      {'audio_config': None},
  ),
  'gemma4_unified': (
      'Gemma4Unified', 'Gemma4UnifiedText', _GEMMA4,
      {'mm_embed_dim': 48, 'mm_posemb_size': 8, 'output_proj_dims': 48, 'patch_size': 4,
       'model_patch_size': 12}, {'audio_config': None},
  ),
  'llava_onevision': (
      'LlavaOnevision', 'Qwen2', {'head_dim': None}, _SIGLIP,
      {'vision_feature_layer': -1, 'image_grid_pinpoints': [[28, 28]]},
  ),
  'internvl': (
      'InternVL', 'Qwen2', {'head_dim': None},
      {**VISION, 'image_size': [28, 28], 'patch_size': [14, 14], 'model_type': 'internvl_vision'},
      {},
  ),
  'aya_vision': ('AyaVision', 'Cohere2', {'head_dim': None, 'sliding_window': 6}, _SIGLIP, {}),
  'cohere2_vision': (
      'Cohere2Vision', 'Cohere2', {'head_dim': None, 'sliding_window': 6}, _SIGLIP,
      {'alignment_intermediate_size': 64, 'downsample_factor': 2},
  ),
}  # fmt: skip
NAMES = ('as saved', 'in memory')


def their_wrapper(name):
  kind, text, changes, vision, more = MODELS[name]
  own = {key: value for key, value in {**TEXT, **changes}.items() if value is not None}
  own = getattr(transformers, f'{text}Config')(**own).to_dict()
  config = getattr(transformers, f'{kind}Config')(text_config=own, vision_config=vision, **more)
  torch.manual_seed(0)
  model = getattr(transformers, f'{kind}ForConditionalGeneration')(config).eval()
  return randomised(model)


@pytest.fixture(scope='module')
def directories(tmp_path_factory):
  """A function: (name, dtype, names of the tensors) -> multimodal directory."""
  made = {}

  def get(name, dtype='float32', names='as saved'):
    key = (name, dtype, names)
    if key not in made:
      path = made[key] = str(tmp_path_factory.mktemp('hf') / name)
      model = their_wrapper(name).to(getattr(torch, dtype))
      if names == 'as saved':
        model.save_pretrained(path, max_shard_size='60KB')
      else:  # as versions from 4.52 on saved them
        model.save_pretrained(path)
        state = {key: value.clone() for key, value in model.state_dict().items()}
        import safetensors.torch

        safetensors.torch.save_file(state, os.path.join(path, 'model.safetensors'))
      for file in ('preprocessor_config.json', 'processor_config.json'):
        with open(os.path.join(path, file), 'w') as f:
          json.dump({'image_size': 28}, f)
    return made[key]

  return get


def config_of(directory):
  with open(os.path.join(directory, 'config.json')) as f:
    return json.load(f)


def multimodal(name, directory):
  kind = getattr(transformers, f'{MODELS[name][0]}ForConditionalGeneration')
  model, report = kind.from_pretrained(
    str(directory), dtype=torch.float32, attn_implementation='eager', output_loading_info=True
  )
  assert not report['missing_keys'] and not report['unexpected_keys'], report
  return model.eval()


def is_text(name):
  return 'language_model' in name or name == 'lm_head.weight'


def crossin(*argv):
  assert cli.main([str(a) for a in argv]) == 0


def tuned(source, model_dir):
  """An imported model with other parameters, and these."""
  crossin('import-hf', source, '--output_dir', model_dir)
  model = Decoder(families.from_huggingface(source))
  partition = Partitioner(mesh_shape=(1, 1, 1), devices=jax.devices()[:1])
  rng = np.random.default_rng(0)
  with partition.activate():
    abstract = train_state.parameter_shapes(model, partition)
    params = SavedModel.open(str(model_dir)).restore(abstract, model)
    noisy = lambda x: x + 0.05 * rng.standard_normal(x.shape).astype(x.dtype)
    params = jax.tree.map(noisy, params)
    parameters.save_params(str(model_dir), params, 1)
  return model, params


@pytest.mark.parametrize('names', NAMES)
@pytest.mark.parametrize('name', MODELS)
def test_import_then_export_is_byte_equal(directories, tmp_path, name, names):
  source = directories(name, 'bfloat16', names)
  crossin('import-hf', source, '--output_dir', tmp_path / 'in')
  crossin('export-hf', tmp_path / 'in', '--output_dir', tmp_path / 'out')
  wanted, found = tensors_of(source), tensors_of(tmp_path / 'out')
  assert wanted.keys() == found.keys()
  for tensor in wanted:
    assert wanted[tensor].dtype == found[tensor].dtype, tensor
    assert wanted[tensor].tobytes() == found[tensor].tobytes(), tensor
  assert config_of(tmp_path / 'out') == config_of(source)
  multimodal(name, tmp_path / 'out')


@pytest.mark.parametrize('name', MODELS)
def test_a_tuned_text_model_goes_back_into_its_wrapper(directories, tmp_path, name):
  source = directories(name)
  model, params = tuned(source, tmp_path / 'run')
  tokens = ragged(6, 2, 14)[0]
  ours = our_logits(model, params, tokens)
  crossin(
    'export-hf', tmp_path / 'run', '--output_dir', tmp_path / 'keep', '--shard_gigabytes', '0.0001'
  )
  theirs = multimodal(name, tmp_path / 'keep')
  # NB: the multimodal classes of Cohere do not apply logit_scale, their text class does.
  scale = model.config.logit_scale
  np.testing.assert_allclose(their_logits(theirs, tokens) * scale, ours, atol=2e-4)
  before, after = tensors_of(source), tensors_of(tmp_path / 'keep')
  assert before.keys() == after.keys()
  outside = [tensor for tensor in before if not is_text(tensor)]
  assert outside
  for tensor in outside:
    assert before[tensor].tobytes() == after[tensor].tobytes(), tensor
  assert config_of(tmp_path / 'keep') == config_of(source)
  for file in ('preprocessor_config.json', 'processor_config.json'):
    assert (tmp_path / 'keep' / file).read_text() == open(os.path.join(source, file)).read()
  assert (tmp_path / 'keep' / 'model.safetensors.index.json').exists()
  crossin('export-hf', tmp_path / 'run', '--output_dir', tmp_path / 'text', '--wrapper', 'text')
  alone = transformers.AutoModelForCausalLM.from_pretrained(
    str(tmp_path / 'text'), attn_implementation='eager'
  ).eval()
  assert 'text_config' not in config_of(tmp_path / 'text')
  np.testing.assert_allclose(their_logits(alone, tokens), ours, atol=2e-4)
  assert not any('vision' in tensor for tensor in tensors_of(tmp_path / 'text'))
  assert not (tmp_path / 'text' / 'preprocessor_config.json').exists()


@pytest.mark.parametrize('name', ['gemma3', 'ministral3', 'gemma4', 'llava_onevision'])
def test_adapters_of_the_text_model_load_on_the_wrapper(directories, tmp_path, name):
  peft = pytest.importorskip('peft', reason='the comparison with PEFT needs the extra `test`')
  source = directories(name)
  run, model, params = trained_lora(source, tmp_path)
  wrapped.remember(source, os.path.join(run, COMPANIONS))
  tokens = ragged(6, 2, 14)[0]
  ours = our_logits(model, params, tokens)
  base = multimodal(name, source)
  assert np.abs(their_logits(base, tokens) - ours).max() > 0.05, 'the adapters do nothing'
  export_hf(run, str(tmp_path / 'merged'), model, format='merged', dtype='float32')
  merged = multimodal(name, tmp_path / 'merged')
  np.testing.assert_allclose(their_logits(merged, tokens), ours, atol=2e-4)
  export_hf(run, str(tmp_path / 'peft'), model, format='peft')
  adapted = peft.PeftModel.from_pretrained(base, str(tmp_path / 'peft')).eval()
  np.testing.assert_allclose(their_logits(adapted, tokens), ours, atol=2e-4)
  assert not [n for n, _ in adapted.named_parameters() if 'lora' in n and not is_text(n)]
  again = SavedModel.open(str(tmp_path / 'peft')).adapter
  assert again.settings(config_of(source)['text_config']['model_type'], model.config)['rank'] == 4


def test_a_run_remembers_where_its_wrapper_is(directories, tmp_path, tiny_prepared):
  """Also one that starts from an import of it."""
  source, prepared = directories('gemma3'), PreparedMixture(*tiny_prepared)
  crossin('import-hf', source, '--output_dir', tmp_path / 'in')
  for i, start in enumerate((source, str(tmp_path / 'in'))):
    run = tmp_path / f'run{i}'
    run.mkdir()
    run_directory.describe(str(run), prepared, '', start)
    assert json.loads((run / COMPANIONS / wrapped.SOURCE).read_text()) == {'path': source}


def test_another_dtype_and_new_rows(directories, tmp_path):
  source = directories('gemma3')
  crossin(
    'import-hf', source, '--output_dir', tmp_path / 'in', '--gin.DecoderConfig.vocab_size=220'
  )
  crossin(
    'export-hf', tmp_path / 'in', '--output_dir', tmp_path / 'out', '--dtype', 'bfloat16'
  )  # fmt: skip
  before, after = tensors_of(source), tensors_of(tmp_path / 'out')
  assert {str(after[t].dtype) for t in after if is_text(t)} == {'bfloat16'}
  assert all(after[t].tobytes() == before[t].tobytes() for t in after if not is_text(t))
  config = config_of(tmp_path / 'out')
  assert (config['dtype'], config['text_config']['vocab_size']) == ('bfloat16', 220)
  assert config['vision_config'] == config_of(source)['vision_config']
  assert multimodal('gemma3', tmp_path / 'out').get_input_embeddings().weight.shape[0] == 220


def test_a_config_without_the_size_of_the_vocabulary(directories, tmp_path):
  """As Gemma 3 4B is published."""
  text = transformers.Gemma3TextConfig(**{**TEXT, 'vocab_size': 262_208, 'num_hidden_layers': 1})
  config = transformers.Gemma3Config(
    text_config=text.to_dict(), vision_config=_SIGLIP, mm_tokens_per_image=4
  )
  model = transformers.Gemma3ForConditionalGeneration(config)
  model.save_pretrained(tmp_path / 'hf')
  found = config_of(tmp_path / 'hf')
  del found['text_config']['vocab_size']
  (tmp_path / 'hf' / 'config.json').write_text(json.dumps(found))
  crossin('import-hf', tmp_path / 'hf', '--output_dir', tmp_path / 'in')
  crossin('export-hf', tmp_path / 'in', '--output_dir', tmp_path / 'out')
  assert config_of(tmp_path / 'out') == found
  wanted, after = tensors_of(tmp_path / 'hf'), tensors_of(tmp_path / 'out')
  assert all(wanted[name].tobytes() == after[name].tobytes() for name in wanted)


def test_a_directory_that_has_moved(directories, tmp_path, capsys):
  source = str(tmp_path / 'hf')
  shutil.copytree(directories('gemma3'), source)
  crossin('import-hf', source, '--output_dir', tmp_path / 'in')
  os.rename(source, tmp_path / 'moved')
  export = ['export-hf', str(tmp_path / 'in'), '--output_dir', str(tmp_path / 'out')]
  capsys.readouterr()
  assert cli.main(export) == 1
  error = capsys.readouterr().err
  assert f'that was {source}, and is not there: name it with --wrapper_directory' in error
  assert '--wrapper text' in error and not (tmp_path / 'out').exists()
  assert cli.main([*export, '--wrapper_directory', directories('mistral3')]) == 1
  assert 'is not the gemma3 directory that the text model is from' in capsys.readouterr().err
  crossin(*export, '--wrapper_directory', tmp_path / 'moved')
  multimodal('gemma3', tmp_path / 'out')
  os.unlink(tmp_path / 'in' / COMPANIONS / wrapped.SOURCE)
  with pytest.raises(wrapped.WrapperError, match='a gemma3 directory of unknown place'):
    model = Decoder(families.from_huggingface(str(tmp_path / 'moved')))
    export_hf(str(tmp_path / 'in'), str(tmp_path / 'again'), model)


def test_a_text_model_has_no_wrapper_to_keep(directories, tmp_path):
  source = directories('gemma3')
  crossin(
    'export-hf', source, '--output_dir', tmp_path / 'text', '--wrapper', 'text'
  )  # fmt: skip
  model = Decoder(families.from_huggingface(str(tmp_path / 'text')))
  with pytest.raises(ConversionError, match='this one is from none'):
    export_hf(str(tmp_path / 'text'), str(tmp_path / 'out'), model, wrapper='keep')
