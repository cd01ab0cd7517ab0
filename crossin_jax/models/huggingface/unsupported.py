"""Models that are refused: what they have that this decoder does not, and which relative works."""

# What they have -> (model types, relatives that work).
_REASONS = {
  'has linear attention in most of its layers': (
    'qwen3_next qwen3_5 qwen3_5_text qwen3_5_moe qwen3_5_moe_text olmo_hybrid minimax kimi_linear',
    'Qwen3, Gemma 3 and OLMo 3',
  ),
  'compresses keys and values into latents (MLA)': (
    'deepseek_v2 deepseek_v3 deepseek_v32 deepseek_vl_v2 kimi_k2 kimi_k25 longcat_flash minicpm3 '
    'glm4_moe_lite youtu',
    'Qwen3-MoE, Mixtral, OLMoE and gpt-oss, or a distilled model on Qwen2 or Llama',
  ),
  'has state-space (Mamba) or recurrent layers': (
    'mamba mamba2 falcon_mamba falcon_h1 jamba bamba granitemoehybrid nemotron_h zamba zamba2 rwkv '
    'recurrent_gemma lfm2 lfm2_moe xlstm',
    'Granite 3 (dense), Llama 3 and Qwen3',
  ),
  'has an encoder and a decoder': (
    't5 mt5 umt5 longt5 switch_transformers t5gemma t5gemma2 bart mbart m2m_100 nllb-moe marian '
    'pegasus blenderbot led bigbird_pegasus seamless_m4t seamless_m4t_v2 whisper',
    'Gemma 3, EuroLLM, Tower+ and Aya, which also translate',
  ),
  'has an encoder without a decoder': (
    'bert roberta xlm-roberta xlm-roberta-xl deberta deberta-v2 distilbert electra modernbert '
    'eurobert camembert mmbert',
    'SmolLM2 and Qwen3-0.6B, which are small decoders',
  ),
  'has learned or ALiBi positions, or norms with biases': (
    'gpt2 gpt_neo gpt_neox gpt_bigcode gptj opt bloom falcon mpt xglm codegen phi stablelm '
    'starcoder2 persimmon nemotron',
    'Llama, Qwen3, Gemma 3 and SmolLM3',
  ),
  'has chunked attention and experts in every other layer': ('llama4 llama4_text', 'Llama 3'),
  'has embeddings for each layer and shared caches': ('gemma3n gemma3n_text', 'Gemma 3'),
  'turns only neighbouring pairs of half of each head': (
    'glm glm4 glm4_moe chatglm', 'Qwen3 and Cohere2',
  ),
}  # fmt: skip
REFUSED = {
  name: f'it {reason}; what works: {relatives}'
  for reason, (names, relatives) in _REASONS.items()
  for name in names.split()
}
