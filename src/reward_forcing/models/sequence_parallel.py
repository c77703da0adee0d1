"""Several processes share the tokens of a forward: DeepSpeed Ulysses' sequence parallelism (2309.14509), for streams.

    some tokens, all heads -> all-to-all -> all tokens, some heads -> attention -> all-to-all -> some tokens, all heads

Every process holds the whole network and, of every latent frame, its share of the tokens. Projections, norms,
cross-attention and feed-forward look at one token at a time; only self-attention looks at others, and it looks at one
head at a time. So the keys and values that a forward returns, and with them the cache, its sink and its snapshots, are
those of all tokens and of this process's heads. Nothing is padded: shares differ by one where the division leaves a
rest. What travels is exact; results differ from those of one process as those of matrix products of other sizes do.

B batch, F latent frames, S tokens per latent frame, H heads, D head width.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from reward_forcing.processes import World


class SequenceShare:
    """What a process computes of a forward; this one computes alone: all tokens and all heads."""

    def split(self, tokens: Tensor) -> Tensor:
        """This process's share [B, F, s, ..] of the tokens [B, F, S, ..]."""
        return tokens

    def join(self, tokens: Tensor, count: int) -> Tensor:
        """All `count` tokens [B, F, S, ..] of everybody's shares [B, F, s, ..], the same bits in every process."""
        return tokens

    def to_heads(self, tensors: Sequence[Tensor], count: int) -> Sequence[Tensor]:
        """Of tensors [B, F, s, H, D] of a share of `count` tokens: all tokens [B, F, S, h, D] of a share of heads."""
        return tensors

    def to_tokens(self, tensor: Tensor) -> Tensor:
        """The way back: of all tokens [B, F, S, h, D] of a share of heads, all heads [B, F, s, H, D] of a share."""
        return tensor


ALL = SequenceShare()


@dataclass(frozen=True)
class Ulysses(SequenceShare):
    """This process's share, as one of `world`, in a network of so many heads. For inference: gradients do not travel.

    Raises ValueError for more processes than heads or, when tokens are split, than tokens per latent frame.
    """

    world: World
    heads: int

    def __post_init__(self) -> None:
        check_shares("heads", self.heads, self.world.size)

    def split(self, tokens: Tensor) -> Tensor:
        """This process's share [B, F, s, ..] of the tokens [B, F, S, ..]."""
        check_shares("tokens per latent frame", tokens.shape[2], self.world.size)
        return tokens.split(shares(tokens.shape[2], self.world.size), dim=2)[self.world.rank]

    def join(self, tokens: Tensor, count: int) -> Tensor:
        """All `count` tokens [B, F, S, ..] of everybody's shares [B, F, s, ..], the same bits in every process."""
        batch, frames, _, *rest = tokens.shape
        shapes = [(batch, frames, share, *rest) for share in shares(count, self.world.size)]
        return torch.cat(_exchange([tokens] * self.world.size, shapes), dim=2)

    def to_heads(self, tensors: Sequence[Tensor], count: int) -> Sequence[Tensor]:
        """Of tensors [B, F, s, H, D] of a share of `count` tokens: all tokens [B, F, S, h, D] of a share of heads."""
        heads = shares(self.heads, self.world.size)
        rows = torch.stack([tensor.movedim(3, 0) for tensor in tensors], dim=1)  # [H, n, B, F, s, D], a message of rows
        h, (number, batch, frames, width) = heads[self.world.rank], (*rows.shape[1:4], rows.shape[5])
        shapes = [(h, number, batch, frames, share, width) for share in shares(count, self.world.size)]
        return torch.cat(_exchange(rows.split(heads), shapes), dim=4).movedim(0, 4).unbind(0)

    def to_tokens(self, tensor: Tensor) -> Tensor:
        """The way back: of all tokens [B, F, S, h, D] of a share of heads, all heads [B, F, s, H, D] of a share."""
        tokens = shares(tensor.shape[2], self.world.size)
        rows = tensor.movedim(2, 0)  # [S, B, F, h, D]
        s, (batch, frames, width) = tokens[self.world.rank], (*rows.shape[1:3], rows.shape[4])
        shapes = [(s, batch, frames, share, width) for share in shares(self.heads, self.world.size)]
        return torch.cat(_exchange(rows.split(tokens), shapes), dim=3).movedim(0, 2)


def shares(count: int, processes: int) -> list[int]:
    """`count` things as one share for each process, larger ones first: 12 heads of 5 processes are 3, 3, 2, 2, 2."""
    return [count // processes + (rank < count % processes) for rank in range(processes)]


def check_shares(what: str, count: int, processes: int) -> None:
    """Raises ValueError if there is not one thing for each process. what: the things' name."""
    if count < processes:
        raise ValueError(f"{count} {what} cannot be shared by {processes} processes; start at most {count}")


def _exchange(pieces: Sequence[Tensor], shapes: Sequence[Sequence[int]]) -> list[Tensor]:
    """What every process has sent to this one, of `shapes`, for `pieces`, one for each process."""
    assert not any(piece.requires_grad for piece in pieces), "gradients do not travel between processes"
    sent, received = [piece.numel() for piece in pieces], [math.prod(shape) for shape in shapes]
    message = torch.cat([piece.reshape(-1) for piece in pieces])
    answer = message.new_empty(sum(received))
    dist.all_to_all_single(answer, message, received, sent)
    return [part.view(*shape) for part, shape in zip(answer.split(received), shapes, strict=True)]
