"""Small denoisers and inputs for the tests of the rollout: an analytic one, and a tiny WanDiT."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from reward_forcing.models.attention import KV, Past, Prediction, Text, TextContext
from reward_forcing.models.denoiser import Denoiser
from reward_forcing.models.wan_dit import WanDiT

SIGMAS = (1.0, 0.9, 0.6)
SHAPE = (4, 4, 6)


@dataclass
class Call:
    """What one forward was asked."""

    sigma: list[float]
    x: Tensor
    text: float
    past: Past | None
    want_kv: bool
    grad: bool


@dataclass
class ToyDenoiser:
    """x0 = gain (1 - sigma / 2) x + text + the past's values, fading with distance in time; records its calls.

    Keys and values of its one layer are the input's pixels, [B, F, h w, 1, C].
    """

    gain: Tensor = field(default_factory=lambda: torch.tensor(0.5))
    calls: list[Call] = field(default_factory=list)

    def __call__(
        self, x: Tensor, sigma: Tensor, text: Text, past: Past | None = None, want_kv: bool = False
    ) -> Prediction:
        ((_, readings),) = text.layer(0, x.shape[1])
        amount = torch.stack([text.weight * text.keys.mean() for text in readings]).sum()
        self.calls.append(Call(sigma.tolist(), x, amount.item(), past, bool(want_kv), torch.is_grad_enabled()))
        x0 = self.gain * (1 - sigma.view(-1, 1, 1, 1) / 2) * x.float() + amount
        if past is not None:
            distance = past.query_positions[:, None] - past.key_positions[None]
            fade = torch.exp(-distance / 4.0) / past.key_positions.numel()
            seen = past.values[0][:, :, :, 0].float().mean(dim=2)  # [B, P, C]
            x0 = x0 + torch.einsum("fp,bpc->bfc", fade, seen)[..., None, None]
        tokens = self.gain * x.flatten(3).transpose(2, 3)[:, :, :, None]
        kv = KV((tokens,), (2 * tokens,)) if want_kv else None
        return Prediction(x0, x.float() - x0, kv)

    def rotate(self, past: Past, latent_size: tuple[int, int]) -> Past:
        assert latent_size == SHAPE[1:]
        return past.with_rotated(lambda keys: keys)


def joined(*parts: KV) -> KV:
    """Keys and values of several forwards in turn, as of one."""
    keys, values = (zip(*(getattr(kv, name) for kv in parts), strict=True) for name in ("keys", "values"))
    return KV(*(tuple(torch.cat(layer, dim=1) for layer in layers) for layers in (keys, values)))


def toy_text(amount: float = 0.0, batch: int = 1) -> TextContext:
    """A text that shifts every prediction of `ToyDenoiser` by `amount`."""
    tensor = torch.full((1, batch, 1, 1, 1), amount)
    return TextContext(tensor, tensor)


def tiny_wan(seed: int = 0, layers: int = 2) -> WanDiT:
    """A WanDiT of two heads with random weights everywhere, the output projection included."""
    torch.manual_seed(seed)
    network = WanDiT(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=8,
        freq_dim=16,
        ffn_dim=32,
        num_layers=layers,
    )
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return network.eval()


def tiny_denoiser(seed: int = 0, layers: int = 2) -> Denoiser:
    """A denoiser over `tiny_wan` without parameter gradients."""
    return Denoiser(tiny_wan(seed, layers).requires_grad_(False))


def tiny_text(network: WanDiT, seed: int = 1, batch: int = 1) -> TextContext:
    """The context of one random prompt, for `batch` samples."""
    embeddings = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(seed))
    return network.encode_text(embeddings).expand(batch)
