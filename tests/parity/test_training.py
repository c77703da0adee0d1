"""Distribution matching losses, training rollouts with their gradients, and ODE pairs against the references."""

import re
from collections.abc import Iterable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from reward_forcing.checkpoints.wan import wan_to_diffusers
from reward_forcing.flow import TIMESTEPS, add_noise, nearest_sigma, ode_sigmas, sigma_table, velocity_to_x0
from reward_forcing.models.attention import Past, Prediction
from reward_forcing.models.denoiser import Denoiser
from reward_forcing.models.wan_dit import WanDiT
from reward_forcing.rollout import CacheSettings, KVCache, NoSink, Pass, Rollout, StaticSink, chunkwise, rolling
from reward_forcing.training.losses import dmd_gradient, dmd_loss, flow_loss
from reward_forcing.training.sampling import guided_x0, ode_trajectory

RELATIVE = 1e-5
"""Losses and gradients in float32, relative norm."""


def assert_near(ours: Tensor, reference: Tensor, tolerance: float = RELATIVE) -> None:
    assert ours.shape == reference.shape
    error = (ours.double() - reference.double()).norm() / reference.double().norm()
    assert error <= tolerance, f"relative error {error:.3g}"


def assert_gradients(network: WanDiT, gradients: dict[str, Tensor], tolerance: float) -> None:
    """The network's gradients equal those recorded under Wan's names."""
    parameters = dict(network.named_parameters())
    assert gradients
    for name, reference in wan_to_diffusers(gradients).items():
        gradient = parameters[name].grad
        assert gradient is not None, name
        error = (gradient - reference).norm() / reference.norm()
        assert error <= tolerance, f"{name}: relative error {error:.3g}"


def named(case, prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in case.tensors.items() if name.startswith(prefix)}


class Scores:
    """The two score networks of a case. table: shift of the sigma table that turns their velocity into x0."""

    def __init__(self, case, table: str) -> None:
        tensors, shift = case.tensors, case.sidecar["timestep_shift"]
        self.case, self.fake, self.real = case, case.network(), case.network(0.9)
        self.x, self.noise, self.t = tensors["x"], tensors["noise"], tensors["t"]
        self.sigma = nearest_sigma(self.t, sigma_table(shift))
        self.table_sigma = nearest_sigma(self.t, sigma_table(float(table.removeprefix("table"))))
        self.noisy = add_noise(self.x, self.noise, self.sigma)

    def x0(self, network: WanDiT, text: str = "context") -> Tensor:
        velocity, _ = network(self.noisy, self.t, network.encode_text(self.case.text(text)))
        return velocity_to_x0(self.noisy, velocity, self.table_sigma)

    def real_x0(self) -> Tensor:
        """With CFG; the reference adds `guidance_scale` on top of the conditional prediction."""
        conditional, unconditional = self.x0(self.real), self.x0(self.real, "uncond_context")
        return conditional + self.case.sidecar["guidance_scale"] * (conditional - unconditional)


@pytest.mark.golden("f_*")
def test_scores_at_the_references_noise_levels(case) -> None:
    scores = Scores(case, "table8")
    with torch.no_grad():
        torch.testing.assert_close(scores.noisy, case.tensors["x_t"], atol=2e-6, rtol=0)
        assert_near(scores.x0(scores.fake), case.tensors["table8_fake_x0"])
        assert_near(scores.x0(scores.real), case.tensors["table8_real_x0_cond"])
        assert_near(scores.x0(scores.real, "uncond_context"), case.tensors["table8_real_x0_uncond"])


@pytest.mark.golden("f_*")
@pytest.mark.parametrize("table", ["table5", "table8"])
def test_gradient_and_losses_of_the_generator(case, table: str) -> None:
    scores, tensors = Scores(case, table), case.tensors
    with torch.no_grad():
        gradient = dmd_gradient(scores.x, scores.real_x0(), scores.x0(scores.fake))
    assert_near(gradient, tensors[f"{table}_grad"])
    x, mask = scores.x.clone().requires_grad_(), tensors["gradient_mask_frames"]
    for suffix, frames in (("", None), ("_masked", mask)):
        loss = dmd_loss(x, gradient, mask=frames)
        assert_near(loss, tensors[f"{table}_loss{suffix}"].to(loss))
        if f"{table}_dx{suffix}" in tensors:
            assert_near(torch.autograd.grad(loss, x)[0], tensors[f"{table}_dx{suffix}"])
    weight = torch.exp(case.sidecar["beta_code"] * tensors["MQ"])
    weighted = dmd_loss(x, gradient, weight.expand(len(x)))
    assert_near(weighted, tensors[f"{table}_redmd_loss"][0])


@pytest.mark.golden("f_*")
@pytest.mark.parametrize("table", ["table5", "table8"])
def test_loss_of_the_critic(case, table: str) -> None:
    scores = Scores(case, table)
    x0 = scores.x0(scores.fake)
    sigma = scores.sigma[:, :, None, None, None]
    loss = flow_loss((scores.noisy - x0) / sigma, scores.noise, scores.x)
    assert_near(loss, case.tensors[f"{table}_critic_loss"])
    loss.backward()
    assert_gradients(scores.fake, named(case, f"{table}_critic_grad."), 1e-4)


@pytest.mark.golden("f_*")
def test_our_guidance_is_the_references_plus_one(case) -> None:
    scores = Scores(case, "table5")
    network, text = scores.real, scores.real.encode_text
    with torch.no_grad():
        ours = guided_x0(
            Denoiser(network), scores.noisy, scores.table_sigma, text(case.text()),
            text(case.text("uncond_context")), case.sidecar["guidance_scale"] + 1,
        )  # fmt: skip
        torch.testing.assert_close(ours, scores.real_x0(), atol=2e-3, rtol=1e-3)  # 1000 sigma, not the rounded timestep


class ReferencesContext:
    """A denoiser that is told 0 where finished chunks enter the cache, although they are noised a little."""

    def __init__(self, network: WanDiT, context_sigma: float) -> None:
        self.network, self.context_sigma = network, context_sigma

    def __call__(self, x, sigma, text, past: Past | None = None, want_kv: bool = False) -> Prediction:
        told = torch.where((sigma - self.context_sigma).abs() < 1e-7, torch.zeros_like(sigma), sigma)
        return Denoiser(self.network)(x, told, text, past, want_kv=want_kv)

    def rotate(self, past: Past, latent_size: tuple[int, int]) -> Past:
        return self.network.rotate(past, latent_size)


@pytest.mark.golden("h_train_rollout_*")
@pytest.mark.parametrize(("kv_grad", "recorded"), [("none", "grad_detach."), ("stale", "grad_stale.")])
def test_training_rollouts_and_their_gradients(case, kv_grad: str, recorded: str) -> None:
    sidecar, tensors = case.sidecar, case.tensors
    network, frames = case.network(), sidecar["frames_per_chunk"]
    context_sigma = float(sigma_table(5.0)[-1])
    settings = CacheSettings(
        window_frames=sidecar["local_attn_size"],
        chunk_frames=frames,
        sink=StaticSink(frames=sidecar["sink_size"]) if sidecar["sink_size"] else NoSink(),
        positions="relative" if sidecar["reference"].startswith("rf") else "absolute",
    )
    renoise = torch.cat([tensors["renoise"], tensors["context_noise"][:, None]], dim=1)

    def noise(chunk: int, draw: int, shape) -> Tensor:
        return renoise[chunk, draw - 1] if draw else tensors["noise"][:, chunk * frames : (chunk + 1) * frames]

    sigmas = [step / TIMESTEPS for step in sidecar["denoising"]]
    rollout = Rollout(
        ReferencesContext(network, context_sigma),
        chunkwise(sigmas, grad_from=0),
        KVCache.empty(settings),
        noise,
        network.encode_text(case.text()),
        tensors["noise"].shape[2:],
        context_noise=context_sigma,
        kv_grad=kv_grad,
    )
    out = torch.cat([next(rollout).latents for _ in range(sidecar["num_frames"] // frames)], dim=1)
    torch.testing.assert_close(out, tensors["out"], atol=2e-5, rtol=0)
    (out * tensors["probe"]).mean().backward()
    assert_gradients(network, named(case, recorded), 1e-4)


SCORED_FRAMES = 21
"""The end of a rollout that Self Forcing and its descendants score."""
ATTENDED_FRAMES = 21
"""What Rolling Forcing's code attends to, written into it; a sidecar may say otherwise."""


def rolling_windows(case, kv_grad: str, schedule: Iterable[Pass]) -> Rollout:
    """The published training rollout with rolling windows."""
    sidecar, tensors = case.sidecar, case.tensors
    frames, renoise = sidecar["frames_per_chunk"], tensors["renoise"]
    attended = sidecar.get("max_attention_frames", ATTENDED_FRAMES)
    settings = CacheSettings(
        window_frames=attended,
        chunk_frames=frames,
        sink=StaticSink(frames=frames),
        clean_pass_sees_sink=sidecar["cache_frames"] <= attended,
    )

    def noise(chunk: int, draw: int, shape) -> Tensor:
        return renoise[chunk, draw - 1] if draw else tensors["noise"][:, chunk * frames : (chunk + 1) * frames]

    network = case.network()
    text, shape = network.encode_text(case.text()), tensors["noise"].shape[2:]
    return Rollout(Denoiser(network), schedule, KVCache.empty(settings), noise, text, shape, kv_grad=kv_grad)


@pytest.mark.golden("h_train_rolling*")
@pytest.mark.parametrize(("kv_grad", "recorded"), [("none", "grad_detach."), ("stale", "grad_stale.")])
def test_rolling_training_rollouts_and_their_gradients(case, kv_grad: str, recorded: str) -> None:
    """Frames that no window with gradient covers are zero in the reference; ours have their exit's prediction too."""
    sidecar, tensors = case.sidecar, case.tensors
    frames, scored = sidecar["frames_per_chunk"], min(sidecar["num_frames"], SCORED_FRAMES)
    chunks, unscored = sidecar["num_frames"] // frames, (sidecar["num_frames"] - scored) // frames
    sigmas = [step / TIMESTEPS for step in sidecar["denoising"]]
    passes = list(rolling(sigmas, sidecar["exit_window_residue"], unscored, chunks=chunks))
    supervised = [chunk for step in passes if step.grad for chunk in step.chunks]
    covered = torch.tensor([frame // frames in supervised for frame in range(sidecar["num_frames"])])
    assert covered.int().tolist() == sidecar["covered_frames"]
    rollout = rolling_windows(case, kv_grad, passes)
    finished = [chunk.at_exit for chunk in rollout]
    in_flight = [chunk.at_exit for chunk in rollout.state.noisy if chunk.at_exit is not None]
    out = torch.cat([*finished, *in_flight], dim=1)
    torch.testing.assert_close(out[:, covered], tensors["out"][:, covered], atol=2e-5, rtol=0)
    (out[:, -scored:] * tensors["probe"][:, -scored:]).mean().backward()
    assert_gradients(rollout._denoiser.network, named(case, recorded), 1e-4)  # type: ignore[attr-defined]


SOLVER = re.compile(r"euler shift ([\d.]+), (\d+) steps")


class TableDenoiser(Denoiser):
    """Turns velocity into x0 with the nearest sigma of a table of 1000, as the reference does; ours is continuous."""

    def __init__(self, network: WanDiT, shift: float) -> None:
        super().__init__(network)
        self.table = sigma_table(shift)

    def __call__(self, x, sigma, text, *arguments, **named_arguments) -> Prediction:
        found = super().__call__(x, sigma, text, *arguments, **named_arguments)
        sigma = nearest_sigma(TIMESTEPS * sigma.expand(x.shape[:2]), self.table)
        return replace(found, x0=velocity_to_x0(x, found.velocity, sigma))


@pytest.mark.golden("i_*")
@pytest.mark.parametrize(("is_continuous", "tolerance"), [(False, 1e-5), (True, 3e-3)])
def test_the_teachers_trajectory(case, is_continuous: bool, tolerance: float) -> None:
    found = SOLVER.fullmatch(case.sidecar["solver"])
    assert found is not None
    shift, steps = float(found[1]), int(found[2])
    teacher = case.network()
    denoiser = Denoiser(teacher) if is_continuous else TableDenoiser(teacher, shift)
    kept = [index if index >= 0 else steps for index in case.sidecar["kept"]]
    with torch.no_grad():
        texts = (teacher.encode_text(case.text(name)) for name in ("context", "neg_context"))
        noise, sigmas = case.tensors["latent0"], ode_sigmas(steps, shift)
        ours = ode_trajectory(denoiser, noise, *texts, sigmas, case.sidecar["guidance"], kept)
    assert_near(ours, case.tensors["trajectory"], tolerance)
