"""Headers of models that have no file."""

from rolemesh.llama.gguf import GgufHeader
from rolemesh.llama.gguf_metadata import Value

VOCABULARY = 1000


def header(architecture: str, layers: int, embedding: int, **values: Value) -> GgufHeader:
    """Return the header of a model without weights.

    A key `attention.head_count` is given as attention_head__count.
    """
    keys = {key.replace("__", "-").replace("_", ".").replace("-", "_"): value
            for key, value in values.items()}  # fmt: skip
    return GgufHeader(
        version=3,
        file_bytes=0,
        tensor_count=0,
        name=None,
        architecture=architecture,
        kind=None,
        context_length=262_144,
        block_count=layers,
        embedding_length=embedding,
        parameter_count=0,
        quantisation=None,
        vocabulary=VOCABULARY,
        split_count=1,
        split_number=0,
        split_tensor_count=0,
        values=keys,
        tensors=(),
    )
