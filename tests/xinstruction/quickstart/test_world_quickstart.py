"""X-Instruction on the embedded world, at toy size: what it counts, and that it goes on where it
was.
"""

import html
import json

import numpy as np
import pytest
import scipy.stats

from crossin_jax import cli
from crossin_jax.xinstruction.quickstart import quickstart, results


def test_usage(capsys):
  assert cli.main(
    ['xinstruction', 'quickstart', '--languages', 'en,sw', '--output_dir', '/nowhere/x']
  ) in (1, 2)
  with pytest.raises(SystemExit):
    cli.main(['xinstruction', 'quickstart', '--languages', 'klingon'])
  assert 'klingon' in capsys.readouterr().err


def test_intervals_of_shares():
  """Against the interval as scipy gives it."""
  for part, whole in ((0, 7), (9, 10), (45, 100), (10, 10)):
    found = results._wilson(part, whole)
    theirs = scipy.stats.binomtest(part, whole).proportion_ci(method='wilson')
    np.testing.assert_allclose([found.low, found.high], [theirs.low, theirs.high], atol=1e-4)
  assert results._wilson(0, 0) is None


@pytest.mark.slow
def test_a_small_one_from_text_to_page(tmp_path, monkeypatch, capsys):
  small = quickstart.Settings(
    entities=12,
    reading_steps=4,
    generator_epochs=0.2,
    response_epochs=0.2,
    rater_epochs=0.1,
    set_epochs=0.5,
    rounds=1,
  )
  monkeypatch.setattr(quickstart, 'Settings', lambda: small)
  command = ['xinstruction', 'quickstart', '--output_dir', str(tmp_path), '--json']
  for name in ('entities', 'reading_steps', 'rounds'):  # the flags have the full size as default
    command.append(f'--{name}={getattr(small, name)}')
  assert cli.main(command) == 0
  found = json.loads(capsys.readouterr().out.splitlines()[-1])
  (one,) = found['refinement']
  # A model of four steps may have nothing to say to a text; how many it left out depends on the
  # machine's arithmetic.
  paired = json.loads(
    (tmp_path / 'pipeline' / 'pairs' / 'manifest.json').read_text(encoding='utf-8')
  )['counts']
  assert one['candidates'] == paired['candidates'] > 0
  assert (
    paired['candidates'] + paired['empty_instruction'] == 3 * found['world']['parts']['documents']
  )
  assert sum(own['candidates'] for own in one['by_flaw'].values()) == one['candidates']
  assert sum(own['kept'] for own in one['by_flaw'].values()) == one['kept']
  good = one['by_flaw'].get('good', {'kept': 0})
  if one['kept']:
    assert one['precision']['estimate'] == good['kept'] / one['kept']
  for model in ('seed', 'random', 'kept', 'seed and kept'):
    for form in ('English', 'native'):
      own = found['responses']['models'][model][form]
      assert own['items'] == sum(own['heard'].values()) == 3 * found['world']['parts']['test']
  page = html.unescape((tmp_path / 'report.html').read_text(encoding='utf-8')).replace(
    '\N{NO-BREAK SPACE}', ' '
  )
  assert all(text in page for text in found['findings'])
  before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*.json*')}
  assert cli.main(command) == 0
  assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*.json*')} == before
