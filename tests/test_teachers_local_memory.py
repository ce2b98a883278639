"""Batches of the local teacher on a machine with too little memory: smaller, never lost, never different."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from distillery.core.errors import DistilleryError
from distillery.teachers import memory
from distillery.teachers.local import TransformersTeacher
from distillery.teachers.memory import BatchSize, out_of_memory
from distillery.teachers.protocol import ask_all, user_request

sys.path.insert(0, str(Path(__file__).parent))
from teachers_model import micro_model

REQUESTS = [user_request(str(i), "The Raven 74 stands in Hall 3. " * (i % 5) + f"Where {i}?", seed=i, max_tokens=8 + i % 7,
                         temperature=(0.0, 1.0)[i % 2], logprobs=2) for i in range(24)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return micro_model(tmp_path_factory.mktemp("micro"))


@pytest.fixture(scope="module")
def calm(folder):
    return ask_all(TransformersTeacher(folder, batch_size=16, device="cpu"), REQUESTS)


class Tight:
    "A teacher whose model has no memory above `limit` rows x tokens, read and written."

    def __init__(self, folder, limit, fail=None, times=10**9):
        self.teacher, self.limit, self.times = TransformersTeacher(folder, batch_size=16, device="cpu"), limit, times
        self.fail = fail or RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        self.shapes: list[tuple[int, int]] = []
        self.failed: list[tuple[int, int]] = []
        self.teacher.model.register_forward_pre_hook(self.before, with_kwargs=True)

    def before(self, _, args, kwargs):
        ids, past = args[0] if args else kwargs["input_ids"], kwargs.get("past_key_values")
        shape = (len(ids), ids.shape[1] + (past.get_seq_length() if past is not None else 0))
        self.shapes.append(shape)
        if shape[0] * shape[1] > self.limit and len(self.failed) < self.times:
            self.failed.append(shape)
            raise self.fail


def texts(results):
    return [(r.key, r.text, r.finish_reason, r.completion_tokens, r.error) for r in results]


def same(results, others):
    assert texts(results) == texts(others)
    for one, other in zip(results, others, strict=True):
        assert one.logprobs.ids == other.logprobs.ids
        for a, b in zip(one.logprobs.logprobs, other.logprobs.logprobs, strict=True): np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("limit", [120, 260, 400, 800])
def test_too_large_batches_are_halved_and_no_answer_changes(folder, calm, limit):
    tight = Tight(folder, limit)
    same(ask_all(tight.teacher, REQUESTS), calm)
    assert tight.failed, "the limit was never reached: the test shows nothing"
    assert all(rows > 1 for rows, _ in tight.failed)
    assert len(tight.failed) <= 12
    noted = tight.teacher.batches
    assert sum(times for (_, fitted), times in noted.items() if not fitted) == len(tight.failed)
    assert sum(rows * times for (rows, fitted), times in noted.items() if fitted) == len(REQUESTS)


def test_memory_may_end_in_the_middle_of_an_answer(folder, calm):
    "The samplers begin anew: what was drawn before the failure leaves no trace."
    tight = Tight(folder, max(len(REQUESTS) * 8, 1100))
    same(ask_all(tight.teacher, REQUESTS), calm)
    width = {rows: min(w for r, w in tight.shapes if r == rows) for rows, _ in tight.failed}
    assert any(w > width[rows] for rows, w in tight.failed)


@pytest.mark.parametrize("fail", [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "torch"])
def test_every_way_of_saying_it_is_understood(folder, calm, fail):
    import torch
    if fail == "torch": fail = torch.cuda.OutOfMemoryError("x: CUDA out of memory")
    tight = Tight(folder, 500, fail)
    same(ask_all(tight.teacher, REQUESTS), calm)
    assert tight.failed


def test_real_allocators_say_it():
    import torch
    for allocate in (lambda: torch.empty(2**50), lambda: np.empty(2**50)):
        with pytest.raises((RuntimeError, MemoryError)) as caught: allocate()
        assert out_of_memory(caught.value)
    assert not out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_the_batch_grows_again(folder, calm):
    tight = Tight(folder, 300, times=2)
    same(ask_all(tight.teacher, [replace(r, key=f"{k}-{r.key}") for k in range(8) for r in REQUESTS]),
         [replace(r, key=f"{k}-{r.key}") for k in range(8) for r in calm])
    sizes = [rows for rows, _ in tight.shapes]
    first = sizes.index(4)  # 16 and 8 failed
    assert 16 in sizes[first:]


def test_a_request_that_does_not_fit_alone_is_the_only_one_to_fail(folder, calm):
    long = user_request("long", "The Raven 74 stands in Hall 3. " * 16, max_tokens=8)
    tight = Tight(folder, 130)
    *others, result = ask_all(tight.teacher, [*REQUESTS, long])
    assert len(tight.teacher.chat.encode(long.messages)) > 130
    assert "out of memory" in result.error
    same(others, calm)


def test_another_failure_is_not_tried_in_pieces(folder):
    tight = Tight(folder, 0, fail=RuntimeError("shapes do not match"))
    results = ask_all(tight.teacher, REQUESTS)
    assert all("shapes do not match" in r.error for r in results)
    assert len(tight.failed) == 2  # one for each batch of 16


def test_no_more_than_one_batch_in_nine_is_wasted_on_a_limit_that_stays():
    pace, lengths, tried = BatchSize(64), [100] * 2000, []
    while lengths:
        n = pace.take(lengths)
        tried.append(n <= 10)
        pace.fits(lengths[:n], n <= 10)
        if n <= 10: lengths = lengths[n:]
    assert tried.count(False) <= 3 + tried.count(True) / 8 + 1


def test_shorter_requests_come_in_larger_batches():
    pace, lengths, sizes = BatchSize(32), [100] * 40 + [20] * 200, []
    while lengths:
        n = pace.take(lengths)
        went_well = n * max(lengths[:n]) <= 1000
        pace.fits(lengths[:n], went_well)
        if went_well:
            sizes.append(n)
            lengths = lengths[n:]
    assert sum(sizes) == 240
    assert max(sizes) == 32


def test_bits_are_part_of_the_identity_and_refused_where_nothing_can_load_them(folder, monkeypatch):
    plain, few = TransformersTeacher(folder, device="cpu"), TransformersTeacher(folder, device="cpu", bits=8)
    assert "bits" not in plain.identity
    assert few.identity == {**plain.identity, "bits": "8"}
    with pytest.raises(DistilleryError, match="8 bits on cpu") as caught: ask_all(few, REQUESTS[:1])
    assert "mlx:FOLDER" in caught.value.fix
    monkeypatch.setattr(memory, "find_spec", lambda name: None)
    with pytest.raises(DistilleryError, match="need bitsandbytes") as caught: memory.bits_config(4, "cuda:0")
    assert "pip install bitsandbytes" in caught.value.fix
    monkeypatch.setattr(memory, "find_spec", lambda name: True)
    monkeypatch.setattr("transformers.utils.quantization_config.BitsAndBytesConfig.post_init", lambda self: None)
    assert memory.bits_config(4, "cuda").load_in_4bit
    assert memory.bits_config(8, "cuda:1").load_in_8bit
