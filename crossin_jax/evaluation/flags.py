"""The flags of `crossin evaluate` and `crossin score`."""

from crossin_jax.endpoint import flags as endpoint_flags
from crossin_jax.evaluation.answers import protocols
from crossin_jax.evaluation.benchmarks.names import BENCHMARKS
from crossin_jax.workflow import command_line


def evaluate_parser() -> command_line.Parser:
  """The flags of `crossin evaluate`."""
  parser = command_line.Parser(
    'evaluate',
    'Answer benchmarks with a checkpoint, by likelihood and by greedy generation, and compute '
    'held-out loss.',
    'crossin evaluate --checkpoint runs/a --benchmark cross_mmlu=data/cross_mmlu.json --benchmark '
    'xcopa=data/xcopa --languages en,zh,vi --output_dir runs/a/eval',
    gin=True,
    processes=True,
  )
  add = parser.add_argument
  add(
    '--checkpoint',
    required=True,
    help='a MODEL_DIR, checkpoint_<step> (its config.gin is read first) or Hugging Face directory',
  )
  several = {'action': 'append', 'default': []}
  names = ', '.join(BENCHMARKS)
  add('--benchmark', metavar='NAME=PATH', help=f'can be repeated; {names}', **several)
  add('--questions', help='question file (JSONL); can be repeated', **several)
  add('--languages', help='codes, e.g. en,zh,vi,es (default: all of a benchmark)')
  add('--prompts', help="a benchmark's prompt forms, e.g. 1,2 (default: all; figures are medians)")
  add('--methods', help='likelihood,generate (default: both, if a benchmark has both)')
  add('--split', help='part of the file names that selects one of several splits, e.g. test')
  add(
    '--confuse_choices',
    action='store_true',
    help='ask benchmarks with options again with right answers of other items in place of the '
    'wrong options: a model that has memorised the answers, in any language, gains nothing',
  )
  add('--limit', type=int, help='number of items to ask of each')
  add(
    '--template',
    help='of the prompts, as MixtureSettings.template (default: that of the training; of a Hugging '
    'Face directory its chat template, else plain)',
  )
  add('--output_dir', required=True, help='for results.json, predictions/ and the pages')
  add('--variant', help='name in results.json (default: name of the MODEL_DIR)')
  add('--seed', type=int, help='seed of the run, for results.json')
  return parser


def score_parser() -> command_line.Parser:
  """The flags of `crossin score`."""
  parser = command_line.Parser(
    'score',
    'Compute accuracy, consistency and AC3 from saved predictions.',
    'crossin score --task cross_mmlu --predictions predictions/cross_mmlu.jsonl.gz --protocol '
    'seaeval --json',
  )
  add = parser.add_argument
  add('--task', required=True, help='benchmark, e.g. cross_mmlu, cross_logiqa, cross_xquad')
  add(
    '--predictions',
    required=True,
    metavar='FILE',
    help="a line per item and language, or SeaEval's record per item; also .gz",
  )
  add(
    '--protocol',
    choices=[*protocols.PROTOCOLS, protocols.JUDGED, 'squad', 'mlqa', 'number'],
    help='options: strict (default; unparsed and tied answers are wrong), seaeval (the published '
    'rule, v0.1) or seaeval_v2 (a judge model reads the answers, as later versions do; its figures '
    'cannot be compared with those of v0.1); spans: squad (default of xquad) or mlqa (default of '
    'mlqa; the articles and punctuation of the language); mgsm: number',
  )
  add(
    '--first_line',
    action='store_true',
    help='cut each prediction at its first newline (few-shot runs)',
  )
  add(
    '--allow_partial',
    action='store_true',
    help='skip malformed lines and items that lack a language',
  )
  add('--prompt', type=int, default=1, help='number of the prompt; a seed of the draws of seaeval')
  add('--variant', help='name of the model in the result (default: the file name)')
  add('--seed', type=int, help='training seed of the model, copied to the result')
  add('--judge_model', help='of seaeval_v2; published figures used Llama 3 70B Instruct')
  add('--judge_seed', type=int, default=0, help='sent with each request of seaeval_v2 (0)')
  endpoint_flags.add_flags(parser, required=False)
  return parser
