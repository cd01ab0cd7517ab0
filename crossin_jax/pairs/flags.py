"""The flags of `crossin pairs`."""

from crossin_jax.endpoint import flags as endpoint_flags
from crossin_jax.workflow import command_line

MODES = {
  'pivot': 'chosen is nearest to the English answer that agrees most with the others (CM-Align)',
  'implicit': 'chosen has the highest implicit reward behind the English prompt (ICR)',
  'options': 'two options in two languages, chosen at random (DCO); needs no model',
}


def parser() -> command_line.Parser:
  """The flags of `crossin pairs`."""
  parser = command_line.Parser(
    'pairs',
    'Make pairs of answers, one to prefer and one to avoid, from prompts that are asked in several '
    'languages. The same command continues an interrupted run.',
    'crossin pairs --by pivot --prompts data/prompts --languages en,zh,sw --checkpoint runs/a '
    '--output_dir pairs Sampling.max_new_tokens=512',
    gin=True,
    processes=True,
  )
  add = parser.add_argument
  modes = '; '.join(f'{mode}: {what}' for mode, what in MODES.items())
  add('--by', required=True, choices=MODES, help=modes)
  add(
    '--prompts',
    required=True,
    help='stem NAME of files NAME.<language>.json or .jsonl, or one file whose rows have '
    '"language"; any rows, or prompts without answers',
  )
  add('--languages', required=True, help='languages of the pairs, separated by commas')
  add('--output_dir', required=True, help='gets round_1/pairs.jsonl, pairs.json and pairs.html')
  add('--checkpoint', help='the model: a MODEL_DIR, a Hugging Face directory or an adapter')
  add('--model', help='name of the model at --endpoint, which answers in place of --checkpoint')
  add('--reference', help='implicit: what the model was tuned from; of a LoRA run it is its base')
  add('--round', type=int, help='2: the model was trained on the pairs of round 1 (1)')
  add(
    '--length_control',
    choices=('on', 'off'),
    help='answers score less the longer they are, so that chosen and rejected ones are equally '
    'long on average (implicit: on, pivot: off)',
  )
  add('--limit', type=int, help='the first prompts only')
  add('--leave_out_answer', action='store_true', help='options: not the right one')
  add('--draws', type=int, help='options: pairs of languages drawn for each prompt (1)')
  add('--seed', type=int, help='options: of the draws (0)')
  add('--chunk', type=int, help='prompts that are computed and saved together (16)')
  add('--examples', type=int, default=3, help='examples of each language on the page')
  command_line.add_share(parser)
  endpoint_flags.add_flags(parser, required=False)
  parser.set_defaults(share=None)
  return parser
