"""What one thread observes, measures, replaces or switches off is no other thread's business, on one pipeline."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from io import StringIO

import pandas as pd
import torch

import passionsr_lab as lab
from passionsr_lab.analysis.observe import layer_input, observing
from passionsr_lab.analysis.propagation import propagation
from passionsr_lab.imaging.tiling import Tiling
from passionsr_lab.quantization.layer import mode

LAYER = "vae.decoder.conv_in"


def jobs(model, x):
    """Name -> a call on the model, and what makes its result comparable."""

    def observed():
        with observing(model) as stats:
            model(x)
        return stats.layers()

    def in_float():
        with mode(model, "float"):
            return model(x)

    found = {"plain": lambda: model(x), "observed": observed, "input": lambda: layer_input(model, LAYER, x)}
    found["tiled"] = lambda: model(x, Tiling(8, 2, shared=True))
    if isinstance(model, torch.nn.Module):
        return found
    return found | {"float": in_float, "propagation": lambda: propagation(model, [x])}


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    pd.testing.assert_frame_equal(a, b)
    return True


def test_four_threads_get_what_each_gets_alone_whatever_the_others_do(make_pipe, calibrated):
    xs = [torch.rand(3, 9, 7, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    for model in (make_pipe(), calibrated("W6A6")):
        alone = [{name: job() for name, job in jobs(model, x).items()} for x in xs]
        together = threading.Barrier(4)

        def work(i, model=model, alone=alone, together=together):
            own = jobs(model, xs[i])
            try:
                for k in range(2 * len(own)):
                    name = list(own)[(i + k) % len(own)]
                    together.wait(60)
                    assert same(own[name](), alone[i][name]), name
            except threading.BrokenBarrierError:
                return None
            except BaseException:
                together.abort()
                raise

        with ThreadPoolExecutor(4) as pool:
            for future in [pool.submit(work, i) for i in range(4)]:
                future.result()
        assert not together.broken
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_scores_of_four_threads_leave_standard_output_where_it_was():
    pairs = lab.bundled("test", 4, 32)
    alone = [lab.score([p.hr / 2], [p.hr], ["psnr", "ssim"]).value.tolist() for p in pairs]
    with redirect_stdout(StringIO()) as kept:
        with ThreadPoolExecutor(4) as pool:
            work = pool.map(lambda p: lab.score([p.hr / 2], [p.hr], ["psnr", "ssim"]).value.tolist(), pairs * 5)
            assert list(work) == alone * 5
        print("here")
    assert kept.getvalue() == "here\n"
