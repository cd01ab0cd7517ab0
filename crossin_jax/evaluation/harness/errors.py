"""The error of everything that goes wrong with a task or a request of the harness."""

from crossin_jax.errors import CrossinError


class HarnessError(CrossinError, ValueError):
  """A task, a request or a setting that cannot be run; the message has the remedy."""
