"""What must not depend on how the engine works: caches, chunks, batches, prefixes, cancellation, limits."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

import tiny_llm
from sensorium.backbones import engine as engine_module
from sensorium.backbones.engine import Engine, SamplingParams, Segment, Stats, Step
from sensorium.backbones.sampling import log_softmax
from sensorium.errors import UsageError


def ids(count: int, seed: int) -> tuple[int, ...]:
    return tuple(int(i) for i in np.random.default_rng(seed).integers(0, tiny_llm.VOCAB, count))


@pytest.fixture(scope="module", params=["fp32", "int8", "int8 of four bits"])
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    quantization, *four_bits = request.param.split()
    return tiny_llm.prepared(tmp_path_factory.mktemp("graph"), quantization=quantization, four_bits=bool(four_bits))


@pytest.fixture
def engine(directory: Path) -> Engine:
    return Engine(directory, threads=1)


@pytest.fixture
def plain(directory: Path) -> Engine:
    """An engine without a prefix cache."""
    return Engine(directory, threads=1, prefix_cache_bytes=0)


@pytest.fixture
def one_graph(engine: Engine, plain: Engine) -> None:
    """What decodes reads the prompts, too: two graphs round differently, which would hide a fault of the cache."""
    for each in (engine, plain):
        each._reader = each._runner


def picture(seed: int, rows: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.5, (rows, tiny_llm.DIM)).astype(np.float32)


def close(engine: Engine) -> float:
    """How far log-probabilities may lie apart that are equal but for the order of sums: rounding activations to eight
    bits amplifies the smallest difference in a random model."""
    return 0.1 if engine.quantization == "int8" else 1e-4


def tokens(steps: list[Step]) -> list[int]:
    return [step.token for step in steps]


GREEDY = SamplingParams(max_tokens=12)


# -- the cache changes nothing


def test_cached_decoding_equals_reading_everything_anew(plain: Engine, one_graph: None) -> None:
    prompt = ids(9, 1)
    steps = list(plain.generate([Segment(ids=prompt)], GREEDY))
    assert [step.finish for step in steps] == [None] * 11 + ["length"]
    whole = (*prompt, *tokens(steps))
    logprobs = log_softmax(plain.logits([Segment(ids=whole)]))
    for i, step in enumerate(steps):
        at = logprobs[len(prompt) - 1 + i]
        assert at[step.token] > at.max() - close(plain)
        assert step.logprob == pytest.approx(at[step.token], abs=close(plain))


def test_chunks_of_the_prefill_change_nothing(plain: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = [Segment(ids=ids(50, 2)), Segment(embeds=picture(1)), Segment(ids=ids(3, 3))]
    whole = plain.next_logprobs(prompt)
    all_logits = plain.logits(prompt)
    monkeypatch.setattr(engine_module, "CHUNK", 7)
    np.testing.assert_array_equal(plain.next_logprobs(prompt), whole)
    np.testing.assert_array_equal(plain.logits(prompt), all_logits)


def test_growing_past_the_first_capacity_changes_nothing(plain: Engine, one_graph: None) -> None:
    prompt = [Segment(ids=ids(250, 4))]
    steps = list(plain.generate(prompt, SamplingParams(max_tokens=300)))
    assert len(steps) == 300
    whole = plain.logits([Segment(ids=(*prompt[0].ids, *tokens(steps)))])
    agreeing = whole[249:-1].argmax(-1) == tokens(steps)
    assert agreeing.mean() > 0.95  # near ties may fall either way between one and many rows


def test_embeddings_of_tokens_act_as_the_tokens(plain: Engine) -> None:
    prompt = ids(8, 5)
    mixed = [Segment(ids=prompt[:3]), Segment(embeds=plain.embed(prompt[3:6]), key="x"), Segment(ids=prompt[6:])]
    np.testing.assert_allclose(plain.next_logprobs(mixed), plain.next_logprobs([Segment(ids=prompt)]), atol=1e-5)


# -- batches


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_batch_gives_each_sequence_what_it_gets_alone(plain: Engine, temperature: float) -> None:
    prompts = [[Segment(ids=ids(n, 10 + n))] for n in (3, 40, 1, 17)]
    prompts[1].insert(0, Segment(embeds=picture(3)))
    params = [SamplingParams(max_tokens=n, temperature=temperature, seed=n) for n in (20, 5, 9, 20)]
    alone = [list(plain.generate(prompt, each)) for prompt, each in zip(prompts, params)]
    together: list[list[Step]] = [[] for _ in prompts]
    for steps in plain.generate_batch(prompts, params):
        for row, step in zip(together, steps):
            if step is not None:
                row.append(step)
    assert [tokens(row) for row in together] == [tokens(row) for row in alone]
    assert [row[-1].finish for row in together] == ["length"] * 4
    np.testing.assert_allclose([s.logprob for s in together[0]], [s.logprob for s in alone[0]], atol=1e-5)


def test_steps_of_finished_sequences_are_none(plain: Engine) -> None:
    steps = list(plain.generate_batch([[Segment(ids=(1,))]] * 2, [SamplingParams(max_tokens=n) for n in (1, 3)]))
    assert [[step is None for step in pair] for pair in steps] == [[False, False], [True, False], [True, False]]
    assert list(plain.generate_batch([], GREEDY)) == []


# -- prefixes


def test_a_hit_gives_what_a_miss_gives(engine: Engine, plain: Engine) -> None:
    shown = Segment(embeds=picture(5, 20), key="picture")
    first, second = (
        [Segment(ids=ids(4, 20)), shown, Segment(ids=ids(5, 21))],
        [Segment(ids=ids(4, 20)), shown, Segment(ids=ids(9, 22))],
    )
    list(engine.generate(first, GREEDY))
    stats = Stats()
    hit = list(engine.generate(second, GREEDY, stats=stats))
    assert (stats.prompt_tokens, stats.cached_tokens) == (33, 24)
    miss = list(plain.generate(second, GREEDY))
    assert plain.stats.cached_tokens == 0
    assert tokens(hit) == tokens(miss)
    assert [s.logprob for s in hit] == [s.logprob for s in miss]


def test_a_prompt_gives_the_same_bits_however_much_of_it_is_cached(engine: Engine, plain: Engine) -> None:
    prompt = (*ids(10, 30), 7)
    wanted = plain.next_logprobs([Segment(ids=prompt)])
    for known in (4, 9, 10, 11, 11):
        engine.clear_cache()
        engine.next_logprobs([Segment(ids=prompt[:known])])
        np.testing.assert_array_equal(engine.next_logprobs([Segment(ids=prompt)]), wanted)
        assert engine.stats.cached_tokens == min(known, 10)  # the last position is always computed


def test_what_was_generated_is_not_cached(engine: Engine) -> None:
    """One position alone rounds differently, so an answer would depend on what was asked before."""
    prompt = ids(10, 30)
    answer = tokens(list(engine.generate([Segment(ids=prompt)], GREEDY)))
    list(engine.generate([Segment(ids=(*prompt, *answer, 5))], GREEDY))
    assert engine.stats.cached_tokens == 10


def test_media_are_told_apart_by_key_or_by_value(engine: Engine) -> None:
    def cached(segment: Segment) -> int:
        engine.next_logprobs([segment, Segment(ids=(1, 2))])
        return engine.stats.cached_tokens

    assert cached(Segment(embeds=picture(1), key="a")) == 0
    assert cached(Segment(embeds=picture(1), key="b")) == 0
    assert cached(Segment(embeds=picture(1), key="a")) == 7
    assert cached(Segment(embeds=picture(2))) == 0
    assert cached(Segment(embeds=picture(3))) == 0
    assert cached(Segment(embeds=picture(2))) == 7
    # A token never matches the row of a picture.
    assert cached(Segment(ids=(0, 1, 2, 3, 4, 5))) == 0


def test_the_prefix_cache_stays_within_its_bytes_and_forgets_the_oldest(directory: Path) -> None:
    per_token = 2 * tiny_llm.LAYERS * tiny_llm.KV_HEADS * tiny_llm.HEAD_DIM * 4 + 24
    engine = Engine(directory, threads=1, prefix_cache_bytes=25 * per_token)
    prompts = [[Segment(ids=ids(10, 40 + i))] for i in range(3)]
    for prompt in [prompts[0], prompts[1], prompts[0], prompts[2]]:
        engine.next_logprobs(prompt)
    assert engine._prefixes.nbytes == 20 * per_token
    engine.next_logprobs(prompts[0])
    assert engine.stats.cached_tokens == 9
    engine.next_logprobs(prompts[1])
    assert engine.stats.cached_tokens == 0
    engine.clear_cache()
    engine.next_logprobs(prompts[0])
    assert engine.stats.cached_tokens == 0


def test_threads_share_an_engine_without_mixing_their_answers(engine: Engine, plain: Engine) -> None:
    prompts = [[Segment(embeds=picture(60 + i), key=f"p{i}"), Segment(ids=ids(4, 5))] for i in range(6)]
    wanted = [tokens(list(plain.generate(prompt, GREEDY))) for prompt in prompts]
    found: list[list[int]] = [[] for _ in prompts]

    def work(i: int) -> None:
        for _ in range(3):
            found[i] = tokens(list(engine.generate(prompts[i], GREEDY)))

    workers = [threading.Thread(target=work, args=(i,)) for i in range(len(prompts))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert found == wanted


# -- scores


def test_a_score_is_the_sum_of_its_tokens_log_probabilities(engine: Engine, plain: Engine, one_graph: None) -> None:
    prompt = [Segment(ids=ids(6, 50)), Segment(embeds=picture(9)), Segment(ids=(4,))]
    choices = [ids(1, 51), ids(3, 52), ids(3, 53), (*ids(1, 51), 7), ids(70, 54)]
    scores = engine.score(prompt, choices)
    for choice, score in zip(choices, scores):
        total = 0.0
        for i, token in enumerate(choice):
            total += plain.next_logprobs([*prompt, Segment(ids=choice[:i])])[token]
        assert score == pytest.approx(total, abs=close(plain) * len(choice))
    assert engine.stats.cached_tokens == 0
    np.testing.assert_array_equal(engine.score(prompt, choices), scores)
    assert engine.stats.cached_tokens == 12


def test_a_score_does_not_depend_on_the_other_choices(plain: Engine) -> None:
    prompt, first = [Segment(ids=ids(6, 50))], ids(5, 60)
    choices = [ids(3, 61), first, first[:2], first[:1], (*first[:3], 9, 8, 7), (*first, 1), first, (first[0], 3)]
    scores = plain.score(prompt, choices)
    for choice, score in zip(choices, scores):
        assert plain.score(prompt, [choice])[0] == score
    np.testing.assert_array_equal(plain.score(prompt, choices[::-1])[::-1], scores)


# -- ends


def test_stop_tokens_end_and_are_reported(plain: Engine) -> None:
    prompt = [Segment(ids=ids(9, 1))]
    free = tokens(list(plain.generate(prompt, GREEDY)))
    stop = free[4]
    steps = list(plain.generate(prompt, SamplingParams(max_tokens=12, stop_ids=frozenset({stop}))))
    assert tokens(steps) == free[: free.index(stop) + 1]
    assert [step.finish for step in steps] == [None] * free.index(stop) + ["stop"]


def test_cancelling_ends_at_the_next_token_or_before_the_first(plain: Engine) -> None:
    cancel, seen = threading.Event(), []
    for step in plain.generate([Segment(ids=ids(9, 1))], GREEDY, cancel):
        seen.append(step)
        if len(seen) == 3:
            cancel.set()
    assert [step.finish for step in seen] == [None, None, None, "cancelled"]
    assert list(plain.generate([Segment(ids=ids(9, 1))], GREEDY, cancel)) == []


def test_an_abandoned_generation_is_remembered(engine: Engine) -> None:
    steps = engine.generate([Segment(ids=ids(9, 70))], GREEDY)
    next(steps)
    next(steps)
    steps.close()
    engine.next_logprobs([Segment(ids=(*ids(9, 70), 1, 2))])
    assert engine.stats.cached_tokens >= 9


def test_the_context_is_a_limit_and_never_overrun(plain: Engine) -> None:
    context = tiny_llm.CONTEXT
    full = [Segment(ids=ids(context - 3, 80))]
    steps = list(plain.generate(full, SamplingParams(max_tokens=50)))
    assert [step.finish for step in steps] == [None, None, None, "length"]
    assert len(list(plain.generate([Segment(ids=ids(context, 81))], GREEDY))) == 1
    with pytest.raises(UsageError, match=f"has {context + 1} tokens, and the model's context holds {context};"):
        plain.generate([Segment(ids=ids(context + 1, 82))], GREEDY)  # at once, before any step is asked for
    with pytest.raises(UsageError, match=f"has {context} tokens and the longest answer to score 2"):
        plain.score([Segment(ids=ids(context, 81))], [(1, 2)])
    plain.score([Segment(ids=ids(context, 81))], [(1,)])


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "prompt is empty"),
        ([Segment()], "prompt is empty"),
        ([Segment(ids=(300,))], "vocabulary has 0 to 299"),
        ([Segment(ids=(-1, 4))], "vocabulary has 0 to 299"),
        ([Segment(embeds=np.zeros((2, 63), np.float32))], r"shape \(2, 63\)"),
        ([Segment(embeds=np.zeros(64, np.float32))], r"shape \(64,\)"),
        ([Segment(ids=(1,), embeds=np.zeros((2, 64), np.float32))], "ids as well as"),
        ([Segment(embeds=np.full((2, 64), np.nan, np.float32))], "not finite"),
    ],
)
def test_senseless_prompts_are_refused(plain: Engine, prompt: list[Segment], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plain.next_logprobs(prompt)


def test_senseless_calls_are_refused(plain: Engine) -> None:
    with pytest.raises(UsageError, match="choices to score are empty"):
        plain.score([Segment(ids=(1,))], [])
    with pytest.raises(UsageError, match="choices to score are empty"):
        plain.score([Segment(ids=(1,))], [(1,), ()])
    with pytest.raises(UsageError, match="vocabulary has 0 to 299"):
        plain.score([Segment(ids=(1,))], [(1, 999)])
    with pytest.raises(UsageError, match="2 prompts came with 1 sampling"):
        plain.generate_batch([[Segment(ids=(1,))]] * 2, [GREEDY])
