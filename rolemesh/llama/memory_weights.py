"""Which of a model's weights are on the GPUs; pure.

As load_tensors and its like place them in llama.cpp (src/llama-model.cpp, src/llama-model-loader.cpp).
"""

import re
from typing import Final

from rolemesh.llama.gguf import GgufHeader
from rolemesh.llama.gguf_tensors import TensorInfo
from rolemesh.llama.hyperparameters import Hyperparameters
from rolemesh.llama.memory_options import MemoryOptions

_BLOCK: Final = re.compile(r"(?:\w+\.)?blk\.(?P<number>[0-9]+)\.")
_EXPERTS: Final = re.compile(r"\.ffn_(?:up|down|gate|gate_up)_(?:ch)?exps")
_INPUTS: Final = ("token_embd.", "token_embd_norm.", "token_types.", "position_embd.",
                  "per_layer_token_embd.")  # fmt: skip


class WeightPlaces:
    """Where the weights of one model are: each layer's on GPUs or in RAM, `units` on GPUs.

    A unit is what goes to one of several GPUs as a whole: a layer, the output layer at last.
    `first` is the first layer on a GPU.
    """

    def __init__(self, header: GgufHeader, shape: Hyperparameters, options: MemoryOptions) -> None:
        self._header = header
        self._shape = shape
        self._options = options
        layers = len(shape.layers)
        on_gpu = layers + 1 if options.gpu_layers is None else options.gpu_layers
        # The output layer goes first, then the last ones.
        self.first = max(0, layers + 1 - on_gpu)
        self._output_on_gpu = on_gpu > 0
        self.units = self._units()

    @property
    def on_gpu(self) -> int:
        """Bytes on GPUs."""
        return sum(self.units)

    @property
    def in_ram(self) -> int:
        """Bytes in RAM beside a GPU."""
        return sum(tensor.bytes for tensor in self._used() if not self._is_on_gpu(tensor))

    @property
    def all(self) -> int:
        """Bytes of all that is loaded."""
        return sum(tensor.bytes for tensor in self._used())

    @property
    def largest_in_ram(self) -> int:
        """Bytes of the largest weight of a layer that is not on a GPU."""
        of_layers = (tensor for tensor in self._used() if _layer_of(tensor) is not None)
        return max((each.bytes for each in of_layers if not self._is_on_gpu(each)), default=0)

    def _units(self) -> list[int]:
        units = [0] * (len(self._shape.layers) + 1 - self.first if self._output_on_gpu else 0)
        if not units:
            return units
        last = len(units) - 1
        for tensor in self._used():
            if self._is_on_gpu(tensor):
                number = _layer_of(tensor)
                place = last if number is None else min(max(0, number - self.first), last)
                units[place] += tensor.bytes
        if self._shape.speaks and not self._bytes_of("output.weight"):
            # The embedding is the output layer, too.
            units[last] += self._bytes_of("token_embd.weight")
        return units

    def _used(self) -> list[TensorInfo]:
        """Return what is loaded: layers that predict further tokens mostly are not."""
        layers = len(self._shape.layers)
        if self._options.uses_own_drafts:
            return list(self._header.tensors)
        return [each for each in self._header.tensors if (_layer_of(each) or 0) < layers]

    def _is_on_gpu(self, tensor: TensorInfo) -> bool:
        if not self._output_on_gpu:
            return False
        for pattern, buffer in self._options.overrides:
            if _matches(pattern, tensor.name):
                return not buffer.startswith("CPU")
        number = _layer_of(tensor)
        if number is None:
            return not tensor.name.startswith(_INPUTS)
        if number < self._options.experts_in_ram and _EXPERTS.search(tensor.name):
            return False
        return number >= self.first

    def _bytes_of(self, name: str) -> int:
        return sum(tensor.bytes for tensor in self._header.tensors if tensor.name == name)


def _layer_of(tensor: TensorInfo) -> int | None:
    found = _BLOCK.match(tensor.name)
    return int(found["number"]) if found else None


def _matches(pattern: str, name: str) -> bool:
    try:
        return re.search(pattern, name) is not None
    except re.error:
        return False
