"""Wrong settings, and the names that are nearest to a wrong one."""

from collections.abc import Iterable
import difflib

from crossin_jax.errors import CrossinError


class ConfigError(CrossinError, ValueError):
  """A wrong gin file, name or value; the message says where, with the nearest known names."""

  exit_status = 2

  def __init__(self, message: str, missing: tuple[str, ...] = ()):
    """Args:
    message: for the user.
    missing: the macros that must be set and are not.
    """
    super().__init__(message)
    self.missing = missing


def nearest(name: str, known: Iterable[str], cutoff: float = 0.7) -> list[str]:
  """At most three known names that are like a wrong one, the nearest first; case does not count.

  nearest('BATCHSIZE', ['BATCH_SIZE', 'LENGTH']) == ['BATCH_SIZE']
  """
  plain = lambda text: text.lower().replace('_', '')
  spelled: dict[str, list[str]] = {}
  for other in sorted(set(known)):
    spelled.setdefault(plain(other), []).append(other)
  close = difflib.get_close_matches(plain(name), spelled, n=3, cutoff=cutoff)
  close += [s for s in spelled if len(plain(name)) > 3 and s.startswith(plain(name))]
  return [other for s in dict.fromkeys(close) for other in spelled[s]][:3]


def hint(name: str, known: Iterable[str], otherwise: str = '') -> str:
  """'; the nearest are A, B', '; the nearest is A', or `otherwise` where no known name is near."""
  near = nearest(name, known)
  verb = 'is' if len(near) == 1 else 'are'
  return f'; the nearest {verb} {", ".join(near)}' if near else otherwise
