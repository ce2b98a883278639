"""A causal language model of a few kilobytes with random weights, for tests that need a model and not its wisdom."""

import json
import shutil
from pathlib import Path

TEMPLATE = """{% for m in messages %}<|im_start|>{{ m['role'] }}
{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}
{% else %}{{ m['content'] }}<|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def micro_model(folder: Path, **changes: object) -> Path:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    core.train_from_iterator(["The Raven 74 stands in Hall 3.", "Question: Where does the Raven 74 stand?"] * 9, trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=TEMPLATE,
                                        model_input_names=["input_ids", "attention_mask"])
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(core.get_vocab()), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=True, initializer_range=0.3,
        eos_token_id=2, pad_token_id=0, bos_token_id=None, **changes)
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    saved = json.loads((folder / "config.json").read_text())  # mlx-lm looks for rope_theta here, and takes a million when it is not there
    (folder / "config.json").write_text(json.dumps(saved | {"rope_theta": saved["rope_parameters"]["rope_theta"]}))
    return folder


def build_onnx(model: Path, out: Path) -> Path:
    from distillery.exporting.graph import run_builder
    run_builder(model, out)
    shutil.copy(model / "tokenizer.json", out)  # the builder writes its own idea of a Qwen2 tokenizer, which splits text differently
    return out
