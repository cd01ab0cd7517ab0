"""The page at `/`: one question in several languages, one model or two beside each other."""

from collections.abc import Iterable, Sequence

from crossin_jax.languages import is_right_to_left, languages
from crossin_jax.pages import page
from crossin_jax.serve.served import Served


def render(models: Iterable[Served], shown: Sequence[str], needs_key: bool) -> str:
  """HTML of the page; it needs nothing but the server.

  Args:
    models: one or two.
    shown: codes of the languages that it begins with.
    needs_key: whether the API asks for a key.
  """
  known, models = {}, list(models)
  for code, entry in languages().items():
    described = page.language(code)
    # The CLDR does not know the direction of languages that a user has added.
    direction = 'rtl' if is_right_to_left(code) else 'ltr'
    known[code] = {'name': entry.name, 'native': described['native'], 'dir': direction}
  return page.render(
    'ask.html.j2',
    {
      'models': [{'name': one.name, 'turns': one.takes_turns} for one in models],
      'known': known,
      'shown': list(shown),
      'needs_key': needs_key,
      'longest': min(256, min(one.max_length for one in models) // 2),
    },
  )
