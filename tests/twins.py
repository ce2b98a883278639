"""Twins of real small students: the configuration, tokenizer and chat template of each family, at random weights and a few kilobytes.

They are the instrument of tests (`test_twins`, `test_bases`, `make bases`) and no part of the package: nobody would train one.
The templates are ours, written from what each family documents of its format; `tests/data/chats.yaml` keeps what they must render.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any



CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
QWEN = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = QWEN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
GPT4O = "|".join([rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{CONTRACTIONS}?", rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{CONTRACTIONS}?",
                  r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"])
DIGITS = "digits"  # single digits, then GPT-2's own pattern

CHATML = """
{%- set told = messages[0]['role'] == 'system' %}
{{- '<|im_start|>system\\n' + (messages[0]['content'] if told else 'DEFAULT') + '<|im_end|>\\n' }}
{%- for m in (messages[1:] if told else messages) %}
    {{- '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""

QWEN3 = """
{%- set ns = namespace(asked=-1) %}
{%- for m in messages if m['role'] == 'user' %}{%- set ns.asked = messages.index(m) %}{%- endfor %}
{%- for m in messages %}
    {{- '<|im_start|>' + m['role'] + '\\n' }}
    {%- if m['role'] == 'assistant' %}
        {%- set said = m['content'].split('</think>')[-1].lstrip('\\n') %}
        {%- set before = m['content'].split('</think>')[0] if '</think>' in m['content'] else '' %}
        {%- set thought = before.split('<think>')[-1].strip('\\n') %}
        {%- if loop.index0 > ns.asked and (loop.last or thought) %}{{- '<think>\\n' + thought + '\\n</think>\\n\\n' }}{%- endif %}
        {{- said }}
    {%- else %}
        {{- m['content'] }}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and not enable_thinking %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""

SMOLLM3 = """
{%- set mode = '/think' if enable_thinking is not defined or enable_thinking else '/no_think' %}
{%- set told = messages[0]['role'] == 'system' %}
{%- set wish = messages[0]['content'] if told else '' %}
{%- if '/no_think' in wish %}{%- set mode = '/no_think' %}{%- elif '/think' in wish %}{%- set mode = '/think' %}{%- endif %}
{%- set wish = wish.replace('/no_think', '').replace('/think', '').rstrip() %}
{{- '<|im_start|>system\\n## Metadata\\n\\nKnowledge Cutoff Date: June 2025\\nToday Date: ' + strftime_now('%d %B %Y') }}
{{- '\\nReasoning Mode: ' + mode + '\\n\\n## Custom Instructions\\n\\n' }}
{{- (wish or 'You are a helpful AI assistant named SmolLM, trained by Hugging Face.') + '\\n\\n' }}
{%- set lead = '<think>\\n\\n</think>\\n' if mode == '/no_think' else '' %}
{%- for m in (messages[1:] if told else messages) %}
    {%- if m['role'] == 'assistant' %}
        {%- generation %}{{- '<|im_start|>assistant\\n' + lead + m['content'].lstrip('\\n') + '<|im_end|>\\n' }}{%- endgeneration %}
    {%- else %}
        {{- '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' + lead }}{%- endif %}"""

LLAMA = """
{{- bos_token }}
{%- if date_string is not defined %}
    {%- if strftime_now is defined %}{%- set date_string = strftime_now('%d %b %Y') %}
    {%- else %}{%- set date_string = '26 Jul 2024' %}{%- endif %}
{%- endif %}
{%- set told = messages[0]['role'] == 'system' %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nCutting Knowledge Date: December 2023\\nToday Date: ' + date_string + '\\n\\n' }}
{{- (messages[0]['content'] | trim if told else '') + '<|eot_id|>' }}
{%- for m in (messages[1:] if told else messages) %}
    {{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + m['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""

ZEPHYR = """{% for m in messages %}{{ '<|' + m['role'] + '|>\\n' + m['content'] + eos_token }}
{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}
{% endif %}"""

PHI = """{% for m in messages %}{{ '<|' + m['role'] + '|>NL' + m['content'] + '<|end|>NL' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>NL' }}{% else %}{{ eos_token }}{% endif %}"""

ALTERNATE = """{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {%- endif %}"""

MISTRAL = """{{- bos_token }}
{%- for m in messages %}
    ALTERNATE
    {%- if m['role'] == 'user' %}{{- '[INST] ' + m['content'] + ' [/INST]' }}
    {%- elif m['role'] == 'assistant' %}{{- m['content'] + eos_token }}
    {%- else %}{{- raise_exception('Only user and assistant roles are supported!') }}{%- endif %}
{%- endfor %}""".replace("ALTERNATE", ALTERNATE)

GEMMA2 = """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}{{- raise_exception('System role not supported') }}{%- endif %}
{%- for m in messages %}
    ALTERNATE
    {{- '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\\n' + m['content'] | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{%- endif %}""".replace("ALTERNATE", ALTERNATE)

GEMMA3 = """{{- bos_token }}
{%- set told = messages[0]['role'] == 'system' %}
{%- for m in (messages[1:] if told else messages) %}
    ALTERNATE
    {{- '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\\n' }}
    {{- (messages[0]['content'] + '\\n\\n' if told and loop.first else '') + m['content'] | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{%- endif %}""".replace("ALTERNATE", ALTERNATE)

GRANITE = """
{%- if messages[0]['role'] == 'system' %}{%- set told, rest = messages[0]['content'], messages[1:] %}
{%- else %}
    {%- set told = "Knowledge Cutoff Date: April 2024.\\nToday's Date: " + strftime_now('%B %d, %Y') %}
    {%- set told, rest = told + '.\\nYou are Granite, developed by IBM. You are a helpful AI assistant.', messages %}
{%- endif %}
{{- '<|start_of_role|>system<|end_of_role|>' + told + '<|end_of_text|>\\n' }}
{%- for m in rest %}
    {{- '<|start_of_role|>' + m['role'] + '<|end_of_role|>' + m['content'] + '<|end_of_text|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_of_role|>assistant<|end_of_role|>' }}{%- endif %}"""

OLMO = """{{- bos_token }}
{%- for m in messages %}
    {{- '<|' + m['role'] + '|>\\n' + m['content'] }}
    {%- if m['role'] == 'assistant' %}{{- eos_token + ('' if loop.last else '\\n') }}{%- else %}{{- '\\n' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>\\n' }}{%- endif %}"""


def handbook() -> list[str]:
    "What every twin's tokenizer has read: the pages of the built-in handbook."
    pages = resources.files("distillery") / "data" / "handbook"
    return [page.read_text("utf-8") for page in sorted(pages.iterdir(), key=lambda p: p.name) if page.is_file()]


@dataclass(frozen=True)
class Marks:
    "Special tokens of a family: those before the learnt tokens, those behind them, and which of them begin, end and fill."
    first: Sequence[str] = ()
    last: Sequence[str] = ()
    words: Sequence[str] = ()  # Added, but not special: a decoder keeps them
    bos: str | None = None
    eos: str = ""
    pad: str | None = None
    unk: str | None = None
    ends: Sequence[str] = ()  # eos_token_id of generation_config.json


def byte_level(pattern: str, marks: Marks, adds_bos: bool = False, ignore_merges: bool = False, nfc: bool = False) -> Any:
    "Byte-level BPE of 512 tokens, split by a family's pattern."
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    core = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    if nfc: core.normalizer = normalizers.NFC()
    steps = [pre_tokenizers.Digits(individual_digits=True)] if pattern == DIGITS else [pre_tokenizers.Split(Regex(pattern), "isolated")]
    core.pre_tokenizer = pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern == DIGITS)])
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(handbook(), trainers.BpeTrainer(
        vocab_size=512, special_tokens=list(marks.first), show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
    core.add_special_tokens(list(marks.last))
    core.add_tokens(list(marks.words))
    core.post_processor = processors.ByteLevel(trim_offsets=False)
    if adds_bos and marks.bos: core.post_processor = _begins(core, marks.bos)
    return core


def sentence_pieces(marks: Marks, prefix: bool = True, rstrip: bool = False) -> Any:
    "BPE with byte fallback as SentencePiece makes it: a space is a letter, and `prefix` puts one before every text."
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first" if prefix else "never")
    pieces = [*marks.first, *(f"<0x{i:02X}>" for i in range(256))]
    lines = [line for page in handbook() for line in page.split("\n")]
    learner.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=256 + 448, special_tokens=pieces, show_progress=False))
    learnt = json.loads(learner.to_str())["model"]
    core = Tokenizer(models.BPE(learnt["vocab"], _every_way(learnt, set(pieces)), byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    spaces = normalizers.Replace(" ", "▁")
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefix else spaces
    if not prefix: core.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    back = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    core.decoder = decoders.Sequence([*back, decoders.Strip(" ", 1, 0)] if prefix else back)
    core.add_special_tokens([AddedToken(m, normalized=False, special=True) for m in marks.first])
    core.add_special_tokens([AddedToken(m, rstrip=rstrip, normalized=False, special=True) for m in marks.last])
    if marks.bos: core.post_processor = _begins(core, marks.bos)
    return core


def _every_way(learnt: Mapping[str, Any], marks: set[str]) -> list[tuple[str, str]]:
    "Merges as a converted SentencePiece model has them: every way in which two pieces give a third, the first learnt first."
    words = learnt["vocab"].keys() - marks
    wholes = dict.fromkeys("".join(m) for m in learnt["merges"])
    return [(w[:i], w[i:]) for w in wholes for i in range(1, len(w)) if w[:i] in words and w[i:] in words]


def _begins(core: Any, bos: str) -> Any:
    from tokenizers import processors
    return processors.TemplateProcessing(single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, core.token_to_id(bos))])


@dataclass(frozen=True)
class Twin:
    "One family: how its configuration, tokenizer and chat template look."
    config: str  # Class of transformers
    model: str  # Class of transformers
    template: str
    marks: Marks
    tokenizer: Callable[[Marks], Any]
    tokenizer_class: str = "PreTrainedTokenizerFast"
    facts: Mapping[str, Any] = field(default_factory=dict)  # What sets its configuration apart
    tokenizer_facts: Mapping[str, Any] = field(default_factory=dict)
    heads: tuple[int, int] = (2, 1)  # Of queries, of keys
    template_file: bool = False  # chat_template.jinja, or inside of tokenizer_config.json


def _rope(theta: float, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta, **more}}


def _llama3() -> dict[str, Any]:
    return _rope(500000.0, rope_type="llama3", factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=256)


def _longrope(rotary: int) -> dict[str, Any]:
    factors = {"short_factor": [1.0 + i / 50 for i in range(rotary // 2)], "long_factor": [1.0 + i for i in range(rotary // 2)]}
    return _rope(10000.0, rope_type="longrope", original_max_position_embeddings=512, partial_rotary_factor=0.75, **factors) | {
        "original_max_position_embeddings": 512}


CHATML_MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
QWEN_MARKS = Marks(last=CHATML_MARKS, eos="<|im_end|>", pad="<|endoftext|>", ends=("<|im_end|>", "<|endoftext|>"))
SMOL_MARKS = Marks(first=CHATML_MARKS, bos="<|im_start|>", eos="<|im_end|>", pad="<|im_end|>", ends=("<|im_end|>",))
SMOL3_MARKS = Marks(last=("<|begin_of_text|>", "<|end_of_text|>", "<|im_start|>", "<|im_end|>"), words=("<think>", "</think>"),
                    eos="<|im_end|>", pad="<|im_end|>", ends=("<|im_end|>",))
LLAMA_MARKS = Marks(last=("<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>", "<|start_header_id|>", "<|end_header_id|>",
                          "<|eom_id|>", "<|eot_id|>"), bos="<|begin_of_text|>", eos="<|eot_id|>", pad="<|finetune_right_pad_id|>",
                    ends=("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"))
PIECES = ("<unk>", "<s>", "</s>")
TINY_MARKS = Marks(first=PIECES, bos="<s>", eos="</s>", pad="</s>", unk="<unk>", ends=("</s>",))
MISTRAL_MARKS = Marks(first=PIECES, bos="<s>", eos="</s>", unk="<unk>", ends=("</s>",))
PHI3_MARKS = Marks(first=PIECES, last=("<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>"), bos="<s>", unk="<unk>",
                   eos="<|endoftext|>", pad="<|endoftext|>", ends=("<|endoftext|>", "<|assistant|>", "<|end|>"))
PHI4_MARKS = Marks(last=("<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>"), bos="<|endoftext|>", eos="<|endoftext|>",
                   pad="<|endoftext|>", ends=("<|end|>", "<|endoftext|>"))
GEMMA_MARKS = Marks(first=("<pad>", "<eos>", "<bos>", "<unk>"), last=("<start_of_turn>", "<end_of_turn>"), bos="<bos>", eos="<eos>",
                    pad="<pad>", unk="<unk>", ends=("<eos>", "<end_of_turn>"))
GRANITE_MARKS = Marks(first=("<|end_of_text|>",), last=("<|start_of_role|>", "<|end_of_role|>"), bos="<|end_of_text|>",
                      eos="<|end_of_text|>", pad="<|end_of_text|>", unk="<|end_of_text|>", ends=("<|end_of_text|>",))
END_MARKS = Marks(last=("<|endoftext|>",), bos="<|endoftext|>", eos="<|endoftext|>", pad="<|endoftext|>", ends=("<|endoftext|>",))
OLMO_MARKS = Marks(last=("<|endoftext|>", "<|pad|>"), bos="<|endoftext|>", eos="<|endoftext|>", pad="<|pad|>", ends=("<|endoftext|>",))

SLIDES = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 32}
TWINS = {
    "qwen2.5": Twin("Qwen2Config", "Qwen2ForCausalLM",
                    CHATML.replace("DEFAULT", "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."), QWEN_MARKS,
                    lambda m: byte_level(QWEN, m, nfc=True), "Qwen2Tokenizer", {"tie_word_embeddings": True, **_rope(1e6)}),
    "qwen3": Twin("Qwen3Config", "Qwen3ForCausalLM", QWEN3, Marks(**{**vars(QWEN_MARKS), "words": ("<think>", "</think>")}),
                  lambda m: byte_level(QWEN, m, nfc=True), "Qwen2Tokenizer",
                  {"tie_word_embeddings": True, "head_dim": 32, **_rope(1e6)}, heads=(4, 2)),
    "smollm2": Twin("LlamaConfig", "LlamaForCausalLM",
                    CHATML.replace("DEFAULT", "You are a helpful AI assistant named SmolLM, trained by Hugging Face"),
                    SMOL_MARKS, lambda m: byte_level(DIGITS, m), "GPT2Tokenizer", {"tie_word_embeddings": True, **_rope(1e5)}),
    "smollm3": Twin("SmolLM3Config", "SmolLM3ForCausalLM", SMOLLM3, SMOL3_MARKS, lambda m: byte_level(LLAMA3, m, ignore_merges=True),
                    facts={"tie_word_embeddings": True, "no_rope_layers": [1, 1, 1, 0], **_rope(5e6)}, template_file=True),
    "llama3.2": Twin("LlamaConfig", "LlamaForCausalLM", LLAMA, LLAMA_MARKS, lambda m: byte_level(LLAMA3, m, True, ignore_merges=True),
                     facts={"tie_word_embeddings": True, "head_dim": 32, **_llama3()}),
    "tinyllama": Twin("LlamaConfig", "LlamaForCausalLM", ZEPHYR, TINY_MARKS, sentence_pieces, "LlamaTokenizer",
                      {"tie_word_embeddings": False},
                      {"add_bos_token": True, "add_eos_token": False, "legacy": False}),
    "phi-3": Twin("Phi3Config", "Phi3ForCausalLM", PHI.replace("NL", "\\n"), PHI3_MARKS, lambda m: sentence_pieces(m, rstrip=True),
                  "LlamaTokenizer", {"tie_word_embeddings": False, "sliding_window": 48},
                  {"add_bos_token": False, "add_eos_token": False, "legacy": False}, (2, 2)),
    "phi-4-mini": Twin("Phi3Config", "Phi3ForCausalLM", PHI.replace("NL", ""), PHI4_MARKS, lambda m: byte_level(GPT4O, m), "GPT2Tokenizer",
                       {"tie_word_embeddings": True, "partial_rotary_factor": 0.75, **_longrope(24)}),
    "mistral": Twin("MistralConfig", "MistralForCausalLM", MISTRAL, MISTRAL_MARKS, sentence_pieces, "LlamaTokenizer",
                    {"tie_word_embeddings": False, "sliding_window": 48}, {"add_bos_token": True, "add_eos_token": False, "legacy": False}),
    "gemma2": Twin("Gemma2Config", "Gemma2ForCausalLM", GEMMA2, GEMMA_MARKS, lambda m: sentence_pieces(m, prefix=False), "GemmaTokenizer",
                   {"tie_word_embeddings": True, "head_dim": 32, "query_pre_attn_scalar": 32, **SLIDES}, {"add_bos_token": True},
                   (4, 2)),
    "gemma3": Twin("Gemma3TextConfig", "Gemma3ForCausalLM", GEMMA3, GEMMA_MARKS, lambda m: sentence_pieces(m, prefix=False),
                   "GemmaTokenizer", {"tie_word_embeddings": True, "head_dim": 32, "query_pre_attn_scalar": 32, **SLIDES,
                    "rope_parameters": {"sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                                        "full_attention": {"rope_type": "default", "rope_theta": 1e6}}},
                   {"add_bos_token": True}, (4, 1)),
    "granite": Twin("GraniteConfig", "GraniteForCausalLM", GRANITE, GRANITE_MARKS, lambda m: byte_level(DIGITS, m), "GPT2Tokenizer",
                    {"tie_word_embeddings": True, "embedding_multiplier": 12.0, "logits_scaling": 2.0, "residual_multiplier": 0.22,
                     "attention_multiplier": 0.03125, **_rope(1e4)}),
    "stablelm2": Twin("StableLmConfig", "StableLmForCausalLM", ZEPHYR, END_MARKS, lambda m: byte_level(QWEN, m), "GPT2Tokenizer",
                      {"tie_word_embeddings": False, "use_qkv_bias": True, **_rope(1e4, partial_rotary_factor=0.25)}, heads=(2, 2)),
    "olmo2": Twin("Olmo2Config", "Olmo2ForCausalLM", OLMO, OLMO_MARKS, lambda m: byte_level(LLAMA3, m), "GPT2Tokenizer",
                  {"tie_word_embeddings": False, **_rope(5e5)}, heads=(2, 2)),
}


@cache
def core_of(name: str) -> str:
    "A twin's tokenizer.json, made once a process."
    twin = TWINS[name]
    return str(twin.tokenizer(twin.marks).to_str())


def twin_config(name: str, hidden: int = 64, layers: int = 2, spread: float = 0.2) -> Any:
    "A twin's configuration; `hidden` is its width, `spread` how far its random weights reach."
    import transformers
    from tokenizers import Tokenizer
    twin, core = TWINS[name], Tokenizer.from_str(core_of(name))
    marks, ids = twin.marks, core.token_to_id
    rows = -(-core.get_vocab_size() // 64) * 64  # rows that no token uses, as real ones have them
    named = {f"{k}_token_id": ids(v) if v else None for k, v in {"bos": marks.bos, "pad": marks.pad}.items()}
    layers = max(layers, len(twin.facts.get("no_rope_layers", ())))  # the one without positions is among them
    kinds = {k: (twin.facts[k] * layers)[:layers] for k in ("layer_types", "no_rope_layers") if k in twin.facts}
    size = {"num_attention_heads": twin.heads[0] * hidden // 64, "num_key_value_heads": twin.heads[1] * hidden // 64}
    return getattr(transformers, twin.config)(**{
        "vocab_size": rows, "hidden_size": hidden, "intermediate_size": 2 * hidden, "num_hidden_layers": layers, **size,
        "max_position_embeddings": 1024, "initializer_range": spread, "eos_token_id": ids(marks.ends[0]), **named, **twin.facts, **kinds})


def write_twin(name: str, folder: Path, hidden: int = 64, layers: int = 2, spread: float = 0.2) -> Path:
    "Save a twin as its family stands on the hub."
    import torch
    import transformers
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    model = getattr(transformers, TWINS[name].model)(twin_config(name, hidden, layers, spread))
    words = model.get_input_embeddings()
    with torch.no_grad(): words.weight[words.padding_idx or 0].normal_(0, spread)  # transformers begins with nothing there, families do not
    model.save_pretrained(folder)
    return write_words(name, folder)


def write_words(name: str, folder: Path) -> Path:
    "Save a twin's tokenizer, chat template and ends of an answer, without weights."
    from tokenizers import Tokenizer
    twin, core = TWINS[name], Tokenizer.from_str(core_of(name))
    core.save(str(folder / "tokenizer.json"))
    added = {i: {k: getattr(t, k) for k in ("content", "lstrip", "normalized", "rstrip", "single_word", "special")}
             for i, t in core.get_added_tokens_decoder().items()}
    words = {f"{k}_token": getattr(twin.marks, k) for k in ("bos", "eos", "pad", "unk")}
    about = {"added_tokens_decoder": added, "clean_up_tokenization_spaces": False, "model_max_length": 1024,
             "tokenizer_class": twin.tokenizer_class, **words, **twin.tokenizer_facts}
    if twin.template_file: (folder / "chat_template.jinja").write_text(twin.template, "utf-8")
    else: about["chat_template"] = twin.template
    ends = [core.token_to_id(e) for e in twin.marks.ends]
    told = {f"{k}_token_id": core.token_to_id(v) for k, v in (("bos", twin.marks.bos), ("pad", twin.marks.pad)) if v}
    told |= {"eos_token_id": ends if len(ends) > 1 else ends[0], "do_sample": True, "temperature": 0.7, "repetition_penalty": 1.1}
    (folder / "generation_config.json").write_text(json.dumps(told, indent=2) + "\n", "utf-8")  # sampled, as families ship it
    (folder / "tokenizer_config.json").write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n", "utf-8")
    return folder
