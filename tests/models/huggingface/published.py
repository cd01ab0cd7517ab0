"""config.json of published models, with all keys that their authors wrote, and where each is from."""

HUB = 'https://huggingface.co/'
_LLAMA3_ROPE = {
    'factor': 8.0, 'high_freq_factor': 4.0, 'low_freq_factor': 1.0,
    'original_max_position_embeddings': 8192, 'rope_type': 'llama3',
}  # fmt: skip
_EUROLLM = {
    'architectures': ['LlamaForCausalLM'], 'attention_bias': False, 'attention_dropout': 0.0,
    'bos_token_id': 1, 'eos_token_id': 4, 'hidden_act': 'silu', 'initializer_range': 0.02,
    'max_position_embeddings': 4096, 'model_type': 'llama', 'num_key_value_heads': 8,
    'pretraining_tp': 1, 'rms_norm_eps': 1e-5, 'rope_scaling': None, 'rope_theta': 10_000.0,
    'tie_word_embeddings': False, 'torch_dtype': 'bfloat16', 'use_cache': False,
    'vocab_size': 128_000,
}  # fmt: skip
_LLAMA31 = {
    'architectures': ['LlamaForCausalLM'], 'attention_bias': False, 'attention_dropout': 0.0,
    'bos_token_id': 128_000, 'eos_token_id': [128_001, 128_008, 128_009], 'head_dim': 128,
    'hidden_act': 'silu', 'hidden_size': 4096, 'initializer_range': 0.02,
    'intermediate_size': 14_336, 'max_position_embeddings': 8192, 'mlp_bias': False,
    'model_type': 'llama', 'num_attention_heads': 32, 'num_hidden_layers': 32,
    'num_key_value_heads': 8, 'pretraining_tp': 1, 'rms_norm_eps': 1e-5,
    'rope_scaling': _LLAMA3_ROPE, 'rope_theta': 500_000.0, 'tie_word_embeddings': False,
    'torch_dtype': 'bfloat16', 'transformers_version': '4.46.2', 'use_cache': False,
    'vocab_size': 128_256,
}  # fmt: skip
_GEMMA2_9B = {
    'architectures': ['Gemma2ForCausalLM'], 'attention_bias': False, 'attention_dropout': 0.0,
    'attn_logit_softcapping': 50.0, 'bos_token_id': 2, 'cache_implementation': 'hybrid',
    'eos_token_id': 1, 'final_logit_softcapping': 30.0, 'head_dim': 256,
    'hidden_act': 'gelu_pytorch_tanh', 'hidden_activation': 'gelu_pytorch_tanh',
    'hidden_size': 3584, 'initializer_range': 0.02, 'intermediate_size': 14_336,
    'max_position_embeddings': 8192, 'model_type': 'gemma2', 'num_attention_heads': 16,
    'num_hidden_layers': 42, 'num_key_value_heads': 8, 'pad_token_id': 0,
    'query_pre_attn_scalar': 256, 'rms_norm_eps': 1e-6, 'rope_theta': 10_000.0,
    'sliding_window': 4096, 'sliding_window_size': 4096, 'torch_dtype': 'bfloat16',
    'transformers_version': '4.42.0.dev0', 'use_cache': True, 'vocab_size': 256_000,
}  # fmt: skip
_COHERE = {
    'attention_bias': False, 'attention_dropout': 0.0, 'bos_token_id': 5, 'eos_token_id': 255_001,
    'hidden_act': 'silu', 'hidden_size': 4096, 'initializer_range': 0.02,
    'intermediate_size': 14_336, 'layer_norm_eps': 1e-5, 'max_position_embeddings': 8192,
    'num_attention_heads': 32, 'num_hidden_layers': 32, 'num_key_value_heads': 8,
    'pad_token_id': 0, 'rope_scaling': None, 'torch_dtype': 'bfloat16', 'use_cache': True,
    'vocab_size': 256_000,
}  # fmt: skip
_QWEN = {
    'attention_dropout': 0.0, 'bos_token_id': 151_643, 'eos_token_id': 151_643,
    'hidden_act': 'silu', 'initializer_range': 0.02, 'rms_norm_eps': 1e-6,
    'rope_theta': 1_000_000.0, 'tie_word_embeddings': False, 'torch_dtype': 'bfloat16',
    'use_cache': True, 'use_sliding_window': False, 'vocab_size': 151_936,
}  # fmt: skip
_QWEN3_MOE = {
    **_QWEN, 'architectures': ['Qwen3MoeForCausalLM'], 'attention_bias': False,
    'decoder_sparse_step': 1, 'head_dim': 128, 'hidden_size': 2048, 'mlp_only_layers': [],
    'model_type': 'qwen3_moe', 'moe_intermediate_size': 768, 'norm_topk_prob': True,
    'num_attention_heads': 32, 'num_experts': 128, 'num_experts_per_tok': 8,
    'num_hidden_layers': 48, 'num_key_value_heads': 4, 'output_router_logits': False,
    'rope_scaling': None, 'sliding_window': None,
}  # fmt: skip
_GPT_OSS = {
    'architectures': ['GptOssForCausalLM'], 'attention_bias': True, 'attention_dropout': 0.0,
    'eos_token_id': 200_002, 'experts_per_token': 4, 'head_dim': 64, 'hidden_act': 'silu',
    'hidden_size': 2880, 'initial_context_length': 4096, 'initializer_range': 0.02,
    'intermediate_size': 2880, 'max_position_embeddings': 131_072, 'model_type': 'gpt_oss',
    'num_attention_heads': 64, 'num_experts_per_tok': 4, 'num_key_value_heads': 8,
    'output_router_logits': False, 'pad_token_id': 199_999,
    'quantization_config': {
        'modules_to_not_convert': [
            'model.layers.*.self_attn', 'model.layers.*.mlp.router', 'model.embed_tokens',
            'lm_head'],
        'quant_method': 'mxfp4'},
    'rms_norm_eps': 1e-5,
    'rope_scaling': {
        'beta_fast': 32.0, 'beta_slow': 1.0, 'factor': 32.0,
        'original_max_position_embeddings': 4096, 'rope_type': 'yarn', 'truncate': False},
    'rope_theta': 150_000, 'router_aux_loss_coef': 0.9, 'sliding_window': 128,
    'swiglu_limit': 7.0, 'tie_word_embeddings': False, 'transformers_version': '4.55.0.dev0',
    'use_cache': True, 'vocab_size': 201_088,
}  # fmt: skip
_SIGLIP = {
    'hidden_size': 1152, 'image_size': 896, 'intermediate_size': 4304,
    'model_type': 'siglip_vision_model', 'num_attention_heads': 16, 'num_hidden_layers': 27,
    'patch_size': 14, 'vision_use_head': False,
}  # fmt: skip
_GEMMA3 = {
    'architectures': ['Gemma3ForConditionalGeneration'], 'boi_token_index': 255_999,
    'eoi_token_index': 256_000, 'eos_token_id': [1, 106], 'image_token_index': 262_144,
    'initializer_range': 0.02, 'mm_tokens_per_image': 256, 'model_type': 'gemma3',
    'torch_dtype': 'bfloat16', 'transformers_version': '4.50.0.dev0', 'vision_config': _SIGLIP,
}  # fmt: skip
_LINEAR = {'factor': 8.0, 'rope_type': 'linear'}
_LOCAL = 'sliding_attention'
_GEMMA4_TEXT = {
    'attention_bias': False, 'attention_dropout': 0.0, 'attention_k_eq_v': True,
    'bos_token_id': 2, 'dtype': 'bfloat16', 'enable_moe_block': False, 'eos_token_id': 1,
    'expert_intermediate_size': None, 'final_logit_softcapping': 30.0, 'global_head_dim': 512,
    'head_dim': 256, 'hidden_activation': 'gelu_pytorch_tanh', 'hidden_size_per_layer_input': 0,
    'initializer_range': 0.02, 'max_position_embeddings': 262_144, 'moe_intermediate_size': None,
    'num_experts': None, 'num_kv_shared_layers': 0, 'pad_token_id': 0, 'rms_norm_eps': 1e-6,
    'rope_parameters': {
        'full_attention': {
            'partial_rotary_factor': 0.25, 'rope_theta': 1_000_000.0, 'rope_type': 'proportional'},
        'sliding_attention': {'rope_theta': 10_000.0, 'rope_type': 'default'},
    },
    'sliding_window': 1024, 'tie_word_embeddings': True, 'top_k_experts': None,
    'use_bidirectional_attention': 'vision', 'use_cache': True, 'use_double_wide_mlp': False,
    'vocab_size': 262_144, 'vocab_size_per_layer_input': 262_144,
}  # fmt: skip
_OLMO3_ROPE = {
    'attention_factor': 1.2079441541679836, 'beta_fast': 32.0, 'beta_slow': 1.0, 'factor': 8.0,
    'original_max_position_embeddings': 8192, 'rope_type': 'yarn',
}  # fmt: skip

# name -> (where it is from, config.json).
CONFIGS = {
  'eurollm_9b': (
    HUB + 'cortecs/EuroLLM-9B-Instruct-FP8-Dynamic without its quantization_config',
    {
        **_EUROLLM, 'head_dim': 128, 'hidden_size': 4096, 'intermediate_size': 12_288,
        'mlp_bias': False, 'num_attention_heads': 32, 'num_hidden_layers': 42,
    },
  ),
  'eurollm_1.7b': (
    HUB + 'utter-project/EuroLLM-1.7B-Instruct',
    {
        **_EUROLLM, 'hidden_size': 2048, 'intermediate_size': 5632, 'num_attention_heads': 16,
        'num_hidden_layers': 24, 'transformers_version': '4.40.0.dev0',
    },
  ),
  'salamandra_7b': (
    HUB + 'BSC-LT/salamandra-7b-instruct',
    {
        **_EUROLLM, 'eos_token_id': 2, 'hidden_size': 4096, 'intermediate_size': 11_008,
        'max_position_embeddings': 8192, 'mlp_bias': False, 'num_attention_heads': 32,
        'num_hidden_layers': 32, 'rms_norm_eps': 1e-6, 'vocab_size': 256_000,
    },
  ),
  'salamandra_2b': (
    HUB + 'BSC-LT/salamandra-2b-instruct',
    {
        **_EUROLLM, 'eos_token_id': 2, 'hidden_size': 2048, 'intermediate_size': 5440,
        'max_position_embeddings': 8192, 'mlp_bias': False, 'num_attention_heads': 16,
        'num_hidden_layers': 24, 'num_key_value_heads': 16, 'num_layers': 24,
        'vocab_size': 256_000,
    },
  ),
  'smollm2_1.7b': (
    HUB + 'puettmann/SmolMaestra-1.7b-Translation, tuned from SmolLM2-1.7B-Instruct',
    {
        **_EUROLLM, 'eos_token_id': 2, 'head_dim': 64, 'hidden_size': 2048,
        'intermediate_size': 8192, 'max_position_embeddings': 8192, 'mlp_bias': False,
        'num_attention_heads': 32, 'num_hidden_layers': 24, 'num_key_value_heads': 32,
        'pad_token_id': 2, 'rope_theta': 130_000, 'tie_word_embeddings': True,
        'transformers.js_config': {'kv_cache_dtype': {'fp16': 'float16', 'q4f16': 'float16'}},
        'vocab_size': 49_152,
    },
  ),
  'smollm2_360m': (
    HUB + 'HuggingFaceTB/SmolLM2-360M',
    {
        **_EUROLLM, 'bos_token_id': 0, 'eos_token_id': 0, 'hidden_size': 960,
        'intermediate_size': 2560, 'is_llama_config': True, 'max_position_embeddings': 8192,
        'num_attention_heads': 15, 'num_hidden_layers': 32, 'num_key_value_heads': 5,
        'rope_interleaved': False, 'rope_theta': 100_000, 'tie_word_embeddings': True,
        'vocab_size': 49_152,
    },
  ),
  'phi4': (
    HUB + 'gaianet/phi-4-GGUF, which has that of microsoft/phi-4',
    {
        'architectures': ['Phi3ForCausalLM'], 'attention_bias': False, 'attention_dropout': 0.0,
        'auto_map': {}, 'bos_token_id': 100_257, 'embd_pdrop': 0.0, 'eos_token_id': 100_257,
        'hidden_act': 'silu', 'hidden_size': 5120, 'initializer_range': 0.02,
        'intermediate_size': 17_920, 'max_position_embeddings': 16_384, 'model_type': 'phi3',
        'num_attention_heads': 40, 'num_hidden_layers': 40, 'num_key_value_heads': 10,
        'original_max_position_embeddings': 16_384, 'pad_token_id': 100_257, 'resid_pdrop': 0.0,
        'rms_norm_eps': 1e-5, 'rope_scaling': None, 'rope_theta': 250_000,
        'sliding_window': None, 'tie_word_embeddings': False, 'torch_dtype': 'bfloat16',
        'use_cache': True, 'vocab_size': 100_352,
    },
  ),
  # A continued Gemma 2 9B with its architecture, vocabulary and number of tensors.
  'sea_lion_v3_9b': (HUB + 'google/gemma-2-9b-it', _GEMMA2_9B),
  'tower_plus_9b': (
    HUB + 'google/gemma-2-9b-it, on which https://featherless.ai/models/Unbabel/Tower-Plus-9B is',
    {**_GEMMA2_9B, 'eos_token_id': 107},
  ),
  # Gemma-SEA-LION-v4-27B-IT is a Gemma 3 27B.
  'sea_lion_v4_27b': (
    HUB + 'Abc7347/copytext27binstructgmn, a copy of google/gemma-3-27b-it',
    {
        **_GEMMA3,
        'text_config': {
            'head_dim': 128, 'hidden_size': 5376, 'intermediate_size': 21_504,
            'model_type': 'gemma3_text', 'num_attention_heads': 32, 'num_hidden_layers': 62,
            'num_key_value_heads': 16, 'query_pre_attn_scalar': 168, 'rope_scaling': _LINEAR,
            'sliding_window': 1024,
        },
    },
  ),
  'sailor2_8b': (
    HUB + 'sail/Sailor2-8B',
    {
        **_QWEN, 'architectures': ['Qwen2ForCausalLM'], 'hidden_size': 3584,
        'intermediate_size': 18_944, 'max_position_embeddings': 131_072, 'max_window_layers': 28,
        'model_type': 'qwen2', 'num_attention_heads': 28, 'num_hidden_layers': 32,
        'num_key_value_heads': 4, 'sliding_window': 131_072, 'use_mrope': False,
    },
  ),
  'sailor2_20b': (
    HUB + 'sail/Sailor2-20B',
    {
        **_QWEN, 'architectures': ['Qwen2ForCausalLM'], 'hidden_size': 5120,
        'intermediate_size': 13_824, 'max_position_embeddings': 4096, 'max_window_layers': 48,
        'model_type': 'qwen2', 'num_attention_heads': 40, 'num_hidden_layers': 64,
        'num_key_value_heads': 8, 'sliding_window': 131_072,
    },
  ),
  'swallow_8b': (HUB + 'tokyotech-llm/Llama-3.1-Swallow-8B-Instruct-v0.3', _LLAMA31),
  'llama31_8b': (
    HUB + 'tokyotech-llm/Llama-3.1-Swallow-8B-Instruct-v0.3 with the length of its base',
    {**_LLAMA31, 'max_position_embeddings': 131_072},
  ),
  'qwen3_8b': (
    'https://github.com/AI-Hypercomputer/maxtext src/MaxText/configs/models/qwen3-8b.yml (sizes)',
    {
        **_QWEN, 'architectures': ['Qwen3ForCausalLM'], 'attention_bias': False, 'head_dim': 128,
        'hidden_size': 4096, 'intermediate_size': 12_288, 'max_position_embeddings': 40_960,
        'max_window_layers': 36, 'model_type': 'qwen3', 'num_attention_heads': 32,
        'num_hidden_layers': 36, 'num_key_value_heads': 8, 'rope_scaling': None,
        'sliding_window': None,
    },
  ),
  'gemma3_4b': (
    HUB + 'mlx-community/gemma-3-4b-it-bf16, which has that of google/gemma-3-4b-it',
    {
        **_GEMMA3,
        'text_config': {
            'hidden_size': 2560, 'intermediate_size': 10_240, 'model_type': 'gemma3_text',
            'num_hidden_layers': 34, 'rope_scaling': _LINEAR, 'sliding_window': 1024,
        },
    },
  ),
  'olmo3_7b': (
    'https://github.com/facebookresearch/fairseq2 src/fairseq2/models/olmo/config.py (sizes)',
    {
        'architectures': ['Olmo3ForCausalLM'], 'attention_bias': False, 'attention_dropout': 0.0,
        'dtype': 'bfloat16', 'eos_token_id': 100_257, 'hidden_act': 'silu', 'hidden_size': 4096,
        'initializer_range': 0.02, 'intermediate_size': 11_008,
        'layer_types': [*[_LOCAL] * 3, 'full_attention'] * 8, 'max_position_embeddings': 65_536,
        'model_type': 'olmo3', 'num_attention_heads': 32, 'num_hidden_layers': 32,
        'num_key_value_heads': 32, 'pad_token_id': 100_277, 'rms_norm_eps': 1e-6,
        'rope_scaling': _OLMO3_ROPE, 'rope_theta': 500_000, 'sliding_window': 4096,
        'tie_word_embeddings': False, 'use_cache': True, 'vocab_size': 100_278,
    },
  ),
  'seed_oss_36b': (
    HUB + 'darkc0de/4.3test2, a Seed-OSS-36B',
    {
        'architectures': ['SeedOssForCausalLM'], 'attention_bias': True, 'attention_dropout': 0.0,
        'attention_out_bias': False, 'bos_token_id': 0, 'dtype': 'bfloat16', 'eos_token_id': 2,
        'head_dim': 128, 'hidden_act': 'silu', 'hidden_size': 5120, 'initializer_range': 0.02,
        'intermediate_size': 27_648, 'max_position_embeddings': 524_288, 'mlp_bias': False,
        'model_type': 'seed_oss', 'num_attention_heads': 80, 'num_hidden_layers': 64,
        'num_key_value_heads': 8, 'pad_token_id': 1, 'pretraining_tp': 1,
        'residual_dropout': 0.0, 'rms_norm_eps': 1e-6, 'rope_scaling': {'rope_type': 'default'},
        'rope_theta': 10_000_000.0, 'tie_word_embeddings': False, 'use_cache': True,
        'vocab_size': 155_136,
    },
  ),
  'ministral_8b': (
    HUB + 'rivaon/sydney, tuned from mistralai/Ministral-8B-Instruct-2410',
    {
        'architectures': ['MistralForCausalLM'], 'attention_dropout': 0.0, 'bos_token_id': 1,
        'eos_token_id': 2, 'head_dim': 128, 'hidden_act': 'silu', 'hidden_size': 4096,
        'initializer_range': 0.02, 'intermediate_size': 12_288,
        'max_position_embeddings': 32_768, 'model_type': 'mistral', 'num_attention_heads': 32,
        'num_hidden_layers': 36, 'num_key_value_heads': 8, 'pad_token_id': 0,
        'rms_norm_eps': 1e-5, 'rope_theta': 100_000_000.0, 'sliding_window': 32_768,
        'tie_word_embeddings': False, 'torch_dtype': 'bfloat16', 'use_cache': True,
        'vocab_size': 131_072,
    },
  ),
  'granite_8b': (
    HUB + 'ibm-granite/granite-3.1-8b-instruct',
    {
        'architectures': ['GraniteForCausalLM'], 'attention_bias': False,
        'attention_dropout': 0.1, 'attention_multiplier': 0.0078125, 'bos_token_id': 0,
        'embedding_multiplier': 12.0, 'eos_token_id': 0, 'hidden_act': 'silu',
        'hidden_size': 4096, 'initializer_range': 0.02, 'intermediate_size': 12_800,
        'logits_scaling': 16.0, 'max_position_embeddings': 131_072, 'mlp_bias': False,
        'model_type': 'granite', 'num_attention_heads': 32, 'num_hidden_layers': 40,
        'num_key_value_heads': 8, 'pad_token_id': 0, 'residual_multiplier': 0.22,
        'rms_norm_eps': 1e-5, 'rope_scaling': None, 'rope_theta': 10_000_000.0,
        'tie_word_embeddings': True, 'torch_dtype': 'bfloat16', 'use_cache': True,
        'vocab_size': 49_155,
    },
  ),
  'granite_2b': (
    HUB + 'ibm-granite/granite-3.0-2b-instruct',
    {
        'architectures': ['GraniteForCausalLM'], 'attention_bias': False,
        'attention_dropout': 0.1, 'attention_multiplier': 0.015625, 'bos_token_id': 0,
        'embedding_multiplier': 12.0, 'eos_token_id': 0, 'hidden_act': 'silu',
        'hidden_size': 2048, 'initializer_range': 0.02, 'intermediate_size': 8192,
        'logits_scaling': 8.0, 'max_position_embeddings': 4096, 'mlp_bias': False,
        'model_type': 'granite', 'num_attention_heads': 32, 'num_hidden_layers': 40,
        'num_key_value_heads': 8, 'pad_token_id': 0, 'residual_multiplier': 0.22,
        'rms_norm_eps': 1e-5, 'rope_scaling': None, 'rope_theta': 10_000,
        'tie_word_embeddings': True, 'torch_dtype': 'bfloat16', 'use_cache': True,
        'vocab_size': 49_155,
    },
  ),
  'smollm3_3b': (
    HUB + 'koutch/0.json_train_grpo_v1_dev, tuned from HuggingFaceTB/SmolLM3-3B',
    {
        'architectures': ['SmolLM3ForCausalLM'], 'attention_bias': False,
        'attention_dropout': 0.0, 'bos_token_id': None, 'eos_token_id': 128_012,
        'hidden_act': 'silu', 'hidden_size': 2048, 'initializer_range': 0.02,
        'intermediate_size': 11_008, 'layer_types': ['full_attention'] * 36,
        'max_position_embeddings': 65_536, 'max_window_layers': 28, 'mlp_bias': False,
        'model_type': 'smollm3', 'no_rope_layer_interval': 4, 'no_rope_layers': [1, 1, 1, 0] * 9,
        'num_attention_heads': 16, 'num_hidden_layers': 36, 'num_key_value_heads': 4,
        'pad_token_id': 128_004, 'pretraining_tp': 2, 'rms_norm_eps': 1e-6, 'rope_scaling': None,
        'rope_theta': 5_000_000.0, 'sliding_window': None, 'tie_word_embeddings': True,
        'torch_dtype': 'bfloat16', 'use_cache': False, 'use_sliding_window': False,
        'vocab_size': 128_256,
    },
  ),
  'ministral3_8b': (
    'the defaults of Ministral3Config, whose checkpoint is mistralai/Ministral-3-8B-Base-2512',
    {
        'architectures': ['Mistral3ForConditionalGeneration'], 'dtype': 'bfloat16',
        'image_token_index': 10, 'model_type': 'mistral3', 'multimodal_projector_bias': False,
        'projector_hidden_act': 'gelu', 'spatial_merge_size': 2, 'vision_feature_layer': -1,
        'text_config': {
            'attention_dropout': 0.0, 'head_dim': 128, 'hidden_act': 'silu', 'hidden_size': 4096,
            'initializer_range': 0.02, 'intermediate_size': 14_336,
            'max_position_embeddings': 262_144, 'model_type': 'ministral3',
            'num_attention_heads': 32, 'num_hidden_layers': 34, 'num_key_value_heads': 8,
            'rms_norm_eps': 1e-5, 'rope_parameters': {
                'beta_fast': 32.0, 'beta_slow': 1.0, 'factor': 16.0, 'llama_4_scaling_beta': 0.1,
                'mscale': 1.0, 'mscale_all_dim': 1.0, 'original_max_position_embeddings': 16_384,
                'rope_theta': 1_000_000.0, 'rope_type': 'yarn', 'type': 'yarn',
            },
            'sliding_window': None, 'tie_word_embeddings': False, 'use_cache': True,
            'vocab_size': 131_072,
        },
    },
  ),
  'command_r7b': (
    HUB + 'huihui-ai/c4ai-command-r7b-12-2024-abliterated',
    {
        **_COHERE, 'architectures': ['Cohere2ForCausalLM'], 'cache_implementation': 'hybrid',
        'head_dim': 128, 'layer_switch': 4, 'logit_scale': 0.25, 'model_type': 'cohere2',
        'order_of_interleaved_layers': 'local_attn_first', 'position_embedding_type': 'rope_gptj',
        'rope_theta': 50_000, 'rotary_pct': 1.0, 'sliding_window': 4096,
        'sliding_window_pattern': 4, 'use_embedding_sharing': True, 'use_gated_activation': True,
        'use_parallel_block': True, 'use_parallel_embedding': True,
    },
  ),
  'tiny_aya': (
    HUB + '1-800-LLMs/tiny-aya-earth',
    {
        **_COHERE, '_sliding_window_pattern': 4, 'architectures': ['Cohere2ForCausalLM'],
        'cache_implementation': 'hybrid', 'head_dim': 128, 'hidden_size': 2048,
        'intermediate_size': 11_008, 'layer_switch': 4,
        'layer_types': [*[_LOCAL] * 3, 'full_attention'] * 9, 'logit_scale': 1.0,
        'max_position_embeddings': 500_000, 'model_type': 'cohere2', 'num_attention_heads': 16,
        'num_hidden_layers': 36, 'num_key_value_heads': 4,
        'order_of_interleaved_layers': 'local_attn_first', 'position_embedding_type': 'rope_gptj',
        'rope_theta': 50_000, 'rotary_pct': 1.0, 'sliding_window': 4096,
        'use_embedding_sharing': True, 'use_gated_activation': True, 'use_parallel_block': True,
        'use_parallel_embedding': False, 'use_qk_norm': False, 'vocab_size': 262_144,
    },
  ),
  'aya_expanse_8b': (
    HUB + 'adamo1139/aya-expanse-8b-ungated',
    {
        **_COHERE, 'architectures': ['CohereForCausalLM'], 'logit_scale': 0.125,
        'model_type': 'cohere', 'rope_theta': 10_000, 'use_qk_norm': False,
    },
  ),
  'aya_expanse_32b': (
    HUB + 'minyichen/aya-expanse-32b-Dynamic-fp8 without its quantization_config',
    {
        **_COHERE, 'architectures': ['CohereForCausalLM'], 'hidden_size': 8192,
        'intermediate_size': 24_576, 'logit_scale': 0.0625, 'model_type': 'cohere',
        'num_attention_heads': 64, 'num_hidden_layers': 40, 'rope_theta': 4_000_000,
        'use_qk_norm': False,
    },
  ),
  'apertus_8b': (
    HUB + 'NewEden-Forge/Science-Expert-R1, tuned from swiss-ai/Apertus-8B-2509',
    {
        'architectures': ['ApertusForCausalLM'], 'attention_bias': False,
        'attention_dropout': 0.0, 'bos_token_id': 1, 'dtype': 'bfloat16', 'eos_token_id': 74,
        'hidden_act': 'xielu', 'hidden_dropout': 0.0, 'hidden_size': 4096,
        'initializer_range': 0.02, 'intermediate_size': 21_504,
        'max_position_embeddings': 65_536, 'mlp_bias': False, 'model_type': 'apertus',
        'num_attention_heads': 32, 'num_hidden_layers': 32, 'num_key_value_heads': 8,
        'pad_token_id': 3, 'post_norm': False, 'qk_norm': True, 'rms_norm_eps': 1e-5,
        'rope_scaling': {**_LLAMA3_ROPE, 'type': 'llama3'}, 'rope_theta': 12_000_000,
        'tie_word_embeddings': False, 'transformers_version': '4.56.1', 'use_cache': False,
        'vocab_size': 131_072,
    },
  ),
  # The 12B model is of another class than the other sizes of Gemma 4.
  'gemma4_12b': (
    'https://ollama.com/decadence/gemma-4:12b-it-mlx-8bit and '
    'https://github.com/sgl-project/sglang/issues/27261',
    {
        'architectures': ['Gemma4UnifiedForConditionalGeneration'], 'audio_token_id': 258_881,
        'audio_config': {
            'audio_embed_dim': 640, 'audio_samples_per_token': 640, 'hidden_size': 640,
            'initializer_range': 0.02, 'model_type': 'gemma4_unified_audio',
            'output_proj_dims': 640, 'rms_norm_eps': 1e-6},
        'boa_token_id': 256_000, 'boi_token_id': 255_999, 'dtype': 'bfloat16',
        'eoa_token_index': 258_883, 'eoi_token_id': 258_882, 'eos_token_id': [1, 106, 50],
        'image_token_id': 258_880, 'initializer_range': 0.02, 'model_type': 'gemma4_unified',
        'text_config': {
            **_GEMMA4_TEXT, 'hidden_size': 3840, 'intermediate_size': 15_360,
            'layer_types': [*[_LOCAL] * 5, 'full_attention'] * 8,
            'model_type': 'gemma4_unified_text', 'num_attention_heads': 16,
            'num_global_key_value_heads': 1, 'num_hidden_layers': 48, 'num_key_value_heads': 8,
        },
        'tie_word_embeddings': True, 'transformers_version': '5.10.0.dev0',
        'video_token_id': 258_884,
        'vision_config': {
            'mm_embed_dim': 3840, 'mm_posemb_size': 1120, 'model_patch_size': 48,
            'model_type': 'gemma4_unified_vision', 'num_soft_tokens': 280,
            'output_proj_dims': 3840, 'patch_size': 16, 'pooling_kernel_size': 3,
            'rms_norm_eps': 1e-6},
    },
  ),
  'gemma4_31b': (
    HUB + 'google/gemma-4-31B',
    {
        'architectures': ['Gemma4ForConditionalGeneration'], 'audio_config': None,
        'audio_token_id': 258_881, 'boa_token_id': 256_000, 'boi_token_id': 255_999,
        'dtype': 'bfloat16', 'eoa_token_id': 258_883, 'eoa_token_index': 258_883,
        'eoi_token_id': 258_882, 'eos_token_id': [1, 106], 'image_token_id': 258_880,
        'initializer_range': 0.02, 'model_type': 'gemma4',
        'text_config': {
            **_GEMMA4_TEXT, 'hidden_size': 5376, 'intermediate_size': 21_504,
            'layer_types': [*[_LOCAL] * 5, 'full_attention'] * 10, 'model_type': 'gemma4_text',
            'num_attention_heads': 32, 'num_global_key_value_heads': 4, 'num_hidden_layers': 60,
            'num_key_value_heads': 16,
        },
        'tie_word_embeddings': True, 'transformers_version': '5.5.0.dev0',
        'video_token_id': 258_884,
    },
  ),
  'qwen3_30b_a3b': (
    'https://github.com/AI-Hypercomputer/maxtext src/MaxText/configs/models/qwen3-30b-a3b.yml '
    '(sizes)',
    {
        **_QWEN3_MOE, 'intermediate_size': 6144, 'max_position_embeddings': 40_960,
        'max_window_layers': 48, 'router_aux_loss_coef': 0.001,
    },
  ),
  'qwen3_coder_30b_a3b': (
    HUB + 'shailesh83/Qwen3-Coder-int8',
    {
        **_QWEN3_MOE, 'intermediate_size': 5472, 'max_position_embeddings': 262_144,
        'max_window_layers': 28, 'qkv_bias': False, 'rope_theta': 10_000_000,
        'router_aux_loss_coef': 0.0, 'shared_expert_intermediate_size': 0, 'use_qk_norm': True,
    },
  ),
  'mixtral_8x7b': (
    HUB + 'mistralai/Mixtral-8x7B-Instruct-v0.1',
    {
        'architectures': ['MixtralForCausalLM'], 'attention_dropout': 0.0, 'bos_token_id': 1,
        'eos_token_id': 2, 'hidden_act': 'silu', 'hidden_size': 4096, 'initializer_range': 0.02,
        'intermediate_size': 14_336, 'max_position_embeddings': 32_768, 'model_type': 'mixtral',
        'num_attention_heads': 32, 'num_experts_per_tok': 2, 'num_hidden_layers': 32,
        'num_key_value_heads': 8, 'num_local_experts': 8, 'output_router_logits': False,
        'rms_norm_eps': 1e-5, 'rope_theta': 1_000_000.0, 'router_aux_loss_coef': 0.02,
        'sliding_window': None, 'tie_word_embeddings': False, 'torch_dtype': 'bfloat16',
        'transformers_version': '4.36.0.dev0', 'use_cache': True, 'vocab_size': 32_000,
    },
  ),
  'olmoe_1b_7b': (
    HUB + 'allenai/OLMoE-1B-7B-0924-SFT',
    {
        'architectures': ['OlmoeForCausalLM'], 'attention_bias': False, 'attention_dropout': 0.0,
        'clip_qkv': None, 'eos_token_id': 50_279, 'hidden_act': 'silu', 'hidden_size': 2048,
        'initializer_range': 0.02, 'intermediate_size': 1024, 'max_position_embeddings': 4096,
        'model_type': 'olmoe', 'norm_topk_prob': False, 'num_attention_heads': 16,
        'num_experts': 64, 'num_experts_per_tok': 8, 'num_hidden_layers': 16,
        'num_key_value_heads': 16, 'output_router_logits': False, 'pad_token_id': 1,
        'rope_scaling': None, 'rope_theta': 10_000.0, 'router_aux_loss_coef': 0.01,
        'tie_word_embeddings': False, 'torch_dtype': 'bfloat16',
        'transformers_version': '4.44.0.dev0', 'use_cache': True, 'vocab_size': 50_304,
    },
  ),
  'gpt_oss_20b': (
    HUB + 'openai/gpt-oss-20b',
    {
        **_GPT_OSS, 'layer_types': [_LOCAL, 'full_attention'] * 12, 'num_hidden_layers': 24,
        'num_local_experts': 32,
    },
  ),
  'gpt_oss_120b': (
    HUB + 'openai/gpt-oss-120b',
    {
        **_GPT_OSS, 'layer_types': [_LOCAL, 'full_attention'] * 18, 'num_hidden_layers': 36,
        'num_local_experts': 128,
    },
  ),
}  # fmt: skip
