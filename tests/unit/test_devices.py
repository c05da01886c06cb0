"""Which device training takes, and that a GPU which was asked for is never replaced by the CPU in silence."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from training.devices import autocast, computes_bf16, dropout_state, pick_device, restore_dropout
from training.errors import BadInput


@pytest.mark.parametrize(
    ("asked", "there", "picked"),
    [("", False, "cpu"), ("", True, "cuda"), ("cuda", True, "cuda"), ("cpu", True, "cpu"), ("cpu", False, "cpu")],
)
def test_device(asked: str, there: bool, picked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU where there is one, unless ATELIER_DEVICE decides."""
    monkeypatch.setenv("ATELIER_DEVICE", asked)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: int(there))
    assert pick_device().type == picked


@pytest.mark.parametrize(
    ("asked", "built", "says"),
    [
        ("cuda", None, "built for the CPU; take the image that ends in -gpu"),
        ("cuda", "12.6", "no GPU is to be seen; check the driver"),
        ("tpu", None, "no 'tpu'; give cuda or cpu"),
    ],
)
def test_device_that_is_not_there(asked: str, built: str | None, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was asked for and can't be had is named, with the likelier of the two reasons."""
    monkeypatch.setenv("ATELIER_DEVICE", asked)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", built)
    with pytest.raises(BadInput, match=says) as caught:
        pick_device()
    assert str(caught.value).startswith("ATELIER_DEVICE: ")
    assert "\n" not in str(caught.value)


def test_more_workers_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every worker of the node refuses alike, before it makes its corpus; on the CPU they share the cores."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(BadInput, match=r"^--nproc-per-node: 3 workers, but 2 GPUs are to be seen; "):
        pick_device()
    monkeypatch.setenv("ATELIER_DEVICE", "cpu")
    assert pick_device().type == "cpu"


@pytest.mark.parametrize(
    ("able", "bf16", "computed_in"),
    [
        ({"avx512_bf16": True}, True, torch.bfloat16),
        ({"amx_bf16": True, "avx512_bf16": False}, True, torch.bfloat16),
        ({"bf16": True, "architecture": "aarch64"}, True, torch.bfloat16),
        ({"bf16": True}, False, torch.float32),
        ({"avx2": True, "avx512_f": True, "avx512_bf16": False}, True, torch.float32),
    ],
)
def test_bf16_only_where_the_cpu_has_it(
    able: dict[str, bool], bf16: bool, computed_in: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CPU that only emulates bfloat16 computes in float32, which it does ten times as fast."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    with autocast(torch.device("cpu"), bf16):
        assert torch.nn.functional.linear(torch.ones(1, 2), torch.ones(3, 2)).dtype == computed_in


@pytest.mark.parametrize(("architecture", "has_it"), [(7, False), (8, True), (9, True)])
def test_bf16_only_where_the_gpu_has_it(architecture: int, has_it: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A T4 (7.5) could only emulate it. What torch knows of the GPU is stood in for; no machine here has one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(major=architecture))
    assert computes_bf16(torch.device("cuda")) is has_it


def test_dropout_goes_on_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU it draws from a generator of the GPU's, for which another of the CPU's stands in. A checkpoint of the
    CPU's goes on on either."""
    gpu = torch.Generator()
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda _: gpu.get_state())
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, _: gpu.set_state(state))

    def drawn() -> list[float]:
        return [*torch.rand(2).tolist(), *torch.rand(2, generator=gpu).tolist()]

    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    state = dropout_state(cuda)
    first = drawn()
    restore_dropout(state, cuda)
    assert drawn() == first
    of_cpu = dropout_state(cpu)
    assert of_cpu.keys() == {"dropout"}
    for device in (cpu, cuda):
        restore_dropout(of_cpu, device)
        assert torch.equal(torch.get_rng_state(), of_cpu["dropout"])
    restore_dropout(state, cpu)
    assert drawn()[:2] == first[:2]
