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
from weakref import ReferenceType, WeakValueDictionary, ref

import torch
from torch import Tensor

from reward_forcing.models.attention import KV, AttentionPattern, OnDemand, Past, Text, TextContext, WantKV
from reward_forcing.models.layers import TimeContext
from reward_forcing.models.rope import Rotation
from reward_forcing.models.sequence_parallel import ALL
from reward_forcing.models.wan_dit import WanDiT

GRAPHS_KEPT = 4
"""Most graphs that are kept: the passes and the clean pass of two streams of different shapes."""
SHAPES_WATCHED = 16
"""Shapes of latents, and kinds of passes over them, whose last past is known."""

LATENTS = "latents"
"""The one input that every pass brings anew."""

Inputs = dict[str, Tensor]
"""Every tensor that a pass reads beside the weights, by name: see `_inputs`."""
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
    gradients, under autocast, of several prompts at once or in turn, with a pattern, over a past that is made on demand
    (a lean cache), and by several processes.

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
        self._before: dict[Hashable, tuple[Hashable, ReferenceType[Past]]] = {}
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
        if pattern is None and isinstance(text, TextContext) and past is not None and self._may_replay(x.device, past):
            inputs = self._inputs(x, timestep, text, past)
            with self._lock:
                graph = self._graph(inputs, past, want_kv)
                if graph is not None:
                    return graph(inputs)
        return self.network(x, timestep, text, past=past, pattern=pattern, want_kv=want_kv)

    def _may_replay(self, device: torch.device, past: Past) -> bool:
        if torch.is_grad_enabled() or torch.is_autocast_enabled(device.type) or torch.compiler.is_compiling():
            return False
        return past.rotated and not isinstance(past.keys, OnDemand) and self.network.share is ALL

    def _inputs(self, x: Tensor, timestep: Tensor | TimeContext, text: TextContext, past: Past) -> Inputs:
        time = self.network.encode_time(timestep) if isinstance(timestep, Tensor) else timestep
        by = self.network.rotation_at(past.query_positions, (x.shape[3], x.shape[4]), x.device)
        inputs = {LATENTS: x, "embedding": time.embedding, "modulation": time.modulation, "cos": by.cos, "sin": by.sin}
        inputs |= {"text keys": text.keys, "text values": text.values}
        if text.log_counts is not None:
            inputs["log counts"] = text.log_counts
        for layer, (keys, values) in enumerate(zip(past.keys, past.values, strict=True)):
            inputs[f"past keys {layer}"], inputs[f"past values {layer}"] = keys, values
        return inputs

    def _graph(self, inputs: Inputs, past: Past, want_kv: WantKV) -> "_Graph | None":
        """The graph of a pass, captured now if its shapes recur; None if it has none."""
        shapes = tuple((name, tensor.shape, tensor.dtype, tensor.device) for name, tensor in inputs.items())
        shape = (want_kv, self.network.patch_embedding.weight.data_ptr(), *shapes)
        kind = (want_kv, inputs[LATENTS].shape)
        before = self._before.pop(kind, None)
        self._before[kind] = (shape, ref(past))
        if len(self._before) > SHAPES_WATCHED:
            del self._before[next(iter(self._before))]
        if shape in self._graphs:
            self._graphs.move_to_end(shape)
            return self._graphs[shape]
        if self._capture is None or before is None or before[0] != shape or before[1]() is past:
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
    def _captured(self, capture: Capture, inputs: Inputs, past: Past, want_kv: WantKV) -> "_Graph":
        buffers = {name: self._buffer(name, tensor) for name, tensor in inputs.items()}
        _fill(buffers, inputs)
        at = {name: buffer.tensor for name, buffer in buffers.items()}
        time = TimeContext(at["embedding"], at["modulation"])
        text = TextContext(at["text keys"], at["text values"], at.get("log counts"))
        keys, values = (
            tuple(at[f"past {what} {layer}"] for layer in range(len(past.keys))) for what in ("keys", "values")
        )
        how = {"past": replace(past, keys=keys, values=values), "positions": Rotation(at["cos"], at["sin"])}
        return _Graph(buffers, *capture(lambda: self.network(at[LATENTS], time, text, **how, want_kv=want_kv)))

    def _buffer(self, name: str, like: Tensor) -> "_Buffer":
        """The buffer of an input, one for all graphs whose inputs of this name are alike."""
        key = (name, like.shape, like.dtype, like.device)
        buffer = self._buffers.get(key)
        if buffer is None:
            buffer = self._buffers[key] = _Buffer(torch.empty(like.shape, dtype=like.dtype, device=like.device))
        return buffer


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

    buffers: "dict[str, _Buffer]"
    replay: Callable[[], None]
    outputs: Outputs

    def __call__(self, inputs: Inputs) -> Outputs:
        """Results for these inputs, in memory of their own: the next replay writes over the graph's."""
        with torch.inference_mode():
            _fill(self.buffers, inputs)
            self.replay()
        velocity, kv = self.outputs
        return velocity.clone(), None if kv is None else kv.map(Tensor.clone)


def _fill(buffers: "dict[str, _Buffer]", inputs: Inputs) -> None:
    for name, tensor in inputs.items():
        buffers[name].fill(tensor, may_stay=name != LATENTS)
