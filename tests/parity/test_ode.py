"""The ODE stage's own loss, at the noise levels an LMDB is read with, against the reference's recorded one."""

import pytest
import torch

from reward_forcing.checkpoints.wan import wan_to_diffusers
from reward_forcing.models.denoiser import Denoiser
from reward_forcing.models.masks import block_causal
from reward_forcing.training.ode_pairs import LmdbSettings, OdePairsManifest
from reward_forcing.training.ode_regression import regression_errors


@pytest.mark.golden("i_*")
def test_the_stages_loss_and_gradients_are_the_references(case) -> None:
    student, tensors = case.network(0.9), case.tensors
    trajectory, level, t = tensors["trajectory"], tensors["index"], tensors["timestep"]
    sigmas = torch.tensor(LmdbSettings().sigmas())
    torch.testing.assert_close(1000 * sigmas[level], t, rtol=0, atol=2e-4)
    pattern = block_causal(trajectory.shape[2], case.sidecar["frames_per_chunk"])
    text = student.encode_text(case.text())
    errors = regression_errors(Denoiser(student), trajectory, sigmas[None].expand(len(t), -1), level, text, pattern)
    loss = errors[t > 0].mean()
    torch.testing.assert_close(loss, tensors["loss"], rtol=1e-5, atol=0)
    loss.backward()
    parameters = dict(student.named_parameters())
    gradients = {name.removeprefix("grad."): value for name, value in tensors.items() if name.startswith("grad.")}
    for name, reference in wan_to_diffusers(gradients).items():
        gradient = parameters[name].grad
        assert gradient is not None, name
        assert (gradient - reference).norm() / reference.norm() <= 1e-4, name


@pytest.mark.golden("i_*")
def test_we_keep_the_points_that_the_reference_keeps(case) -> None:
    frames, channels, rows, columns = case.tensors["trajectory"].shape[2:]
    manifest = OdePairsManifest(count=1, teacher="none", latent_shape=(frames, channels, rows, columns), shift=8.0)
    steps = manifest.steps
    assert manifest.kept() == [index % (steps + 1) for index in case.sidecar["kept"]]
    recorded = dict(
        zip(case.tensors["index"].flatten().tolist(), case.tensors["timestep"].flatten().tolist(), strict=True)
    )
    for index, timestep in recorded.items():
        assert manifest.timesteps()[index] == pytest.approx(timestep, abs=2e-4)
