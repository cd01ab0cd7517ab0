"""The flags of `crossin import-hf` and `crossin export-hf`."""

from crossin_jax.workflow import command_line

FORMATS = ('full', 'merged', 'peft', 't5x')
DTYPES = ('float32', 'bfloat16', 'float16')
WRAPPERS = ('keep', 'text')  # what becomes of a multimodal directory


def import_parser() -> command_line.Parser:
  """The flags of `crossin import-hf`."""
  parser = command_line.Parser(
    'import-hf',
    'Write a Hugging Face directory (config.json, safetensors, tokenizer) as a checkpoint to '
    'train from. Training can also begin from the directory itself: INITIAL_CHECKPOINT_PATH.',
    'crossin import-hf models/gemma-2b --output_dir checkpoints/gemma-2b',
    gin=True,
  )
  parser.add_argument(
    'directory', help='with config.json and *.safetensors, or ORG/NAME on the Hugging Face hub'
  )
  parser.add_argument(
    '--output_dir', required=True, help='for checkpoint_0, config.gin and huggingface/'
  )
  return parser


def export_parser() -> command_line.Parser:
  """The flags of `crossin export-hf`."""
  parser = command_line.Parser(
    'export-hf',
    'Write a checkpoint as a directory that transformers, PEFT or T5X loads.',
    'crossin export-hf runs/a --output_dir exported/a --format merged',
    gin=True,
  )
  parser.add_argument('checkpoint', help='a MODEL_DIR, checkpoint_<step> or PEFT adapter')
  parser.add_argument('--output_dir', required=True, help='must not exist, or be empty')
  parser.add_argument('--format', choices=FORMATS, help='default: full, or merged of a LoRA run')
  parser.add_argument(
    '--dtype', choices=DTYPES, help='default: as imported, else that of the parameters'
  )
  parser.add_argument('--shard_gigabytes', type=float, default=5.0, help='largest file (default 5)')
  parser.add_argument(
    '--wrapper', choices=WRAPPERS,
    help='of a text model from a multimodal directory: keep = that directory with the new text '
    'model (default), text = the text model alone',
  )  # fmt: skip
  parser.add_argument(
    '--wrapper_directory', help='the multimodal directory (default: where it was)'
  )
  return parser
