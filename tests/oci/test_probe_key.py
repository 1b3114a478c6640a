"""A verdict is kept only as long as all that it rests on is the same."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lighterman.runtimes.oci import checkpointing, probe
from lighterman.runtimes.oci.probe import _key


def test_key_changes_with_each_program_that_checkpoints_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpointing, "_SBIN", str(tmp_path))
    monkeypatch.setattr(os, "defpath", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    keys = [_key([])]
    for name in ("criu", "iptables-restore"):
        for text in ("#!/bin/sh\n", "#!/bin/sh\nexit 1\n"):
            (tmp_path / name).write_text(text)
            (tmp_path / name).chmod(0o755)
            keys.append(_key([]))
    (tmp_path / "iptables-restore").unlink()
    keys.append(_key([]))
    *different, last = keys
    assert len(set(different)) == len(different)
    assert last == keys[2]


def test_what_did_not_answer_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpointing, "_SBIN", str(tmp_path))
    monkeypatch.setattr(os, "defpath", str(tmp_path))
    monkeypatch.setattr(probe, "_try_container", lambda _: None)
    for name, interpreter in (("runc", "/bin/sh"), ("criu", f"{tmp_path}/sh"), ("iptables-restore", "/bin/sh")):
        (tmp_path / name).write_text(f"#!{interpreter}\n")
        (tmp_path / name).chmod(0o755)
    cache = str(tmp_path / "runtimes.json")
    monkeypatch.setenv("PATH", str(tmp_path))
    [runc] = probe.probe_all(cache, search=str(tmp_path))
    assert (runc.no_checkpoints or "").startswith("`criu check` failed: ")
    # Nothing by which a kept verdict is known has changed.
    (tmp_path / "sh").symlink_to("/bin/sh")
    [runc] = probe.probe_all(cache, search=str(tmp_path))
    assert runc.no_checkpoints is None
    (tmp_path / "sh").unlink()
    assert probe.probe_all(cache, search=str(tmp_path)) == (runc,)
