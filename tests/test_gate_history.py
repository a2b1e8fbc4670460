"""Gates through training, from what a run writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tcnn.analysis.gate_history import gate_history
from tcnn.errors import TCNNError
from tcnn.run_record import EpochResult, gates_csv

HEADS = "epoch,layer,head,gate,content_share\n"


def epochs(shares: list[dict[str, list[float]]]) -> tuple[EpochResult, ...]:
    return tuple(EpochResult(i + 1, 1, 0, 1, 0, share) for i, share in enumerate(shares))


def test_what_a_run_writes_is_read(tmp_path: Path) -> None:
    shares = [
        {"layer4.0.conv1": [0.0, 0.25], "odd, name": [1.5]},
        {"layer4.0.conv1": [-0.5, 0.5], "odd, name": [-0.125]},
    ]
    (tmp_path / "gates.csv").write_text(gates_csv(epochs(shares)), encoding="utf-8")
    found = gate_history(tmp_path)
    assert found.epochs == (1, 2)
    assert found.gates == {
        "layer4.0.conv1": ((1.0, 0.75), (1.5, 0.5)),
        "odd, name": ((-0.5,), (1.125,)),
    }
    assert found.mean_content_share("layer4.0.conv1") == (0.125, 0.5)
    assert len(found.table().splitlines()) == 4
    assert json.loads(json.dumps(found.to_json()))["gates"]["odd, name"] == [[-0.5], [1.125]]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty file"),
        ("a,b\n1,2\n", "columns"),
        (HEADS, "no recast layer"),
        (HEADS + "1,a,0,1\n", "line 2"),
        (HEADS + "1,a,0,one,0\n", "line 2"),
        (HEADS + "1,a,1,1,0\n", "out of order in line 2"),
        (HEADS + "1,a,0,1,0\n1,a,0,1,0\n", "out of order in line 3"),
        (HEADS + "1,a,0,1,0\n2,b,0,1,0\n", "missing of b"),
        (HEADS + "1,a,0,1,0\n1,a,1,1,0\n2,a,0,1,0\n", "missing of a"),
        (HEADS + '1,"' + "a" * 200_000 + '",0,1,0\n', "field larger"),
    ],
)
def test_files_that_no_run_wrote(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "gates.csv").write_text(text, encoding="utf-8")
    with pytest.raises(TCNNError, match=said) as error:
        gate_history(str(tmp_path))
    assert "\n" not in str(error.value)


def test_folders_without_gates(tmp_path: Path) -> None:
    with pytest.raises(TCNNError, match=r"No such file.*tcnn finetune"):
        gate_history(tmp_path / "none")
    (tmp_path / "gates.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TCNNError, match="it is no text"):
        gate_history(tmp_path)
