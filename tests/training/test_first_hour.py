"""What a new user meets: the README's example as a plain script, a lock that is waited for, the
log."""

import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

from tvrkit import files
from tvrkit.training import runs

SMALL = ["backbone.pretrained=null", "eval.bootstrap=20", "train.epochs=2", "train.workers=1"]


def readme_example() -> str:
    """The Python example of README.md."""
    readme = (files.PACKAGE.parent / "README.md").read_text(encoding="utf-8")
    return next(
        part for part in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "runs" in part
    )


def test_the_readme_example_runs_as_a_script_as_it_is_printed(tmp_path):
    """On a fresh home, so that the data set is made too; without a `__main__` guard."""
    small = ", ".join(f'"{override}"' for override in SMALL)
    text, changes = re.subn(
        r"overrides=\[", f'profile="smoke", overrides=[{small}, ', readme_example()
    )
    assert changes == 1
    assert "__main__" not in text
    script = tmp_path / "mine.py"
    script.write_text(
        f"open('count', 'a').write('x')\n{text}\nprint(run.folder)\n", encoding="utf-8"
    )
    quiet = {name: value for name, value in os.environ.items() if name != "TQDM_DISABLE"}
    environment = quiet | {"TVRKIT_HOME": str(tmp_path), "PYTHONPATH": str(files.PACKAGE.parent)}
    ended = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ended.returncode == 0, ended.stderr
    folder = Path(ended.stdout.strip().splitlines()[-1])
    assert (folder / "run.json").exists()
    assert (tmp_path / "count").read_text() == "x"  # no worker ran the script again
    lines = [line for line in re.split(r"[\r\n]", ended.stderr) if line.startswith("epoch ")]
    lasting = [line for line in lines if "left" in line and "loss" in line and "R@1" in line]
    assert len(lasting) == 2
    log = (folder / "train.log").read_text(encoding="utf-8").splitlines()
    assert [line.split(" ", 2)[2] for line in log] == [line.strip() for line in lasting]


def test_who_waits_for_a_lock_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runs, "PATIENCE", 0.1)
    path, order = tmp_path / ".lock", []
    release = threading.Event()

    def hold():
        with runs.lock(path, "trains reports/mine"):
            order.append("first")
            release.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    while not order:
        time.sleep(0.01)
    threading.Timer(0.5, release.set).start()
    with runs.lock(path, "trains reports/mine"):
        order.append("second")
    thread.join()
    assert order == ["first", "second"]
    assert capsys.readouterr().err == "waiting for another process that trains reports/mine\n"
    with runs.lock(path, "trains reports/mine"):
        assert capsys.readouterr().err == ""
