"""The protocol `seaeval_v2` against a judge that is a real server."""

import contextlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import json
import re
import threading

import numpy as np
import pytest

from crossin_jax import cli
from crossin_jax.evaluation.judging import choices

OPTIONS = ['(A) north', '(B) east', '(C) south', '(D) west']


@contextlib.contextmanager
def judge(reply):
  """A server that answers reply(content of the request); yields its URL and the requests."""
  bodies = []

  class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
      pass

    def do_POST(self):
      body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
      bodies.append(body)
      text = reply(body['messages'][-1]['content'])
      status = 200 if text is not None else 400
      message = {'role': 'assistant', 'content': text}
      content = json.dumps({
        'id': 'x', 'object': 'chat.completion', 'model': body['model'],
        'choices': [{'index': 0, 'message': message, 'finish_reason': 'stop'}],
        'usage': {'prompt_tokens': 9, 'completion_tokens': 9, 'total_tokens': 18},
      }).encode()  # fmt: skip
      self.send_response(status)
      self.send_header('Content-Type', 'application/json')
      self.send_header('Content-Length', str(len(content)))
      self.end_headers()
      self.wfile.write(content)

  server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  try:
    yield f'http://127.0.0.1:{server.server_port}/v1', bodies
  finally:
    server.shutdown()
    server.server_close()


def reads(content):
  """Finds the word of the answer among the choices, as a judge would."""
  answer = re.search(r'My answer is: (.*)', content)[1]
  for letter, word in zip('ABCD', ('north', 'east', 'south', 'west')):
    if word in answer:
      return f'Explanation: it says {word}, not A.\nThe model selected: ({letter})'
  return 'Explanation: nothing is chosen.\nThe model selected: 0'


@pytest.fixture
def path(tmp_path):
  texts = ['it is east', '', 'no idea', 'surely north', 'east']
  rows = [
    {'id': str(i), 'language': code, 'choices': OPTIONS, 'answer': 1, 'prediction': text}
    for i, text in enumerate(texts)
    for code in ('en', 'zh')
  ]
  (tmp_path / 'toy.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  return str(tmp_path / 'toy.jsonl')


def score(path, url, *more):
  return cli.main([
    'score', '--task', 'toy', '--predictions', path, '--protocol', 'seaeval_v2', '--json',
    '--endpoint', url, '--judge_model', 'judge', *more,
  ])  # fmt: skip


@pytest.mark.parametrize(
  'reply, option',
  [
    ('The model selected: (B)', 1), ('The model selected: c', 2), ('x The model selected: **D**', 3),
    ('The model selected: A\nThe model selected: B', 1), ('The model selected: 7', None),
    ('The model selected: E', None), ('B', 1), ('', None), ('The model selected: 选B', None),
  ],
)  # fmt: skip
def test_the_letter_behind_the_mark(reply, option):
  assert choices.selected(reply, 4) == option


def test_judged_choices_and_draws(path, capsys):
  with judge(reads) as (url, bodies):
    assert score(path, url) == 0
    assert len(bodies) == 4  # equal answers are asked once, empty ones never
    assert all(body['seed'] == 0 and body['max_tokens'] == 512 for body in bodies)
    out = capsys.readouterr().out
    assert score(path, url) == 0 and len(bodies) == 4  # the replies are stored
    assert capsys.readouterr().out == out
  run = json.loads(out.splitlines()[-1])
  assert run['protocol'] == 'seaeval_v2'
  assert run['drawn']['items'] == 2 and run['drawn']['by_language'] == {'en': 2, 'zh': 2}
  low, high = run['drawn']['accuracy']
  assert 0.4 <= low <= run['accuracy'] <= high <= 0.8 and low < high
  assert 'drawn at random: answers to 2 items' in out
  content = bodies[0]['messages'][0]['content']
  assert '(D) west\n\n        [Task]\n' in content and content.startswith(
    '        [Model Prediction]'
  )


def test_a_judge_that_does_not_reply_scores_nothing(path, capsys):
  refuses = lambda content: None if 'north' in content.split('[Choices]')[0] else reads(content)
  with judge(refuses) as (url, _):
    assert score(path, url, '--retries', '0') == 1
  assert '"accuracy"' not in capsys.readouterr().out


def test_what_is_missing_is_named(path, capsys):
  command = ['score', '--task', 'toy', '--predictions', path, '--protocol', 'seaeval_v2']
  assert cli.main(command) == 1
  assert 'give --endpoint URL and --judge_model NAME' in capsys.readouterr().err


def test_draws_are_those_of_item_language_and_prompt(path):
  from crossin_jax.evaluation.answers.predictions import read_predictions

  found = read_predictions(path)
  every = [[[0, 1, 2, 3]] * 2] * 5
  first, again, other = (choices.drawn(found, every, prompt) for prompt in (1, 1, 2))
  np.testing.assert_array_equal(first, again)
  assert (first != other).any()
