"""Who is denoised when: a schedule is an iterator of passes, each one forward of the network.

Owns the order of noise levels over chunks. Knows no tensors. Chunks are numbered from 0 in the order they finish;
noise levels are sigmas in [0, 1].
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice

from reward_forcing.flow import TIMESTEPS


@dataclass(frozen=True)
class Pass:
    """One forward: the chunks denoised jointly, oldest first, and the noise level of each before and after.

    chunks: consecutive chunk numbers. sigma, sigma_next: one entry per chunk; sigma_next None, allowed for the oldest,
    means that the chunk is finished by this pass and yielded. grad: the pass takes part in training. fresh_noise: the
    noise of the next level is drawn anew, as few-step samplers do; otherwise it is the one that the pass foresaw, which
    makes the pass an Euler step of the flow ODE.
    Raises ValueError for entries that do not belong together.
    """

    chunks: tuple[int, ...]
    sigma: tuple[float, ...]
    sigma_next: tuple[float | None, ...]
    grad: bool = False
    fresh_noise: bool = True

    def __post_init__(self) -> None:
        if not self.chunks or not len(self.chunks) == len(self.sigma) == len(self.sigma_next):
            raise ValueError(f"a pass needs one sigma and one sigma_next for each of its chunks, got {self}")
        if self.chunks != tuple(range(self.chunks[0], self.chunks[0] + len(self.chunks))):
            raise ValueError(f"a pass denoises consecutive chunks, oldest first, got {self.chunks}")
        if None in self.sigma_next[1:]:
            raise ValueError(f"only the oldest chunk of a pass can finish, got sigma_next={self.sigma_next}")

    @property
    def finishes(self) -> bool:
        """Whether the oldest chunk is finished by this pass."""
        return self.sigma_next[0] is None


def chunkwise(sigmas: Sequence[float], grad_from: int | None = None, fresh_noise: bool = True) -> Iterator[Pass]:
    """Passes, without end, that denoise one chunk after the other through `sigmas` (all methods but rolling).

    After every pass but a chunk's last, x0 is re-noised to the next sigma: with fresh noise, or without along the ODE,
    whose many steps are `chunkwise(ode_sigmas(48, 5.0)[:-1].tolist(), fresh_noise=False)`. grad_from: the first chunk
    whose last pass takes part in training, None for none. Self Forcing's random exit step is a shorter list of sigmas:
    `chunkwise(sigmas[: exit_step + 1], grad_from=0)`.
    Raises ValueError unless the sigmas decrease strictly within (0, 1].
    """
    if not sigmas or not all(a > b for a, b in zip((2.0, *sigmas), (*sigmas, 0.0), strict=True)) or sigmas[0] > 1:
        raise ValueError(f"sigmas must decrease strictly within (0, 1], the final 0 left out, got {list(sigmas)}")
    return _chunkwise(tuple(sigmas), grad_from, fresh_noise)


def _chunkwise(sigmas: tuple[float, ...], grad_from: int | None, fresh_noise: bool) -> Iterator[Pass]:
    steps = list(zip(sigmas, (*sigmas[1:], None), strict=True))
    for chunk in count():
        for sigma, sigma_next in steps:
            grad = grad_from is not None and chunk >= grad_from and sigma_next is None
            yield Pass((chunk,), (sigma,), (sigma_next,), grad, fresh_noise)


def timetable(schedule: Iterable[Pass], passes: int) -> list[list[float | None]]:
    """Timesteps (1000 sigma) of the first `passes` passes: a row for each chunk, None where a pass leaves it out."""
    columns = list(islice(schedule, passes))
    chunks = 1 + max((chunk for column in columns for chunk in column.chunks), default=-1)
    rows: list[list[float | None]] = [[None] * len(columns) for _ in range(chunks)]
    for position, column in enumerate(columns):
        for chunk, sigma in zip(column.chunks, column.sigma, strict=True):
            rows[chunk][position] = TIMESTEPS * sigma
    return rows


def format_timetable(rows: Sequence[Sequence[float | None]]) -> str:
    """A timetable as text: one line for each chunk, one column for each pass, a dot where the chunk rests."""
    lines = [f"{'chunk':>5}" + "".join(f"{f'pass {index}':>9}" for index in range(len(rows[0]) if rows else 0))]
    for chunk, row in enumerate(rows):
        lines.append(f"{chunk:>5}" + "".join(f"{'.' if step is None else f'{step:.1f}':>9}" for step in row))
    return "\n".join(lines)
