"""Tiny tokenizers, trained on the spot: nothing is downloaded, and merges across a boundary do occur."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEXTS = (
    "The quick brown fox jumps over the lazy dog. What is the capital of France? The capital of France is Paris.",
    "Who wrote the book? The book was written by a person who lives in the north of the country, near the sea.",
    "How many apples are in the basket? There are twelve apples in the basket, and three of them are green.",
    "Human: hello there! Assistant: hello, how can I help you today? user system assistant tool",
    "She said: 'I would like to know more about it.' They answered that nothing more was known, unfortunately.",
)

CHATML = (
    "{%- if tools %}{{ '<|im_start|>system\n' }}{% for tool in tools %}{{ tool | tojson }}{{ '\n' }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endif %}"
    "{%- for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + (message['content'] or '') }}"
    "{%- for call in message.get('tool_calls') or [] %}{{ '<call>' }}{{ call | tojson }}{{ '</call>' }}{% endfor %}"
    "{{ '<|im_end|>\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and not enable_thinking %}{{ '<think></think>' }}{% endif %}{% endif %}"
)

# The same, with the assistant's words marked.
CHATML_MARKED = (
    "{%- for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{%- if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{{ '\n' }}{% else %}{{ message['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>")


def tiny_tokenizer(
    texts: Sequence[str] | None = None, vocab: int = 400, chat: bool = True, bos: bool = False
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of at most ``vocab`` tokens (at least 260) trained on ``texts``.

    EOS is ``<|im_end|>`` with a chat template (ChatML) and ``<|endoftext|>`` without; ``<|endoftext|>`` pads. With
    ``bos`` every text is given ``<s>`` in front, as Llama's tokenizers do.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(list(texts or TEXTS), trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>" if chat else "<|endoftext|>",
        pad_token="<|endoftext|>",
        bos_token="<s>" if bos else None,
        chat_template=CHATML if chat else None,
    )
