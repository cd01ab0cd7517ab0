"""`crossin serve` against the official client, clients that leave, and a crowd."""

import concurrent.futures
import http.client
import json
import random
import re
import socket
import struct
import time

import numpy as np
import pytest
import serving

openai = pytest.importorskip('openai', reason='the clients need the extra `test`')
pytest.importorskip('uvicorn', reason='the server needs the extra `serve`')
torch = pytest.importorskip('torch', reason='the comparison needs the extra `test`')

from crossin_jax import cli  # noqa: E402

WORDS = (
  'Name three rivers. The night ferry leaves the port at noon. con đò đêm rời bến 河流'.split()
)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('models') / 'nile'


@pytest.fixture(scope='module')
def reference(folder):
  """The model in transformers."""
  return serving.write_model(folder)


@pytest.fixture(scope='module')
def server(folder, reference):
  with serving.running([folder]) as running:
    yield running


def prompts(count, seed=0):
  draw = random.Random(seed)
  return [' '.join(draw.choices(WORDS, k=draw.randint(1, 12))) for _ in range(count)]


def generated(folder, tmp_path, rows, *flags) -> list[dict]:
  """The rows that `crossin generate` answers."""
  given = tmp_path / f'in{len(list(tmp_path.iterdir()))}.jsonl'
  given.write_text(''.join(json.dumps(row) + '\n' for row in rows), encoding='utf-8')
  output = given.with_suffix('.out')
  paths = ['--checkpoint', str(folder), '--input', str(given), '--output', str(output)]
  mesh = '--gin.Partitioner.mesh_shape=(-1,1,1)'
  assert cli.main(['generate', *paths, mesh, *flags]) == 0
  return [json.loads(line) for line in output.read_text(encoding='utf-8').splitlines()]


def completion(server, prompt, **options):
  options = {'model': 'nile', 'temperature': 0, 'max_tokens': 20, **options}
  return server.client().completions.create(prompt=prompt, **options)


def chat(server, text, **options):
  options = {'model': 'nile', 'temperature': 0, 'max_tokens': 20, **options}
  messages = [{'role': 'user', 'content': text}]
  return server.client().chat.completions.create(messages=messages, **options)


def logprobs(reference, ids) -> np.ndarray:
  """[n - 1, V] of transformers, float64."""
  with torch.no_grad():
    logits = reference(torch.tensor([ids])).logits[0].double()
  return torch.log_softmax(logits, -1).numpy()


def test_models(server):
  assert [model.id for model in server.client().models.list()] == ['nile']
  assert server.client().models.retrieve('nile').id == 'nile'
  with pytest.raises(openai.NotFoundError, match="no model 'amur'; this server has nile"):
    chat(server, 'Hi', model='amur')


def test_greedy_answers_are_those_of_generate(server, folder, tmp_path):
  texts = prompts(6)
  limit = '--gin.Sampling.max_new_tokens=20'
  wanted = generated(folder, tmp_path, [{'prompt': t} for t in texts], limit)
  found = completion(server, texts)  # several prompts in one request
  assert [c.text for c in found.choices] == [row['output'] for row in wanted]
  assert [c.index for c in found.choices] == list(range(6))
  assert found.usage.completion_tokens == sum(row['tokens'] for row in wanted)
  talk = [{'role': 'system', 'content': 'Be brief.'}, {'role': 'user', 'content': 'Name rivers.'},
          {'role': 'assistant', 'content': 'The Nile.'}, {'role': 'user', 'content': 'More.'}]  # fmt: skip
  wanted = generated(folder, tmp_path, [{'messages': talk}, {'instruction': texts[0]}], limit)
  found = server.client().chat.completions.create(
    model='nile', messages=talk, temperature=0, max_completion_tokens=20
  )
  assert found.choices[0].message.content == wanted[0]['output']
  assert found.choices[0].finish_reason == wanted[0]['finish_reason']
  assert chat(server, texts[0]).choices[0].message.content == wanted[1]['output']


def test_samples_are_those_of_generate_with_this_seed(server, folder, tmp_path):
  """A request is the first row of a file, and its n answers the samples of that row."""
  flags = ['--gin.Sampling.max_new_tokens=12', '--gin.Sampling.temperature=1.0']
  for options in ({'top_p': 0.8}, {}):
    extra = [f'--gin.Sampling.{name}={value}' for name, value in options.items()]
    samples = ['--gin.Sampling.seed=7', '--gin.Sampling.samples=3']
    wanted = generated(folder, tmp_path, [{'prompt': 'The night'}], *flags, *extra, *samples)
    found = completion(server, 'The night', temperature=1, n=3, seed=7, max_tokens=12, **options)
    assert [c.text for c in found.choices] == [row['output'] for row in wanted]
  assert len({c.text for c in found.choices}) == 3
  other = completion(server, 'The night', temperature=1, n=3, seed=8, max_tokens=12)
  assert [c.text for c in other.choices] != [c.text for c in found.choices]
  unseeded = {completion(server, 'The', temperature=1, max_tokens=12).choices[0].text for _ in '12'}
  assert len(unseeded) == 2


def test_echo_and_logprobs_are_those_of_transformers(server, reference):
  ids = [40, 301, 7, 260, 99, 300]
  whole = logprobs(reference, ids)
  for options in ({'max_tokens': 0}, {'max_tokens': 1}, {'max_tokens': 4}):
    found = completion(server, ids, echo=True, logprobs=3, **options).choices[0].logprobs
    assert found.token_logprobs[0] is None and found.top_logprobs[0] is None
    own = [whole[i, token] for i, token in enumerate(ids[1:])]
    np.testing.assert_allclose(found.token_logprobs[1 : len(ids)], own, atol=2e-5)
    for i, top in enumerate(found.top_logprobs[1 : len(ids)]):
      np.testing.assert_allclose(max(top.values()), whole[i].max(), atol=2e-5)
      # Parts of characters share the text U+FFFD, and of them the most likely one is shown.
      assert len(top) <= 4 and top[found.tokens[1 + i]] >= found.token_logprobs[1 + i]
    assert len(found.tokens) == len(ids) + options['max_tokens'] == len(found.text_offset)
  generated = completion(server, [ids], logprobs=2, max_tokens=4).choices[0]
  np.testing.assert_allclose(
    generated.logprobs.token_logprobs, found.token_logprobs[-4:], atol=2e-5
  )
  np.testing.assert_allclose(generated.logprobs.token_logprobs[0], whole[-1].max(), atol=2e-5)
  assert completion(server, 'The night', echo=True, max_tokens=0).choices[0].text == 'The night'


def test_chat_logprobs(server, folder, reference):
  import transformers

  tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
  found = chat(server, 'Hi', logprobs=True, top_logprobs=5, max_tokens=9).choices[0]
  turns = [{'role': 'user', 'content': 'Hi'}]
  ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
  for one in found.logprobs.content:  # greedy: each is the most likely one
    row = logprobs(reference, ids)[-1]
    np.testing.assert_allclose(one.logprob, row.max(), atol=2e-5)
    top = [entry.logprob for entry in one.top_logprobs]
    np.testing.assert_allclose(top, np.sort(row)[::-1][:5], atol=2e-5)
    ids = [*ids, int(row.argmax())]
  assert len(found.logprobs.content) in (9, 8) or found.finish_reason == 'stop'


@pytest.mark.parametrize('options', [{}, {'temperature': 1.2, 'seed': 5, 'n': 2}], ids=str)
def test_streams_have_the_text_of_whole_answers(server, options):
  options = {'max_tokens': 40, 'stop': ['ferry', 'zz'], **options}
  texts = {}
  whole = completion(server, 'The night', **options)
  chunks = list(completion(server, 'The night', stream=True, **options))
  for chunk in chunks:
    for choice in chunk.choices:
      texts[choice.index] = texts.get(choice.index, '') + choice.text
  assert texts == {choice.index: choice.text for choice in whole.choices}
  assert len(chunks) > len(texts), 'in parts'
  texts = ''
  for chunk in chat(
    server, 'Hi', stream=True, stream_options={'include_usage': True}, logprobs=True
  ):
    texts += ''.join(choice.delta.content or '' for choice in chunk.choices)
  assert texts == chat(server, 'Hi').choices[0].message.content
  assert chunk.usage.completion_tokens == chat(server, 'Hi').usage.completion_tokens


def test_stop_texts(server):
  free = completion(server, 'The night', max_tokens=40).choices[0]
  stop = free.text[11:14]
  found = completion(server, 'The night', max_tokens=40, stop=stop).choices[0]
  assert found.text == free.text[: free.text.index(stop)] and found.finish_reason == 'stop'
  assert free.finish_reason == 'length'


REFUSED = [
  ('completions', b'', 'not JSON'),
  ('completions', b'\xff\xfe', 'not JSON'),
  ('completions', b'[1, 2]', 'a JSON array'),
  ('completions', b'{"model": NaN}', 'not JSON'),
  ('completions', b'[' * 100_000, 'not JSON'),
  ('completions', {'prompt': 'a'}, 'model must be a string'),
  ('completions', {'model': 'nile'}, "'prompt' is missing"),
  ('completions', {'model': 'nile', 'prompt': []}, 'prompt must be'),
  ('completions', {'model': 'nile', 'prompt': [[-1]]}, 'token id -1'),
  ('completions', {'model': 'nile', 'prompt': [10**30]}, 'token id 1000'),
  ('completions', {'model': 'nile', 'prompt': {'a': 1}}, 'prompt must be'),
  ('completions', {'model': 'nile', 'prompt': '\ud800'}, 'surrogates'),
  ('completions', {'model': 'nile', 'prompt': 'a', 'max_tokens': 0}, 'nothing to do'),
  ('completions', {'model': 'nile', 'prompt': 'a', 'max_tokens': 'b'}, 'max_tokens must be'),
  ('completions', {'model': 'nile', 'prompt': 'a', 'max_tokens': 10**9}, 'context is 512 tokens'),
  ('completions', {'model': 'nile', 'prompt': 'a ' * 2000}, 'context is 512 tokens'),
  ('completions', {'model': 'nile', 'prompt': 'a', 'n': 1000}, 'n must be an integer, from 1'),
  ('completions', {'model': 'nile', 'prompt': ['a'] * 40, 'n': 60}, '2400 answers'),
  ('completions', {'model': 'nile', 'prompt': 'a', 'temperature': 3}, 'temperature must be'),
  ('completions', {'model': 'nile', 'prompt': 'a', 'temperature': True}, 'temperature must be'),
  ('completions', {'model': 'nile', 'prompt': 'a', 'top_p': -1}, 'top_p must be'),
  ('completions', {'model': 'nile', 'prompt': 'a', 'seed': 1.5}, 'seed must be'),
  ('completions', {'model': 'nile', 'prompt': 'a', 'stop': [1]}, 'stop must be'),
  ('completions', {'model': 'nile', 'prompt': 'a', 'logprobs': 99}, 'logprobs must be'),
  ('completions', {'model': 'nile', 'prompt': 'a', 'stream': 'yes'}, 'stream must be'),
  ('completions', {'model': 'nile', 'prompt': 'a', 'presence_penalty': 1}, 'no such penalty'),
  ('completions', {'model': 'nile', 'prompt': 'a', 'logit_bias': {'5': 1}}, 'logit_bias'),
  ('completions', {'model': 'nile', 'prompt': 'a', 'guided_json': {}}, "'guided_json' is not known"),
  ('chat/completions', {'model': 'nile'}, "'messages' is missing"),
  ('chat/completions', {'model': 'nile', 'messages': 'Hi'}, 'messages must be a JSON array'),
  ('chat/completions', {'model': 'nile', 'messages': []}, 'messages is empty'),
  ('chat/completions', {'model': 'nile', 'messages': ['Hi']}, 'messages: a turn must be an object'),
  ('chat/completions', {'model': 'nile', 'messages': [{'role': 'user'}]}, 'has no content'),
  ('chat/completions', {'model': 'nile', 'messages': [{'role': 'user', 'content': 3}]}, 'string'),
  ('chat/completions', {'model': 'nile', 'messages': [{'role': 'wolf', 'content': 'a'}]}, 'unknown_role'),
  ('chat/completions', {'model': 'nile', 'messages': [{'role': 'assistant', 'content': 'a'}]}, 'roles'),
  ('chat/completions', {'model': 'nile', 'messages': [{'role': 'tool', 'content': 'a'}]}, 'tools'),
  ('chat/completions', {'model': 'nile', 'messages': [{'role': 'user', 'content': [
    {'type': 'image_url', 'image_url': {'url': 'http://x'}}]}]}, "type 'image_url' is not supported"),
  ('chat/completions', {'model': 'nile', 'messages': [{'role': 'user', 'content': 'a'}],
                        'tools': [{'type': 'function'}]}, 'tools and functions'),
  ('chat/completions', {'model': 'nile', 'messages': [{'role': 'user', 'content': 'a'}],
                        'response_format': {'type': 'json_object'}}, 'response_format'),
  ('chat/completions', {'model': 'nile', 'messages': [{'role': 'user', 'content': 'a'}],
                        'top_logprobs': 2}, 'needs logprobs'),
]  # fmt: skip


def post(server, path, body, headers=(), method='POST'):
  """(status, JSON) of a plain client."""
  body = body if isinstance(body, bytes) else json.dumps(body).encode()
  connection = http.client.HTTPConnection('127.0.0.1', server.port, timeout=60)
  try:
    connection.request(method, path, body, {'Content-Type': 'application/json', **dict(headers)})
    reply = connection.getresponse()
    content = json.loads(reply.read())
    if wait := reply.headers.get('Retry-After'):
      content['Retry-After'] = wait
    return reply.status, content
  finally:
    connection.close()


@pytest.mark.parametrize('path, body, message', REFUSED, ids=[m for _, _, m in REFUSED])
def test_rubbish_is_refused(server, path, body, message):
  status, reply = post(server, f'/v1/{path}', body)
  assert status == 400 and reply['error']['type'] == 'invalid_request_error', reply
  assert message in reply['error']['message'] and 'code' in reply['error'], reply


def test_other_paths_methods_hosts_and_sizes(server):
  assert post(server, '/v1/embeddings', {})[0] == 404
  status, reply = post(server, '/v1/completions', {}, method='GET')
  assert status == 405 and 'GET /v1/completions' in reply['error']['message']
  assert post(server, '/v1/completions', b' ' * (5 << 20))[0] == 413
  status, reply = post(server, '/v1/completions', {}, {'Host': 'site.example'})
  assert status == 403 and '--host' in reply['error']['message']
  for headers in ({'Origin': 'https://site.example'}, {'Origin': 'null'}, {'Host': '[::'}):
    assert post(server, '/v1/completions', {}, headers)[0] == 403
  for noise in (
    b'\x16\x03\x01\x02\x00\x01\x00',
    b'GET\r\n\r\n',
    b'POST /v1/completions HTTP/1.1\r\n',
  ):
    with socket.create_connection(('127.0.0.1', server.port), timeout=20) as raw:
      raw.sendall(noise)
  assert chat(server, 'Hi').choices[0].message.content, 'it lives'


def test_a_crowd_gets_the_answers_of_each_alone(server):
  """64 ragged clients on 16 rows: sampled, greedy, scored and streamed ones side by side."""
  texts, asked = prompts(64, seed=3), []
  for i, text in enumerate(texts):
    options = {'max_tokens': 3 + 5 * i % 37}
    if i % 3:
      options |= {'temperature': 0.5 + i % 4 / 4, 'seed': i, 'top_p': 0.9 if i % 2 else 1.0}
    if i % 7 == 0:
      options |= {'logprobs': 2, 'echo': i % 2 == 0}
    asked.append((text, options, i % 5 == 0 and i % 7 != 0))

  def answer(one):
    text, options, stream = one
    found = completion(server, text, stream=stream, **options)
    if stream:
      return ''.join(choice.text for chunk in found for choice in chunk.choices)
    return found.choices[0].text

  alone = list(map(answer, asked))
  with concurrent.futures.ThreadPoolExecutor(64) as pool:
    together = list(pool.map(answer, asked))
  assert together == alone
  assert len(set(alone)) > 50
  server.await_idle()


def test_clients_that_leave_free_their_rows(server):
  """Before an answer, in mid-stream, by a close and by a reset, in the queue and in a row."""
  before = server.await_idle()

  def leave(i):
    body = {'model': 'nile', 'prompt': WORDS[i % len(WORDS)], 'max_tokens': 480, 'temperature': 1,
            'stream': i % 2 == 0, 'n': 1 + i % 3}  # fmt: skip
    data = json.dumps(body).encode()
    raw = socket.create_connection(('127.0.0.1', server.port), timeout=60)
    head = (
      f'POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n'
    )
    raw.sendall(head.encode() + data)
    if i % 2 == 0 and i % 3 == 0:
      assert b'200 OK' in raw.recv(4096), 'the stream has begun'
    else:
      time.sleep(0.01 * i)
    if i % 4 < 2:
      raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
    raw.close()

  with concurrent.futures.ThreadPoolExecutor(24) as pool:
    list(pool.map(leave, range(24)))
  after = server.await_idle(60)
  assert after['crossin_cancelled_total'] >= before['crossin_cancelled_total'] + 12
  assert completion(server, 'The night').choices[0].text


def test_a_full_queue_is_refused_and_names_a_time(folder, reference):
  with serving.running([folder], queue=2) as server:
    ask = lambda _: post(server, '/v1/completions', {
      'model': 'nile', 'prompt': 'The', 'max_tokens': 300, 'temperature': 1, 'logit_bias': {},
    })  # fmt: skip
    with concurrent.futures.ThreadPoolExecutor(24) as pool:
      found = list(pool.map(ask, range(24)))
    statuses = [status for status, _ in found]
    assert statuses.count(429) >= 1 and statuses.count(200) >= 18, statuses
    refused = next(reply for status, reply in found if status == 429)
    assert refused['error']['type'] == 'rate_limit_error' and 1 <= int(refused['Retry-After']) <= 60
    # The official client waits as long as it is told to, and is answered.
    patient = server.client(max_retries=20)
    create = lambda _: patient.completions.create(
      model='nile', prompt='The', max_tokens=100, temperature=1
    )
    with concurrent.futures.ThreadPoolExecutor(24) as pool:
      assert len(list(pool.map(create, range(24)))) == 24


def test_logits_that_are_not_finite_fail_one_request(folder, reference, tmp_path):
  """A token whose embedding is NaN: requests with it fail, those beside them do not."""
  import shutil

  from safetensors.torch import load_file, save_file

  damaged = shutil.copytree(folder, tmp_path / 'damaged')
  weights = load_file(damaged / 'model.safetensors')
  weights['model.embed_tokens.weight'][50] = float('nan')
  save_file(weights, damaged / 'model.safetensors', {'format': 'pt'})
  with serving.running([damaged]) as server:
    body = {'model': 'damaged', 'prompt': [[60, 61]], 'max_tokens': 3, 'temperature': 0}
    good = post(server, '/v1/completions', body)
    bad = {**body, 'prompt': [60, 50, 61]}
    requests = [body, bad, {**bad, 'stream': True}, {**bad, 'echo': True, 'logprobs': 1}, body]
    with concurrent.futures.ThreadPoolExecutor(5) as pool:
      found = list(pool.map(lambda one: post(server, '/v1/completions', one), requests))
    assert [status for status, _ in found] == [200, 500, 500, 500, 200]
    for _, reply in found[1:4]:
      assert (
        reply['error']['code'] == 'logits_not_finite' and reply['error']['type'] == 'server_error'
      )
    assert found[0][1]['choices'] == found[4][1]['choices'] == good[1]['choices']
    server.await_idle()


def test_a_model_that_fails_once_goes_on(server, monkeypatch):
  """Out of memory, for instance: what was in work fails, what comes then is answered."""
  before = completion(server, 'The night').choices[0].text
  generator = server.models['nile'].engine._generator
  advance, failures = generator.advance, []

  def fail(schedule, slots):
    if len(schedule.active_rows()) + len(schedule._pending) and not failures:
      failures.append(1)
      raise RuntimeError('RESOURCE_EXHAUSTED: out of\nmemory')
    return advance(schedule, slots)

  monkeypatch.setattr(generator, 'advance', fail)
  status, reply = post(server, '/v1/completions', {'model': 'nile', 'prompt': 'The', 'n': 3})
  assert status == 500 and 'the model failed: RuntimeError: RESOURCE' in reply['error']['message']
  assert completion(server, 'The night').choices[0].text == before
  server.await_idle()


def test_two_models_and_a_key(folder, reference, tmp_path):
  other = tmp_path / 'amur'
  serving.write_model(other, seed=5)
  with serving.running([folder, other], key='sesame-0123') as server:
    with pytest.raises(openai.AuthenticationError, match='API key is missing or wrong'):
      chat(server, 'Hi')
    client = server.client(api_key='sesame-0123')
    answers = []
    for name in ('nile', 'amur', str(other)):
      reply = client.chat.completions.create(
        model=name, messages=[{'role': 'user', 'content': 'Hi'}], temperature=0, max_tokens=20
      )
      answers.append(reply.choices[0].message.content)
    assert answers[0] != answers[1] == answers[2]
    connection = http.client.HTTPConnection('127.0.0.1', server.port)
    for path, status in (('/', 200), ('/health', 200), ('/metrics', 401)):
      connection.request('GET', path)
      reply = connection.getresponse()
      text = reply.read().decode()
      assert reply.status == status
      if path == '/':
        assert 'nile' in text and 'amur' in text and 'API key' in text
        known = json.loads(re.search(r'KNOWN = (\{.*?\}), SHOWN', text)[1])
        assert known['ur'] == {'name': 'Urdu', 'native': 'اردو', 'dir': 'rtl'}
        assert known['ta']['dir'] == 'ltr'
        assert '://' not in text.replace('http://www.w3.org', ''), (
          'nothing is loaded from elsewhere'
        )
