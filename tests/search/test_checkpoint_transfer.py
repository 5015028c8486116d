"""A checkpoint whose files travel: after each write, and after each file of a write, the copy is a whole checkpoint."""

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest
from stable_baselines3.common.callbacks import BaseCallback
from toys import QUICK, assert_equal_states, pointers, untrained

import sb3_qpd.distillation.distiller as distilling
import sb3_qpd.search.checkpoint_transfer as transfer
from sb3_qpd import Checkpoint, QPDDistiller
from sb3_qpd.distillation.checkpoint_files import newest_steps
from sb3_qpd.search.checkpoint_transfer import ChangeFinder, apply_changes, read_checkpoint, write_checkpoint

STEPS, EVERY = 400, 64


class Stop(BaseCallback):
    """Interrupts a run shortly before its end."""

    def _on_step(self) -> bool:
        if self.num_timesteps >= STEPS - 20:
            raise KeyboardInterrupt
        return True


@pytest.fixture(autouse=True)
def short_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distilling, "ROLLOUT_STEPS", EVERY)


def make() -> QPDDistiller:
    """The ring is small, so that checkpoints also remove files."""
    return QPDDistiller(untrained(pointers()), **{**QUICK, "batch_size": 32, "gradient_steps": 0.125, "buffer_size": 160})


def resumed(folder: Path) -> QPDDistiller:
    return make().learn(STEPS, checkpoint=Checkpoint(folder, every=EVERY, resume=True))


def test_a_run_goes_on_from_a_copy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    finder, seen, sent = ChangeFinder(here), set(), []

    def send() -> None:
        changes = finder.changes()
        apply_changes(there, changes)
        sent.append(sorted(changes.files))
        seen.update(changes.names)
        assert read_checkpoint(there) == read_checkpoint(here)

    with pytest.raises(KeyboardInterrupt):
        make().learn(STEPS, callback=Stop(), checkpoint=Checkpoint(here, every=EVERY, after_write=send))
    assert len(sent) == STEPS // EVERY - 1 and all(len(names) == 3 for names in sent)  # a part of the ring, actions, a state
    assert seen - read_checkpoint(there).keys(), "no file was removed"
    assert_equal_states(resumed(here), resumed(there))
    assert capsys.readouterr().out.count("as if it had not been interrupted") == 2


def test_an_interrupted_copy_is_a_whole_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk fills up after each number of files in turn. The state before, or the new one, can be gone on from."""
    here, there = tmp_path / "here", tmp_path / "there"
    finder, steps, write = ChangeFinder(here), [], transfer.write_atomically

    def send() -> None:
        changes = finder.changes()
        if len(steps) == 3:  # two states are there, and the ring has left its first part behind
            for n_files in range(len(changes.files)):
                copy = tmp_path / f"after-{n_files}"
                write_checkpoint(copy, read_checkpoint(there))
                left = iter(range(n_files))

                def write_while_there_is_space(path: Path, content: bytes, left: Iterator[int] = left) -> None:
                    if next(left, None) is None:
                        raise OSError(errno.ENOSPC, "No space left on device")
                    write(path, content)

                with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
                    patch.setattr(transfer, "write_atomically", write_while_there_is_space)
                    apply_changes(copy, changes)
        apply_changes(there, changes)
        steps.append(newest_steps(there))

    with pytest.raises(KeyboardInterrupt):
        make().learn(STEPS, callback=Stop(), checkpoint=Checkpoint(here, every=EVERY, after_write=send))
    whole = make().learn(STEPS)
    copies = sorted(tmp_path.glob("after-*"))
    assert len(copies) == 3
    for copy in copies:
        assert newest_steps(copy) == steps[2]
        assert_equal_states(whole, resumed(copy))


def test_a_checkpoint_that_was_discarded_is_discarded_in_the_copy(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    with pytest.raises(KeyboardInterrupt):
        make().learn(STEPS, callback=Stop(), checkpoint=Checkpoint(here, every=EVERY))
    write_checkpoint(there, read_checkpoint(here))
    finder = ChangeFinder(here)
    assert finder.changes().files == {}
    Checkpoint(here).discard()
    apply_changes(there, finder.changes())
    assert read_checkpoint(there) == {} and newest_steps(there) is None
