"""The flags of `crossin settings`."""

from crossin_jax.workflow import command_line


def parser() -> command_line.Parser:
  """The flags of `crossin settings`."""
  parser = command_line.Parser(
    'settings',
    'List what can be set as NAME=VALUE: the macros of the gin files that ship with the project '
    'and the parameters of all configurables, with their defaults, types and meanings.',
    'crossin settings checkpoint',
    statuses='0 done, 1 no setting has the word, 2 usage',
  )
  parser.add_argument('word', nargs='?', help='list only settings with it in their name or meaning')
  return parser
