"""The client of endpoints against a real server that fails: nothing lost, nothing asked twice, no
key told.
"""

import contextlib
import json
import os
import pathlib
import signal
import sqlite3
import subprocess
import sys
import threading
import time

from conftest import REPOSITORY, replies_in
from endpoint_server import KEY, Running, running
from hypothesis import given
from hypothesis import strategies as st
import pytest

from crossin_jax.endpoint import client as lib
from crossin_jax.endpoint import pace
from crossin_jax.endpoint.client import Endpoint, EndpointError, Request
from crossin_jax.endpoint.ledger import BudgetError
from crossin_jax.endpoint.replies import BEFORE, FILE, ReplyCache
from crossin_jax.errors import Interrupted

BAD = ('401', '403', '404', '500', '503', '429', 'reset', 'cut', '200')


@pytest.fixture(autouse=True)
def _key(monkeypatch):
  monkeypatch.setenv('OPENAI_API_KEY', KEY)


def asked(n, start=0):
  content = '<answer1>\nFirst {0}.\n</answer1>\n<answer2>\nSecond {0}.\n</answer2>'
  return [
    Request([{'role': 'user', 'content': content.format(i)}], {'max_tokens': 20})
    for i in range(start, start + n)
  ]


def client(server, **settings):
  return Endpoint(
    server.url, 'judge', **{'backoff_seconds': 0.01, 'timeout_seconds': 30, **settings}
  )


def usable(text):
  return '<score1>' in text and '<score2>' in text and '11' not in text


def replies(endpoint, requests, **more):
  return sorted(endpoint.complete(requests, progress=None, **more), key=lambda reply: reply.index)


def assert_asked_once(server, extra=0):
  """Whoever was answered well was not asked again."""
  said = server.by_key()
  again = [lines for lines in said.values() if 'ok' in lines[:-1]]
  assert len(again) <= extra
  return said


def test_failures_of_all_kinds_are_repeated_and_counted(tmp_path):
  with running(tmp_path, fail=0.3, garbage=0.1, slow=0.02, per_second=400, seed=3) as server:
    # Rubbish is drawn by how often a request was made before, and a fast machine is told to wait:
    # three times in a row happens.
    with client(server, cache_dir=tmp_path / 'cache', garbage_retries=9) as endpoint:
      found = replies(endpoint, asked(100), accept=usable)
      counts = endpoint.counts()
    said = assert_asked_once(server)
    log = server.log()
  assert [reply.index for reply in found] == list(range(100))
  assert all(reply.accepted and usable(reply.text) for reply in found)
  assert len(said) == 100 and all(lines[-1] == 'ok' for lines in said.values())
  assert counts.sent == len(log) and counts.repeated == len(log) - 100 > 25
  assert counts.refused == sum(line['said'] == 'garbage' for line in log) > 3
  assert sum(counts.errors.values()) == sum(line['said'] in BAD for line in log)
  assert {'500', '503', '429', 'connection', 'malformed'} == set(counts.errors)  # no time-out
  assert counts.failed == counts.cached == counts.without_usage == 0
  assert counts.prompt_tokens == 100 * (100 + counts.refused)
  assert found[0].usage == {
    'prompt_tokens': 100 * found[0].attempts,
    'completion_tokens': 20 * found[0].attempts,
  }


def test_a_second_start_asks_only_for_what_is_missing(tmp_path):
  with running(tmp_path, garbage=0.2) as server:
    with client(server, cache_dir=tmp_path / 'cache') as endpoint:
      first = replies(endpoint, asked(30), accept=usable)
    before = len(server.log())
    with contextlib.closing(sqlite3.connect(tmp_path / 'cache' / FILE)) as database, database:
      database.execute('DELETE FROM replies WHERE rowid = (SELECT MAX(rowid) FROM replies)')
    with client(server, cache_dir=tmp_path / 'cache') as endpoint:
      again = replies(endpoint, asked(40), accept=usable)
      # the cut reply may have been one of two attempts
      assert endpoint.counts().cached in (29, 30)
    fresh = server.log()[before:]
    assert 11 <= len({line['key'] for line in fresh}) == 11
  assert [reply.text for reply in again[:30]] == [reply.text for reply in first]
  assert sum(reply.cached for reply in again) == 29


def test_the_server_dies_half_way_and_comes_back(tmp_path):
  server = Running(tmp_path, die_after=40, slow=0.01)
  box = []

  def bring_back():
    server.process.wait()
    time.sleep(0.5)
    box.append(Running(tmp_path, port=server.port))

  thread = threading.Thread(target=bring_back)
  thread.start()
  try:
    with client(server, cache_dir=tmp_path / 'cache', backoff_seconds=0.1) as endpoint:
      found = replies(endpoint, asked(100), accept=usable)
      counts = endpoint.counts()
  finally:
    thread.join()
    server.stop()
    for other in box:
      other.stop()
  # What the dying server had written to the network is lost with it: only such requests may have
  # been answered twice.
  said = assert_asked_once(server, extra=8)
  assert all(reply.accepted for reply in found) and len(said) == 100
  assert counts.errors['connection'] > 0 and counts.failed == 0


def test_garbage_is_given_back_in_the_end_and_not_asked_for_again(tmp_path):
  with running(tmp_path, always_garbage='First 3.') as server:
    for _ in range(2):
      with client(server, cache_dir=tmp_path / 'cache', garbage_retries=2) as endpoint:
        found = replies(endpoint, asked(6), accept=usable)
      assert [reply.accepted for reply in found] == [True, True, True, False, True, True]
      assert found[3].text is not None and found[3].attempts == 3
      assert len(server.log()) == 5 + 3


def test_an_unusable_reply_is_asked_for_with_other_parameters(tmp_path):
  with running(tmp_path) as server, client(server) as endpoint:
    asked_for = [
      Request(asked(1)[0].messages, {'temperature': 0}, retry_parameters={'temperature': 0.5})
    ]
    tries = []
    replies(endpoint, asked_for, accept=lambda text: bool(tries.append(text)))
    assert len(tries) == 3 and [len(lines) for lines in server.by_key().values()] == [1, 2]


def test_equal_requests_are_sent_once_and_samples_are_not_equal(tmp_path):
  with running(tmp_path) as server, client(server) as endpoint:
    same = asked(1) * 5
    found = replies(endpoint, same)
    assert len(server.log()) == 1 and len({reply.text for reply in found}) == 1
    assert [reply.cached for reply in found] == [False, True, True, True, True]
    replies(endpoint, [Request(same[0].messages, {'max_tokens': 20}, sample=1)])
    replies(endpoint, [Request(same[0].messages, {'max_tokens': 20}, model='other')])
    assert len(server.log()) == 3


@pytest.mark.parametrize(
  'status, code, message',
  [
    (401, '', 'OPENAI_API_KEY is set, but its key is not accepted'),
    (403, '', 'OPENAI_API_KEY'),
    (404, '', "the model 'judge'"),
    (402, '', 'account'),
    (429, 'insufficient_quota', 'no credit left'),
  ],
)
def test_what_would_meet_every_request_fails_at_once(tmp_path, status, code, message):
  with (
    running(tmp_path, status=status, code=code) as server,
    client(server, concurrency=4) as endpoint,
  ):
    with pytest.raises(EndpointError) as caught:
      replies(endpoint, asked(50))
    assert message in str(caught.value) and str(status) in str(caught.value)
    assert KEY not in str(caught.value) and '[key]' in str(caught.value)  # the server had echoed it
    assert caught.value.__context__ is None
    assert len(server.log()) <= 4


def test_no_key_says_so(tmp_path, monkeypatch):
  monkeypatch.delenv('OPENAI_API_KEY')
  with (
    running(tmp_path) as server,
    client(server) as endpoint,
    pytest.raises(EndpointError, match='is not set'),
  ):
    replies(endpoint, asked(1))


def test_requests_that_are_refused_are_not_repeated(tmp_path):
  with running(tmp_path, status=400) as server, client(server) as endpoint:
    with pytest.raises(EndpointError, match='requests in a row got no reply'):
      replies(endpoint, asked(200))
    assert all(len(lines) == 1 for lines in server.by_key().values()) and len(server.log()) < 40
    with pytest.raises(EndpointError):
      replies(endpoint, asked(1, start=500))


def test_a_request_is_given_up_after_its_retries(tmp_path):
  with running(tmp_path, status=503) as server, client(server, retries=2) as endpoint:
    found = []
    with pytest.raises(EndpointError):
      for reply in endpoint.complete(asked(3), progress=None):
        found.append(reply)
    assert len(found) == 3 and all(reply.text is None and '503' in reply.error for reply in found)
    assert all(len(lines) == 3 for lines in server.by_key().values())
    assert endpoint.counts().failed == 3


PRICES = {'price_in': 100.0, 'price_out': 1000.0}  # a reply costs 100 * 1e-4 + 20 * 1e-3 = 0.03


def test_an_estimate_over_the_budget_sends_nothing(tmp_path):
  with running(tmp_path) as server, client(server, budget=0.5, **PRICES) as endpoint:
    estimate = endpoint.estimate(asked(100))
    assert estimate.requests == 100 and estimate.completion_tokens == 2000 and estimate.usd > 2
    with pytest.raises(BudgetError, match=r'estimate of .* over the budget of 0\.50'):
      replies(endpoint, asked(100))
    assert server.log() == []


def test_the_budget_stops_the_run_keeps_the_replies_and_counts_them_at_the_next_start(tmp_path):
  # an estimate that is too low
  requests = [Request(r.messages, r.parameters, expected_tokens=1) for r in asked(100)]
  with running(tmp_path, slow=0.01) as server:
    found = []
    for budget, least in ((0.6, 20), (1.2, 40)):
      with client(server, cache_dir=tmp_path / 'cache', budget=budget, **PRICES) as endpoint:
        with pytest.raises(BudgetError, match='used up|estimate'):
          found += endpoint.complete(requests, progress=None)
      # The last reply is the one that reached it: estimates of what is under way are a few cents
      # too low.
      assert least <= len(server.log()) <= least + 8
    assert_asked_once(server)
    kept = len(server.log())
    with client(server, cache_dir=tmp_path / 'cache', budget=3.1, **PRICES) as endpoint:
      assert endpoint.estimate(requests).cached == kept
      assert len(replies(endpoint, requests)) == 100
      assert endpoint.counts().usd == pytest.approx(0.03 * (100 - kept))
    assert len(server.log()) == 100
  assert len(found) >= 20


def test_a_limit_on_requests_needs_no_price(tmp_path):
  with running(tmp_path, fail=0.5) as server, client(server, budget_requests=30) as endpoint:
    with pytest.raises(BudgetError, match='31 requests are over the limit of 30'):
      replies(endpoint, asked(31))
    with pytest.raises(BudgetError, match='limit of 30 requests is reached'):
      replies(endpoint, asked(30))
    assert len(server.log()) == 30
  with pytest.raises(ValueError, match='budget needs both prices'):
    Endpoint('http://127.0.0.1:1/v1', 'm', budget=1.0)


def test_haste_is_given_up_when_the_server_asks_for_it(tmp_path):
  with (
    running(tmp_path, per_second=30) as server,
    client(server, concurrency=16, retries=2) as endpoint,
  ):
    started = time.monotonic()
    found = replies(endpoint, asked(40))
    assert len(found) == 40 and time.monotonic() - started > 0.5
    errors = endpoint.counts().errors
    assert set(errors) == {'429'} and errors['429'] < 120


def test_requests_per_minute(tmp_path):
  with running(tmp_path) as server, client(server, requests_per_minute=1200) as endpoint:
    started = time.monotonic()
    replies(endpoint, asked(13))
    assert time.monotonic() - started >= 0.6


def test_a_slow_server_times_out_and_is_asked_again(tmp_path):
  with (
    running(tmp_path, slow=0.6, seed=1) as server,
    client(server, timeout_seconds=0.3) as endpoint,
  ):
    assert all(reply.text for reply in replies(endpoint, asked(8)))
    assert endpoint.counts().errors['timeout'] > 0


def test_the_key_is_in_no_file_and_no_reply(tmp_path, capfd):
  with running(tmp_path, fail=0.3, garbage=0.5) as server:
    with client(server, cache_dir=tmp_path / 'cache') as endpoint:
      found = list(endpoint.complete(asked(60), accept=usable, progress='with a bar'))
  cached = (tmp_path / 'cache' / FILE).read_bytes()
  assert any('[key]' in reply.text for reply in found) or b'[key]' in cached
  said = capfd.readouterr()
  assert 'with a bar' in said.err and KEY not in said.err + said.out
  files = [path for path in pathlib.Path(tmp_path).rglob('*') if path.is_file()]
  assert len(files) == 3 and not any(KEY.encode() in path.read_bytes() for path in files)


def test_an_interruption_keeps_what_is_under_way(tmp_path):
  with running(tmp_path, slow=0.1) as server:
    got = []

    def check():
      if len(got) >= 10:
        raise Interrupted

    with client(server, cache_dir=tmp_path / 'cache') as endpoint, pytest.raises(Interrupted):
      for reply in endpoint.complete(asked(60), progress=None, check=check):
        got.append(reply)
    done = len(server.log())
    assert 10 <= done < 40
    with client(server, cache_dir=tmp_path / 'cache') as endpoint:
      assert len(endpoint._cache) == done
      replies(endpoint, asked(60))
    assert len(server.log()) == 60


def test_leaving_the_loop_early_is_allowed(tmp_path):
  with running(tmp_path) as server, client(server) as endpoint:
    for _ in endpoint.complete(asked(50), progress=None):
      break
    assert len(replies(endpoint, asked(50))) == 50
    assert_asked_once(server)


@given(
  st.lists(
    st.tuples(st.text(max_size=8), st.text(max_size=40)), max_size=6, unique_by=lambda x: x[0]
  ),
  st.integers(0),
)
def test_a_cache_of_before_sqlite_is_taken_over(tmp_path_factory, entries, cut):
  directory = tmp_path_factory.mktemp('cache')
  whole = b''.join(json.dumps({'key': key, 'text': text}).encode() + b'\n' for key, text in entries)
  kept = whole[: cut % (len(whole) + 1)]
  (directory / BEFORE).write_bytes(kept)
  n = kept.count(b'\n')
  for _ in range(2):  # the second time from the database
    cache = ReplyCache(directory)
    assert len(cache) == n
    for i, (key, text) in enumerate(entries):
      assert cache.get(key) == ({'text': text} if i < n else None)
    cache.close()
  cache = ReplyCache(directory)
  for key, text in entries:
    cache.put(key, {'text': text})
    assert cache.get(key) == {'text': text}
  cache.close()


def test_a_reply_is_on_the_disk_when_put_returns(tmp_path):
  program = (
    'import os, sys; from crossin_jax.endpoint.replies import ReplyCache\n'
    f'cache = ReplyCache({str(tmp_path)!r})\n'
    'cache.put("a", {"text": "x\\ud800"}); os.kill(os.getpid(), 9)'
  )
  subprocess.run([sys.executable, '-c', program], env={**os.environ, 'PYTHONPATH': str(REPOSITORY)})
  cache = ReplyCache(tmp_path)
  assert cache.get('a') == {'text': 'x\ud800'} and len(cache) == 1
  cache.close()


def test_a_cache_serves_one_process_and_names_what_is_damaged(tmp_path):
  cache = ReplyCache(tmp_path)
  with pytest.raises(ValueError, match='in use by process .* --cache_dir'):
    ReplyCache(tmp_path)
  cache.put('a', {'text': 'x'})
  cache.close()
  (tmp_path / BEFORE).write_text('rubbish\n')
  with pytest.raises(ValueError, match='line 1 is damaged; delete'):
    ReplyCache(tmp_path)
  (tmp_path / BEFORE).unlink()
  (tmp_path / FILE).write_bytes(b'rubbish' * 1000)
  with pytest.raises(ValueError, match='is damaged .*; move it away'):
    ReplyCache(tmp_path)
  (tmp_path / 'plain').write_text('')
  with pytest.raises(ValueError, match='cannot write'):
    ReplyCache(tmp_path / 'plain')


def test_the_key_of_a_reply_depends_on_all_that_it_depends_on():
  endpoint = Endpoint('http://127.0.0.1:1/v1', 'm')
  base = Request([{'role': 'user', 'content': 'a'}], {'temperature': 0})
  others = [
    Request([{'role': 'user', 'content': 'b'}], {'temperature': 0}),
    Request([{'role': 'system', 'content': 'a'}], {'temperature': 0}),
    Request(base.messages, {'temperature': 1}),
    Request(base.messages, base.parameters, sample=1),
    Request(base.messages, base.parameters, model='n'),
  ]
  keys = {endpoint.key(request) for request in [base, *others]} | {endpoint.key(base, 1)}
  assert len(keys) == 7 and endpoint.key(base) == endpoint.key(
    Request(({'content': 'a', 'role': 'user'},), {'temperature': 0})
  )
  assert endpoint.key(base) == Endpoint('http://127.0.0.1:2/v1', 'm').key(base)


@pytest.mark.parametrize(
  'url', ['api.example.com/v1', 'ftp://a/v1', f'https://me:{KEY}@a/v1', f'me:{KEY}@a']
)
def test_a_wrong_url_is_named_without_secrets(url):
  with pytest.raises(ValueError, match='URL') as caught:
    Endpoint(url, 'm')
  assert KEY not in str(caught.value)


def test_waits_that_servers_ask_for():
  assert pace.retry_after({'retry-after': '1.5'}) == 1.5
  assert pace.retry_after({'retry-after-ms': '250'}) == 0.25
  assert (
    pace.retry_after({'retry-after': '-3'}) == 0.0
    and pace.retry_after({'retry-after': '1e9'}) == 600.0
  )
  assert (
    pace.retry_after({})
    is pace.retry_after({'retry-after': 'soon'})
    is pace.retry_after({'retry-after': 'nan'})
    is None
  )
  date = time.strftime('%a, %d %b %Y %H:%M:%S GMT', time.gmtime(time.time() + 30))
  assert 27 < pace.retry_after({'retry-after': date}) <= 30


def test_tokens_are_guessed_and_may_be_counted(tmp_path):
  assert (
    lib.rough_tokens('') == 0
    and lib.rough_tokens('abcdefgh') == 2
    and lib.rough_tokens('தமிழ்') == 3
  )
  endpoint = Endpoint('http://127.0.0.1:1/v1', 'm', tokens=len)
  assert (
    endpoint.estimate([Request([{'role': 'user', 'content': 'abcdef'}])]).prompt_tokens == 4 + 6
  )


def test_without_the_package_the_extra_is_named(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'openai', None)
  with (
    Endpoint('http://127.0.0.1:1/v1', 'm') as endpoint,
    pytest.raises(ValueError, match=r'crossin-jax\[judge\]'),
  ):
    replies(endpoint, asked(2))


PROGRAM = """
import sys
from crossin_jax.endpoint.client import Endpoint, Request
requests = [Request([{'role': 'user', 'content': f'<answer1>\\nFirst {i}.\\n</answer1>\\n<answer2>\\nSecond {i}.\\n</answer2>'}], {'max_tokens': 20}) for i in range(120)]
with Endpoint(sys.argv[1], 'judge', cache_dir=sys.argv[2], backoff_seconds=0.01) as endpoint:
  for reply in endpoint.complete(requests, progress=None):
    pass
"""


def test_kill_9_loses_only_what_was_under_way(tmp_path):
  cache = tmp_path / 'cache'
  environment = {**os.environ, 'PYTHONPATH': str(REPOSITORY)}
  command = [sys.executable, '-c', PROGRAM]
  with running(tmp_path, fail=0.2, slow=0.02) as server:
    for wanted in (50,):
      process = subprocess.Popen([*command, server.url, str(tmp_path / 'cache')], env=environment)
      while process.poll() is None and replies_in(cache) < wanted:
        time.sleep(0.005)
      process.send_signal(signal.SIGKILL)
      process.wait()
    with contextlib.closing(sqlite3.connect(cache / FILE)) as database:
      had = [key for (key,) in database.execute('SELECT key FROM replies')]
    assert len(had) >= 50
    with client(server, cache_dir=tmp_path / 'cache') as endpoint:
      found = replies(endpoint, asked(120))
      assert all(endpoint._cache.get(key) for key in had)
    assert_asked_once(server, extra=8)
  assert len(found) == 120 and all(reply.text for reply in found)
  assert 50 <= sum(reply.cached for reply in found) < 120
