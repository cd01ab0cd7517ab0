"""Loss and gradients of preference objectives equal those of TRL's own trainers, on the same model
and the same pairs.
"""

from data.test_pair_layout import pair
import jax
import numpy as np
import pytest

from crossin_jax.data import pair_layout
from crossin_jax.data.stream import FEATURES, empty_rows
from crossin_jax.models import lora
from crossin_jax.training import losses
from crossin_jax.training.objectives import Preference
from crossin_jax.training.pair_sums import answers_of

REASON = 'the comparison with TRL needs the extra `test`'
torch = pytest.importorskip('torch', reason=REASON)
transformers = pytest.importorskip('transformers', reason=REASON)
peft = pytest.importorskip('peft', reason=REASON)
trl = pytest.importorskip('trl', reason=REASON)

from checkpoints.test_adapters import opened  # noqa: E402
from models.huggingface.test_families import their_model  # noqa: E402

EOS, WORDS, LENGTH = 2, 199, 64
# Prompt, chosen and rejected answer; the trainers add the stop token.
PAIRS = [
  ([5, 6, 7, 8, 9, 10], [20, 21, 22], [30]),
  ([11, 12], [23], [31, 32, 33, 34, 35]),
  ([13, 14, 15, 5, 5, 5, 16, 17, 18], [24, 25, 26, 27], [36, 37, 38, 39]),
]
DPO = {'loss_type': ['sigmoid']}
CASES = {
  'dpo': (Preference('dpo', beta=0.3), {**DPO, 'beta': 0.3}),
  'smoothed': (
    Preference('dpo', beta=0.3, label_smoothing=0.2),
    {'loss_type': ['robust'], 'label_smoothing': 0.2, 'beta': 0.3},
  ),
  'normalised': (
    Preference('dpo', beta=2.0, length_normalised=True), {'loss_type': ['sigmoid_norm'], 'beta': 2.0}
  ),
  'ipo': (Preference('ipo', beta=0.5), {'loss_type': ['ipo'], 'beta': 0.5}),
  'with nll': (
    Preference('dpo', beta=0.3, nll=0.7),
    {'loss_type': ['sigmoid', 'sft'], 'loss_weights': [1.0, 0.7], 'beta': 0.3},
  ),
  'orpo': (Preference('orpo', beta=0.4), None),
}  # fmt: skip
# Means over the tokens of a batch in TRL, over pairs here: equal for batches of one pair.
ALONE = ('with nll', 'orpo')


@pytest.fixture(scope='module')
def base(tmp_path_factory):
  """The directory of a small model."""
  path = str(tmp_path_factory.mktemp('trl') / 'base')
  their_model('llama3').save_pretrained(path)
  return path


def tokenizer():
  """One id a word, of equal width because special tokens are found inside words; no BOS."""
  from tokenizers import Tokenizer, models, pre_tokenizers

  words = {f'w{i:03}': i for i in range(WORDS) if i != EOS} | {'</s>': EOS}
  made = Tokenizer(models.WordLevel(words, unk_token='w000'))
  made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=made, eos_token='</s>', pad_token='w001', unk_token='w000'
  )


def trainer_of(name, base, tmp_path, adapters):
  """TRL's trainer, its model moved away from the reference."""
  from datasets import Dataset
  from trl.experimental.orpo import ORPOConfig, ORPOTrainer

  text = lambda ids: ''.join(f' w{i:03}' for i in ids)
  rows = Dataset.from_list(
    [dict(zip(('prompt', 'chosen', 'rejected'), map(text, triple))) for triple in PAIRS]
  )
  _, options = CASES[name]
  kind, config = (
    (ORPOTrainer, ORPOConfig) if options is None else (trl.DPOTrainer, trl.DPOConfig)
  )  # fmt: skip
  args = config(
    output_dir=str(tmp_path / 'run'), use_cpu=True, bf16=False, report_to=[], disable_tqdm=True,
    gradient_checkpointing=False, **({'beta': 0.4} if options is None else options),
  )  # fmt: skip
  settings = None
  if adapters:
    settings = peft.LoraConfig(
      r=4, lora_alpha=10, target_modules=['q_proj', 'v_proj', 'up_proj'], init_lora_weights=False,
      task_type='CAUSAL_LM',
    )  # fmt: skip
  model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
  trainer = kind(
    model=model, args=args, train_dataset=rows, processing_class=tokenizer(), peft_config=settings
  )
  torch.manual_seed(7)
  with torch.no_grad():
    for parameter in trainer.model.parameters():
      if parameter.requires_grad:
        parameter.add_(0.02 * torch.randn_like(parameter))
  return trainer


def their_step(name, base, tmp_path, adapters):
  """(loss, directory of the parameters, directory of the gradients in their places)."""
  trainer = trainer_of(name, base, tmp_path, adapters)
  rows = [trainer.train_dataset[i] for i in range(len(PAIRS))]
  batches = [[row] for row in rows] if name in ALONE else [rows]
  trainer.model.train()
  loss = 0.0
  for batch in batches:
    part = trainer.compute_loss(trainer.model, trainer.data_collator(batch)) / len(batches)
    part.backward()
    loss += float(part)
  model = trainer.model
  model.save_pretrained(str(tmp_path / 'weights'))
  with torch.no_grad():
    for parameter in model.parameters():
      if parameter.requires_grad:
        parameter.copy_(parameter.grad)
  model.save_pretrained(str(tmp_path / 'gradients'))
  return loss, str(tmp_path / 'weights'), str(tmp_path / 'gradients')


def batch_of(layout):
  """All pairs in two rows, the last row empty."""
  batch = empty_rows(3, LENGTH, FEATURES | pair_layout.features(layout, False))
  place = {0: (0, 1), 1: (0, 1)}
  for row, (prompt, chosen, rejected) in zip((0, 0, 1), PAIRS):
    example = pair(prompt, [*chosen, EOS], [*rejected, EOS])
    place[row] = pair_layout.write(batch, row, *place[row], *example, None, 0)
  return batch


def our_step(objective, model, params, reference, batch):
  """(mean loss, gradients of the trained parameters, sums)."""
  trained, frozen = lora.split(params, lora.of_model(model))
  if reference is not None:
    batch = {**batch, pair_layout.REFERENCE: stored(model, reference, batch)}

  def mean(trained):
    value, sums = objective(model, lora.merge(trained, frozen), batch, 1)
    return value / sums.weight, sums

  (loss, sums), gradients = jax.jit(jax.value_and_grad(mean, has_aux=True))(trained)
  return float(loss), gradients, sums


def stored(model, params, batch):
  """Log-probabilities under the reference, as a batch of the stream has them."""
  answers = jax.jit(lambda p: answers_of(batch, losses.cross_entropy(model, p, batch)[0]))(params)
  numbers = batch['decoder_branches' if 'decoder_branches' in batch else 'decoder_answers']
  result = np.zeros(numbers.shape, np.float32)
  for row, answer in np.ndindex(len(numbers), 3):
    for id_ in set(batch['decoder_pair_ids'][row]) - {0}:
      at = (batch['decoder_pair_ids'][row] == id_) & (numbers[row] == answer)
      if answer and at.any():
        result[row, np.flatnonzero(at)[0]] = answers.logps_BPA[row, id_, answer]
  return result


@pytest.mark.parametrize('name', CASES)
@pytest.mark.parametrize('adapters', [False, True], ids=['all parameters', 'LoRA'])
def test_loss_and_gradients(base, tmp_path, name, adapters):
  objective = CASES[name][0]
  loss, weights, gradients = their_step(name, base, tmp_path, adapters)
  _, model, params = opened(weights)
  _, _, expected = opened(gradients)
  expected = lora.split(expected, lora.of_model(model))[0]
  reference = None
  if not adapters and objective.has_reference:
    reference = opened(base)[2]
  for layout in pair_layout.LAYOUTS if name == 'dpo' else ('branches',):
    found, ours, sums = our_step(objective, model, params, reference, batch_of(layout))
    assert float(sums.weight) == len(PAIRS)
    np.testing.assert_allclose(found, loss, rtol=1e-5)
    for path, theirs in jax.tree_util.tree_leaves_with_path(expected):
      leaf = ours
      for key in path:
        leaf = leaf[key.key]
      size = np.linalg.norm(np.asarray(theirs, np.float64))
      assert size > 0, path
      difference = np.linalg.norm(np.asarray(leaf, np.float64) - np.asarray(theirs, np.float64))
      assert difference <= 1e-5 * size, (path, difference / size)
