"""`endpoint_server` as a teacher: it writes instructions, rates, and answers in a language, all by
what it is shown.
"""

import hashlib
import pathlib
import re
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[0]))

import endpoint_server  # noqa: E402


def number(text):
  return int(hashlib.sha256(text.encode()).hexdigest()[:6], 16)


def taught(content, seed, mode):
  del seed, mode
  if text := endpoint_server.between(content, 'text'):
    return f'Of course!\n<instruction>Write article {number(text)} about {text.split()[1]}.</instruction>'
  if text := endpoint_server.between(content, 'answer'):
    return f'<level>{1 + number(text) % 3}</level>'
  language, instruction = re.search(
    r'response in (\w+)\.\n\nInstruction: (.*)\n\n### Response:', content, re.DOTALL
  ).groups()
  return f' In {language}: {number(instruction)} \n'


def running(monkeypatch, folder, mode='judge', **settings):
  """A server that teaches. Its rubbish is what a judge may talk, answers without tags; in mode
  'translate' nothing, or marked text.
  """
  monkeypatch.setattr(endpoint_server, '__file__', __file__)
  return endpoint_server.running(folder, mode=mode, **settings)


if __name__ == '__main__':
  endpoint_server.answer = taught
  endpoint_server.main()
