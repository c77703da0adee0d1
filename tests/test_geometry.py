"""Sizes convert there and back, chunks add up to the video, and wrong sizes name the nearest right ones."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reward_forcing.geometry import Geometry

WAN = Geometry(height=480, width=832)
factors = st.integers(1, 8)
geometries = st.builds(
    lambda rows, columns, spatial, temporal, patch, chunk: Geometry(
        height=rows * spatial * patch[0],
        width=columns * spatial * patch[1],
        chunk_frames=chunk,
        spatial_factor=spatial,
        temporal_factor=temporal,
        patch=(1, *patch),
    ),
    rows=factors,
    columns=factors,
    spatial=factors,
    temporal=factors,
    patch=st.tuples(factors, factors),
    chunk=factors,
)


def test_wan_at_480p_has_the_published_sizes():
    assert (WAN.latent_height, WAN.latent_width, WAN.grid, WAN.tokens_per_frame) == (60, 104, (30, 52), 1560)
    assert WAN.frames_of(21) == 81
    assert WAN.latent_frames_of(81) == 21
    assert [WAN.chunk_frames_of(index) for index in range(3)] == [9, 12, 12]
    assert WAN.latent_frames_for(5) == 21


@given(geometry=geometries, latent_frames=st.integers(1, 500))
def test_frame_counts_convert_there_and_back(geometry, latent_frames):
    assert geometry.latent_frames_of(geometry.frames_of(latent_frames)) == latent_frames


@given(geometry=geometries, frames=st.integers(1, 2000))
def test_latent_frames_within_a_number_of_frames_are_the_most_that_fit(geometry, frames):
    latent_frames = geometry.latent_frames_within(frames)
    assert geometry.frames_of(latent_frames) <= frames < geometry.frames_of(latent_frames + 1)
    assert geometry.latent_frames_within(0) == 0


@given(geometry=geometries, chunks=st.integers(1, 40))
def test_chunks_add_up_to_the_video(geometry, chunks):
    total = sum(geometry.chunk_frames_of(index) for index in range(chunks))
    assert total == geometry.frames_of(chunks * geometry.chunk_frames)


@given(geometry=geometries, seconds=st.floats(0.01, 300))
def test_a_duration_needs_the_fewest_whole_chunks(geometry, seconds):
    latent_frames = geometry.latent_frames_for(seconds)
    assert latent_frames % geometry.chunk_frames == 0
    assert geometry.frames_of(latent_frames) >= seconds * geometry.fps - 1e-6
    assert geometry.frames_of(latent_frames - geometry.chunk_frames) < seconds * geometry.fps


@given(geometry=geometries)
def test_tokens_tile_the_latent(geometry):
    area = geometry.latent_height * geometry.latent_width
    assert geometry.tokens_per_frame * geometry.patch[1] * geometry.patch[2] == area


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"height": 488}, "multiple of 16, got 488; nearest: 480 or 496"),
        ({"width": 7}, "multiple of 16, got 7; nearest: 16"),
        ({"height": 0}, "nearest: 16"),
        ({"patch": (2, 2, 2)}, r"patch\[0\] must be 1, got 2"),
        ({"patch": (1, 0, 2)}, "at least 1"),
        ({"patch": (2, 2)}, r"\(frames, rows, columns\)"),
        ({"chunk_frames": 0}, "chunk_frames must be at least 1, got 0"),
        ({"fps": -1}, "fps must be at least 1"),
    ],
)
def test_impossible_sizes_are_refused_with_the_nearest_possible(change, message):
    with pytest.raises(ValueError, match=message):
        Geometry(**{"height": 480, "width": 832} | change)


def test_impossible_counts_are_refused():
    with pytest.raises(ValueError, match="got 80; nearest: 77 or 81"):
        WAN.latent_frames_of(80)
    with pytest.raises(ValueError, match=r"nearest: 1$"):
        WAN.latent_frames_of(0)
    with pytest.raises(ValueError, match="must not be negative"):
        WAN.frames_of(-1)
    with pytest.raises(ValueError, match="must not be negative"):
        WAN.chunk_frames_of(-1)
    with pytest.raises(ValueError, match="seconds must be positive"):
        WAN.latent_frames_for(float("nan"))
