"""The flags of `crossin generate`."""

from crossin_jax.workflow import command_line


def parser() -> command_line.Parser:
  """The flags of `crossin generate`."""
  parser = command_line.Parser(
    'generate',
    'Answer the rows of a JSONL file ({"prompt"}, or {"instruction", "input"}).',
    'crossin generate --checkpoint runs/a --input questions.jsonl --output answers.jsonl '
    'Sampling.temperature=0.7 Sampling.max_new_tokens=200 Generator.rows=128',
    gin=True,
    processes=True,
  )
  parser.add_argument(
    '--checkpoint',
    required=True,
    help='a MODEL_DIR, one of its checkpoints, a Hugging Face directory, or a PEFT adapter',
  )
  parser.add_argument('--input', required=True, help='JSONL, one row a line')
  parser.add_argument('--output', required=True, help='JSONL; appended to, and sorted at the end')
  return parser
