"""The demo's own tokenizer: bytes, and learned pieces that extend over spaces and punctuation.

A line of code becomes one to five tokens and an answer about twenty, so minutes on two cores are enough; Qwen's
splitting at every space would need four times as many. The pieces are those that byte-pair encoding learns from the
demo's texts when it may not cross newlines, digits, `; ` and fences. They are stored as added tokens (matched longest
first, before any other rule), because loaders rebuild the splitting rules that belong to a Qwen2 model and would not
keep others. Any other text is encoded byte by byte.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, Qwen2Tokenizer

PAD, END, USER, ASSISTANT = "<|pad|>", "<|end|>", "<|user|>", "<|assistant|>"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    + ASSISTANT
    + "{{ message['content'] }}"
    + END
    + "{% else %}"
    + USER
    + "{{ message['content'] }}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}" + ASSISTANT + "{% endif %}"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int, context_tokens: int) -> PreTrainedTokenizerBase:
    """Learn pieces from `texts` until there are `vocab_size` tokens, or nothing is left to merge."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = [PAD, END, USER, ASSISTANT]
    pieces = _learn_pieces(texts, vocab_size - len(special), alphabet)
    tokenizer = Qwen2Tokenizer(
        vocab={byte: number for number, byte in enumerate(alphabet)},
        merges=[],
        unk_token=PAD,
        pad_token=PAD,
        eos_token=END,
        extra_special_tokens=[USER, ASSISTANT],
        model_max_length=context_tokens,
    )
    tokenizer.add_tokens([AddedToken(piece, normalized=False) for piece in pieces])
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _learn_pieces(texts: Iterable[str], most_tokens: int, alphabet: list[str]) -> list[str]:
    """Return the pieces of more than one byte, as text, in the order in which they were learned."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"```[a-z]*\n?|\n|; |[0-9]"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=most_tokens, initial_alphabet=alphabet, show_progress=False)
    )
    vocabulary = sorted(bpe.get_vocab().items(), key=lambda item: item[1])
    return [bpe.decoder.decode([token]) for token, _ in vocabulary if len(token) > 1]
