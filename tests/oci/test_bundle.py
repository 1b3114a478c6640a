"""The bundle: what is ours is taken away, what is not is named."""

from __future__ import annotations

from pathlib import Path

from lighterman.runtimes.oci.bundle import Bundle


def test_what_a_killed_runtime_has_left_of_its_pid_files_goes(tmp_path: Path) -> None:
    bundle = Bundle(str(tmp_path / "box"))
    bundle.make()
    for name in (".pid", "exec-1.pid", ".exec-1.pid"):
        Path(bundle.path, name).write_text("1")
    assert bundle.remove() == []
    assert not Path(bundle.path).exists()


def test_what_is_not_ours_is_named(tmp_path: Path) -> None:
    bundle = Bundle(str(tmp_path / "box"))
    bundle.make()
    strange = Path(bundle.path, "strange")
    strange.write_text("")
    assert bundle.remove() == [str(strange)]
