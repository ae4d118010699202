"""What tests of a conversation share: a tokenizer of characters, a chat template."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

CHAT = (
    "{% for m in messages %}[{{ m['role'][0] }}]{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[a]{% endif %}"
)


def characters(template: str | None = None) -> PreTrainedTokenizerFast:
    """One token a character, ids 3 to 127; <s> is added by nobody."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, **{chr(code): code - 6 for code in range(9, 134)}}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    made.chat_template = template
    return made
