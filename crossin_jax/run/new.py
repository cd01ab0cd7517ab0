"""`crossin new`: writes the file of a job, with values that fit the model and this machine."""

import os
from pathlib import Path
import re
import shlex
import string
import sys

import jax

from crossin_jax import config
from crossin_jax.checkpoints.saved_model import SavedModel
from crossin_jax.data.readers import find_files, is_rows
from crossin_jax.devices import chips
from crossin_jax.languages import code_of
from crossin_jax.models.huggingface import families
from crossin_jax.run import flags
from crossin_jax.run.settings import RunSettings
from crossin_jax.storage.files import write_text
from crossin_jax.workflow import command_line

TEMPLATE = Path(__file__).with_name('new.gin.template')
# f32 parameters, gradients and both moments of AdamW.
FULL_BYTES = 16
# Beside them there must be room for activations.
SHARE = 0.5


def job_file(args, languages: tuple[str, ...]) -> str:
  """The text of the file.

  Raises:
    CheckpointError, WeightsError, PreparedDataError, SourceError, ConfigError: no such model,
      tokenizer, rows, benchmark.
  """
  model = SavedModel.open(args.model)
  if not model.is_huggingface or model.adapter:
    raise config.ConfigError(f'--model {args.model}: give a Hugging Face directory')
  if not is_rows(args.rows):
    find_files(args.rows, languages)
  RunSettings(output_dir='', benchmarks=tuple(args.benchmark))  # checks them
  prompts, devices = model.prompts, jax.devices()
  is_cpu = devices[0].platform == 'cpu'
  lora = args.tune == 'lora' or args.tune == 'auto' and not fits_fully(args.model, devices)
  length = min(512 if is_cpu else 2048, model.context_length or 2048)
  source = re.sub(r'\W', '_', os.path.basename(args.rows).split('.')[0])
  values = {
    'file': shlex.quote(args.output),
    'recipe': 'crossin_lora' if lora else 'crossin_full',
    'output_dir': os.path.join('runs', Path(args.output).stem),
    'model': args.model,
    'vocabulary': os.path.relpath(prompts.vocabulary.path)
    if not os.path.isabs(args.model)
    else prompts.vocabulary.path,
    'rows': args.rows,
    'languages': repr(languages),
    'codes': '_'.join(languages),
    'source': source,
    'template': 'alpaca' if prompts.untaught else prompts.template,
    'length': length,
    'batch': _batch(len(devices), is_cpu),
    'rate': '1e-4' if lora else '2e-5',
    'mesh': '(1, -1, 1)',
    'dtype': 'float32' if is_cpu else 'bfloat16',
    'benchmarks': repr(tuple(args.benchmark)),
  }
  text = string.Template(TEMPLATE.read_text(encoding='utf-8')).substitute(values)
  # The comments behind settings stand below each other.
  return re.sub(r'(?m)^([^#\n]+?) {2,}#', lambda match: f'{match[1]:<38}  #', text)


def fits_fully(directory: str, devices: list) -> bool:
  """Whether all parameters can be trained with AdamW on the devices; unknown memory counts as
  enough.
  """
  stored = str(families.read_json_config(directory).get('torch_dtype') or 'bfloat16')
  size = sum(path.stat().st_size for path in Path(directory).glob('*.safetensors'))
  parameters = size / (4 if '32' in stored else 2)
  room = chips.room_of(devices[0])
  return room is None or parameters * FULL_BYTES <= SHARE * room * len(devices)


def _batch(devices: int, is_cpu: bool) -> int:
  """Rows of a batch: a multiple of the devices."""
  return 4 if is_cpu else devices * max(1, 16 // devices)


def main(argv: list[str]) -> int:
  """The command line of `crossin new`."""
  args = flags.new_parser().parse_args(argv)
  try:
    languages = tuple(code_of(code.strip()) for code in args.languages.split(','))
  except ValueError as error:
    raise config.ConfigError(f'--languages {args.languages}: {error}') from None
  if len(languages) < 2 or languages[0] != 'en' or len(set(languages)) < len(languages):
    raise config.ConfigError(
      f'--languages {args.languages}: give en first, then at least one other, each once: en,zh,vi'
    )
  if os.path.exists(args.output):
    raise config.ConfigError(f'{args.output} exists; delete it, or give another --output')
  write_text(args.output, job_file(args, languages))
  command = f'crossin run {shlex.quote(args.output)}'
  print(
    f'{args.output} is written. Look at it, then:\n  {command} --dry_run\n  {command}',
    file=sys.stderr,
  )
  return command_line.finish(args, {'file': args.output})
