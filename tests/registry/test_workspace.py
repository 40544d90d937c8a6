import os
import subprocess
import sys
from pathlib import Path

import pytest

from models.errors import WorkspaceError
from registry.workspace import Workspace


def test_nothing_is_written_before_the_workspace_is_opened(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "new")
    assert workspace.database.parent == workspace.root
    assert not workspace.root.exists()
    assert workspace.open() is workspace
    assert list(workspace.root.iterdir()) == []


def test_a_workspace_that_is_a_file_is_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkspaceError, match="--workspace"):
        Workspace(tmp_path / "file").open()


def test_a_workspace_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    user = os.geteuid()
    if user == 0:  # nothing is read-only for root: become somebody else
        os.seteuid(65534)
    try:
        with pytest.raises(WorkspaceError, match="that can be written"):
            Workspace(tmp_path).open()
    finally:
        os.seteuid(user)
        tmp_path.chmod(0o755)


def test_a_lock_is_held_by_one_process_and_names_it_to_the_next(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from registry.workspace import Workspace\n"
        "with Workspace(Path(sys.argv[1])).lock('promote-shop'):\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(WorkspaceError, match=f"process {holder.pid} does"), Workspace(tmp_path).lock("promote-shop"):
        pass
    with Workspace(tmp_path).lock("promote-other"):
        pass
    holder.communicate()
    with Workspace(tmp_path).lock("promote-shop"):
        pass


def test_a_lock_whose_process_was_killed_is_free_again(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from registry.workspace import Workspace\n"
        "with Workspace(Path(sys.argv[1])).lock('train-shop'): os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, cwd=Path(__file__).parents[2])
    with Workspace(tmp_path).lock("train-shop"):
        pass
