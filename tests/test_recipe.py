"""CrossIn's recipe from a Hugging Face directory to a PEFT adapter, as a user runs it, at toy size."""

import importlib.util
import json
import os
import pathlib
import shlex
import shutil

import numpy as np
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


def test_experts_are_tuned_on_a_mesh_of_their_own(hf, tiny_prepared, tmp_path, capsys):
  directory, run, out = (str(tmp_path / name) for name in ('mixtral', 'run', 'out'))
  config = transformers.MixtralConfig(
    vocab_size=1200, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, num_local_experts=4, bos_token_id=1,
    eos_token_id=2, max_position_embeddings=128,
  )  # fmt: skip
  transformers.MixtralForCausalLM(config).save_pretrained(directory)
  shutil.copyfile(os.path.join(hf, 'tokenizer.model'), os.path.join(directory, 'tokenizer.model'))
  flags = ['--gin.Partitioner.mesh_shape=(1, 2, 1, 2)', '--gin.DecoderConfig.router_loss=0.01']
  assert train('crossin_lora', directory, tiny_prepared, run, *flags) == 1
  assert 'LoraConfig.dropout is not supported on experts' in capsys.readouterr().err
  flags.append('--gin.LoraConfig.dropout=0.0')
  assert train('crossin_lora', directory, tiny_prepared, run, *flags) == 0
  with open(os.path.join(run, 'metrics.jsonl'), encoding='utf-8') as f:
    line = [json.loads(line) for line in f if '"loss"' in line][-1]
  assert 2.0 <= line['router_balance_loss'] < 4.0 and 1.0 <= line['busiest_expert'] <= 2.0
  assert cli.main(['export-hf', run, '--output_dir', out, '--format', 'peft']) == 0
  loss = export_loss.heldout_loss(
    export_loss.exported_model(out, directory, True), *tiny_prepared, 3
  )
  assert loss == pytest.approx(export_loss.reported(run), rel=1e-4)


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


@pytest.fixture(scope='module')
def peft_adapter(hf, tmp_path_factory):
  """A random adapter that PEFT saved, and the adapted model."""
  import peft
  import torch

  torch.manual_seed(3)
  model = transformers.AutoModelForCausalLM.from_pretrained(hf, dtype=torch.float32)
  adapted = peft.get_peft_model(
    model,
    peft.LoraConfig(
      r=4, lora_alpha=8, target_modules='all-linear', task_type='CAUSAL_LM',
      init_lora_weights=False,
    ),
  )  # fmt: skip
  folder = str(tmp_path_factory.mktemp('recipe') / 'adapter')
  adapted.save_pretrained(folder)
  return folder, adapted.eval()


def tensors_of(folder):
  import safetensors.numpy

  return safetensors.numpy.load_file(os.path.join(folder, 'adapter_model.safetensors'))


def test_training_goes_on_from_a_peft_adapter(hf, peft_adapter, tiny_prepared, tmp_path, capsys):
  folder, _ = peft_adapter
  flags = [f'--gin.INITIAL_CHECKPOINT_PATH={folder!r}', '--gin.LoraConfig.alpha=8.0']
  # At rate 0 the adapter comes back as it was.
  still, out = str(tmp_path / 'still'), str(tmp_path / 'out')
  at_zero = (*flags, '--gin.schedule.peak=0.0')
  assert train('crossin_lora', hf, tiny_prepared, still, *at_zero, steps=2) == 0
  assert cli.main(['export-hf', still, '--output_dir', out, '--format', 'peft']) == 0
  before, after = tensors_of(folder), tensors_of(out)
  assert before.keys() == after.keys()
  for name, value in before.items():
    np.testing.assert_allclose(after[name], value, atol=1e-7, err_msg=name)
  run = str(tmp_path / 'run')
  assert train('crossin_lora', hf, tiny_prepared, run, *flags, steps=3) == 0
  assert train('crossin_lora', hf, tiny_prepared, run, *flags, steps=6) == 0
  assert 'train.total_steps was 3, now 6' in capsys.readouterr().err
  metrics = [json.loads(line) for line in open(os.path.join(run, 'metrics.jsonl'))]
  losses = [line['eval/heldout/loss'] for line in metrics if 'eval/heldout/loss' in line]
  assert len(losses) == 3 and losses[-1] < losses[0]
  assert cli.main(['export-hf', run, '--output_dir', str(tmp_path / 'm')]) == 0


@pytest.mark.parametrize('flag', ['rank=8', "targets=('query', 'value')", 'rank=2'])
def test_adapter_settings_that_do_not_fit_are_named(
  hf, peft_adapter, tiny_prepared, tmp_path, capsys, flag
):
  folder, _ = peft_adapter
  flags = [f'--gin.INITIAL_CHECKPOINT_PATH={folder!r}', f'--gin.LoraConfig.{flag}']
  run = str(tmp_path / 'run')
  assert train('crossin_lora', hf, tiny_prepared, run, *flags, steps=1) == 1
  said = capsys.readouterr().err
  assert 'is an adapter of rank 4 on query, key, value, out, gate, up, down' in said
  given = shlex.split(said[said.index('LoraConfig.') :])
  assert train('crossin_lora', hf, tiny_prepared, run, *flags, *given, steps=1) == 0


def test_full_training_from_an_adapter_says_to_merge_it(
  hf, peft_adapter, tiny_prepared, tmp_path, capsys
):
  folder, _ = peft_adapter
  flags = [f'--gin.INITIAL_CHECKPOINT_PATH={folder!r}', '--gin.DecoderConfig.lora=None']
  assert train('crossin_lora', hf, tiny_prepared, tmp_path / 'run', *flags, steps=1) == 1
  assert 'export-hf --format merged' in capsys.readouterr().err


def test_an_adapter_generates_what_peft_generates(hf, peft_adapter, tiny_vocabulary, tmp_path):
  import torch

  folder, adapted = peft_adapter
  prompts = ['What is the capital', 'Radio', 'el 3 de mayo de']
  (tmp_path / 'in.jsonl').write_text(''.join(json.dumps({'prompt': p}) + '\n' for p in prompts))
  out = tmp_path / 'out.jsonl'
  assert cli.main([
      'generate', '--checkpoint', folder, '--input', str(tmp_path / 'in.jsonl'), '--output',
      str(out), '--gin.Sampling.max_new_tokens=12', "--gin.DecoderConfig.dtype='float32'",
  ]) == 0  # fmt: skip
  found = [json.loads(line) for line in out.read_text().splitlines()]
  for prompt, row in zip(prompts, found):
    tokens = [tiny_vocabulary.bos_id, *tiny_vocabulary.encode(prompt)]
    with torch.no_grad():
      theirs = adapted.generate(
        input_ids=torch.tensor([tokens]), do_sample=False, max_new_tokens=12, eos_token_id=2,
        pad_token_id=0,
      )[0, len(tokens) :].tolist()  # fmt: skip
    theirs = theirs[: theirs.index(2)] if 2 in theirs else theirs
    assert row['output'] == tiny_vocabulary.decode(theirs)


def test_an_adapter_is_evaluated(peft_adapter, tmp_path):
  folder, _ = peft_adapter
  row = {'instruction': 'Which?', 'choices': ['radio', 'capital'], 'answer': 0}
  lines = [json.dumps({'id': str(i), 'language': c} | row) for i in range(3) for c in ('en', 'es')]
  (tmp_path / 'q.jsonl').write_text('\n'.join(lines) + '\n')
  assert cli.main([
      'evaluate', '--checkpoint', folder, '--questions', str(tmp_path / 'q.jsonl'), '--output_dir',
      str(tmp_path / 'out'), "--gin.DecoderConfig.dtype='float32'", '--methods', 'likelihood',
  ]) == 0  # fmt: skip
  assert (tmp_path / 'out' / 'results.json').exists()
