"""The parts of each family's chat template that write an assistant's turn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from freedive.text.dialects.dialect import Dialect, State, initial_state
from freedive.text.dialects.registry import dialect_for
from freedive.text.template import ChatTemplate

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string"},
                    "days": {"type": "integer"},
                    "units": {"anyOf": [{"type": "array"}, {"type": "null"}]},
                    "exact": {"type": ["boolean", "null"]},
                },
            },
        },
    },
    {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}},
]

EACH = "{% for call in m.tool_calls or [] %}{% set f = call.function %}"
END = "{% endfor %}"
SECTION = "{% if m.tool_calls %}"
TEXT = "{{ m.content or '' }}"
THOUGHTS = "{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}"
HERMES = EACH + '\n<tool_call>\n{"name": "{{ f.name }}", "arguments": {{ f.arguments | tojson }}}\n</tool_call>' + END
XML = (
    EACH + "\n<tool_call>\n<function={{ f.name }}>\n{% for k, v in f.arguments | items %}<parameter={{ k }}>\n"
    "{{ v if v is string else v | tojson }}\n</parameter>\n{% endfor %}</function>\n</tool_call>" + END
)
ARG_KEYS = (
    "{% for k, v in f.arguments | items %}<arg_key>{{ k }}</arg_key>\n"
    "<arg_value>{{ v if v is string else v | tojson }}</arg_value>\n{% endfor %}"
)
BRACED = (
    '{% macro braced(v) %}{% if v is none %}null{% elif v is string %}<|"|>{{ v }}<|"|>{% elif v is boolean %}'
    "{{ 'true' if v else 'false' }}{% elif v is mapping %}{{ '{' }}{% for k, x in v | dictsort %}"
    "{{ k }}:{{ braced(x) }}{{ ',' if not loop.last }}{% endfor %}{{ '}' }}{% elif v is sequence %}"
    "[{% for x in v %}{{ braced(x) }}{{ ',' if not loop.last }}{% endfor %}]{% else %}{{ v }}{% endif %}{% endmacro %}"
)
JSON_LIST = (
    '[{% for call in m.tool_calls %}{{ {"name": call.function.name, "arguments": call.function.arguments} | tojson }}'
    "{{ ', ' if not loop.last }}{% endfor %}]"
)

KEYWORDS = (
    SECTION + "<function_calls>" + EACH + "{{ f.name }}({% for k, v in f.arguments | items %}{{ k }}={{ v | tojson }}"
    "{{ ', ' if not loop.last }}{% endfor %}){{ '\n' if not loop.last }}" + END + "</function_calls>{% endif %}"
)


@dataclass(frozen=True)
class Sample:
    """Parts of a template: the start of an assistant's turn, the turn, its end, and the start that a prompt adds."""

    turn: str
    opens: str = "<|im_start|>assistant\n"
    closes: str = "<|im_end|>\n"
    prompt: str = ""
    added_tokens: tuple[str, ...] = ()
    thinks: bool = True
    max_calls: int = 2
    says: bool = True
    """Whether a turn with calls can also have a text."""

    @property
    def source(self) -> str:
        turn = self.opens + self.turn + self.closes
        return (
            "{% for m in messages %}{% if m.role == 'assistant' %}" + turn + "{% else %}<|user|>{{ m.content }}"
            "{% endif %}{% endfor %}{% if add_generation_prompt %}" + self.opens + self.prompt + "{% endif %}"
        )

    def render(self, messages: list[dict[str, Any]], **options: Any) -> str:
        return ChatTemplate({"default": self.source}, {}).render(messages, **options)


DSML = (
    TEXT + SECTION + "\n\n<｜DSML｜tool_calls>\n" + EACH + '<｜DSML｜invoke name="{{ f.name }}">\n'
    '{% for k, v in f.arguments | items %}<｜DSML｜parameter name="{{ k }}" string="{{ \'true\' if v is string else'
    " 'false' }}\">{{ v if v is string else v | tojson }}</｜DSML｜parameter>\n{% endfor %}</｜DSML｜invoke>\n"
    + END
    + "</｜DSML｜tool_calls>{% endif %}"
)
DEEPSEEK_OPEN = {"opens": "<｜Assistant｜>", "closes": "<｜end▁of▁sentence｜>"}
HY3_TAGS = ("tool_calls", "tool_call", "tool_sep", "arg_key", "arg_value", "think")

SAMPLES = {
    "DeepSeek R1": Sample(
        "{% if m.reasoning_content %}{{ m.reasoning_content }}\n</think>\n\n{% endif %}"
        + TEXT
        + SECTION
        + "<｜tool▁calls▁begin｜>"
        + EACH
        + "{{ '' if loop.first else '\n' }}"
        "{{ '<｜tool▁call▁begin｜>' + call.type + '<｜tool▁sep｜>' + f.name + '\n```json\n' + f.arguments + '\n```' }}"
        "<｜tool▁call▁end｜>" + END + "<｜tool▁calls▁end｜>{% endif %}",
        **DEEPSEEK_OPEN,
        prompt="<think>\n",
    ),
    "DeepSeek V3.1": Sample(
        "{% if m.reasoning_content %}{{ m.reasoning_content }}</think>{% endif %}"
        + TEXT
        + SECTION
        + "<｜tool▁calls▁begin｜>"
        + EACH
        + "<｜tool▁call▁begin｜>{{ f.name }}<｜tool▁sep｜>{{ f.arguments }}"
        "<｜tool▁call▁end｜>" + END + "<｜tool▁calls▁end｜>{% endif %}",
        **DEEPSEEK_OPEN,
        prompt="<think>",
    ),
    "DeepSeek V4": Sample(
        "{% if m.reasoning_content %}{{ m.reasoning_content }}</think>{% endif %}" + DSML,
        **DEEPSEEK_OPEN,
        prompt="<think>",
    ),
    "DeepSeek V4.1": Sample(
        DSML.replace("<｜DSML｜", "<｜DSML｜ ").replace("</｜DSML｜", "</｜DSML｜ ").replace("tool_calls>", "calls>"),
        **DEEPSEEK_OPEN,
        prompt="</think>",
        thinks=False,
    ),
    "Qwen2.5": Sample(TEXT + HERMES, thinks=False),
    "Qwen3": Sample(THOUGHTS + TEXT + HERMES),
    "Qwen3 without thoughts": Sample(TEXT + HERMES, prompt="<think>\n\n</think>\n\n", thinks=False),
    "Qwen3-Coder": Sample(TEXT + XML, thinks=False),
    "Step 3.5": Sample(
        "{{ m.reasoning_content }}\n</think>\n" + TEXT + XML.replace("\n<tool", "<tool"), prompt="<think>\n"
    ),
    "MiMo-V2": Sample(
        "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
        + TEXT
        + EACH
        + "<tool_call>\n<function={{ f.name }}>\n{% for k, v in f.arguments | items %}<parameter={{ k }}>"
        "{{ (v if v is string else v | tojson) + '</parameter>\n' }}{% endfor %}</function>\n</tool_call>" + END,
        closes="<|im_end|>",
    ),
    "MiMo-V2 without thoughts": Sample(TEXT, closes="<|im_end|>", prompt="<think></think>", thinks=False, max_calls=0),
    "Qwen3.5": Sample("{{ m.reasoning_content }}\n</think>\n\n" + TEXT + XML, prompt="<think>\n"),
    "SmolLM3": Sample(THOUGHTS + TEXT + HERMES),
    "Granite 4": Sample(
        TEXT + HERMES,
        "<|start_of_role|>assistant<|end_of_role|>",
        "<|end_of_text|>\n",
        added_tokens=("<|tool_call|>", "<tool_call>"),
        thinks=False,
    ),
    "Granite 3.3": Sample(
        "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think><response>{{ m.content }}</response>"
        "{% else %}" + TEXT + "{% endif %}" + SECTION + "<|tool_call|>" + JSON_LIST + "{% endif %}",
        "<|start_of_role|>assistant<|end_of_role|>",
        "<|end_of_text|>\n",
    ),
    "Granite 3.2": Sample(
        "{% if m.reasoning_content %}Here is my thought process:\n\n{{ m.reasoning_content }}\n\n"
        "Here is my response:\n\n{% endif %}" + TEXT + SECTION + "<|tool_call|>" + JSON_LIST + "{% endif %}",
        "<|start_of_role|>assistant<|end_of_role|>",
        "<|end_of_text|>\n",
    ),
    "ERNIE 4.5": Sample(
        "{{ m.reasoning_content }}\n</think>\n\n{% if m.content %}<response>\n{{ m.content }}\n</response>\n{% endif %}"
        + HERMES,
        prompt="<think>\n",
    ),
    "Hunyuan A13B": Sample(
        "{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n{% endif %}"
        "<answer>\n" + TEXT + SECTION + "<tool_calls>" + JSON_LIST + "</tool_calls>{% endif %}\n</answer>",
        "<|extra_0|>",
        "<|eos|>",
    ),
    "Hy3": Sample(
        "{% set t = ':opensource' %}{{ m.reasoning_content }}</think{{ t }}>"
        + TEXT
        + SECTION
        + "<tool_calls{{ t }}>\n"
        + EACH
        + "<tool_call{{ t }}>{{ f.name }}<tool_sep{{ t }}>\n{% for k, v in f.arguments | items %}"
        "<arg_key{{ t }}>{{ k }}</arg_key{{ t }}>\n<arg_value{{ t }}>{{ v if v is string else v | tojson }}"
        "</arg_value{{ t }}>\n{% endfor %}</tool_call{{ t }}>\n" + END + "</tool_calls{{ t }}>{% endif %}",
        "<｜hy_Assistant:opensource｜>",
        "<｜hy_eos:opensource｜>",
        prompt="<think{{ ':opensource' }}>",
        added_tokens=tuple(f"<{slash}{tag}:opensource>" for tag in HY3_TAGS for slash in ("", "/")),
    ),
    "openPangu": Sample(
        "[unused16]{{ m.reasoning_content }}[unused17]"
        + TEXT
        + SECTION
        + "[unused11]"
        + JSON_LIST
        + "[unused12]{% endif %}",
        "[unused9]助手：",
        "[unused10]",
    ),
    "Seed-OSS": Sample(
        "{% if m.reasoning_content %}<seed:think>{{ m.reasoning_content }}</seed:think>{% endif %}"
        + TEXT
        + XML.replace("tool_call>", "seed:tool_call>").replace(">\n{{ v", ">{{ v").replace("\n</par", "</par"),
        "<seed:bos>assistant\n",
        "<seed:eos>",
    ),
    "Kimi K2": Sample(
        "<think>{{ m.reasoning_content }}</think>"
        + TEXT
        + SECTION
        + "<|tool_calls_section_begin|>"
        + EACH
        + "<|tool_call_begin|>functions.{{ f.name }}:{{ loop.index0 }}<|tool_call_argument_begin|>"
        "{{ f.arguments | tojson }}<|tool_call_end|>" + END + "<|tool_calls_section_end|>{% endif %}",
        "<|im_assistant|>assistant<|im_middle|>",
        "<|im_end|>",
    ),
    "gpt-oss": Sample(
        "<|channel|>analysis<|message|>{{ m.reasoning_content }}<|end|>"
        "{% if m.content %}<|start|>assistant<|channel|>{{ 'commentary' if m.tool_calls else 'final' }}<|message|>"
        "{{ m.content }}{{ '<|end|>' if m.tool_calls }}{% endif %}"
        + EACH
        + "<|start|>assistant<|channel|>commentary to=functions.{{ f.name }} <|constrain|>json<|message|>"
        "{{ f.arguments | tojson }}" + END,
        "<|start|>assistant",
        "<|call|>",
        max_calls=1,
    ),
    "gpt-oss, recipient first": Sample(
        "{% if m.content %}<|channel|>final<|message|>{{ m.content }}{% endif %}"
        + EACH
        + " to=functions.{{ f.name }}<|channel|>commentary json<|message|>{{ f.arguments | tojson }}"
        + END,
        "<|start|>assistant",
        "<|call|>",
        max_calls=1,
        says=False,
        thinks=False,
    ),
    "Llama 3.1": Sample(
        TEXT
        + EACH
        + '{"name": "{{ f.name }}", "parameters": {{ f.arguments | tojson }}}{{ "; " if not loop.last }}'
        + END,
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|eot_id|>",
        added_tokens=("<|python_tag|>",),
        thinks=False,
        says=False,
    ),
    "Llama 4": Sample(
        TEXT + SECTION + "[" + EACH + "{{ f.name }}({% for k, v in f.arguments | items %}{{ k }}={{ v | tojson "
        "| replace('null', 'None') | replace('true', 'True') }}{{ ', ' if not loop.last }}{% endfor %})"
        "{{ ', ' if not loop.last }}" + END + "]{% endif %}",
        "<|header_start|>assistant<|header_end|>\n\n",
        "<|eot|>",
        added_tokens=("<|python_start|>", "<|python_end|>"),
        thinks=False,
        says=False,
    ),
    "GLM-4.5": Sample(
        "\n<think>{{ m.reasoning_content }}</think>\n"
        + TEXT
        + EACH
        + "\n<tool_call>{{ f.name }}\n"
        + ARG_KEYS
        + "</tool_call>"
        + END,
        "<|assistant|>",
        "<|user|>",
    ),
    "GLM-4.7": Sample(
        "{{ m.reasoning_content }}</think>"
        + TEXT
        + EACH
        + "<tool_call>{{ f.name }}"
        + ARG_KEYS.replace("\n", "")
        + "</tool_call>"
        + END,
        "<|assistant|>",
        "<|user|>",
        prompt="<think>",
    ),
    "Mixtral 8x22B": Sample(
        TEXT + SECTION + "[TOOL_CALLS] " + JSON_LIST + "{% endif %}", "[/INST]", "</s>", thinks=False
    ),
    "Mistral Small 3.2": Sample(
        TEXT + EACH + "[TOOL_CALLS]{{ f.name }}[CALL_ID]{{ call.id }}[ARGS]{{ f.arguments | tojson }}" + END,
        "[/INST]",
        "</s>",
        thinks=False,
    ),
    "Ministral 3": Sample(
        "{% if m.reasoning_content %}[THINK]{{ m.reasoning_content }}[/THINK]{% endif %}"
        + TEXT
        + EACH
        + "[TOOL_CALLS]{{ f.name }}[ARGS]{{ f.arguments | tojson }}"
        + END,
        "[/INST]",
        "</s>",
    ),
    "MiniMax M2": Sample(
        "{{ m.reasoning_content }}\n</think>\n\n" + TEXT + SECTION + "\n<minimax:tool_call>\n" + EACH + ""
        '<invoke name="{{ f.name }}">\n{% for k, v in f.arguments | items %}<parameter name="{{ k }}">'
        "{{ v if v is string else v | tojson }}</parameter>\n{% endfor %}</invoke>\n"
        + END
        + "</minimax:tool_call>{% endif %}",
        "]~b]ai\n",
        "[e~[\n",
        prompt="<think>\n",
    ),
    "Laguna": Sample(
        "{{ m.reasoning_content }}\n</think>\n"
        + TEXT
        + EACH
        + "<tool_call>{{ f.name }}\n"
        + ARG_KEYS
        + "</tool_call>\n"
        + END,
        "<assistant>\n",
        "</assistant>\n",
        prompt="<think>",
    ),
    "EXAONE 4": Sample(
        THOUGHTS + TEXT + HERMES.replace("\n{", "{").replace("}\n<", "}<"), "[|assistant|]\n", "[|endofturn|]\n"
    ),
    "Phi-4-mini": Sample(
        TEXT + SECTION + "<|tool_call|>" + JSON_LIST + "<|/tool_call|>{% endif %}",
        "<|assistant|>",
        "<|end|>",
        added_tokens=("<|tool|>", "<|tool_call|>", "<|/tool_call|>"),
        thinks=False,
    ),
    "Phi-4-mini, functools": Sample(
        TEXT + SECTION + "functools" + JSON_LIST + "{% endif %}",
        "<|assistant|>",
        "<|end|>",
        added_tokens=("<|tool|>", "<|tool_call|>", "<|/tool_call|>"),
        thinks=False,
    ),
    "OLMo 3 Instruct": Sample(TEXT + KEYWORDS, thinks=False),
    "OLMo 3 Think": Sample("{{ m.reasoning_content }}</think>" + TEXT + KEYWORDS, prompt="<think>"),
    "Solar Open": Sample(
        "{% if m.reasoning_content %}<|think|>{{ m.reasoning_content }}<|end|><|begin|>assistant{% endif %}"
        "{% if m.content %}<|content|>{{ m.content }}{{ '<|end|><|begin|>assistant' if m.tool_calls }}{% endif %}"
        + SECTION
        + "<|tool_calls|>"
        + EACH
        + "<|tool_call:begin|>{{ call.id }}<|tool_call:name|>{{ f.name }}<|tool_call:args|>{{ f.arguments | tojson }}"
        "<|tool_call:end|>" + END + "<|calls|>{% endif %}",
        "<|begin|>assistant",
        "<|end|>",
    ),
    "Muse Glimmer": Sample(
        "{% if m.reasoning_content %} to=self<|message|>{{ m.reasoning_content }}<|eom|><|start|>assistant{% endif %}"
        "{% if m.content %} to=user<|message|>{{ m.content }}{% endif %}" + EACH + " to={{ f.name }}<|message|>"
        '<atem:function_calls>\n<atem:invoke name="{{ f.name }}">\n{% for k, v in f.arguments | items %}'
        '<atem:parameter name="{{ k }}">{{ v if v is string else v | tojson }}</atem:parameter>\n{% endfor %}'
        "</atem:invoke>\n</atem:function_calls>{{ '<|eom|><|start|>assistant' if not loop.last }}" + END,
        "<|start|>assistant",
        "<|eot|>",
        says=False,
    ),
    "Phi-3.5": Sample(TEXT, "<|assistant|>\n", "<|end|>\n", thinks=False, max_calls=0),
    "Gemma 3": Sample(TEXT, "<start_of_turn>model\n", "<end_of_turn>\n", thinks=False, max_calls=0),
    "Gemma 4": Sample(
        BRACED
        + "{% if m.reasoning_content %}<|channel>thought\n{{ m.reasoning_content }}<channel|>{% endif %}"
        + TEXT
        + EACH
        + "<|tool_call>call:{{ f.name }}{{ braced(f.arguments) }}<tool_call|>"
        + END,
        "<|turn>model\n",
        "<turn|>\n",
    ),
    "OLMoE": Sample(TEXT, "<|assistant|>\n", "<|endoftext|>", thinks=False, max_calls=0),
}

QUESTION = {"role": "user", "content": "How do you write <think>?"}


def output_of(sample: Sample, message: dict[str, Any]) -> tuple[Dialect, State, str]:
    """Returns the output for ``message`` of a model that follows its template exactly."""
    prompt = sample.render([QUESTION], tools=TOOLS)
    whole = sample.render([QUESTION, message], tools=TOOLS, add_generation_prompt=False)
    opened = sample.render([QUESTION], tools=TOOLS, add_generation_prompt=False) + sample.opens
    dialect = dialect_for(sample.source, sample.added_tokens)
    assert prompt.startswith(opened)
    return dialect, initial_state(dialect, prompt), whole.removeprefix(opened).removesuffix(sample.closes)
