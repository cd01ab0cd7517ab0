"""An OpenAI-compatible server for tests, a process of its own on the loopback interface: by seed it
fails, dawdles, talks rubbish.

Every request is noted in a log, a line {"key", "said"} each: key is a digest of what was asked,
said is 'ok', 'garbage', a status, 'reset' or 'cut'.
"""

import argparse
import contextlib
import hashlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import json
import os
import pathlib
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request

KEY = 'sk-test-0123456789abcdef'


def between(text, tag):
  found = re.search(rf'<{tag}>\n?(.*?)\n?</{tag}>', text, re.DOTALL)
  return found[1] if found else ''


def judged(content, seed):
  """Scores: the number written in an answer, or drawn by its text; the first answer is a point
  better in one case of four.
  """
  scores = []
  for tag in ('answer1', 'answer2'):
    answer = between(content, tag)
    told = re.search(r'quality (\d+)', answer)
    noise = random.Random(f'{seed}{answer}').randint(-1, 1)
    scores.append(
      max(0, min(10, int(told[1]) + noise))
      if told
      else random.Random(f'{seed}{answer}').randint(0, 10)
    )
  if random.Random(f'{seed}{content}').random() < 0.25:
    scores[0] = min(10, scores[0] + 1)
  return f'<score1>{scores[0]}</score1>\n<score2>{scores[1]}</score2>'


def translated(content):
  """Every run of letters between markers in other letters, so that nothing but markers and signs
  survives.
  """
  text = re.search(r'<text>\n(.*)\n</text>', content, re.DOTALL)[1]
  parts = re.split(r'(⟦\d+⟧)', text)
  return ''.join(
    p if i % 2 else re.sub(r'[A-Za-z]', lambda m: chr(0x430 + ord(m[0].lower()) - 97), p)
    for i, p in enumerate(parts)
  )


def answer(content, seed, mode):
  return judged(content, seed) if mode == 'judge' else translated(content)


class Handler(BaseHTTPRequestHandler):
  protocol_version = 'HTTP/1.1'

  def log_message(self, *_):
    pass

  def do_GET(self):
    with self.server.lock:  # whatever was answered is noted
      self.send_response(204)
      self.end_headers()

  def do_POST(self):
    args = self.server.args
    body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
    key = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    with self.server.lock:
      n = self.server.seen[key] = self.server.seen.get(key, 0) + 1
      self.server.recent = [t for t in self.server.recent if t > time.monotonic() - 1] + [
        time.monotonic()
      ]
      hasty = args.per_second and len(self.server.recent) > args.per_second
      self.server.total += 1
      if args.die_after and self.server.total > args.die_after:
        os._exit(1)
    draw = random.Random(f'{args.seed}{key}{n}')
    if self.headers.get('Authorization') != f'Bearer {KEY}':
      return self.say(
        key, 401, {'error': {'message': f'bad key {self.headers.get("Authorization")}'}}
      )
    if args.status:
      return self.say(key, args.status, {'error': {'message': f'no, {KEY}', 'code': args.code}})
    if hasty:
      return self.say(key, 429, {'error': {'message': 'slow down'}}, {'Retry-After': '0.2'})
    if draw.random() < args.fail:
      kind = draw.choice(['500', 'reset', 'cut', '503', '429', 'html', 'overloaded'])
      if kind == 'reset':
        self.note(key, 'reset')
        # Closed with a reset: unsent data is thrown away.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
        self.connection.close()
        self.close_connection = True
        return None
      if kind == 'cut':
        self.note(key, 'cut')
        self.send_response(200)
        self.send_header('Content-Length', '1000')
        self.end_headers()
        self.wfile.write(b'{"choices": [')
        self.close_connection = True
        return None
      if kind == 'html':
        return self.say(key, 200, f'<html>proxy error {KEY}</html>')
      if kind == 'overloaded':
        return self.say(key, 200, {'error': {'message': 'overloaded', 'code': 529}})
      return self.say(
        key,
        int(kind),
        {'error': {'message': f'failed, {KEY}'}},
        {'Retry-After': '0.05'} if kind == '429' else {},
      )
    time.sleep(draw.random() * args.slow)
    content, finish = (
      answer(body['messages'][-1]['content'], f'{args.seed}{body["model"]}', args.mode),
      'stop',
    )
    said = 'ok'
    if (
      draw.random() < args.garbage
      or args.always_garbage
      and args.always_garbage in body['messages'][-1]['content']
    ):
      said = 'garbage'
      if args.mode == 'judge':
        content = draw.choice(
          [
            '',
            'I cannot.',
            '<score1>7</score1>',
            '<score1>11</score1><score2>3</score2>',
            f'{KEY} <score2>1</score2>',
          ]
        )
      else:
        content = draw.choice(['', content + ' ⟦0⟧ ⟦7⟧', re.sub(r'⟦\d+⟧', '', content) + ' ⟦9⟧'])
    if args.thinks:
      said, most = 'thoughts', body.get('max_tokens') or 10**9
      thoughts = 'Answer one may get <score1>1</score1><score2>1</score2>. ' * args.thinks
      if 20 * args.thinks > most:
        content, finish = ('' if args.hide else f'<think>{thoughts}'), 'length'
      else:
        content = content if args.hide else f'<think>{thoughts}</think>\n{content}'
    usage = {'prompt_tokens': 100, 'completion_tokens': 20, 'total_tokens': 120}
    choice = {
      'index': 0,
      'message': {'role': 'assistant', 'content': content or None},
      'finish_reason': finish,
    }
    return self.say(
      key,
      200,
      {
        'id': 'x',
        'object': 'chat.completion',
        'model': body['model'],
        'choices': [choice],
        'usage': usage,
      },
      said=said,
    )

  def say(self, key, status, body, headers=None, said=None):
    content = (body if isinstance(body, str) else json.dumps(body)).encode()
    with self.server.lock:
      self.send_response(status)
      self.send_header('Content-Type', 'text/html' if isinstance(body, str) else 'application/json')
      self.send_header('Content-Length', str(len(content)))
      for name, value in (headers or {}).items():
        self.send_header(name, value)
      self.end_headers()
      self.wfile.write(content)
      self.note(key, said or str(status))

  def note(self, key, said):
    with self.server.lock, open(self.server.args.log, 'a', encoding='utf-8') as f:
      f.write(json.dumps({'key': key, 'said': said}) + '\n')


class Server(ThreadingHTTPServer):
  request_queue_size = 64

  def handle_error(self, *_):  # clients that are killed hang up
    pass


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('--port', type=int, default=0)
  parser.add_argument('--log', required=True)
  parser.add_argument('--mode', default='judge')
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--fail', type=float, default=0.0, help='share of requests that fail')
  parser.add_argument(
    '--garbage', type=float, default=0.0, help='share of replies that are rubbish'
  )
  parser.add_argument(
    '--always_garbage', default='', help='requests with this text are never answered well'
  )
  parser.add_argument('--thinks', type=int, default=0, help='sentences before each answer')
  parser.add_argument('--hide', type=int, default=0, help='1: thoughts are not in the content')
  parser.add_argument('--slow', type=float, default=0.0, help='most seconds to an answer')
  parser.add_argument('--per_second', type=int, default=0, help='requests a second, more get 429')
  parser.add_argument('--die_after', type=int, default=0, help='requests')
  parser.add_argument('--status', type=int, default=0, help='of every answer')
  parser.add_argument('--code', default=None)
  args = parser.parse_args()
  server = Server(('127.0.0.1', args.port), Handler)
  server.daemon_threads, server.args, server.lock = True, args, threading.RLock()
  server.seen, server.recent, server.total = {}, [], 0
  signal.alarm(120)  # nobody is left behind
  print(server.server_address[1], flush=True)
  server.serve_forever()


class Running:
  """A server that runs; `url`, `log` (what it said) and `process`."""

  def __init__(self, folder, port=0, **settings):
    self.path = pathlib.Path(folder) / 'server.jsonl'
    flags = [f'--{name}={value}' for name, value in settings.items()]
    command = [sys.executable, __file__, f'--port={port}', f'--log={self.path}', *flags]
    self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    self.port = int(self.process.stdout.readline())
    self.url = f'http://127.0.0.1:{self.port}/v1'

  def log(self):
    with contextlib.suppress(OSError):  # it may have ended
      urllib.request.urlopen(f'http://127.0.0.1:{self.port}', timeout=20).close()
    return (
      [json.loads(line) for line in self.path.read_text().splitlines()]
      if self.path.exists()
      else []
    )

  def by_key(self):
    """key -> what was said, in order."""
    found = {}
    for line in self.log():
      found.setdefault(line['key'], []).append(line['said'])
    return found

  def stop(self):
    self.process.kill()
    self.process.wait()
    self.process.stdout.close()


@contextlib.contextmanager
def running(folder, **settings):
  server = Running(folder, **settings)
  try:
    yield server
  finally:
    server.stop()


if __name__ == '__main__':
  main()
