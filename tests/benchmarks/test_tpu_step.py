"""benchmarks/tpu_step.py on the saved text of a program."""

import argparse
import importlib.util
import json
import sys

from conftest import REPOSITORY
import pytest

PROGRAM = """HloModule step

%products (p: bf16[4096,4096], p: bf16[4096,4096]) -> bf16[4096,4096] {
  %a.1 = bf16[4096,4096]{1,0} parameter(0)
  %b.1 = bf16[4096,4096]{1,0} parameter(1)
  ROOT %c.1 = bf16[4096,4096]{1,0} convolution(%a.1, %b.1), dim_labels=bf_io->bf
}

ENTRY %main (a: bf16[4096,4096], b: bf16[1024,4096]) -> bf16[4096,4096] {
  %a = bf16[4096,4096]{1,0} parameter(0)
  %b = bf16[1024,4096]{1,0} parameter(1)
  %all = bf16[4096,4096]{1,0} all-gather(%b), channel_id=1, replica_groups={{0,1,2,3}}, dimensions={0}
  ROOT %c = bf16[4096,4096]{1,0} fusion(%a, %all), kind=kOutput, calls=%products, backend_config={"estimated_cycles":"1500000"}
}
"""


@pytest.fixture
def tpu_step():
  pytest.importorskip('libtpu', reason='descriptions of TPUs need libtpu, of the extra `test`')
  path = REPOSITORY / 'benchmarks' / 'tpu_step.py'
  spec = importlib.util.spec_from_file_location('tpu_step', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def test_the_setting_and_its_options(tpu_step):
  topology = tpu_step.plan_topology.parse('v5e:4x4')
  setting = tpu_step.setting_of(4, 'lora', topology, ['--gin.cross_entropy.chunk=8192'])
  assert (setting.batch_size, setting.length) == (16, 4096)
  assert setting.model.config.num_layers == 4 and setting.model.config.lora.rank == 64
  options = lambda text: tpu_step.options_of(argparse.Namespace(compiler_options=text), topology)
  assert options('a=1,b=x') == {'a': '1', 'b': 'x'} and options('') == {} != options('auto')


def test_a_saved_program(tpu_step, tmp_path, monkeypatch, capsys):
  text, output = tmp_path / 'other.hlo', tmp_path / 'rows.jsonl'
  text.write_text(PROGRAM)
  (tmp_path / 'other.hlo.json').write_text(
    '{"layers": 4, "argument_bytes": 1, "temporary_bytes": 2}'
  )
  arguments = ['--topologies=v5e:2x2', f'--text={text}', f'--output={output}']
  for more, seconds in (([], 24 / 100), (['--link_gbps=200'], 24 / 200)):
    monkeypatch.setattr(sys, 'argv', ['tpu_step.py', *arguments, *more])
    tpu_step.main()
    out, err = capsys.readouterr()
    row = json.loads(out)
    assert row['flops_by_kind']['products'] == 2 * 4096**3
    assert row['busy_seconds'] == pytest.approx(1e-3)
    assert row['exposed_seconds'] == {'all-gather': pytest.approx(seconds * 1.048576e-3)}
    assert row['layers'] == 4 and '| v5e:2x2 |' in err and 'Not equal' in err
  assert len(output.read_text().splitlines()) == 2
