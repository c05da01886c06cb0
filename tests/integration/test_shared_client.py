"""One client for many callers at once, whichever its task: each gets its own pictures, and those of Triton."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import truth
from noise import picture
from PIL import Image

from atelier import AsyncClient, Client
from atelier.inprocess import InProcessClient
from serving.embedded import Embedded

# Some of one size, which go together, and two that an upscaler takes in tiles.
SIZES = [(40, 30), (16, 16), (300, 20), (33, 57), (40, 30), (16, 16), (257, 280), (40, 30), (40, 30), (41, 30)]
PHOTOS = [picture(*size, seed=index) for index, size in enumerate(SIZES)]


@dataclass(frozen=True)
class Task:
    """What is asked of a client, and what comes of it: the pixels, to so many levels, and what a picture says."""

    ask: Callable[[Any, Any], Any]
    truth: Callable[[Image.Image], np.ndarray]
    atol: int
    info: dict[str, object]

    def assert_right(self, made: Image.Image, given: Image.Image) -> None:
        np.testing.assert_allclose(np.asarray(made, int), self.truth(given).astype(int), atol=self.atol)
        assert made.info == self.info


TASKS = [
    Task(
        ask=lambda client, given: client.stylize(given, "faded"),
        truth=lambda given: truth.styled(given, "faded"),
        atol=1,
        info={"model": "style", "version": 2, "style": "faded"},
    ),
    Task(
        ask=lambda client, given: client.colorize(given),
        truth=truth.colored,
        atol=1,
        info={"model": "colorizer", "version": 2, "stage": 2},
    ),
    Task(
        ask=lambda client, given: client.upscale(given),
        truth=truth.upscaled,
        atol=0,
        info={"model": "upscaler", "version": 2},
    ),
]


@pytest.fixture(params=TASKS, ids=lambda task: task.info["model"])
def task(request: pytest.FixtureRequest) -> Task:
    return request.param


@pytest.fixture
def shared(request: pytest.FixtureRequest, task: Task) -> Embedded:
    """The server that has its model."""
    return request.getfixturevalue(f"{task.info['model']}_server")


def test_in_process_pictures_are_triton_s(task: Task, shared: Embedded) -> None:
    """The same pixels with and without a server."""
    with Client(shared.grpc) as far, InProcessClient(shared.repository) as near:
        for one, other in zip(task.ask(far, PHOTOS), task.ask(near, PHOTOS), strict=True):
            np.testing.assert_array_equal(one, other)


def test_threads_share_a_client(task: Task, shared: Embedded) -> None:
    """Ten threads at once get each its own pictures."""
    with Client(shared.grpc, patient=True) as client, ThreadPoolExecutor(10) as pool:
        for given, (made,) in pool.map(lambda each: (each, task.ask(client, each)), PHOTOS):
            task.assert_right(made, given)


async def test_tasks_share_an_async_client(task: Task, shared: Embedded) -> None:
    """And so do ten tasks."""
    async with AsyncClient(shared.grpc, patient=True) as client:
        found = await asyncio.gather(*(task.ask(client, each) for each in PHOTOS))
        for (made,), given in zip(found, PHOTOS, strict=True):
            task.assert_right(made, given)
