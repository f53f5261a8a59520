"""How workers share the cores where torch is there already."""

from __future__ import annotations

import pytest
import torch

from gapeval_lab.processes import THREADS, shared_threads


def test_torch_gets_its_share_and_has_its_threads_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: range(6))
    monkeypatch.delenv(THREADS, raising=False)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        with pytest.raises(KeyboardInterrupt), shared_threads(2):
            assert torch.get_num_threads() == 3
            raise KeyboardInterrupt
        assert torch.get_num_threads() == 4
        with shared_threads(1):
            assert torch.get_num_threads() == 4
        monkeypatch.setenv(THREADS, "5")  # the user's: nothing changes
        with shared_threads(2):
            assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)
