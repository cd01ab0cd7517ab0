"""The flags of `crossin build-cross-xquad`."""

from crossin_jax.workflow import command_line


def parser() -> command_line.Parser:
  """The flags of `crossin build-cross-xquad`."""
  parser = command_line.Parser(
    'build-cross-xquad',
    'Rebuild Cross-XQuAD from XQuAD: four options per question, parallel in all languages.',
    'crossin build-cross-xquad --xquad_dir data/xquad --languages en,zh,vi,es --output '
    'cross_xquad.json',
  )
  add = parser.add_argument
  add('--xquad_dir', required=True, help='folder of xquad.<language>.json')
  add('--languages', default='en,zh,vi,es', help='codes of XQuAD; the default is that of CrossIn')
  add('--output', default='cross_xquad.json', help="file to write, in SeaEval's format")
  add('--split', help='part of the file names that selects one of several splits')
  return parser
