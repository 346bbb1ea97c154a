"""The README's Python runs as it stands, with fewer steps."""

import re
from pathlib import Path

import torch
from torch import nn

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")


def test_what_it_shows_of_python(capsys):
    (snippet,) = re.findall(r"^```python\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)
    short = snippet.replace("seed=0,", "seed=0, steps_scale=0.01,").replace(
        "seconds=60", "steps_scale=0.01"
    )
    assert short.count("steps_scale") == 2
    source = torch.Generator().manual_seed(0)
    held = {
        "model": nn.Sequential(nn.Flatten(), nn.Linear(256, 4)).eval(),
        "images": torch.rand(24, 1, 16, 16, generator=source),
        "labels": torch.arange(24) % 4,
    }
    exec(short, held)
    assert held["result"].verdicts[0].sentence in capsys.readouterr().out
    assert Path("runs/mine/report.html").is_file()
    assert Path("runs/found/reconstruction.png").is_file()
