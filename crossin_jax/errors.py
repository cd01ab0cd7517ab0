"""The base of all errors whose message is written for the user."""


class CrossinError(Exception):
  """An expected failure. The message says what was found, where, and what to do.

  `crossin` prints the message without a traceback and exits with `exit_status`.
  """

  exit_status = 1


class RowError(CrossinError, ValueError):
  """A malformed file of rows; the message names the file, the row or line, and the remedy."""


class Interrupted(Exception):
  """The command was interrupted (SIGTERM, SIGINT); the message says what is saved.

  Raised where work can be left. `crossin` exits with 75: the same command continues.
  """
