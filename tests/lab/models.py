"""Makes tiny GGUF models that a real llama-server loads in 0.1 s: python -m tests.lab.models --help

Such a model answers every prompt with exactly the words it was made with, then ends (or says them
round and round). Its attention and feed-forward weights are small noise; the output matrix is
fitted so that each word of the sentence yields the next one, and any other token yields the first.
So a test can tell models apart by what they say, and a gap in a stream by the missing word.

A model with `calls` says those where a request offers tools, one for each result it has been given;
its chat template ends the prompt with a token that stands for how many that are.
"""

import argparse
import hashlib
import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from tests.lab.cache import cache_folder, locked

Matrix = npt.NDArray[Any]

CHAT_TEMPLATE = """\
{%- if tools %}<|im_start|>system
Tools:
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}Call one as <tool_call>
{"name": <name>, "arguments": <args>}
</tool_call><|im_end|>
{% endif %}{%- for message in messages %}<|im_start|>{{ message.role }}
{%- if message.content %}
{{ message.content }}{% endif %}{% for call in message.tool_calls or [] %}<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% endfor %}{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

# Added to that of a model with calls. COUNT is how many it has.
CALLS_TEMPLATE = """\
{%- if add_generation_prompt and tools %}{% set results = namespace(count=0) %}
{%- for message in messages %}
{%- if message.role == "user" %}{% set results.count = 0 %}{% endif %}
{%- if message.role == "tool" %}{% set results.count = results.count + 1 %}{% endif %}
{%- endfor %}
{%- if results.count < COUNT %}<|results_{{ results.count }}|>{% endif %}{% endif %}"""

SPECIAL_TOKENS = ("<|unk|>", "<|bos|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>")

# Prompts made of these are about as many tokens as words, as with real models.
COMMON_WORDS = """
    the of and to in is you that it he was for on are as with his they at be this have from or
    one had by word but not what all were we when your can said there use an each which she do
    how their if will up other about out many then them these so some her would make like him
    into time has look two more write go see system user assistant hello model test gpu node
    server request stream token
""".split()  # noqa: SIM905 (as a list it would be a page)

CERTAINTY = 30.0  # logit of the one token that is to follow; all others are near 0
NOISE = 0.02  # scale of the weights that do not matter
BIG_NOISE_VALUES = 1 << 23  # big models repeat this many values: making noise is slow


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyModel:
    """What to make.

    `says` is at most 61 words, `calls` included. `loop`: say it for ever, up to the request's
    max_tokens. `calls[i]` is said instead where the request offers tools and i results of tools came
    after the user's last message; a `<tool_call>` in it is one to llama-server.
    `context` is the trained context in tokens. `big_mib`: roughly this large a file, for loads that
    take a while (0: 350 KiB).
    """

    name: str
    says: str = ""
    calls: tuple[str, ...] = ()
    loop: bool = False
    context: int = 4096
    big_mib: int = 0

    @property
    def sentence(self) -> str:
        """What the model answers, once or in each round."""
        says = self.says or f"Hello from {self.name} . one two three four five six seven eight ."
        return f"{says} " if self.loop else says

    @property
    def chat_template(self) -> str:
        """The Jinja template that makes a prompt of messages."""
        if not self.calls:
            return CHAT_TEMPLATE
        return CHAT_TEMPLATE + CALLS_TEMPLATE.replace("COUNT", str(len(self.calls)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The dimensions of the transformer."""

    embedding: int = 64
    feed_forward: int = 128
    heads: int = 2
    layers: int = 2

    @classmethod
    def of_size(cls, mib: int) -> "Shape":
        """Return the shape of a model of about `mib` MiB; 0 means as small as it gets."""
        if mib == 0:
            return cls()
        embedding, feed_forward = 1024, 4096
        layer_bytes = 2 * (4 * embedding**2 + 3 * embedding * feed_forward)
        layers = max(1, round(mib * 2**20 / layer_bytes))
        return cls(embedding=embedding, feed_forward=feed_forward, heads=16, layers=layers)


class Vocabulary:
    """Byte-level BPE tokens: all bytes, common words (with the merges that reach them), specials."""

    def __init__(self) -> None:
        self._letters = _byte_letters()
        self.ids: dict[str, int] = {}
        self.types: list[gguf.TokenType] = []
        self.merges: list[str] = []
        for letter in self._letters.values():
            self._add(letter)
        for word in COMMON_WORDS:
            self._add_word(f" {word}")
            self._add_word(word)
        for token in SPECIAL_TOKENS:
            self.add_special(token)

    def add_sentence(self, sentence: str) -> list[int]:
        """Return one token for each word, all different, so that each has one successor.

        A repeated word gets a token of its own by trailing spaces.
        """
        chain: list[int] = []
        for piece in re.findall(r"\s?\S+|\s+", sentence):
            text = piece
            while self._is_one_of(text, chain):
                text += " "
            chain.append(self._add(self._encode(text)))
        return chain

    def add_call(self, text: str, taken: Sequence[int]) -> list[int]:
        """Return tokens of a text, all different and none `taken`.

        llama-server allows no more spaces in a call than there are, so a repeated word takes the
        beginning of the next one with it; only the last one gets trailing spaces.
        """
        chain: list[int] = []
        while found := re.match(r"\s?\S+|\s+", text):
            length = found.end()
            while self._is_one_of(text[:length].ljust(length), (*taken, *chain)):
                length += 1
            chain.append(self._add(self._encode(text[:length].ljust(length))))
            text = text[length:]
        return chain

    def add_special(self, token: str) -> int:
        """Return the id of a token that no text is split into but a template can name."""
        return self._add(token, gguf.TokenType.CONTROL)

    def _add_word(self, word: str) -> None:
        encoded = self._encode(word)
        for end in range(2, len(encoded) + 1):
            if encoded[:end] not in self.ids:
                self._add(encoded[:end])
                self.merges.append(f"{encoded[: end - 1]} {encoded[end - 1]}")

    def _add(self, token: str, kind: gguf.TokenType = gguf.TokenType.NORMAL) -> int:
        if token not in self.ids:
            self.ids[token] = len(self.ids)
            self.types.append(kind)
        return self.ids[token]

    def _is_one_of(self, text: str, tokens: Sequence[int]) -> bool:
        return self.ids.get(self._encode(text)) in tokens

    def _encode(self, text: str) -> str:
        return "".join(self._letters[byte] for byte in text.encode())


def _byte_letters() -> dict[int, str]:
    """Return the letter that stands for each byte in GPT-2's vocabulary: itself if printable."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {
        byte: chr(256 + position) for position, byte in enumerate(others)
    }


def fit_parrot(
    size: int, embedding: int, chain: list[int], successors: list[int]
) -> tuple[Matrix, Matrix]:
    """Return the embedding and output matrices by which chain[i] is followed by successors[i].

    Any token outside the chain is followed by chain[0]: all of those share one direction that is
    orthogonal to every embedding of the chain.
    """
    if len(chain) > embedding - 2:
        msg = f"the sentence has {len(chain)} words, at most {embedding - 2} can be fitted"
        raise ValueError(msg)
    random = np.random.default_rng(1)
    tokens = random.standard_normal((size, embedding))
    tokens /= np.linalg.norm(tokens, axis=1, keepdims=True)
    known = tokens[chain]

    # What the output matrix sees is the token normed to a root mean square of 1.
    seen = known / np.sqrt((known**2).mean(axis=1, keepdims=True))
    wanted = np.zeros((len(chain), size))
    wanted[np.arange(len(chain)), successors] = CERTAINTY
    output = (np.linalg.pinv(seen) @ wanted).T

    basis, _ = np.linalg.qr(known.T, mode="complete")
    elsewhere = basis[:, len(chain)]
    others = np.setdiff1d(np.arange(size), chain)
    jitter = random.standard_normal((len(others), embedding)) / np.sqrt(embedding)
    tokens[others] = elsewhere + 0.05 * jitter
    seen_elsewhere = elsewhere / np.sqrt((elsewhere**2).mean())
    output[chain[0]] += CERTAINTY * seen_elsewhere / (seen_elsewhere @ seen_elsewhere)
    return tokens, output


def layer_tensors(shape: Shape) -> Iterator[tuple[str, Matrix]]:
    """Yield the tensors of all layers by name: too small to matter, too random to be optimised."""
    random = np.random.default_rng(2)
    noise = random.standard_normal(BIG_NOISE_VALUES if shape.embedding > 64 else 1 << 16)
    width, inner = shape.embedding, shape.feed_forward
    sizes = {
        **dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), (width, width)),
        **dict.fromkeys(("ffn_gate", "ffn_up"), (inner, width)),
        "ffn_down": (width, inner),
    }
    matrices = {
        name: np.resize((noise * NOISE / np.sqrt(size[1])).astype(np.float16), size)
        for name, size in sizes.items()
    }
    for layer in range(shape.layers):
        for name in ("attn_norm", "ffn_norm"):
            yield f"blk.{layer}.{name}.weight", np.ones(width, np.float32)
        for name, matrix in matrices.items():
            yield f"blk.{layer}.{name}.weight", matrix


def write_model(model: TinyModel, path: Path) -> None:
    """Make `model` and write it to `path`."""
    shape = Shape.of_size(model.big_mib)
    vocabulary = Vocabulary()
    chain, successors = _chain(model, vocabulary)
    tokens, output = fit_parrot(len(vocabulary.ids), shape.embedding, chain, successors)

    writer = gguf.GGUFWriter(path, "llama")
    _describe(writer, model, shape)
    _add_vocabulary(writer, vocabulary)
    writer.add_tensor("token_embd.weight", tokens.astype(np.float16))
    writer.add_tensor("output_norm.weight", np.ones(shape.embedding, np.float32))
    writer.add_tensor("output.weight", output.astype(np.float16))
    for name, tensor in layer_tensors(shape):
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _chain(model: TinyModel, vocabulary: Vocabulary) -> tuple[list[int], list[int]]:
    """Return the tokens of all that `model` says, and which follows each of them."""
    end = vocabulary.ids["<|im_end|>"]
    chain = vocabulary.add_sentence(model.sentence)
    successors = [*chain[1:], chain[0] if model.loop else end]
    for position, call in enumerate(model.calls):
        words = vocabulary.add_call(call, taken=chain)
        chain += [vocabulary.add_special(f"<|results_{position}|>"), *words]
        successors += [*words, end]
    return chain, successors


def _describe(writer: gguf.GGUFWriter, model: TinyModel, shape: Shape) -> None:
    writer.add_name(model.name)
    writer.add_description(f"says {model.sentence!r}")
    writer.add_context_length(model.context)
    writer.add_embedding_length(shape.embedding)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_block_count(shape.layers)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.heads)
    writer.add_rope_dimension_count(shape.embedding // shape.heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_chat_template(model.chat_template)


def _add_vocabulary(writer: gguf.GGUFWriter, vocabulary: Vocabulary) -> None:
    writer.add_vocab_size(len(vocabulary.ids))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(list(vocabulary.ids))
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)
    writer.add_bos_token_id(vocabulary.ids["<|bos|>"])
    writer.add_eos_token_id(vocabulary.ids["<|im_end|>"])
    writer.add_unk_token_id(vocabulary.ids["<|unk|>"])
    writer.add_pad_token_id(vocabulary.ids["<|pad|>"])
    writer.add_add_bos_token(True)


def make_model(model: TinyModel) -> Path:
    """Return the path of `model`'s file in the lab's cache, making it if it is not there yet."""
    folder = cache_folder("models")
    recipe = json.dumps(asdict(model)).encode() + Path(__file__).read_bytes()
    path = folder / f"{model.name}-{hashlib.sha256(recipe).hexdigest()[:12]}.gguf"
    with locked(folder):
        if not path.exists():
            with tempfile.TemporaryDirectory(dir=folder) as unfinished:
                part = Path(unfinished, path.name)
                write_model(model, part)
                part.rename(path)
    return path


def main() -> None:
    """Make one model and print its path."""
    parser = argparse.ArgumentParser(description="Make a tiny GGUF model and print its path.")
    parser.add_argument("name")
    parser.add_argument("--says", default="", metavar="TEXT", help="what it answers to everything")
    parser.add_argument(
        "--calls", action="append", default=[], metavar="TEXT", help="instead, with tools (repeat)"
    )
    parser.add_argument("--loop", action="store_true", help="say it round and round")
    parser.add_argument("--context", type=int, default=4096, metavar="TOKENS")
    parser.add_argument("--big-mib", type=int, default=0, metavar="N", help="about this large")
    parser.add_argument("--to", type=Path, metavar="FILE", help="write it there, not to the cache")
    options = vars(parser.parse_args())
    target: Path | None = options.pop("to")
    model = TinyModel(calls=tuple(options.pop("calls")), **options)
    if target:
        write_model(model, target)
    print(target or make_model(model))


if __name__ == "__main__":
    main()
