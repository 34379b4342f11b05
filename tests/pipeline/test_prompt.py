"""What the prompt branch is taught to say of a picture."""

import torch
import torch.nn.functional as F

from passionsr_lab.imaging.pairs import bundled
from passionsr_lab.pipeline.prompt import TAGS, measure_tags

DETAIL = TAGS[-4:]


def test_the_detail_of_the_lr_picture_has_one_of_four_names_in_order():
    hr = bundled("test", 1, 128)[0].hr[None]
    full = F.avg_pool2d(hr, 4)
    fine = full - F.avg_pool2d(F.pad(full, (2,) * 4, mode="reflect"), 5, 1)
    rows = [measure_tags(hr, full + part * fine)[0, -4:] for part in (-0.7, -0.5, -0.35, 0.0)]
    assert [[name for name, on in zip(DETAIL, row) if on] for row in rows] == [[name] for name in DETAIL]
    light = [measure_tags(hr, lr)[0, :-4] for lr in (full, full - fine)]
    assert torch.equal(*light), "all other tags are of the HR picture"
