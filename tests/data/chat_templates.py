"""Chat templates with the structure of published ones: what they write around turns, what they do
with a system turn, with earlier answers and with reasoning. Wording is this project's.

Facts: the chat_template of the named models on Hugging Face.
"""

import dataclasses

# Special tokens of all of them; '<think>' and '</think>' are added tokens that are not special.
SPECIALS = [
  '<s>', '</s>', '<unk>', '<|im_start|>', '<|im_end|>', '<|im_sep|>', '<|endoftext|>',
  '<|start_header_id|>', '<|end_header_id|>', '<|eot_id|>', '<start_of_turn>', '<end_of_turn>',
  '<|turn>', '<turn|>', '[INST]', '[/INST]', '[SYSTEM_PROMPT]', '[/SYSTEM_PROMPT]',
  '<|START_OF_TURN_TOKEN|>', '<|END_OF_TURN_TOKEN|>', '<|USER_TOKEN|>', '<|CHATBOT_TOKEN|>',
  '<|SYSTEM_TOKEN|>', '<|START_RESPONSE|>', '<|END_RESPONSE|>', '<|system_start|>',
  '<|system_end|>', '<|developer_start|>', '<|developer_end|>', '<|user_start|>', '<|user_end|>',
  '<|assistant_start|>', '<|assistant_end|>', '<|end|>', '<|start_of_role|>', '<|end_of_role|>',
  '<|end_of_text|>', '<|start|>', '<|message|>', '<|channel|>', '<|return|>', '<seed:bos>',
  '<seed:eos>',
]  # fmt: skip
PLAIN = ('<think>', '</think>')


@dataclasses.dataclass(frozen=True)
class Template:
  """A template and what it does.

  Attributes:
    text: Jinja.
    eos: the tokenizer's eos_token.
    stop: the token that ends the last answer.
    system: whether it has a system role.
    reasoning: the field of an answer from which it writes reasoning.
    earlier: what is trained of earlier answers: 'all', 'text' (without the stop token) or 'none'.
    rejects: whether no conversation of it is trained, because it prompts with something else.
    marked: whether it has generation tags.
  """

  text: str
  stop: str
  eos: str = '</s>'
  system: bool = True
  reasoning: str | None = None
  earlier: str = 'all'
  rejects: bool = False
  marked: bool = False


def _chatml(before='', answer="{{- m.content + '<|im_end|>\\n' }}", prompt=''):
  return (
    before + "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' }}"
    "{%- if m.role == 'assistant' %}" + answer + "{%- else %}{{- m.content + '<|im_end|>\\n' }}"
    "{%- endif %}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    + prompt + '{%- endif %}'
  )  # fmt: skip


_DEFAULT_SYSTEM = (
  "{%- if messages[0].role != 'system' %}{{- '<|im_start|>system\\nBe helpful.<|im_end|>\\n' }}"
  '{%- endif %}'
)
# Qwen3: thoughts, or empty ones, before the answer to the last question only.
_QWEN3_ANSWER = """
  {%- set thought = m.reasoning_content if m.reasoning_content is string else '' %}
  {%- set content = m.content %}
  {%- if not thought and '</think>' in content %}
    {%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
    {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
  {%- endif %}
  {%- if loop.index0 > ns.last %}
    {{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
  {%- else %}{{- content }}{%- endif %}
  {{- '<|im_end|>\\n' }}"""
_QWEN3_LAST = """{%- set ns = namespace(last=-1) %}{%- for m in messages %}
  {%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}"""
_QWEN3_PROMPT = """{%- if enable_thinking is defined and enable_thinking is false %}
  {{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"""
_LLAMA3 = (
  "{{- bos_token }}{%- if messages[0]['role'] == 'system' %}"
  "{%- set system_message = messages[0]['content'] | trim %}{%- set messages = messages[1:] %}"
  "{%- else %}{%- set system_message = '' %}{%- endif %}"
  "{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: ' + date_string + '\\n\\n' }}"
  "{{- system_message + '<|eot_id|>' }}{%- for m in messages %}"
  "{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content | trim + '<|eot_id|>'"
  ' }}{%- endfor %}{%- if add_generation_prompt %}'
  "{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"
)
_ALTERNATE = (
  "{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must "
  "alternate') }}{%- endif %}"
)
_GEMMA_TURNS = (
  _ALTERNATE + "{%- set role = 'model' if m.role == 'assistant' else m.role %}{{- '<start_of_turn>' "
  "+ role + '\\n' + (prefix if loop.first else '') + m.content | trim + '<end_of_turn>\\n' }}"
  "{%- endfor %}{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{%- endif %}"
)  # fmt: skip
_COMMAND = (
  "{{- bos_token }}{%- if messages[0].role == 'system' %}{%- set preamble = messages[0].content %}"
  "{%- endif %}{{- '<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|># Preamble' }}{%- if preamble %}"
  "{{- '\\n' + preamble }}{%- endif %}{{- '<|END_OF_TURN_TOKEN|>' }}{%- for m in messages %}"
  "{%- if m.role == 'user' %}{{- '<|START_OF_TURN_TOKEN|><|USER_TOKEN|>' + m.content + "
  "'<|END_OF_TURN_TOKEN|>' }}{%- elif m.role == 'assistant' %}{{- '<|START_OF_TURN_TOKEN|>"
  "<|CHATBOT_TOKEN|><|START_RESPONSE|>' + m.content + '<|END_RESPONSE|><|END_OF_TURN_TOKEN|>' }}"
  '{%- endif %}{%- endfor %}'
)
_COMMAND_PROMPT = "{{- '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}"

TEMPLATES = {
  'ChatML': Template(_chatml(), '<|im_end|>'),
  'EuroLLM': Template(_chatml('{{- bos_token }}'), '<|im_end|>'),
  'Qwen2.5': Template(_chatml(_DEFAULT_SYSTEM), '<|im_end|>', '<|im_end|>'),
  'Qwen3': Template(
    _chatml(_QWEN3_LAST, _QWEN3_ANSWER, _QWEN3_PROMPT), '<|im_end|>', '<|im_end|>',
    reasoning='reasoning_content', earlier='none'),
  'Qwen3 for training': Template(  # as TRL patches it: thoughts stay, and answers are marked
    _chatml(answer=(
      "{%- generation %}{{- '<think>\\n' + (m.reasoning_content or '') + '\\n</think>\\n\\n' + "
      "m.content + '<|im_end|>' }}{%- endgeneration %}{{- '\\n' }}")), '<|im_end|>',
    reasoning='reasoning_content', marked=True),
  'Llama 3.1': Template(
    '{%- if not date_string is defined %}{%- set date_string = "26 Jul 2024" %}{%- endif %}'
    '{%- if not tools is defined %}{%- set tools = none %}{%- endif %}{%- if tools is not none %}'
    "{{ raise_exception('tools') }}{%- endif %}" + _LLAMA3, '<|eot_id|>', '<|eot_id|>'),
  'Llama 3.3': Template(
    '{%- if not date_string is defined %}{%- if strftime_now is defined %}{%- set date_string = '
    'strftime_now("%d %b %Y") %}{%- else %}{%- set date_string = "26 Jul 2024" %}{%- endif %}'
    '{%- endif %}' + _LLAMA3, '<|eot_id|>', '<|eot_id|>'),
  'Llama 2': Template(
    "{%- if messages[0].role == 'system' %}{%- set rest = messages[1:] %}{%- set system = "
    "'<<SYS>>\\n' + messages[0].content + '\\n<</SYS>>\\n\\n' %}{%- else %}{%- set rest = messages "
    "%}{%- set system = '' %}{%- endif %}{%- for m in rest %}{%- if m.role == 'user' %}"
    "{{- bos_token + '[INST] ' + (system if loop.first else '') + m.content.strip() + ' [/INST]' }}"
    "{%- else %}{{- ' ' + m.content.strip() + ' ' + eos_token }}{%- endif %}{%- endfor %}", '</s>'),
  'Gemma 2': Template(
    "{{- bos_token }}{%- if messages[0].role == 'system' %}{{ raise_exception('no system role') }}"
    "{%- endif %}{%- set prefix = '' %}{%- for m in messages %}" + _GEMMA_TURNS, '<end_of_turn>',
    system=False),
  'Gemma 3': Template(
    "{{- bos_token }}{%- if messages[0].role == 'system' %}{%- set prefix = messages[0].content + "
    "'\\n\\n' %}{%- set rest = messages[1:] %}{%- else %}{%- set prefix = '' %}{%- set rest = "
    'messages %}{%- endif %}{%- for m in rest %}' + _GEMMA_TURNS, '<end_of_turn>'),
  'Gemma 4': Template(
    "{{- bos_token }}{%- for m in messages %}{%- set role = 'model' if m.role == 'assistant' else "
    "m.role %}{{- '<|turn>' + role + '\\n' + m.content | trim + '<turn|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|turn>model\\n' }}{%- endif %}", '<turn|>'),
  'Mistral v3': Template(  # the system text stands in the last turn, if that is the user's
    "{%- if messages[0].role == 'system' %}{%- set system = messages[0].content %}{%- set rest = "
    'messages[1:] %}{%- else %}{%- set rest = messages %}{%- endif %}{{- bos_token }}'
    "{%- for m in rest %}{%- if m.role == 'user' %}{%- if loop.last and system is defined %}"
    "{{- '[INST] ' + system + '\\n\\n' + m.content + '[/INST]' }}{%- else %}{{- '[INST] ' + "
    "m.content + '[/INST]' }}{%- endif %}{%- else %}{{- ' ' + m.content | trim + eos_token }}"
    '{%- endif %}{%- endfor %}', '</s>', system=False),
  'Mistral v7': Template(
    "{{- bos_token }}{%- if messages[0].role != 'system' %}{{- '[SYSTEM_PROMPT]Today is ' + "
    "strftime_now('%Y-%m-%d') + '[/SYSTEM_PROMPT]' }}{%- endif %}{%- for m in messages %}"
    "{%- if m.role == 'user' %}{{- '[INST]' + m.content + '[/INST]' }}{%- elif m.role == 'system' %}"
    "{{- '[SYSTEM_PROMPT]' + m.content + '[/SYSTEM_PROMPT]' }}{%- elif m.role == 'assistant' %}"
    "{{- m.content + eos_token }}{%- else %}{{ raise_exception('role') }}{%- endif %}"
    '{%- endfor %}', '</s>'),
  'SmolLM3': Template(
    '{%- if enable_thinking is not defined %}{%- set enable_thinking = true %}{%- endif %}'
    "{%- set mode = '/think' if enable_thinking else '/no_think' %}{%- if messages[0].role == "
    "'system' %}{%- set own = messages[0].content %}{%- endif %}{{- '<|im_start|>system\\nToday: ' "
    "+ strftime_now('%d %B %Y') + '\\nMode: ' + mode + '\\n' + (own if own else 'Be helpful.') + "
    "'<|im_end|>\\n' }}{%- for m in messages %}{%- if m.role == 'user' %}{{- '<|im_start|>user\\n' + "
    "m.content + '<|im_end|>\\n' }}{%- elif m.role == 'assistant' %}{%- generation %}{{- "
    "'<|im_start|>assistant\\n' + ('' if mode == '/think' else '<think>\\n\\n</think>\\n') + "
    "m.content.lstrip('\\n') + '<|im_end|>\\n' }}{%- endgeneration %}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- if mode == '/no_think' %}"
    "{{- '<think>\\n\\n</think>\\n' }}{%- endif %}{%- endif %}", '<|im_end|>', '<|im_end|>',
    marked=True),
  'OLMo 3': Template(  # the last answer ends in another token than the others
    _chatml(_DEFAULT_SYSTEM, "{{- m.content }}{%- if loop.last %}{{- eos_token }}{%- else %}"
            "{{- '<|im_end|>\\n' }}{%- endif %}"), '<|endoftext|>', '<|endoftext|>',
    earlier='text'),
  'OLMo 3 Think': Template(
    _chatml(prompt="{{- '<think>' }}"), '<|im_end|>', '<|endoftext|>', rejects=True),
  'Command R7B': Template(
    _COMMAND + '{%- if add_generation_prompt %}' + _COMMAND_PROMPT + '{%- endif %}',
    '<|END_RESPONSE|>', '<|END_OF_TURN_TOKEN|>'),
  'Command R7B, always prompting': Template(
    _COMMAND + _COMMAND_PROMPT, '<|END_RESPONSE|>', '<|END_OF_TURN_TOKEN|>'),
  'Aya': Template(
    "{{- bos_token }}{%- for m in messages %}{{- '<|START_OF_TURN_TOKEN|>' + {'user': "
    "'<|USER_TOKEN|>', 'assistant': '<|CHATBOT_TOKEN|>', 'system': '<|SYSTEM_TOKEN|>'}[m.role] + "
    "m.content.strip() + '<|END_OF_TURN_TOKEN|>' }}{%- endfor %}{%- if add_generation_prompt %}"
    + _COMMAND_PROMPT + '{%- endif %}', '<|END_OF_TURN_TOKEN|>', '<|END_OF_TURN_TOKEN|>'),
  'Apertus': Template(
    "{{- bos_token }}{%- if messages[0].role == 'system' %}{{- '<|system_start|>' + "
    "messages[0].content + '<|system_end|>' }}{%- set rest = messages[1:] %}{%- else %}{{- "
    "'<|system_start|>Date: ' + strftime_now('%Y-%m-%d') + '<|system_end|>' }}{%- set rest = "
    "messages %}{%- endif %}{{- '<|developer_start|>Deliberation: ' + ('enabled' if enable_thinking "
    "is defined and enable_thinking else 'disabled') + '<|developer_end|>' }}{%- for m in rest %}"
    "{%- if m.role == 'user' %}{{- '<|user_start|>' + m.content + '<|user_end|>' }}{%- else %}{{- "
    "'<|assistant_start|>' + m.content + '<|assistant_end|>' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|assistant_start|>' }}{%- endif %}", '<|assistant_end|>'),
  'Phi-4': Template(
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + '<|im_sep|>' + m.content + '<|im_end|>' "
    "}}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant<|im_sep|>' }}"
    '{%- endif %}', '<|im_end|>', '<|im_end|>'),
  'Phi-3': Template(  # without a generation prompt it ends in the end of the text
    "{%- for m in messages %}{{- '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|assistant|>\\n' }}{%- else %}{{- eos_token }}"
    '{%- endif %}', '<|end|>', '<|endoftext|>'),
  'Granite 3.3': Template(  # the prompt is written in the loop
    "{%- if messages[0].role == 'system' %}{%- set system = messages[0].content %}{%- set rest = "
    "messages[1:] %}{%- else %}{%- set system = 'Date: ' + strftime_now('%B %d, %Y') %}{%- set rest "
    "= messages %}{%- endif %}{{- '<|start_of_role|>system<|end_of_role|>' + system + "
    "'<|end_of_text|>\\n' }}{%- for m in rest %}{{- '<|start_of_role|>' + m.role + '<|end_of_role|>' "
    "+ m.content + '<|end_of_text|>\\n' }}{%- if loop.last and add_generation_prompt %}{{- "
    "'<|start_of_role|>assistant<|end_of_role|>' }}{%- endif %}{%- endfor %}", '<|end_of_text|>',
    '<|end_of_text|>'),
  'Zephyr': Template(
    "{% for m in messages %}\n{{ '<|' + m.role + '|>\\n' + m.content + eos_token }}\n{% if loop.last "
    "and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}", '</s>'),
  'Vicuna': Template(
    "{%- if messages[0].role == 'system' %}{%- set rest = messages[1:] %}{%- set system = "
    "messages[0].content %}{%- else %}{%- set rest = messages %}{%- set system = 'A chat.' %}"
    "{%- endif %}{{- bos_token + system }}{%- for m in rest %}{%- if m.role == 'user' %}{{- "
    "' USER: ' + m.content }}{%- else %}{{- ' ASSISTANT: ' + m.content + eos_token }}{%- endif %}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- ' ASSISTANT:' }}{%- endif %}", '</s>'),
  'DeepSeek R1 distilled': Template(
    "{{- bos_token }}{%- for m in messages %}{%- if m.role == 'user' %}{{- '<|user_start|>' + "
    "m.content }}{%- elif m.role == 'assistant' %}{{- '<|assistant_start|>' + "
    "m.content.split('</think>')[-1] + eos_token }}{%- else %}{{- m.content }}{%- endif %}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|assistant_start|><think>\\n' }}{%- endif %}",
    '</s>', rejects=True),
  'gpt-oss': Template(  # the last answer ends in <|return|>, earlier ones in <|end|>
    "{%- for m in messages %}{%- if m.role == 'assistant' %}{%- if loop.last and m.thinking %}{{- "
    "'<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' }}{%- endif %}{{- "
    "'<|start|>assistant<|channel|>final<|message|>' + m.content + ('<|return|>' if loop.last else "
    "'<|end|>') }}{%- else %}{{- '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}"
    "{%- endif %}{%- endfor %}{%- if add_generation_prompt %}{{- '<|start|>assistant' }}"
    '{%- endif %}', '<|return|>', '<|return|>', reasoning='thinking', earlier='text'),
  'Seed-OSS': Template(  # reasoning of every answer stays
    "{%- for m in messages %}{{- '<seed:bos>' + m.role + '\\n' }}{%- if m.role == 'assistant' and "
    "m.reasoning_content is string %}{{- '<think>' + m.reasoning_content | trim + '</think>' }}"
    "{%- endif %}{{- m.content + '<seed:eos>' }}{%- endfor %}{%- if add_generation_prompt %}{{- "
    "'<seed:bos>assistant\\n' }}{%- endif %}", '<seed:eos>', '<seed:eos>', reasoning='reasoning_content'),
}  # fmt: skip
