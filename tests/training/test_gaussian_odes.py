"""Why a causal student needs a causal teacher, on Gaussian data whose ODEs are matrices (Causal Forcing, 2602.02214).

Frames are x_0 ~ N(0, 1), x_i = A x_{i-1} + sqrt(1 - A^2) e_i, the same in every element. The ODE of a causal teacher
ends at L z with a triangular L, that of a bidirectional one at S z with the symmetric root S: frame i of it depends on
the noise of later frames, which no causal student knows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from ode_stores import constant_student, stage, write_tars
from torch import Tensor

from reward_forcing.flow import ode_sigmas
from reward_forcing.models.attention import KV, AttentionPattern, Past, Prediction, TextContext
from reward_forcing.models.wan_dit import WanDiT
from reward_forcing.rollout import CacheSettings, NoSink
from reward_forcing.training import ode_regression
from reward_forcing.training.sampling import causal_trajectory

A, FRAMES, PAIRS = 0.9, 4, 40
SIGMAS, KEPT = ode_sigmas(8, 5.0).double(), (0, 2, 4, 6, 8)
TIMESTEPS = [1000 * SIGMAS[index].item() for index in KEPT]
COVARIANCE = A ** (torch.arange(FRAMES)[:, None] - torch.arange(FRAMES)).abs().double()
NOTHING = TextContext(torch.zeros(1, PAIRS, 1, 1, 1), torch.zeros(1, PAIRS, 1, 1, 1))


def gain(variance: Tensor, sigma: Tensor) -> Tensor:
    """How far E[x0 | x] - m follows x - (1 - sigma) m for Gaussian x0 of mean m."""
    return variance * (1 - sigma) / ((1 - sigma) ** 2 * variance + sigma**2)


def shrinkage(variance: Tensor) -> Tensor:
    """What x - (1 - sigma) m of the noise has become at each kept point, [K, ...], by the Euler steps of the ODE."""
    point, points = torch.ones_like(variance), []
    for sigma, after in zip(SIGMAS, [*SIGMAS[1:], None], strict=True):
        points.append(point)
        if after is not None:
            point = point * (1 + (after - sigma) * (1 - gain(variance, sigma)) / sigma)
    return torch.stack([points[index] for index in KEPT])


class CausalTeacher:
    """The exact denoiser of a frame given the clean one before it, by a cache whose values are the frames."""

    def __call__(
        self, x: Tensor, sigma: Tensor, text: TextContext, past: Past | None = None, want_kv: bool = False
    ) -> Prediction:
        mean, variance = torch.zeros_like(x), torch.tensor(1.0)
        if past is not None:
            mean, variance = A * past.values[0][:, -1:, :, 0].transpose(2, 3).view_as(x), torch.tensor(1 - A**2)
        x0 = mean + gain(variance, sigma) * (x - (1 - sigma) * mean)
        frames = x.flatten(3).transpose(2, 3)[:, :, :, None]
        return Prediction(x0, x - x0, KV((frames,), (frames,)) if want_kv else None)

    def rotate(self, past: Past, latent_size: tuple[int, int]) -> Past:
        return past


@dataclass
class LinearStudent:
    """x0 = W [clean | noisy], with a W [F, 2 F] for each noise level that holds nothing a causal student cannot see."""

    weights: Tensor  # [K - 1, F, 2 F]

    def __call__(self, x: Tensor, sigma: Tensor, text: object, pattern: AttentionPattern) -> Prediction:
        hidden = ~pattern.dense()[FRAMES:]
        assert not self.weights[:, hidden].any(), "the student sees what the mask hides"
        level = (1000 * sigma[:, FRAMES:, None] - torch.tensor(TIMESTEPS)).abs().argmin(dim=-1)
        weights = self.weights[level, torch.arange(FRAMES)].float()  # [B, F, 2 F]
        x0 = torch.cat([x[:, :FRAMES], torch.einsum("bij,bjchw->bichw", weights, x)], dim=1)
        return Prediction(x0, x0)


def exact_causal_weights() -> Tensor:
    """Of the causal teacher's ODE map: m + (x - (1 - sigma) m) shrinkage(end) / shrinkage(point)."""
    variance = torch.tensor([1.0] + [1 - A**2] * (FRAMES - 1)).double()
    left = shrinkage(variance)[-1] / shrinkage(variance)[:-1]  # [K - 1, F]
    before = A * (1 - (1 - SIGMAS[list(KEPT[:-1])])[:, None] * left)
    weights = torch.zeros(len(KEPT) - 1, FRAMES, 2 * FRAMES).double()
    for frame in range(FRAMES):
        weights[:, frame, FRAMES + frame] = left[:, frame]
        if frame:
            weights[:, frame, frame - 1] = before[:, frame]
    return weights


def bidirectional_points() -> Tensor:
    """Matrices [K, F, F] that take the noise of all frames to the kept points of a bidirectional teacher's ODE."""
    variances, directions = torch.linalg.eigh(COVARIANCE)
    return torch.einsum("if,kf,jf->kij", directions, shrinkage(variances), directions)


def best_causal_weights(points: Tensor) -> tuple[Tensor, Tensor]:
    """The regression of a trajectory's end on clean frames before and the own point; and its residual [K - 1, F]."""
    end, weights = points[-1], torch.zeros(len(KEPT) - 1, FRAMES, 2 * FRAMES).double()
    residual = torch.zeros(len(KEPT) - 1, FRAMES).double()
    for level in range(len(KEPT) - 1):
        for frame in range(FRAMES):
            seen = torch.cat([end[:frame], points[level, frame : frame + 1]])
            by = torch.linalg.lstsq(seen.T, end[frame, :, None]).solution[:, 0]
            weights[level, frame, :frame], weights[level, frame, FRAMES + frame] = by[:-1], by[-1]
            residual[level, frame] = (end[frame] - by @ seen).square().sum()
    return weights, residual


def noise() -> Tensor:
    return torch.randn(PAIRS, FRAMES, 4, 4, 4, generator=torch.Generator().manual_seed(0))


def correlated(noise: Tensor) -> Tensor:
    """Data [n, F, C, h, w]."""
    return torch.einsum("ij,bjchw->bichw", torch.linalg.cholesky(COVARIANCE).float(), noise)


@pytest.fixture
def explained(
    tiny_dit: Callable[..., WanDiT], tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., float]:
    """The stage's `validation/explained` of a linear student on a store of trajectories, with a clean context."""
    init = constant_student(tmp_path / "student", tiny_dit, 0.0)

    def measure(weights: Tensor, trajectories: Tensor, context: Tensor | None = None) -> float:
        folder = tmp_path / f"pairs_{len(list(tmp_path.iterdir()))}"
        pairs = write_tars(folder, trajectories, TIMESTEPS, context)
        monkeypatch.setattr(ode_regression, "Denoiser", lambda network: LinearStudent(weights))
        return float(stage(pairs, tiny_model_folder, init, context="clean", validation=0.8).metrics(0)["explained"])

    return measure


@pytest.mark.parametrize("given", [False, True], ids=["its own chunks", "data"])
def test_a_student_that_is_the_causal_teachers_ode_map_explains_it_all(
    explained: Callable[..., float], given: bool
) -> None:
    data = correlated(noise().flip(0)) if given else None
    cache = CacheSettings(window_frames=None, chunk_frames=1, sink=NoSink())
    teacher = CausalTeacher()
    pairs = causal_trajectory(teacher, noise(), NOTHING, NOTHING, SIGMAS.float(), 1.0, cache, KEPT, data)
    assert explained(exact_causal_weights(), pairs, data) == pytest.approx(1, abs=1e-4)
    assert explained(0.9 * exact_causal_weights(), pairs, data) < 0.995
    if given:
        assert explained(exact_causal_weights(), pairs) < 0.9, "what it is shown is the data, not the trajectory's end"


def test_no_causal_student_explains_a_bidirectional_teachers_ode(explained: Callable[..., float]) -> None:
    points = bidirectional_points()
    torch.testing.assert_close(points[-1], points[-1].T)
    weights, residual = best_causal_weights(points)
    best = 1 - residual.mean().item() / points[-1].square().sum(dim=1).mean().item()
    assert best == pytest.approx(0.865, abs=5e-4)
    pairs = torch.einsum("kij,bjchw->bkichw", points.float(), noise())
    assert explained(weights, pairs) == pytest.approx(best, abs=0.02)
    assert explained(exact_causal_weights(), pairs) < best
