"""Small tokenizers and random models of transformers, as directories."""

import json
import os

TEXTS = [
  'Name three rivers. The night ferry leaves the port at noon. user assistant system Today is',
  'con đò đêm rời bến 河流 渡轮 [INST] think',
]


def write_tokenizer(
  folder, specials, config, template=None, plain=(), bos=None, texts=(), size=380
) -> dict[str, int]:
  """Writes tokenizer.json (byte-level BPE), its configuration and a chat template.

  Args:
    folder: made.
    specials: special tokens, behind the vocabulary.
    config: of tokenizer_config.json.
    template: Jinja text of chat_template.jinja.
    plain: added tokens that are not special.
    bos: a token that the post-processor puts in front.
    texts: learned from, beside `TEXTS`.
    size: of the vocabulary without the added tokens.

  Returns:
    Added token -> id.
  """
  from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    pre_tokenizers,
    processors,
    trainers,
  )

  tokenizer = Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=size, special_tokens=[], show_progress=False,
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
  )  # fmt: skip
  tokenizer.train_from_iterator([*TEXTS, *texts] * 30, trainer)
  tokenizer.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in specials])
  tokenizer.add_tokens([AddedToken(s, special=False, normalized=False) for s in plain])
  ids = {token: tokenizer.token_to_id(token) for token in (*specials, *plain)}
  if bos:
    tokenizer.post_processor = processors.TemplateProcessing(
      single=f'{bos} $A', special_tokens=[(bos, ids[bos])]
    )
  os.makedirs(folder, exist_ok=True)
  tokenizer.save(os.path.join(folder, 'tokenizer.json'))
  config = {'tokenizer_class': 'PreTrainedTokenizerFast', **config}
  write_json(os.path.join(folder, 'tokenizer_config.json'), config)
  if template is not None:
    with open(os.path.join(folder, 'chat_template.jinja'), 'w', encoding='utf-8') as f:
      f.write(template)
  return ids


def write_json(path, value) -> None:
  with open(path, 'w', encoding='utf-8') as f:
    json.dump(value, f, ensure_ascii=False)


def write_model(folder, kind='LlamaConfig', **changes):
  """Writes a random model of transformers in f32; returns it."""
  import torch
  import transformers

  sizes = {
    'vocab_size': 400, 'hidden_size': 48, 'intermediate_size': 80, 'num_hidden_layers': 2,
    'num_attention_heads': 4, 'num_key_value_heads': 2, 'head_dim': 12,
    'max_position_embeddings': 128, 'bos_token_id': None, 'eos_token_id': None,
  }  # fmt: skip
  torch.manual_seed(0)
  config = getattr(transformers, kind)(**{**sizes, **changes})
  model = transformers.AutoModelForCausalLM.from_config(config).eval()
  with torch.no_grad():
    for p in model.parameters():
      value = torch.randn_like(p)
      p.add_(0.2 * value) if p.ndim == 1 else p.copy_(value * p.shape[-1] ** -0.5)
  model.save_pretrained(folder)
  return model
