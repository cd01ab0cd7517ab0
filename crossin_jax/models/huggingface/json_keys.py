"""Keys of config.json that change nothing in the forward pass of the text model.

transformers ignores every key that its class does not read. Here an unknown key is an error,
because it may belong to a model that this project does not have, unless it is one of those below.
"""

from collections.abc import Mapping

from crossin_jax.errors import CrossinError


class ArchitectureError(CrossinError, ValueError):
  """An unsupported config.json; the message names the field and the supported values."""


# Whatever their values.
IGNORED = frozenset(
  """
    architectures auto_map boi_token_index bos_token_id cache_implementation
    chunk_size_feed_forward dtype eoi_token_index eos_token_id finetuning_task
    gradient_checkpointing id2label image_token_id image_token_index initializer_range
    is_decoder is_encoder_decoder is_llama_config keys_to_ignore_at_inference label2id
    max_position_embeddings max_sequence_length max_seq_len mm_tokens_per_image model_max_length
    model_type name_or_path neftune_noise_alpha num_labels num_layers output_attentions
    output_hidden_states pad_token_id prefix pretraining_tp problem_type return_dict
    sep_token_id seq_length sliding_window_size task_specific_params text_config tokenizer_class
    torch_dtype torchscript transformers.js_config transformers_version unk_token_id
    use_bfloat16 use_cache vision_config
  """.split()
)
# Settings of generation, which older versions of transformers saved here.
GENERATION = frozenset(
  """
    assistant_confidence_threshold assistant_lookbehind bad_words_ids begin_suppress_tokens
    decoder_start_token_id diversity_penalty do_sample early_stopping
    encoder_no_repeat_ngram_size encoder_repetition_penalty epsilon_cutoff eta_cutoff
    exponential_decay_length_penalty forced_bos_token_id forced_decoder_ids
    forced_eos_token_id length_penalty max_length max_new_tokens min_length min_new_tokens
    min_p no_repeat_ngram_size num_assistant_tokens num_assistant_tokens_schedule
    num_beam_groups num_beams num_return_sequences output_scores remove_invalid_values
    repetition_penalty return_dict_in_generate suppress_tokens target_lookbehind temperature
    top_k top_p typical_p
  """.split()
)
# Records of the tools that wrote the file, and private attributes of transformers.
PREFIXES = ('_', 'unsloth_')
# Keys that must have one of these values, except in a family that reads them.
NEUTRAL = {
  'attention_bias': (False, None),
  'attention_dropout': (0, None),
  'add_cross_attention': (False, None),
  'cross_attention_hidden_size': (None,),
  'embd_pdrop': (0, None),
  'full_attn_mod': (1, None),
  'hidden_dropout': (0, None),
  'interpolate_factor': (1, None),
  'is_causal': (True,),
  'lm_head_bias': (False, None),
  'mlp_bias': (False, None),
  'partial_rotary_factor': (1, None),
  'pruned_heads': ({}, None),
  'quantization_config': (None,),
  'resid_pdrop': (0, None),
  'rope_interleaved': (False, None),
  'tie_encoder_decoder': (False, None),
  'use_bidirectional_attention': (False, None),
  'use_mrope': (False, None),
  'use_rope': (True, None),
  'use_sliding_window': (False, None),
}


def check(json_config: Mapping, known, ignore: tuple[str, ...] = ()) -> None:
  """Checks that every key is read or changes nothing.

  Args:
    json_config: of the text model.
    known: keys that the model's family reads.
    ignore: more keys that change nothing.

  Raises:
    ArchitectureError: names the key.
  """
  for key, value in json_config.items():
    if key in known or key in IGNORED or key in GENERATION or key in ignore:
      continue
    if key in NEUTRAL:
      if value not in NEUTRAL[key]:
        raise ArchitectureError(f'{key} = {value!r} is not supported (only {NEUTRAL[key][0]!r} is)')
      continue
    is_off = value is None or (value is False and (key.startswith('use_') or key.endswith('bias')))
    if is_off or key.startswith(PREFIXES):
      continue
    raise ArchitectureError(
      f'field {key} = {value!r} is not known for {json_config["model_type"]}; if it has no '
      'effect on the forward pass, add it to from_huggingface.ignore'
    )
