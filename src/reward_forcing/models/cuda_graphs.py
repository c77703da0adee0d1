"""Passes of a network as CUDA graphs: once a stream meets the same shapes over and over, they are replayed.

N layers, B batch, F latent frames, P latent frames of the past, S tokens per latent frame, H heads, D head width.
Owns the tensors that graphs read, when these are filled, and what leaves the graphs' memory. Knows no rollout and no
window: that one is full shows in the shapes of what the passes see.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from threading import Lock
from typing import NamedTuple
from weakref import ReferenceType, WeakValueDictionary, ref

import torch
from torch import Tensor

from reward_forcing.models.attention import KV, AttentionPattern, Past, Text, TextContext, WantKV
from reward_forcing.models.layers import TimeContext
from reward_forcing.models.rope import Rotation
from reward_forcing.models.sequence_parallel import ALL
from reward_forcing.models.wan_dit import WanDiT

GRAPHS_KEPT = 4
"""Most graphs that are kept: the passes and the clean pass of two streams of different shapes."""
SHAPES_WATCHED = 16
"""Shapes of latents, and kinds of passes over them, whose last past is known."""

Outputs = tuple[Tensor, KV | None]
"""What `WanDiT.forward` returns."""
Run = Callable[[], Outputs]
Capture = Callable[[Run], tuple[Callable[[], None], Outputs]]
"""Takes a run whose inputs stay at their addresses; returns what runs it again, and the outputs that this fills."""

logger = logging.getLogger(__name__)


class CudaCapture:
    """`Capture` on a GPU. All graphs share one pool of memory: they are replayed in turn, and nothing stays in it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Run) -> tuple[Callable[[], None], Outputs]:
        """The graph of `run`, which runs once before: libraries and compiled blocks get ready for these tensors."""
        with torch.cuda.device(self._device):
            current = torch.cuda.current_stream()
            self._stream.wait_stream(current)
            with torch.cuda.stream(self._stream):
                run()
            current.wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            how = {"pool": self._pool, "stream": self._stream, "capture_error_mode": "thread_local"}
            try:
                with torch.cuda.graph(graph, **how):
                    outputs = run()
            finally:
                torch.cuda.set_stream(current)  # a capture that fails leaves its own one set
        return graph.replay, outputs


class GraphedForward:
    """A network's forward, replayed as a CUDA graph where a pass has the shapes that the passes over another past had.

    So the first chunk and those that fill the window are computed as ever; of each shape, graphs begin with its second
    chunk, and then stand for every noise level, prompt and past: these are copied into tensors that graphs read, the
    past once per chunk and the text once per prompt, and results are copied out. As ever are computed also passes with
    gradients, under autocast, of several prompts at once or in turn, with a pattern, and by several processes.

    Several streams may take turns, in threads as well, but on one CUDA stream. The network's weights stay where they
    are. kept: most graphs, the one unused for longest makes room. capture: `CudaCapture` unless given; where it raises
    RuntimeError the log says so, and what has no graph yet is computed as ever.
    """

    def __init__(self, network: WanDiT, capture: Capture | None = None, kept: int = GRAPHS_KEPT) -> None:
        self.network = network
        self._capture: Capture | None = capture or CudaCapture(network.patch_embedding.weight.device)
        self._kept = kept
        self._graphs: OrderedDict[Hashable, _Graph] = OrderedDict()
        self._buffers: WeakValueDictionary[Hashable, _Buffer] = WeakValueDictionary()
        self._before: dict[Hashable, tuple[Hashable, ReferenceType[Tensor]]] = {}
        self._lock = Lock()

    def __call__(
        self,
        x: Tensor,
        timestep: Tensor | TimeContext,
        text: Text,
        *,
        past: Past | None = None,
        pattern: AttentionPattern | None = None,
        want_kv: WantKV = False,
    ) -> Outputs:
        """As `WanDiT.forward`; what it returns is the caller's own."""
        may_replay = pattern is None and self._may_replay(x.device)
        if may_replay and isinstance(text, TextContext) and past is not None and past.rotated:
            inputs = self._inputs(x, timestep, text, past)
            with self._lock:
                graph = self._graph(inputs, past, want_kv)
                if graph is not None:
                    return graph(inputs)
        return self.network(x, timestep, text, past=past, pattern=pattern, want_kv=want_kv)

    def _may_replay(self, device: torch.device) -> bool:
        if torch.is_grad_enabled() or torch.is_autocast_enabled(device.type) or torch.compiler.is_compiling():
            return False
        return self.network.share is ALL

    def _inputs(self, x: Tensor, timestep: Tensor | TimeContext, text: TextContext, past: Past) -> "_Inputs":
        time = self.network.encode_time(timestep) if isinstance(timestep, Tensor) else timestep
        by = self.network.rotation_at(past.query_positions, (x.shape[3], x.shape[4]), x.device)
        return _Inputs(x, *time, text.keys, text.values, text.log_counts, past.keys, past.values, *by)

    def _graph(self, inputs: "_Inputs", past: Past, want_kv: WantKV) -> "_Graph | None":
        """The graph of a pass, captured now if its shapes recur; None if it has none."""
        shapes = tuple(None if tensor is None else (tensor.shape, tensor.dtype, tensor.device) for tensor in inputs)
        shape = (want_kv, self.network.patch_embedding.weight.data_ptr(), *shapes)
        before = self._before.pop((want_kv, inputs.x.shape), None)
        self._before[want_kv, inputs.x.shape] = (shape, ref(past.keys))
        if len(self._before) > SHAPES_WATCHED:
            del self._before[next(iter(self._before))]
        if shape in self._graphs:
            self._graphs.move_to_end(shape)
            return self._graphs[shape]
        if self._capture is None or before is None or before[0] != shape or before[1]() is past.keys:
            return None
        try:
            graph = self._captured(self._capture, inputs, past, want_kv)
        except RuntimeError as error:
            self._capture = None
            logger.warning(
                f"a pass cannot be captured as a CUDA graph and runs as ever: {' '.join(str(error).split())}"
            )
            return None
        self._graphs[shape] = graph
        if len(self._graphs) > self._kept:  # after capturing, which has waited for its replays
            self._graphs.popitem(last=False)
        return graph

    @torch.inference_mode()
    def _captured(self, capture: Capture, inputs: "_Inputs", past: Past, want_kv: WantKV) -> "_Graph":
        buffers = [
            None if tensor is None else self._buffer(name, tensor)
            for name, tensor in zip(_Inputs._fields, inputs, strict=True)
        ]
        static = _Inputs._make(None if buffer is None else buffer.tensor for buffer in buffers)
        _fill(buffers, inputs)
        time = TimeContext(static.embedding, static.modulation)
        text = TextContext(static.text_keys, static.text_values, static.log_counts)
        shown = replace(past, keys=static.past_keys, values=static.past_values)
        how = {"past": shown, "positions": Rotation(static.cos, static.sin), "want_kv": want_kv}
        return _Graph(buffers, *capture(lambda: self.network(static.x, time, text, **how)))

    def _buffer(self, name: str, like: Tensor) -> "_Buffer":
        """The buffer of an input, one for all graphs whose inputs of this name are alike."""
        key = (name, like.shape, like.dtype, like.device)
        buffer = self._buffers.get(key)
        if buffer is None:
            buffer = self._buffers[key] = _Buffer(torch.empty(like.shape, dtype=like.dtype, device=like.device))
        return buffer


class _Inputs(NamedTuple):
    """Every tensor that a pass reads beside the weights: see `WanDiT.forward`, `TimeContext`, `TextContext`, `Past`."""

    x: Tensor
    embedding: Tensor
    modulation: Tensor
    text_keys: Tensor
    text_values: Tensor
    log_counts: Tensor | None
    past_keys: Tensor
    past_values: Tensor
    cos: Tensor
    sin: Tensor


class _Buffer:
    """A tensor at an address that stays, and what it was filled from."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self._source: ReferenceType[Tensor] | None = None
        self._version: int | None = None

    def fill(self, source: Tensor, may_stay: bool) -> None:
        """Take over the values of `source`; those it had stay if it is the same tensor, which does not live longer."""
        version = None if source.is_inference() else source._version
        if may_stay and self._source is not None and self._source() is source and self._version == version:
            return
        self.tensor.copy_(source)
        self._source, self._version = ref(source), version


@dataclass
class _Graph:
    """A captured pass: what it reads, what runs it, and where its results then lie."""

    buffers: "list[_Buffer | None]"
    replay: Callable[[], None]
    outputs: Outputs

    def __call__(self, inputs: _Inputs) -> Outputs:
        """Results for these inputs, in memory of their own: the next replay writes over the graph's."""
        with torch.inference_mode():
            _fill(self.buffers, inputs)
            self.replay()
        velocity, kv = self.outputs
        return velocity.clone(), None if kv is None else KV(kv.keys.clone(), kv.values.clone())


def _fill(buffers: "list[_Buffer | None]", inputs: _Inputs) -> None:
    for buffer, tensor in zip(buffers, inputs, strict=True):
        if buffer is not None and tensor is not None:
            buffer.fill(tensor, may_stay=tensor is not inputs.x)
