"""Pieces of work on every core."""

import os
import threading

import pytest
from patience import PATIENCE

from npgpt2.base.threads import spread


@pytest.fixture(autouse=True)
def blas(two_threads):
    return two_threads


def test_every_item_is_taken_once():
    for n in (0, 1, 2, 3, 1000):
        done = []
        spread(done.append, range(n))
        assert sorted(done) == list(range(n))


def test_items_are_taken_by_several_threads_in_which_blas_has_one(blas):
    both = threading.Barrier(2, timeout=PATIENCE)
    seen = set()

    def work(item):
        seen.add((threading.get_ident(), blas.threads()))
        both.wait()  # two at once, or never

    spread(work, range(2))
    assert len(seen) == 2
    assert {threads for _, threads in seen} == {1}
    assert blas.threads() == 2


@pytest.mark.parametrize("bad", [0, 5, 99])
def test_what_is_raised_arrives_and_all_is_as_before(bad, blas):
    def work(item):
        if item == bad:
            raise ValueError(f"item {item}")

    with pytest.raises(ValueError, match=f"item {bad}"):
        spread(work, range(100))
    assert blas.threads() == 2
    test_every_item_is_taken_once()


def test_within_a_piece_others_are_done_one_after_the_other():
    done = []
    spread(lambda i: spread(lambda j: done.append((i, j)), range(3)), range(4))
    assert sorted(done) == [(i, j) for i in range(4) for j in range(3)]


def test_from_two_threads_at_once(blas):
    done = []

    def work():
        for _ in range(200):
            spread(done.append, range(5))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert sorted(done) == sorted(list(range(5)) * 400)
    assert blas.threads() == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_has_threads_of_its_own():
    spread(lambda item: None, range(10))
    child = os.fork()
    if child == 0:
        done = []
        spread(done.append, range(100))
        os._exit(0 if sorted(done) == list(range(100)) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
