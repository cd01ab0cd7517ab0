"""CrossIn's recipe from a Hugging Face directory to a PEFT adapter, as a user runs it, at toy size."""

import importlib.util
import json
import os
import pathlib

import pytest

from crossin_jax import cli

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
REASON = 'needs transformers and PEFT of the extra `test`'
transformers = pytest.importorskip('transformers', reason=REASON)
pytest.importorskip('peft', reason=REASON)

_spec = importlib.util.spec_from_file_location(
  'export_loss', REPOSITORY / 'benchmarks' / 'export_loss.py'
)
export_loss = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(export_loss)


@pytest.fixture(scope='module')
def hf(tmp_path_factory, tiny_vocabulary):
  """A random Llama of two layers with the tiny world's tokenizer."""
  directory = str(tmp_path_factory.mktemp('recipe') / 'hf')
  export_loss.make_model(
      directory, tiny_vocabulary.path, vocab_size=1200, hidden_size=32, intermediate_size=64,
      num_hidden_layers=2,
      num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128, bos_token_id=1,
      eos_token_id=2,
  )  # fmt: skip
  return directory


def train(recipe, hf, prepared, model_dir, *flags, steps=6):
  directory, mixture = prepared
  values = {
      'HF_DIR': hf, 'DATA_DIR': directory, 'MODEL_DIR': str(model_dir),
      'MIXTURE_OR_TASK_NAME': mixture, 'BATCH_SIZE': 4,
      'LENGTH': 64, 'DecoderConfig.dtype': 'float32', 'DecoderConfig.remat': 'none',
      'TRAIN_STEPS': steps,
      'schedule.peak': 1e-2, 'train.evaluation_period': steps, 'LoraConfig.base_dtype': 'float32',
      'LoraConfig.rank': 4,
      'CheckpointConfig.period': 3, 'HeldoutLoss.examples_per_task': 3,
  }  # fmt: skip
  arguments = [
    'train',
    f'--gin_file=gin_configs/runs/{recipe}.gin',
    '--gin.train.evaluators=(@HeldoutLoss(),)',
  ]
  arguments += [f'--gin.{name}={value!r}' for name, value in values.items()]
  return cli.main([*arguments, '--gin.train.epochs=None', *flags])


@pytest.mark.parametrize('recipe', ['crossin_lora', 'crossin_lora_released'])
def test_from_a_hugging_face_directory_to_an_adapter(hf, tiny_prepared, tmp_path, recipe):
  run, out = str(tmp_path / 'run'), str(tmp_path / 'out')
  assert train(recipe, hf, tiny_prepared, run) == 0
  assert cli.main(['export-hf', run, '--output_dir', out, '--format', 'peft']) == 0
  with open(os.path.join(out, 'adapter_config.json'), encoding='utf-8') as f:
    found = json.load(f)
  released = recipe.endswith('released')
  assert ('q_proj' in found['target_modules']) == (not released) and found['lora_dropout'] == 0.05
  assert found['modules_to_save'] == (['embed_tokens', 'lm_head'] if released else None)
  loss = export_loss.heldout_loss(export_loss.exported_model(out, hf, True), *tiny_prepared, 3)
  untuned = export_loss.heldout_loss(
    transformers.AutoModelForCausalLM.from_pretrained(hf).eval(), *tiny_prepared, 3
  )
  assert loss == pytest.approx(export_loss.reported(run), rel=1e-4)
  assert loss < untuned - 0.02, 'the adapter has learnt nothing'
  # `evaluate` finds base and adapters by itself.
  assert (
    cli.main(['evaluate', '--checkpoint', run, '--output_dir', str(tmp_path / 'evaluation')]) == 0
  )
  with open(tmp_path / 'evaluation' / 'figures.json', encoding='utf-8') as f:
    assert json.load(f)['eval/heldout/loss'] == pytest.approx(loss, rel=1e-4)


def test_a_lora_run_resumes_and_minds_its_base(hf, tiny_prepared, tmp_path, capsys):
  whole, parts = str(tmp_path / 'whole'), str(tmp_path / 'parts')
  constant = ("--gin.schedule.decay='constant'", '--gin.schedule.warmup_steps=1')
  assert train('crossin_lora', hf, tiny_prepared, whole, *constant) == 0
  assert train('crossin_lora', hf, tiny_prepared, parts, *constant, steps=3) == 0
  assert train('crossin_lora', hf, tiny_prepared, parts, *constant) == 0
  assert export_loss.reported(whole) == export_loss.reported(parts)
  # Another base under the same adapters is refused.
  other = str(tmp_path / 'other')
  export_loss.make_model(
      other, os.path.join(hf, 'tokenizer.model'), vocab_size=1200, hidden_size=32,
      intermediate_size=64,
      num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=1e-5,
      initializer_range=0.05,
  )  # fmt: skip
  capsys.readouterr()
  assert train('crossin_lora', other, tiny_prepared, parts, *constant, steps=9) == 1
  assert 'holds other weights' in capsys.readouterr().err
  # Without a base there is nothing to adapt.
  assert (
    train(
      'crossin_lora', hf, tiny_prepared, tmp_path / 'none', '--gin.INITIAL_CHECKPOINT_PATH=None'
    )
    == 1
  )
  assert 'need a base model' in capsys.readouterr().err


def test_full_tuning_from_a_directory(hf, tiny_prepared, tmp_path):
  run, out = str(tmp_path / 'run'), str(tmp_path / 'out')
  assert train('crossin_lora', hf, tiny_prepared, run, '--gin.DecoderConfig.lora=None') == 0
  assert cli.main(['export-hf', run, '--output_dir', out]) == 0
  assert export_loss.heldout_loss(
    export_loss.exported_model(out, hf, False), *tiny_prepared, 3
  ) == pytest.approx(export_loss.reported(run), rel=1e-4)
  tokenizer = transformers.AutoTokenizer.from_pretrained(out)
  assert tokenizer.eos_token_id is not None


@pytest.mark.parametrize('held', ['int8', 'nf4', 'bfloat16'])
def test_a_base_held_in_few_bits_is_trained_on_and_resumed(hf, tiny_prepared, tmp_path, held):
  """The loss is near that over the f32 base, the frozen part is small, and a resumed run ends the
  same.
  """
  if held != 'bfloat16':
    pytest.importorskip('qwix', reason='int8 and nf4 need the extra `quant`')
  constant = ("--gin.schedule.decay='constant'", '--gin.schedule.warmup_steps=1')
  few = f"--gin.LoraConfig.base_dtype='{held}'"
  exact, whole, parts = (str(tmp_path / name) for name in ('exact', 'whole', 'parts'))
  assert train('crossin_lora', hf, tiny_prepared, exact, *constant) == 0
  assert train('crossin_lora', hf, tiny_prepared, whole, *constant, few) == 0
  assert train('crossin_lora', hf, tiny_prepared, parts, *constant, few, steps=3) == 0
  assert train('crossin_lora', hf, tiny_prepared, parts, *constant, few) == 0
  assert export_loss.reported(whole) == export_loss.reported(parts) != export_loss.reported(exact)
  assert export_loss.reported(whole) == pytest.approx(export_loss.reported(exact), rel=0.02)
  assert (
    cli.main(['evaluate', '--checkpoint', whole, '--output_dir', str(tmp_path / 'evaluation')]) == 0
  )
  with open(tmp_path / 'evaluation' / 'figures.json', encoding='utf-8') as f:
    assert json.load(f)['eval/heldout/loss'] == pytest.approx(export_loss.reported(whole), rel=1e-5)


def test_quantised_matrices_take_their_bits():
  pytest.importorskip('qwix', reason='int8 and nf4 need the extra `quant`')
  import jax
  import jax.numpy as jnp
  import numpy as np

  from crossin_jax.models import lora

  kernel = jax.random.normal(jax.random.key(0), (3, 128, 64), jnp.bfloat16)
  for held, bits, error in (('int8', 8.6, 0.01), ('nf4', 4.6, 0.1)):
    params = {'mlp': {'kernel': kernel.copy()}, 'norm': {'scale': jnp.ones(4)}}
    found = lora.quantised(params, lora.LoraConfig(base_dtype=held))
    leaves = jax.tree.leaves(found['mlp'])
    size = sum(
      leaf.size * (4 if 'int4' in str(leaf.dtype) else leaf.dtype.itemsize * 8) for leaf in leaves
    )
    assert size / kernel.size < bits
    again = lora.dequantised(found['mlp']['kernel'], jnp.float32)
    assert np.abs(again - kernel.astype(jnp.float32)).mean() < error
