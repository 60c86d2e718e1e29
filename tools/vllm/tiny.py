"""`python tiny.py FOLDER`: writes a model that any machine can serve: configuration, tokenizer and weights.

It runs in the environment that vLLM is in, not in ours. What the model says is noise, made so that tests can rely on
its shape: it never ends by itself, only at a limit, a stop string or the end of a grammar; a token is whole ASCII
text; and a JSON string or a list that a grammar lets it begin, it soon ends. The tokenizer is learned from Python's
own help texts, so that tokens are English words and pieces of them, and every byte has one.
"""

import json
import sys
from pathlib import Path
from pydoc_data.topics import topics

import torch  # type: ignore[import-not-found]  # vLLM's, not ours
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers  # type: ignore[import-not-found]
from transformers import LlamaConfig, LlamaForCausalLM  # type: ignore[import-not-found]

CONTEXT_TOKENS = 8192  # as the largest of the shipped configuration
_UNKNOWN, _BEGIN, _END = "<unk>", "<s>", "</s>"
_VOCABULARY = 4096
_WIDTH = 64
_TEMPLATE = (
    "{{ bos_token }}{% if tools %}{{ tools | tojson }}{% endif %}{% for message in messages %}<|{{ message.role }}|>"
    "{{ message.content or '' }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": _UNKNOWN,
        "bos_token": _BEGIN,
        "eos_token": _END,
        "model_max_length": CONTEXT_TOKENS,
        "clean_up_tokenization_spaces": False,
        "chat_template": _TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))
    _model(tokenizer).save_pretrained(folder)


def _tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token=_UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[_UNKNOWN, _BEGIN, _END],
        show_progress=False,
    )
    tokenizer.train_from_iterator(topics.values(), trainer)
    begin = tokenizer.token_to_id(_BEGIN)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{_BEGIN} $A", special_tokens=[(_BEGIN, begin)])
    return tokenizer


def _model(tokenizer: Tokenizer) -> LlamaForCausalLM:
    """Random weights, but the first number of every state is 1, so that its output weight is a token's bias."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=tokenizer.get_vocab_size(),
            hidden_size=_WIDTH,
            intermediate_size=2 * _WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=CONTEXT_TOKENS,
            bos_token_id=tokenizer.token_to_id(_BEGIN),
            eos_token_id=tokenizer.token_to_id(_END),
        )
    )
    scale = _WIDTH**0.5  # what the last normalisation makes of that 1
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = 1.0
        output = model.lm_head.weight
        output.normal_(std=0.5)
        biases = [_bias(tokenizer.decode([number])) for number in range(tokenizer.get_vocab_size())]
        output[:, 0] = torch.tensor(biases) / scale
    return model


def _bias(text: str) -> float:
    """How much likelier than others a token is; special tokens and parts of characters have no text of their own."""
    if not text or not text.isascii():
        return -30.0
    if text.isspace():
        return -4.0
    return 3.0 if '"' in text or not text.strip('{}[]:,"') else 0.0


if __name__ == "__main__":
    main(Path(sys.argv[1]))
