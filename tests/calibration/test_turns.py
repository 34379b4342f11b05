"""A pipeline that another thread calls while it is calibrated: it waits for whole steps."""

import threading

import torch


def test_a_call_beside_a_calibration_gives_what_the_pipeline_gives_between_two_of_its_records(begin, pairs):
    lr = pairs[0].lr[:, :6, :5]
    alone = begin("lbq+let")
    states = [alone.q(lr) for _ in alone.run()]
    assert not torch.equal(states[0], states[-1])
    beside, seen, over = begin("lbq+let"), [], threading.Event()
    stream = beside.run()
    next(stream)  # from here on it has quantizers

    def call():
        while not over.is_set():
            seen.append(beside.q(lr))

    thread = threading.Thread(target=call)
    thread.start()
    records = list(stream)
    over.set()
    thread.join(60)
    assert len(records) == len(states) - 1 and len(seen) > 2
    assert all(any(torch.equal(y, state) for state in states) for y in seen)
    assert torch.equal(beside.q(lr), states[-1])
