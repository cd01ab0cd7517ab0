"""Where the figures of a run are shown besides metrics.jsonl: TensorBoard, Weights & Biases,
trackio.

A tracker has `start(model_dir, resumed_step)`, `log(scalars, step)` and `close()`; only process 0
calls them. Their packages are imported by `start`.
"""

from collections.abc import Mapping, Sequence
import os
import secrets
import sys

import gin

from crossin_jax.storage.files import read_json, write_json

IDS = 'trackers.json'  # in MODEL_DIR: which run of a service this run is
LOGIN_SECONDS = 30


@gin.configurable
class TensorBoard:
  """Writes MODEL_DIR/tensorboard. Names without a slash get 'train/' in front."""

  def start(self, model_dir: str, resumed_step: int) -> None:
    """What a killed run wrote after `resumed_step` is not shown any more."""
    self._place, self._board = (os.path.join(model_dir, 'tensorboard'), resumed_step + 1), None

  def log(self, scalars: Mapping[str, float], step: int) -> None:
    """Adds the figures of a step."""
    if self._board is None:
      # Opened here: the first step of a run need not wait until the library is imported, which
      # takes more than a second where torch is installed.
      from tensorboardX import SummaryWriter

      folder, first_step = self._place
      self._board = SummaryWriter(folder, purge_step=first_step)
    for name, value in scalars.items():
      self._board.add_scalar(name if '/' in name else f'train/{name}', value, step)

  def close(self) -> None:
    """Writes what is left."""
    if self._board is not None:
      self._board.close()


@gin.configurable
class WandB:
  """Weights & Biases. A resumed run continues its run there."""

  def __init__(
    self,
    project: str = 'crossin',
    entity: str | None = None,
    name: str | None = None,
    tags: tuple[str, ...] = (),
    mode: str | None = None,
  ):
    """Args:
    project: where the run is shown.
    entity: user or team; None = the account's own.
    name: of the run; None = the last part of MODEL_DIR.
    tags: of the run.
    mode: 'online', 'offline' (`wandb sync` sends it later) or 'disabled'; None = as the
      environment says (WANDB_MODE).
    """
    self._settings = {'project': project, 'entity': entity, 'tags': list(tags), 'mode': mode}
    self._name = name

  def start(self, model_dir: str, resumed_step: int) -> None:
    """Starts or continues the run.

    Raises:
      ImportError: wandb is not installed.
    """
    import wandb

    self._run = wandb.init(
        **self._settings, name=_name(self._name, model_dir), id=_run_id('wandb', model_dir),
        dir=model_dir, resume='allow', config=_described(model_dir),
        settings=wandb.Settings(login_timeout=LOGIN_SECONDS, silent=True),
    )  # fmt: skip

  def log(self, scalars: Mapping[str, float], step: int) -> None:
    """Adds the figures of a step; those of a step before the last one are dropped there."""
    self._run.log(dict(scalars), step=step)

  def close(self) -> None:
    """Waits until everything is sent."""
    self._run.finish()


@gin.configurable
class Trackio:
  """trackio: a local dashboard (`trackio show`), or a Space. A resumed run continues its run."""

  def __init__(
    self, project: str = 'crossin', name: str | None = None, space_id: str | None = None
  ):
    """Args:
    project: where the run is shown.
    name: of the run; None = the last part of MODEL_DIR and an ID.
    space_id: of a Hugging Face Space; None = this machine.
    """
    self._project, self._name, self._space = project, name, space_id

  def start(self, model_dir: str, resumed_step: int) -> None:
    """Starts or continues the run.

    Raises:
      ImportError: trackio is not installed.
    """
    import trackio

    # trackio knows a run by its name.
    name = self._name or f'{_name(None, model_dir)}-{_run_id("trackio", model_dir)}'
    self._run = trackio.init(
      self._project, name=name, space_id=self._space, resume='allow', config=_described(model_dir),
      embed=False,
    )  # fmt: skip

  def log(self, scalars: Mapping[str, float], step: int) -> None:
    """Adds the figures of a step."""
    self._run.log(dict(scalars), step=step)

  def close(self) -> None:
    """Waits until everything is written."""
    self._run.finish()


class Trackers:
  """Several trackers. One that fails is left out from then on, with a warning: training goes on."""

  def __init__(self, trackers: Sequence, model_dir: str, resumed_step: int):
    """Starts them; arguments as of `TensorBoard.start`."""
    self._trackers = list(trackers)
    self._all('start', model_dir, resumed_step)

  def log(self, scalars: Mapping[str, float], step: int) -> None:
    """Adds the figures of a step."""
    self._all('log', scalars, step)

  def close(self) -> None:
    """Closes them."""
    self._all('close')

  def _all(self, method: str, *arguments) -> None:
    for tracker in list(self._trackers):
      try:
        getattr(tracker, method)(*arguments)
      except Exception as error:  # of any library and its network
        self._trackers.remove(tracker)
        reason = ' '.join(f'{type(error).__name__}: {error}'.split())[:300]
        print(
          f'warning: the tracker {type(tracker).__name__} is not used any more ({reason}); '
          'training goes on, and metrics.jsonl has everything',
          file=sys.stderr,
        )


def _name(name: str | None, model_dir: str) -> str:
  return name or os.path.basename(os.path.normpath(model_dir))


def _run_id(service: str, model_dir: str) -> str:
  """The ID of this run at a service, the same after it is resumed."""
  path = os.path.join(model_dir, IDS)
  known = read_json(path, 'delete it: the run gets a new one') if os.path.exists(path) else {}
  if service not in known:
    known[service] = secrets.token_hex(4)
    write_json(path, known)
  return known[service]


def _described(model_dir: str) -> dict:
  """The settings of the run, as a service shows them."""
  path = os.path.join(model_dir, 'config.gin')
  if not os.path.exists(path):
    return {}
  with open(path, encoding='utf-8') as f:
    return {'config.gin': f.read()}
