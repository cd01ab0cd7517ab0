"""The flags of `crossin harness`."""

import argparse

from crossin_jax.workflow import command_line


def parser() -> command_line.Parser:
  """The flags of `crossin harness`."""
  parser = command_line.Parser(
    'harness',
    'Run tasks of lm-evaluation-harness on a checkpoint, with its own results and with '
    'consistency across languages.',
    'crossin harness --checkpoint runs/a --tasks xcopa,belebele_est_Latn,mgsm_direct '
    '--num_fewshot 0 --output_dir runs/a/harness',
    gin=True,
    processes=True,
  )
  add = parser.add_argument
  add(
    '--checkpoint',
    required=True,
    help='a MODEL_DIR, one of its checkpoints, a Hugging Face directory, or a PEFT adapter',
  )
  add('--tasks', required=True, help='names of tasks, groups or tags, with commas; * matches')
  add('--include_path', help='a folder of YAML files with more tasks')
  add('--output_dir', required=True, help='for all results; a killed run continues there')
  add('--num_fewshot', type=int, help="examples in a prompt (default: each task's own)")
  add('--limit', type=float, help='items of each task; below 1 a share')
  add('--apply_chat_template', action='store_true', help='prompts are conversations')
  add(
    '--fewshot_as_multiturn',
    action=argparse.BooleanOptionalAction,
    help='examples are turns of the conversation (default: with --apply_chat_template)',
  )
  add('--system_instruction', help='system text of every prompt')
  add('--gen_kwargs', help='settings of generation, e.g. max_gen_toks=64,temperature=0.7')
  add('--max_length', type=int, help='most tokens the model reads (default: its own limit)')
  add(
    '--add_bos_token',
    choices=('true', 'false'),
    help="whether prompts start with BOS (default: the tokenizer's own)",
  )
  add('--seed', type=int, default=1234, help='of few-shot examples and sampled answers')
  add('--log_samples', action='store_true', help='write samples_*.jsonl with every answer')
  add('--variant', help='name in results.json (default: name of the MODEL_DIR)')
  add('--run_unsafe_code', action='store_true', help='allow tasks that execute generated code')
  return parser
