"""How large a model's caches are, and what computing one batch takes; pure.

Caches as llama_kv_cache, llama_kv_cache_iswa and llama_memory_recurrent make them. What computing
takes is the most that is alive at once in the graph of one batch; the terms below are those of
llama.cpp's graphs (src/llama-graph.cpp, src/models/*.cpp) as its allocator (ggml/src/ggml-alloc.c)
lays them out.
"""

from typing import Final

from rolemesh.llama.hyperparameters import Hyperparameters, Layer
from rolemesh.llama.memory_options import MemoryOptions

CELLS: Final = 256  # a cache has a multiple of so many tokens for each slot
COPIES: Final = 4
"""Over several GPUs batches overlap, with so many copies of what passes between them
(GGML_SCHED_MAX_COPIES)."""

_FLOAT: Final = 4
_HALF: Final = 2


class ContextSizes:
    """Sizes in bytes; `context` is of all slots together, in tokens."""

    def __init__(self, shape: Hyperparameters, options: MemoryOptions, context: int) -> None:
        self._shape = shape
        self._options = options
        slots = 1 if options.unified else options.parallel
        self._cells = _padded(max(1, context // slots), CELLS)  # of each slot
        self._streams = slots
        self._batch = min(options.batch, options.ubatch, self._cells * slots)

    @property
    def caches(self) -> list[int]:
        """What is kept of all slots' tokens, for each layer."""
        return list(map(self._cache, self._shape.layers))

    @property
    def per_token(self) -> int:
        """What each further token of context takes, in the layers without a window."""
        return sum(self._cell(layer) for layer in self._shape.layers if not layer.window)

    @property
    def drafting(self) -> int:
        """What is kept for the layers that predict further tokens, where they are used."""
        used = self._shape.drafting if self._options.uses_own_drafts else ()
        return sum(map(self._cache, used))

    @property
    def computing(self) -> int:
        """What is reserved on each GPU for computing."""
        # Layers that predict further tokens are computed apart.
        return self._computing() * (2 if self._options.uses_own_drafts else 1)

    @property
    def computing_alone(self) -> int:
        """What is reserved for computing without a GPU."""
        return self.computing + self._floats(3 * self._shape.embedding)

    @property
    def passing(self) -> int:
        """What RAM holds beside a GPU of what goes into each batch."""
        return self._masks() + self._floats(4 * self._shape.embedding + 2 * self._shape.queries)

    @property
    def overlap(self) -> int:
        """What each of several GPUs holds more."""
        return (COPIES - 1) * (self._masks() + self._floats(4 * self._shape.embedding))

    @property
    def output(self) -> int:
        """What RAM holds of what comes out, for each slot."""
        return _FLOAT * self._options.parallel * (self._shape.vocabulary + self._shape.embedding)

    def _cache(self, layer: Layer) -> int:
        options = self._options
        cells = self._window_cells(layer.window) if layer.window else self._cells
        states = options.parallel
        if options.draft or options.uses_own_drafts:
            states *= 1 + options.drafted_tokens  # to go back to, when a draft was wrong
        return cells * self._streams * self._cell(layer) + layer.state * _FLOAT * states

    def _cell(self, layer: Layer) -> int:
        options = self._options
        return options.cache_k.bytes_of(layer.key) + options.cache_v.bytes_of(layer.value)

    def _window_cells(self, window: int) -> int:
        """As llama_kv_cache_iswa: what the window sees, and one batch."""
        if self._options.full_window:
            return self._cells
        slots = self._options.parallel if self._options.unified else 1
        return _padded(min(self._cells, window * slots + self._options.ubatch), CELLS)

    def _masks(self) -> int:
        """Return the size of the masks: for each token of a batch, what it may see."""
        size = _FLOAT
        if self._options.flash_attention:
            # Older builds make them in 4 bytes and convert them.
            size = _FLOAT + _HALF if self._options.older_build else _HALF
        windows = {layer.window for layer in self._shape.layers if layer.key or layer.value}
        if not windows:
            return self._batch * self._batch * size  # among the tokens of the batch
        cells = sum(self._window_cells(window) if window else self._cells for window in windows)
        return self._batch * cells * size

    def _computing(self) -> int:
        """Return the most that is alive at once: in attention, feed-forward or output."""
        shape = self._shape
        attention = self._floats(shape.attention)
        if not self._options.flash_attention and shape.attention:
            attention += self._floats(shape.heads * self._cells + 2 * shape.embedding)
        recurrent = self._floats(7 * shape.recurrent)
        output = self._floats(max(8 * shape.embedding, 5 * shape.recurrent))
        output += _FLOAT * self._outputs() * shape.vocabulary
        most = max(attention, recurrent, self._feed_forward(), output)
        return most + self._masks() + self._floats(2 * shape.beside)

    def _feed_forward(self) -> int:
        shape = self._shape
        inner = self._floats(3 * shape.inner + 5 * shape.embedding)
        experts = shape.experts * shape.embedding
        # What all experts say is put beside it where it does not fit into what has become free.
        return inner + (self._floats(experts) if experts > 2 * shape.inner else 0)

    def _outputs(self) -> int:
        """Return of how many tokens of a batch the probabilities of all others are computed."""
        options = self._options
        pools = self._shape.pools if options.pooling is None else options.pooling != "none"
        if pools and options.embeddings:
            return 0
        return self._batch if options.embeddings or options.older_build else options.parallel

    def _floats(self, width: int) -> int:
        """Return the size of so many numbers for each token of a batch."""
        return self._batch * width * _FLOAT


def _padded(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple
