"""The roll call, its processes being threads here: who is missing, lost, failed, told to stop, or
different.
"""

import concurrent.futures
import random
import socket
import subprocess
import sys
import threading
import time

from addresses import free_address
import pytest

from crossin_jax.processes.exit_status import RESTART
from crossin_jax.processes.hub import RollCallError
from crossin_jax.processes.roll_call import RollCall


@pytest.fixture
def address():
  return free_address()


class Left(Exception):
  """Instead of the end of a process."""


def enter(address, count, indices, left=None, **more):
  """RollCalls of some of the processes; an exception in the place of those that were refused."""
  left = {} if left is None else left
  options = {'timeout': 5.0, 'beat': 0.05, 'lost': 1.0} | more

  def one(index):
    time.sleep(random.random() / 10)
    try:
      return RollCall(
        address, count, index, leave=lambda status: left.setdefault(index, status), **options
      )
    except RollCallError as error:
      return error

  with concurrent.futures.ThreadPoolExecutor(len(indices)) as pool:
    return list(pool.map(one, indices))


def together(calls, work):
  """work(call) in a thread each."""
  with concurrent.futures.ThreadPoolExecutor(len(calls)) as pool:
    return list(pool.map(work, calls))


def wait_until(true, seconds=5.0):
  until = time.monotonic() + seconds
  while not true() and time.monotonic() < until:
    time.sleep(0.02)
  assert true()


def test_all_begin_together_and_leave(address):
  calls = enter(address, 4, range(4))
  assert [call.index for call in calls] == [0, 1, 2, 3]
  places = together(calls, lambda call: [call.barrier(f'place {i % 2}', 'same') for i in range(6)])
  assert places == [[None] * 6] * 4
  left = {}
  together(calls, lambda call: call.close())
  time.sleep(0.3)
  assert not left


@pytest.mark.parametrize('there, missing', [((0, 1, 3), '2'), ((0, 2), '1, 3')])
def test_the_missing_are_named_to_all(address, there, missing):
  found = enter(address, 4, there, timeout=0.7)
  assert all(isinstance(error, RollCallError) for error in found)
  assert all(f'did not start in time: {missing}.' in str(error) for error in found)


def test_process_0_tells_the_others_before_it_ends(address):
  process_0 = """
import sys, time
from crossin_jax.processes import hub
from crossin_jax.processes.roll_call import RollCall
def slowly(line, send=hub.Line.send, **message):
  time.sleep(0.3 * ('missing' in message))
  sent = send(line, **message)
  time.sleep(0.3 * ('missing' in message))
  return sent
hub.Line.send = slowly
RollCall(sys.argv[1], 3, 0, timeout=3.0)
"""
  running = subprocess.Popen(
    [sys.executable, '-c', process_0, address], stderr=subprocess.PIPE, text=True
  )
  (error,) = enter(address, 3, [1], timeout=30)
  assert 'did not start in time: 2.' in running.communicate()[1]
  assert 'did not start in time: 2.' in str(error)


def test_without_process_0_the_others_say_so(address):
  (error,) = enter(address, 2, [1], timeout=0.5)
  assert 'process 0 did not answer at 127.0.0.1' in str(error)


def test_a_number_too_much_or_taken_twice_is_refused(address):
  found = enter(address, 3, [0, 1, 1], timeout=1.0)
  assert (
    sum('has the number of a process that is already connected' in str(error) for error in found)
    == 1
  )


def test_another_count_is_refused(address):
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    first = pool.submit(enter, address, 2, [0], timeout=1.0)
    second = pool.submit(enter, address, 4, [3], timeout=1.0)
    assert 'as one of 4 processes, process 0 as one of 2' in str(second.result()[0])
    assert 'did not start in time: 1' in str(first.result()[0])


def test_a_cut_line_ends_the_others_with_its_name(address, capsys):
  left = {}
  calls = enter(address, 3, range(3), left)
  calls[2]._closed = True
  calls[2]._line.close()  # as the kernel does when a process is killed
  wait_until(lambda: set(left) == {0, 1})
  assert left == {0: RESTART, 1: RESTART}
  assert (
    'process 2 (' in (said := capsys.readouterr().err) and 'is lost: its connection was cut' in said
  )


def test_silence_ends_the_others(address, capsys, monkeypatch):
  left = {}
  calls = enter(address, 3, range(3), left)
  monkeypatch.setattr(calls[1]._line, 'send', lambda **_: True)  # a machine that hangs
  wait_until(lambda: {0, 2} <= set(left))
  assert left[0] == left[2] == RESTART
  assert 'process 1 (' in (said := capsys.readouterr().err) and 'no heartbeat for 1 s' in said


@pytest.mark.parametrize('hang', [False, True])
def test_without_process_0_the_others_end(address, capsys, monkeypatch, hang):
  left = {}
  calls = enter(address, 3, range(3), left)
  if hang:
    calls[0]._hub._complete = True  # sends no sign of life any more
  else:
    calls[0]._closed = True
    calls[0]._hub.close()
  wait_until(lambda: {1, 2} <= set(left))
  assert left[1] == left[2] == RESTART and 'process 0 is lost' in capsys.readouterr().err


@pytest.mark.parametrize('failing', [0, 1])
def test_an_error_ends_all_with_its_text(address, capsys, failing):
  left = {}
  calls = enter(address, 3, range(3), left)
  calls[failing].notify_failed('row 7 of rows.json is no text')
  others = {0, 1, 2} - {failing}
  wait_until(lambda: set(left) == others)
  assert all(left[index] == 1 for index in others)
  said = capsys.readouterr().err
  assert (
    said.count(f'process {failing} (') == 2 and said.count('row 7 of rows.json is no text') == 2
  )


def test_different_settings_are_named(address):
  calls = enter(address, 4, range(4))

  def work(call):
    try:
      call.barrier('start', 'b' if call.index == 2 else 'a')
    except RollCallError as error:
      return str(error)

  said = together(calls, work)
  assert all(
    'differ at start: process 2 (' in text and 'says b; the others say a' in text for text in said
  )
  assert 'process 1' not in said[0] and 'process 3' not in said[0]


@pytest.mark.parametrize('seed', range(8))
def test_all_stop_at_the_same_check(address, seed):
  """Processes ask at their own pace, some are told to stop at any moment: all stop at one number,
  or none does.
  """
  rng = random.Random(seed)
  calls, total, done = enter(address, 4, range(4)), 60, []
  told = {rng.randrange(4): rng.randrange(total) for _ in range(rng.randrange(1, 3))}
  pace = [rng.random() / 300 for _ in range(4)]
  step = threading.Barrier(4)  # the collectives of a step: nobody is more than one ahead

  def work(call):
    for number in range(total):
      if told.get(call.index) == number:
        call.notify_stop()
      time.sleep(pace[call.index] * rng.random())
      step.wait(10)
      if call.stopping():
        done.append(number)
        return number
    return total

  numbers = together(calls, work)
  assert len(set(numbers)) == 1
  assert min(told.values()) <= numbers[0] <= total
  together(calls, lambda call: call.close())


def test_who_is_waited_for_is_said(address, monkeypatch, capsys):
  monkeypatch.setattr('crossin_jax.processes.hub.REPORT_PERIOD', 0.2)
  calls = enter(address, 3, range(3))
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    waiting = [pool.submit(call.barrier, 'the save') for call in calls[:2]]
    time.sleep(0.8)
    calls[2].barrier('the save')
    for future in waiting:
      future.result(5)
  said = capsys.readouterr().err
  assert 'before the save for process 2 (' in said


def test_strangers_do_no_harm(address):
  """Something that probes ports, in the middle of the roll call."""
  host, port = address.split(':')
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    first = pool.submit(enter, address, 2, [0], timeout=5.0)
    time.sleep(0.3)
    for rubbish in (
      b'GET / HTTP/1.1\r\n\r\n',
      b'\xff' * 100_000,
      b'{"hello": "me"}\n',
      b'[1]\n',
      b'\n',
      b'',
    ):
      with socket.create_connection((host, int(port))) as s:
        s.sendall(rubbish)
    (second,) = enter(address, 2, [1])
    together([first.result()[0], second], lambda call: call.barrier('end'))
