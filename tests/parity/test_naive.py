"""The naive mode against the reference code's rollouts, and the fast path against the naive mode on the same."""

from typing import Any

import pytest
import torch
from parity.test_rollout import RecordedNoise, schedule_of, settings_of, switch_of

from reward_forcing.benchmarks.naive import NaiveRollout
from reward_forcing.flow import TIMESTEPS
from reward_forcing.models.denoiser import Denoiser
from reward_forcing.rollout import KVCache, Rollout


@pytest.mark.golden("b_*", "c_causvid_*", "c_longlive_*", "c_rolling_*", "c_selfforcing_*", "g_*")
@torch.no_grad()
def test_naive_equals_fast_and_the_published_code_on_golden_rollouts(case: Any) -> None:
    network = case.network()
    noise = RecordedNoise(case.tensors["noise"], case.tensors["renoise"])
    shape, how = noise.initial.shape[2:], {"context_noise": (case.sidecar.get("context_noise") or 0) / TIMESTEPS}
    how["switch"] = switch_of(case)
    settings = settings_of(case)
    naive = NaiveRollout(network, schedule_of(case), settings, noise, case.text(), shape, **how)
    text = network.encode_text(case.text())
    fast = Rollout(Denoiser(network), schedule_of(case), KVCache.empty(settings), noise, text, shape, **how)
    published = case.tensors["latents"].split(settings.chunk_frames, dim=1)
    for reference in published:
        if naive.start and naive.start == case.sidecar.get("switch_frame"):
            naive.set_text(case.text("context2"))
            fast.text = network.encode_text(case.text("context2"))
        ours = next(naive).latents
        assert (next(fast).latents - ours).norm() < 1e-5 * ours.norm()
        if "denoising" not in case.sidecar:  # CausVid's network is told rounded timesteps
            torch.testing.assert_close(ours, reference, atol=2e-5, rtol=0)
