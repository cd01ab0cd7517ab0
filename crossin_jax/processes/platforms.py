"""The platform that JAX was asked for and that is not here: one message in place of JAX's own."""

from collections.abc import Iterator
import glob
import importlib.util
import os

from crossin_jax.errors import CrossinError

_PLUGINS = {
  'gpu': ('jax_cuda13_plugin', 'jax_cuda12_plugin', 'jax_rocm7_plugin', 'jax_rocm60_plugin'),
  'tpu': ('libtpu',),
}
_SAME = {'cuda': 'gpu', 'rocm': 'gpu'}


class NoDevice(CrossinError, ValueError):
  """A platform without a device; the message says what was asked for, what is here, the remedy."""

  def __init__(self, setting: str, platform: str):
    """Args:
    setting: that asked for it: 'JAX_PLATFORMS=cuda'.
    platform: 'gpu', 'cuda', 'tpu', ...
    """
    super().__init__(f'{setting}: no such device; {_here()}. {_remedy(platform)}')


def explained(error: BaseException) -> NoDevice | None:
  """The error to report for one that comes from JAX's search for devices; None for others."""
  asked = os.environ.get('JAX_PLATFORMS', '')
  if not asked or isinstance(error, NoDevice) or not any(map(_is_search, _chain(error))):
    return None
  return NoDevice(f'JAX_PLATFORMS={asked}', asked.split(',')[0])


def _chain(error: BaseException | None) -> Iterator[BaseException]:
  while error is not None:
    yield error
    error = error.__cause__ or error.__context__


def _is_search(error: BaseException) -> bool:
  """Whether JAX raised it while it looked for devices: a RuntimeError, or for CUDA an assertion
  without a text.
  """
  trace = error.__traceback__
  while trace is not None and trace.tb_next is not None:
    trace = trace.tb_next
  code = trace.tb_frame.f_code if trace is not None else None
  return code is not None and os.path.basename(code.co_filename) == 'xla_bridge.py'


def _here() -> str:
  gpus, tpus = len(glob.glob('/dev/nvidia[0-9]*')), len(glob.glob('/dev/accel[0-9]*'))
  found = [f'{gpus} NVIDIA GPUs'] * bool(gpus) + [f'{tpus} TPU chips'] * bool(tpus)
  return f'this machine has {" and ".join([*found, "its CPU"])}'


def _remedy(platform: str) -> str:
  kind = _SAME.get(platform, platform)
  cpu = 'set JAX_PLATFORMS=cpu to use the CPU'
  if kind not in _PLUGINS:
    return f'JAX knows cpu, cuda, rocm and tpu: {cpu}'
  if not any(map(importlib.util.find_spec, _PLUGINS[kind])):
    extra = 'tpu' if kind == 'tpu' else 'cuda'
    return f"Install what JAX needs for it (pip install 'crossin-jax[{extra}]'), or {cpu}"
  look = 'start the command on a TPU VM' if kind == 'tpu' else 'check the driver with nvidia-smi'
  return f'JAX has what it needs for it, and finds none: {look}, or {cpu}'
