"""`crossin import-hf` and `crossin export-hf`: from a Hugging Face directory to a checkpoint, and
back.
"""

import dataclasses
import os
import shutil
import sys
import tempfile
import warnings

import jax

from crossin_jax import config
from crossin_jax.checkpoints import (
  exported_tokenizer,
  flags,
  parameters,
  places,
  saved_model,
  wrapped,
)
from crossin_jax.checkpoints.saved_prompts import TOKENIZERS
from crossin_jax.devices.partitioning import Partitioner
from crossin_jax.errors import CrossinError
from crossin_jax.models import lora
from crossin_jax.models.decoder import Decoder
from crossin_jax.models.huggingface import declarations, families, peft, tensor_files, weights
from crossin_jax.storage import hub_names, mirror, remote
from crossin_jax.storage.files import read_json, write_json, write_text
from crossin_jax.training import state as train_state
from crossin_jax.workflow import command_line


class ConversionError(CrossinError, ValueError):
  """What cannot be converted as asked; the message says what can."""


def import_hf(directory: str, output_dir: str, model=None, partitioner=Partitioner) -> dict:
  """Writes a Hugging Face directory as `output_dir`/checkpoint_0, with config.gin and the model's
  own files beside it.

  Args:
    directory: config.json, safetensors and tokenizer; or its name on the hub.
    output_dir: made; must not hold a checkpoint yet.
    model: a Decoder; None = as config.json says, with what gin binds.
    partitioner: mesh and axis rules.

  Returns:
    {'checkpoint', 'parameters', 'model_type'}.

  Raises:
    ConversionError, CheckpointError: output_dir holds a checkpoint already, or part of one.
      ArchitectureError, WeightsError: see there.
  """
  directory = hub_names.pinned(directory)
  if places.steps_in(output_dir):
    raise ConversionError(f'{output_dir} holds a checkpoint already; give another --output_dir')
  places.check_room(output_dir, 0)  # before the weights are read
  model = model or Decoder(families.from_huggingface(directory))
  partition = partitioner()
  with partition.activate():
    abstract = lora.without_adapters(train_state.parameter_shapes(model, partition))
    params = weights.load_params(directory, model.config, abstract)
    path = parameters.save_params(output_dir, params)
  companions = os.path.join(remote.absolute(output_dir), saved_model.COMPANIONS)
  with mirror.written(output_dir) as files:
    folder = os.path.join(files.path, saved_model.COMPANIONS)
    copied = tensor_files.copy_companions(directory, folder)
    wrapped.remember(directory, folder)
    described = saved_model.imported_config(companions)
    if model.config.vocab_size != families.vocab_size(directory):
      described += f'DecoderConfig.vocab_size = {model.config.vocab_size}\n'
    write_text(os.path.join(files.path, 'config.gin'), described)
  if not set(TOKENIZERS) & set(copied):
    warnings.warn(
      f'{directory} has no tokenizer ({" or ".join(TOKENIZERS)}): training and export work, but '
      'nothing can be asked of '
      'the model as it is. Copy the tokenizer into it and import again'
    )
  return {
    'checkpoint': path,
    'parameters': sum(leaf.size for leaf in jax.tree.leaves(params)),
    'model_type': families.read_json_config(directory)['model_type'],
  }


def export_hf(
  checkpoint: str,
  output_dir: str,
  model,
  *,
  format: str = 'full',
  dtype: str | None = None,
  shard_gigabytes: float = 5.0,
  wrapper: str | None = None,
  wrapper_directory: str | None = None,
  partitioner=Partitioner,
) -> dict:
  """Writes a checkpoint for transformers ('full', 'merged'), PEFT ('peft') or T5X ('t5x').

  The directory appears by one rename. A remote one is written locally first and uploaded with
  config.json last.

  Args:
    checkpoint: a MODEL_DIR, one of its checkpoints, or a PEFT adapter.
    output_dir: must be empty or not exist.
    model: the model of the checkpoint.
    format: 'full' for a fully trained model; for a LoRA run 'merged' (adapters folded into the
      matrices, in f32) or 'peft' (adapters alone); 't5x': a checkpoint_<step> with all parameters,
      merged.
    dtype: of the tensors; None = that of the imported directory, else that of the parameters
      (adapters: f32). A frozen base is read again from where it lies, whatever
      `LoraConfig.base_dtype` held in training.
    shard_gigabytes: largest size of a file.
    wrapper: of a text model from a multimodal directory: 'keep' writes that directory with the new
      text model, and adapters for its class; 'text' writes a text model. None = 'keep' if it is
      from one: what loaded the old model loads the new one.
    wrapper_directory: where the multimodal directory is now; None = where it was.
    partitioner: mesh and axis rules.

  Returns:
    {'output_dir', 'format', 'bytes', 'dtype'}.

  Raises:
    ConversionError: a format that does not fit the run, or an output directory in use.
      WrapperError: the multimodal directory is not there.
  """
  adapters = lora.of_model(model)
  if format not in flags.FORMATS:
    raise ConversionError(f'--format {format} is not one of {", ".join(flags.FORMATS)}')
  if (format in ('merged', 'peft')) != (adapters is not None) and format != 't5x':
    raise ConversionError(
      f'--format {format} is for {"fully trained models" if adapters else "LoRA runs"}; this is a '
      f'{"LoRA run: choose merged or peft" if adapters else "fully trained model: choose full"}'
    )
  is_remote = remote.is_remote(output_dir)
  if remote.listing(output_dir) if is_remote else _in_use(output_dir):
    raise ConversionError(f'{output_dir} is not empty; give another --output_dir, or remove it')
  saved, size = saved_model.SavedModel.open(checkpoint), int(shard_gigabytes * 1e9)
  around = None if format == 't5x' else _around(saved, wrapper, wrapper_directory)
  if is_remote:
    os.makedirs(remote.cache(), exist_ok=True)
    with tempfile.TemporaryDirectory(dir=remote.cache()) as folder:
      local = os.path.join(folder, 'exported')
      result = _export(saved, local, model, format, dtype, size, around, partitioner)
      remote.upload_folder(local, output_dir, last=(tensor_files.INDEX, peft.CONFIG, 'config.json'))
  else:
    result = _export(saved, output_dir, model, format, dtype, size, around, partitioner)
  return {'output_dir': output_dir, 'format': format} | result


def _in_use(directory: str) -> bool:
  return os.path.exists(directory) and (not os.path.isdir(directory) or bool(os.listdir(directory)))


def _around(saved, choice: str | None, directory: str | None) -> wrapped.Wrapper | None:
  """The multimodal directory around an export; None for a text model alone."""
  if saved.companions and wrapped.json_config(saved.companions):
    return None if choice == 'text' else wrapped.Wrapper(saved.companions, directory)
  if choice == 'keep':
    raise ConversionError(
      '--wrapper keep is for text models from a multimodal directory, and this one is from none: '
      'leave it out'
    )
  return None


def _export(saved, output_dir: str, model, format: str, dtype: str | None, shard_bytes: int,
            around: wrapped.Wrapper | None, partitioner) -> dict:  # fmt: skip
  source, is_adapter = saved.companions, format == 'peft'
  hf_config = families.read_json_config(source) if source else families.to_json_config(model.config)
  imported = hf_config.get('dtype') or hf_config.get('torch_dtype')
  if hf_config.pop('quantization_config', None):  # an export is not quantised
    imported = imported or 'bfloat16'
  # transformers 4 also wrote 'torch.float16'.
  imported = str(imported).removeprefix('torch.') if imported else None
  dtype = dtype or ('float32' if is_adapter else imported or model.config.param_dtype)
  if dtype not in flags.DTYPES:
    raise ConversionError(f'--dtype {dtype} is not one of {", ".join(flags.DTYPES)}')
  model = _with_exact_base(model)
  partition, chief = partitioner(), jax.process_index() == 0
  writing = f'{os.path.abspath(output_dir)}.writing'
  if chief:
    shutil.rmtree(writing, ignore_errors=True)
    os.makedirs(writing)
  with partition.activate():
    params = saved.restore(train_state.parameter_shapes(model, partition), model)
    if format == 't5x':
      step = 0 if saved.is_huggingface else int(saved.path.rsplit('_', 1)[1])
      parameters.save_params(writing, lora.folded(params, lora.of_model(model)), step)
    else:
      convert = peft.adapter_tensors if is_adapter else weights.model_tensors
      tensors = convert(hf_config['model_type'], model.config, params, dtype)
      if around:
        tensors = wrapped.adapter_names(tensors) if is_adapter else around.tensors(tensors)
      tensor_files.write_tensors(
          writing, tensors, dtype, shard_bytes=shard_bytes,
          single=peft.WEIGHTS if is_adapter else tensor_files.SINGLE,
          sizes=around.sizes if around else {},
      )  # fmt: skip
  if chief:
    if is_adapter:
      adapter = peft.adapter_config(hf_config['model_type'], model.config, saved.base['path'])
      adapter = wrapped.adapter_config(adapter) if around else adapter
      write_json(os.path.join(writing, peft.CONFIG), adapter)
    if format != 't5x':
      hf_config['vocab_size'] = model.config.vocab_size  # there may be new rows
      _describe(writing, hf_config, dtype, saved, around, is_adapter)
    if os.path.isdir(output_dir):
      os.rmdir(output_dir)  # it is empty
    os.replace(writing, os.path.abspath(output_dir))
  sizes = [
    os.path.getsize(os.path.join(f, n)) for f, _, names in os.walk(output_dir) for n in names
  ]
  return {'dtype': dtype, 'bytes': sum(sizes)}


def _with_exact_base(model):
  """The model with its frozen parameters in float32, which holds all values of their directory.

  Training may hold them in fewer bits; what is exported comes from the directory itself.
  """
  if not (adapters := lora.of_model(model)):
    return model
  exact = dataclasses.replace(adapters, base_dtype='float32')
  return model.clone(config=dataclasses.replace(model.config, lora=exact))


def _describe(writing: str, hf_config: dict, dtype: str, saved,
              around: wrapped.Wrapper | None, is_adapter: bool) -> None:  # fmt: skip
  """Writes configuration, generation settings and tokenizer."""
  # None for a model that was imported and never trained: its files stay as they are.
  path = os.path.join(saved.folder, 'prompts.json')
  prompts = saved.prompts if remote.exists(path) else None
  generation = os.path.join(writing, 'generation_config.json')
  for source in saved.companion_folders:
    tensor_files.copy_companions(source, writing)
  if around:
    tensor_files.copy_companions(around.directory, writing, tensor_files.PROCESSORS)
  if saved.companions:
    if prompts:
      exported_tokenizer.set_trained(writing, prompts)
  elif prompts:
    vocabulary = prompts.vocabulary
    vocabulary.save_for_transformers(writing, prompts.stop_id)
    hf_config = {**hf_config, 'bos_token_id': vocabulary.bos_id}
  if prompts:
    settings = read_json(generation, 'copy it again') if os.path.exists(generation) else {}
    known = {key: hf_config[key] for key in ('bos_token_id', 'eos_token_id') if key in hf_config}
    stops = _stop_ids(prompts.stop_id, (known | settings).get('eos_token_id'))
    write_json(generation, known | settings | {'eos_token_id': stops})
    hf_config = {**hf_config, 'eos_token_id': stops}
  if is_adapter:
    for name in ('config.json', 'generation_config.json'):
      if os.path.exists(os.path.join(writing, name)):
        os.unlink(os.path.join(writing, name))
    return
  if around:
    write_json(os.path.join(writing, 'config.json'), around.written_config(dtype, hf_config))
    return
  hf_config = {key: value for key, value in hf_config.items() if key != 'torch_dtype'}
  family = declarations.FAMILIES[hf_config['model_type']]
  write_json(
    os.path.join(writing, 'config.json'),
    {**hf_config, 'architectures': [family.architecture], 'dtype': dtype},
  )


def _stop_ids(trained: int, own: int | list[int] | None) -> int | list[int]:
  """The stop token that was trained, and those that the model has had."""
  own = own if isinstance(own, list) else [] if own is None else [own]
  ids = [trained, *(i for i in own if i != trained)]
  return ids if len(ids) > 1 else trained


def import_main(argv: list[str]) -> int:
  """The command line of `crossin import-hf`."""
  args = flags.import_parser().parse_args(argv)
  config.parse(args)
  result = import_hf(args.directory, args.output_dir)
  print(
    f'{result["model_type"]}, {result["parameters"]:,} parameters: {result["checkpoint"]}. Train '
    'from it with '
    f'{os.path.join(args.output_dir, "config.gin")} '
    f'INITIAL_CHECKPOINT_PATH={args.output_dir}',
    file=sys.stderr,
  )
  return command_line.finish(args, result)


def export_main(argv: list[str]) -> int:
  """The command line of `crossin export-hf`."""
  args = flags.export_parser().parse_args(argv)
  model = saved_model.SavedModel.open(args.checkpoint).module(args)
  result = export_hf(
      args.checkpoint, args.output_dir, model,
      format=args.format or ('merged' if lora.of_model(model) else 'full'), dtype=args.dtype,
      shard_gigabytes=args.shard_gigabytes, wrapper=args.wrapper,
      wrapper_directory=args.wrapper_directory,
  )  # fmt: skip
  print(
    f'{result["output_dir"]}: {result["format"]}, {result["dtype"]}, '
    f'{result["bytes"] / 1e9:.2f} GB',
    file=sys.stderr,
  )
  return command_line.finish(args, result)
