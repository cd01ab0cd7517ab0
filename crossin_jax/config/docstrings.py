"""What docstrings say of parameters."""

import inspect
import re


def of(target) -> str:
  """The docstring of a function, or of a class and its constructor."""
  doc = inspect.getdoc(target) or ''
  if not inspect.isclass(target):
    return doc
  if doc.startswith(f'{target.__name__}('):  # the text that dataclasses make up
    doc = ''
  return doc + '\n\n' + (inspect.getdoc(target.__init__) or '')


def described(doc: str) -> dict[str, str]:
  """Parameter -> its text in the Args and Attributes sections of a docstring; 'a, b: text'
  describes both.
  """
  texts = {}
  for section in re.findall(
    r'(?ms)^\s*(?:Args|Attributes):\s*\n?(.*?)(?=^\s*(?:Returns|Raises|Yields|Args|Attributes)\b|\Z)',
    doc,
  ):
    for entry in re.split(r'\n(?=\s*\w+(?:, \w+)*: )|(?<=[.;]) (?=[a-z]\w*: )', '\n' + section):
      if match := re.match(r'\s*(\w+(?:, \w+)*): (.*)', entry, re.DOTALL):
        text = re.sub(r'\s+', ' ', match[2].split('\n\n')[0]).strip()
        texts = dict.fromkeys(match[1].split(', '), text) | texts
  return texts


def first_sentence(text: str) -> str:
  """Up to the first full stop, which is left out.

  first_sentence('Of the run, e.g. 3. More.') == 'Of the run, e.g. 3'
  """
  text = re.sub(r'\s+', ' ', text.split('\n\n')[0]).strip()
  return re.split(r'(?<!e\.g)(?<!i\.e)\.(?: |$)', text)[0]
