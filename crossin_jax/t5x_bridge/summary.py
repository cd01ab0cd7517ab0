"""Writes the files in MODEL_DIR that `crossin evaluate`, `generate` and `export-hf` need."""

import dataclasses
import os

import gin
import jax

from crossin_jax.checkpoints import run_directory
from crossin_jax.data.prepared import PreparedMixture
from crossin_jax.storage.files import write_text


@gin.configurable
def t5x_summary(
  model_dir: str,
  summary_writer=None,
  step: int = 0,
  *,
  module,
  data_dir: str,
  mixture: str,
  initial_checkpoint: str | None = None,
) -> None:
  """The summarize_config_fn of `t5x.train`.

  Writes t5x_config.gin (the configuration as T5X has it), config.gin (the model, in words that need
  no T5X), prompts.json and the tokenizer.

  Args:
    model_dir, summary_writer, step: as T5X gives them.
    module: the model.
    data_dir, mixture: the prepared mixture trained on.
    initial_checkpoint: where the parameters came from; the files of a Hugging Face model that lie
      there are copied.
  """
  text = gin.config_str()
  if summary_writer is not None:
    summary_writer.write_texts(step, {'config': gin.markdown(text)})
    summary_writer.flush()
  if jax.process_index():
    return
  os.makedirs(model_dir, exist_ok=True)
  write_text(os.path.join(model_dir, 't5x_config.gin'), text)
  run_directory.describe(
    model_dir,
    PreparedMixture(data_dir, mixture),
    model_config(module.config),
    initial_checkpoint if isinstance(initial_checkpoint, str) else None,
  )


def model_config(config) -> str:
  """gin text for a Decoder with this DecoderConfig."""
  lines = [
    'import crossin_jax.models.decoder',
    'import crossin_jax.train',
    'MODEL = @Decoder()',
    'Decoder.config = @DecoderConfig()',
    'train.model = %MODEL',
  ]
  lines += [
    f'DecoderConfig.{name} = {value!r}' for name, value in _fields(config).items() if name != 'lora'
  ]
  if config.lora is not None:
    lines += ['import crossin_jax.models.lora', 'DecoderConfig.lora = @LoraConfig()']
    lines += [f'LoraConfig.{name} = {value!r}' for name, value in _fields(config.lora).items()]
  return '\n'.join(lines) + '\n'


def _fields(settings) -> dict:
  return {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
