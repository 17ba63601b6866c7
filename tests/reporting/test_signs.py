"""Signs of life: recorded, judged by one table, told in words."""

import pandas as pd
import pytest

from tests.fakes import finished_run
from tvrkit.reporting import signs
from tvrkit.training.card import write_card
from tvrkit.training.runs import Run


def run_with(**rows):
    run = finished_run("dmae_shapes")
    pd.DataFrame({"epoch": [1, 2], **rows}).to_csv(run.folder / "curve.csv", index=False)
    write_card(run.folder, run.card)
    return Run(run.folder)


def test_a_dead_part_is_said_to_be_dead_in_words(home):
    columns = {"words masked (%)": [40.0, 0.3], "frames masked (%)": [0.0, 30.0]}
    run = run_with(**columns, score=[1.0, 2.0])
    table = signs.table(run)
    assert table.index.tolist() == ["words masked (%)", "frames masked (%)"]
    assert table.loc["words masked (%)", [1, 2]].tolist() == [40.0, 0.3]
    assert table["verdict"]["frames masked (%)"] == "alive"  # the last epoch counts
    told = "Dead: TPM-CL masks almost no word, or almost all (words masked (%) 0.3)."
    assert signs.sentence(run) == told


def test_all_alive_and_nothing_recorded(home):
    assert signs.sentence(run_with(**{"frames masked (%)": [20, 30]})) == "All 1 signs say: alive."
    assert signs.sentence(run_with(score=[1, 2])) == "Whether each part is alive was not recorded."


@pytest.mark.parametrize("sign", [*signs.ALIVE.itertuples()], ids=lambda sign: sign.Index)
def test_every_sign_can_be_dead(sign):
    assert sign.low < sign.high
    assert sign.dead
