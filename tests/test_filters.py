"The filters line: articles, made articles, views, scorers, and the context length experiment on made and on real articles."
import gzip
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from distillery.core.config import load_config
from distillery.core.errors import DistilleryError
from distillery.core.stats import mean_interval, paired_contrast
from distillery.filters.articles import (Article, ArticlesError, read_articles, scale_ends, score_matrix, split_articles, to_points, turns)
from distillery.filters.bases import Segmenter, build_regressor, to_batch
from distillery.questions.context_length.decision import context_decision, eight_bits, stated_sentence
from distillery.filters.context import (add_time, best_on_validation, errors_by_level, frozen_fit, run_context, run_level, time_reading,
                                        useful_budgets)
from distillery.filters.made import article_templates, make_articles, place_of
from distillery.filters.predictions import read_predictions, write_predictions
from distillery.questions.context_length.quality import (dimension_table, error_table, level_contrasts, level_estimates, context_table,
                                                           lengths_of)
from distillery.filters.scorer import (ALPHAS, Scorer, cluster_folds, cut_articles, encode_articles, fit_scorer, fold_loss, load_scorer,
                                       rubric_queries, save_scorer)
from distillery.filters.tune import FineTuning, batch_at, load_tuned, save_tuned, tune_scorer
from distillery.filters.views import VIEWS, WINDOW, article_tokens, sentence_windows, token_counter
from distillery.retrieval.embed import Embedder
from distillery.questions.context_length.stages import article_stages, context_stages
from distillery.engine.source import Source
from distillery.engine.plan import Plan

DATA = Path(__file__).resolve().parents[2] / "shared/data"
RUBRIC = {d: str(v["help"]) for d, v in article_templates()["dimensions"].items()}
TEN = dict.fromkeys(RUBRIC, (0.0, 10.0))


class Words:
    "A toy embedder: counts words, knows no meaning."

    def encode(self, texts):
        from sklearn.feature_extraction.text import HashingVectorizer

        return HashingVectorizer(n_features=512, alternate_sign=False).transform(texts).toarray()


def real(name, **fields):
    path = DATA / f"{name}.jsonl.gz"
    if not path.is_file(): pytest.skip(f"no {path.name} in ../shared/data")
    return read_articles(path, **fields)


@pytest.fixture(scope="session")
def embedder(tmp_path_factory):
    return Embedder(cache=tmp_path_factory.mktemp("vectors") / "windows.sqlite")


# Reading

def write(path, *lines):
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


GOOD = {"id": "a", "cluster": "c", "title": "T", "text": "Text.", "scores": {"x": 1, "y": 2.5}}


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_reads_plain_and_gzip_with_windows_line_ends_and_a_mark(tmp_path, name):
    second = GOOD | {"id": 7, "cluster": 3, "scores": {"y": 1, "x": 0}}
    raw = ("\ufeff" + json.dumps(GOOD) + "\r\n\r\n" + json.dumps(second) + "\r\n").encode()
    (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith("gz") else raw)
    found = read_articles(tmp_path / name)
    assert [(a.id, a.cluster) for a in found] == [("a", "c"), ("7", "3")]
    assert list(found[1].scores.items()) == [("x", 0.0), ("y", 1.0)]  # the order of the first line


@pytest.mark.parametrize(("line", "said", "fix"), [
    ({"text": "t"}, "line 2: no scores", "scores"),
    ({"text": "t", "scores": {}}, "line 2: no scores", "scores"),
    ({"text": "t", "scores": {"x": "4", "y": 1}}, "line 2: score 'x' is '4'", "without quotes"),
    ({"text": "t", "scores": {"x": True, "y": 1}}, "line 2: score 'x' is True", "number"),
    ('{"text": "t", "scores": {"x": NaN, "y": 1}}', "line 2: score 'x' is nan", "number"),
    ({"text": "t", "scores": {"x": None, "y": 1}}, "line 2: score 'x' is None", "number"),
    ({"text": "t", "scores": {"x": 1}}, "line 2: dimensions x, but", "same dimensions"),
    (GOOD, "stands in line 1 too", "its own id"),
    (GOOD | {"id": "b", "text": "  "}, "line 2: no text", "delete"),
    ({"id": "b", "scores": {"x": 1, "y": 1}}, "line 2: no text", "delete"),
    ('{"id": "b", "text": "cut', "line 2: no JSON", "line 2"),
    ("[1, 2]", "line 2: not a JSON object", "text"),
])
def test_every_fault_names_its_line_and_its_fix(tmp_path, line, said, fix):
    with pytest.raises(ArticlesError) as e: read_articles(write(tmp_path / "x.jsonl", GOOD, line))
    assert said in e.value.message
    assert fix in e.value.fix


def test_an_empty_file_and_a_missing_one(tmp_path):
    with pytest.raises(ArticlesError, match="no article"): read_articles(write(tmp_path / "x.jsonl", ""))
    with pytest.raises(DistilleryError, match="does not exist"): read_articles(tmp_path / "y.jsonl")


# What table tools write for nothing

NOTHING = [None, "", " ", "None", "nan", "NaN", "null", "<NA>", float("nan"), "-1", -1, "-", [], False]


@pytest.mark.parametrize("missing", NOTHING, ids=repr)
def test_an_article_without_a_cluster_is_its_own(tmp_path, missing):
    rows = [{"id": f"a{i}", "text": f"text {i}", "cluster": missing if i < 32 else f"c{i}", "scores": {"q": i % 5}} for i in range(40)]
    assert Counter(split_articles(read_articles(write(tmp_path / "a.jsonl", *rows)))) == {"train": 24, "validation": 6, "test": 10}


def test_the_case_of_articles_without_a_cluster():
    path = Path(__file__).parents[2] / "shared/cases/41_articles_without_a_cluster/a.jsonl"
    if not path.is_file(): pytest.skip("../shared/cases is not here")
    assert Counter(split_articles(read_articles(path))) == {"train": 24, "validation": 6, "test": 10}


def test_a_missing_id_is_the_line_and_a_number_is_one_cluster_however_it_is_written(tmp_path):
    named = ((None, 3), ("nan", 3.0), (7.0, "3"), (float("nan"), None))
    found = read_articles(write(tmp_path / "a.jsonl", *({"id": i, "text": f"t{i}{c}", "cluster": c, "scores": {"q": 1}} for i, c in named)))
    assert [(a.id, a.cluster) for a in found] == [("line-1", "3"), ("line-2", "3"), ("7", "3"), ("line-4", "line-4")]


def test_an_article_printed_twice_is_one_topic(tmp_path):
    texts = [f"text {i} of a page" for i in range(20)] + [f"TEXT {i}\n OF a PAGE" for i in range(20)]
    rows = [{"id": f"a{i}", "text": text, "scores": {"q": i % 5}} for i, text in enumerate(texts)]
    found = read_articles(write(tmp_path / "a.jsonl", *rows))
    side = {}
    for a, where in zip(found, split_articles(found), strict=True): side.setdefault(a.text.casefold().replace("\n", ""), set()).add(where)
    assert len(side) == 20
    assert all(len(where) == 1 for where in side.values())


@settings(max_examples=40)
@given(st.lists(st.sampled_from([*NOTHING, "a", "b", 1, 1.0, "1", 2.5]), min_size=1, max_size=20))
def test_only_named_clusters_hold_several_articles(tmp_path_factory, clusters):
    rows = [{"text": f"t{i}", "cluster": c, "scores": {"q": 1}} for i, c in enumerate(clusters)]
    found = read_articles(write(tmp_path_factory.mktemp("a") / "a.jsonl", *rows))
    named = {"a", "b", "1", "2.5"}
    assert all((a.cluster in named) != (a.cluster == a.id) for a in found)
    assert len({a.cluster for a in found}) == len({a.cluster for a in found} & named) + sum(a.cluster == a.id for a in found)


# Splits

@settings(max_examples=40)
@given(st.lists(st.integers(0, 30), min_size=40, max_size=120), st.text(max_size=3))
def test_no_cluster_crosses_and_every_article_is_tested_once(names, salt):
    articles = [Article(id=str(i), cluster=str(c), text="t", scores={"x": 0}) for i, c in enumerate(names)]
    if len(set(names)) < 8: return
    tested = []
    for turn in range(turns()):
        sides = split_articles(articles, turn=turn, salt=salt)
        where = {}
        for a, side in zip(articles, sides, strict=True): where.setdefault(a.cluster, set()).add(side)
        assert all(len(s) == 1 for s in where.values())
        tested += [a.cluster for a, side in zip(articles, sides, strict=True) if side == "test"]
    assert sorted(tested) == sorted(a.cluster for a in articles)


# Windows and views

@settings(max_examples=60)
@given(st.text(alphabet=st.sampled_from("abc é.!?\n字-"), max_size=600))
def test_windows_keep_every_letter_and_fit(text):
    windows = sentence_windows(text, token_counter())
    assert "".join("".join(w.text.split()) for w in windows) == "".join(text.split())
    assert all(w.tokens <= WINDOW for w in windows)


@settings(max_examples=200)
@given(st.lists(st.integers(1, WINDOW), min_size=1, max_size=80), st.integers(WINDOW, 3000))
def test_views_stay_in_budget_and_agree_where_all_fits(sizes, budget):
    seen = {name: see(sizes, budget) for name, see in VIEWS.items()}
    for chosen in seen.values():
        assert chosen == sorted(set(chosen))
        assert chosen
        assert chosen[-1] < len(sizes)
        assert sum(sizes[i] for i in chosen) <= budget
    if sum(sizes) <= budget: assert {tuple(c) for c in seen.values()} == {tuple(range(len(sizes)))}


def test_useful_budgets_stop_where_nothing_is_cut():
    assert useful_budgets([100, 500], (4096, 128, 512, 1024)) == [128, 512]
    assert useful_budgets([100, 5000], (512, 4096)) == [512, 4096]


# Made articles

def test_made_articles_are_the_same_in_another_process():
    code = "from distillery.filters.made import make_articles; print([m.article.text for m in make_articles(6)][5][-80:])"
    run = lambda seed: subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
              env={"PYTHONHASHSEED": seed})
    runs = {run(seed).stdout for seed in ("1", "2")}
    assert len(runs) == 1


def test_made_articles_say_what_they_are_scored_for_where_they_should():
    made, count = make_articles(), token_counter()
    tokens = np.array([article_tokens(sentence_windows(m.article.full_text, count)) for m in made])
    assert 0.05 < (tokens > 2048).mean() < 0.2
    at = {"head": [], "middle": [], "tail": []}
    for m in made:
        for d, lines in m.evidence.items():
            at[place_of(d)] += [m.article.text.index(line) / len(m.article.text) for line in lines]
    assert np.median(at["head"]) < 0.25 < np.median(at["middle"]) < 0.75 < np.median(at["tail"])
    assert max(at["head"]) < min(at["tail"])
    error = score_matrix([m.article for m in made]) - np.array([list(m.truth.values()) for m in made])
    assert 0.4 < error.std() < 0.55  # 0.5, less what the ends of the scale cut off


def pattern(template):
    "A regular expression for every wording of a template."
    escaped = re.sub(r"\\\{\w+\\\}", "[^.]+", re.escape(template))
    return re.compile(escaped.replace(r"\(", "(").replace(r"\)", ")").replace(r"\|", "|"), re.IGNORECASE)


def test_truth_is_the_mean_level_of_the_sentences():
    ladder = {d: [[pattern(t) for t in level] for level in v["levels"]] for d, v in article_templates()["dimensions"].items()}
    for m in make_articles(60):
        for d, lines in m.evidence.items():
            levels = [{i for i, some in enumerate(ladder[d]) if any(p.fullmatch(line) for p in some)} for line in lines]
            assert all(len(found) == 1 for found in levels), lines
            assert m.truth[d] == pytest.approx(2.5 * np.mean([min(found) for found in levels]))


@pytest.fixture(scope="module")
def toy():
    made = [m.article for m in make_articles()]
    encoded = encode_articles(made, Words(), token_counter())
    return encoded, run_context(encoded, TEN, rubric_queries(list(RUBRIC), RUBRIC, Words()), (128, 512, 4096))


@pytest.mark.slow
def test_length_alone_gives_no_score_away(toy):
    _, (rows, _) = toy
    scores, clusters = errors_by_level(rows)
    items = sorted(clusters)
    c = paired_contrast([scores["length alone"][i] for i in items], [scores["mean score"][i] for i in items], [clusters[i] for i in items])
    assert c.ci_high > 0 > c.ci_low - 0.05
    assert abs(c.diff) < 0.1


@pytest.mark.slow
def test_what_stands_at_the_tail_is_found_only_by_views_that_go_there(toy):
    _, (rows, _) = toy
    for d in (d for d in RUBRIC if place_of(d) == "tail"):
        against = {c.a: c for c in level_contrasts(rows, "mean score", d)}
        assert against["truncate 128"].ci_high > -0.1, d       # no better than the mean
        assert against["head+tail 128"].ci_high < -0.3, d      # far better
        assert against["truncate 4096"].ci_high < 0, d         # seen again once nothing is cut
    for d in (d for d in RUBRIC if place_of(d) == "head"):
        assert {c.a: c for c in level_contrasts(rows, "mean score", d)}["truncate 128"].ci_high < -0.3, d


@pytest.mark.slow
def test_every_level_scores_the_same_test_articles_and_no_topic_is_on_two_sides(toy):
    encoded, (rows, costs) = toy
    scores, clusters = errors_by_level(rows)
    assert {tuple(sorted(s)) for s in scores.values()} == {tuple(sorted(e.article.id for e in encoded))}
    assert len({c.level for c in costs}) == len(costs) == len(scores)
    assert best_on_validation(rows) in scores
    assert len(set(clusters.values())) == 60


@pytest.mark.slow
def test_tables_have_n_and_interval_everywhere(toy):
    _, (rows, costs) = toy
    table = context_table(rows, costs, price_per_hour=1.0)
    assert all(r["n"] == 240 and "[" in r["MAE"] and "[" in r["Spearman"] for r in table)
    by_length, cut = lengths_of(rows, (512, 1024, 2048, 4096))
    assert sum(r["articles"] for r in by_length) == 240
    shares = [float(r["cut"].split(" [")[0]) for r in cut]
    assert shares == sorted(shares, reverse=True)
    by_level = {r["level"]: r for r in error_table(rows)}
    assert all("[" in r[d] for r in by_level.values() for d in RUBRIC)
    assert {d: by_level["truncate 512"][d] for d in RUBRIC} == {r["dimension"]: r["MAE"] for r in dimension_table(rows, "truncate 512")}
    steep = {r["dimension"]: r for r in dimension_table(rows, "truncate 128")}
    assert float(steep["reach"]["slope"].split()[0]) > 0.3 > float(steep["durability"]["slope"].split()[0])


@pytest.mark.slow
def test_a_level_reads_only_its_budget(toy):
    encoded, (rows, _) = toy
    assert 0 < max(r.tokens_read for r in rows if r.budget == 128) <= 128
    ends_only = encode_articles([e.article for e in encoded[:30]], Words(), token_counter(), budgets=(128,))
    queries = rubric_queries(list(RUBRIC), RUBRIC, Words())
    fit = fit_scorer(ends_only, TEN, queries, "chunks", 128)
    assert np.isfinite(fit.predict(ends_only)).all()
    with pytest.raises(ValueError, match="NaN"): fit_scorer(ends_only, TEN, queries, "truncate", 4096)


# Scorer

@pytest.mark.slow
def test_a_scorer_survives_the_disk_and_refuses_a_stranger(toy, tmp_path):
    encoded, _ = toy
    scorer = fit_scorer(encoded[:80], TEN, rubric_queries(list(RUBRIC), RUBRIC, Words()), "head+tail", 256)
    again = load_scorer(save_scorer(scorer, tmp_path / "f"))
    assert isinstance(again, Scorer)
    assert again.predict(encoded[80:]).tobytes() == scorer.predict(encoded[80:]).tobytes()
    assert sorted(p.suffix for p in (tmp_path / "f").iterdir()) == [".json", ".safetensors"]
    save_scorer(fit_scorer(encoded[:60], TEN, scorer.queries, "head+tail", 256), tmp_path / "g")
    (tmp_path / "f/scorer.safetensors").write_bytes((tmp_path / "g/scorer.safetensors").read_bytes())
    with pytest.raises(DistilleryError, match="does not belong"): load_scorer(tmp_path / "f")


def test_scales_of_different_length_count_alike():
    articles = [Article(id=str(i), cluster=str(i), text="t", scores={"short": i, "long": 50 * i}) for i in range(3)]
    points = to_points(score_matrix(articles), scale_ends(articles))
    assert (points[:, 0] == points[:, 1]).all()


@pytest.mark.slow
def test_time_grows_with_the_budget(toy):
    encoded, _ = toy

    class Counting(Words):
        texts = 0

        def encode(self, texts): self.texts += len(texts); return super().encode(texts)

    few, many, both = Counting(), Counting(), Counting()
    assert {b: len(ms) for b, ms in time_reading(encoded, few, token_counter(), (128,), sample=5).items()} == {128: 5}
    time_reading(encoded, many, token_counter(), (4096,), sample=5)
    assert many.texts > 3 * few.texts
    spent = time_reading(encoded, both, token_counter(), (128, 1024, 4096), sample=5)
    assert spent[1024][0] == spent[4096][0]  # an article that fits is not read again
    assert both.texts < 3 * many.texts


@pytest.mark.slow
def test_times_have_n_and_interval(toy):
    _, (rows, costs) = toy
    slow = [add_time(c, [10.0, 20, 30, 40] if c.budget else None) for c in costs]
    table = {r["level"]: r for r in context_table(rows, slow, price_per_hour=3.6)}
    one = table["truncate 128"]
    assert (one["articles timed"], one["an article, ms"].split()[0], one["cost / 10,000, USD"].split()[0]) == ("4", "25", "0.25")
    assert one["training, s"].values[0] == pytest.approx(slow[2].fit_seconds + 144 * 0.025)  # 144 articles are read first
    assert table["length alone"]["an article, ms"] is None


# What is kept

@pytest.mark.slow
def test_predictions_come_back_and_are_small(toy, tmp_path):
    _, (rows, costs) = toy
    write_predictions(tmp_path, rows, costs)
    again, spent = read_predictions(tmp_path)
    assert spent == costs
    assert [r.model_copy(update={"tokens_read": 0}) for r in rows] == again
    assert context_table(again, spent) == context_table(rows, costs)
    assert sum(len(r.to_line()) for r in rows) > 5 * (tmp_path / "predictions.jsonl").stat().st_size


def test_nothing_compared_is_nothing_read(tmp_path):
    write_predictions(tmp_path, [], [])
    assert read_predictions(tmp_path) == ([], [])


# Heads

@settings(max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(8, 40))
def test_cross_validation_agrees_with_scikit_learn(seed, width, n):
    from sklearn.linear_model import Ridge

    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, width)) + rng.normal(size=width), rng.normal(size=n)
    folds = cluster_folds([str(i % 5) for i in range(n)], 4)
    slow = [sum(((Ridge(alpha=a).fit(x[t], y[t]).predict(x[h]) - y[h]) ** 2).sum() for t, h in folds) for a in ALPHAS]
    assert fold_loss(x, y, folds) == pytest.approx(slow, rel=1e-5)


def test_windows_find_back_to_their_articles():
    articles = [m.article for m in make_articles(12)]
    together = encode_articles(articles, Words(), token_counter())
    for e, a in zip(together, articles, strict=True):
        alone = encode_articles([a], Words(), token_counter())[0]
        assert (e.vectors == alone.vectors).all()
        assert (e.vectors == Words().encode(list(e.texts)).astype(np.float32)).all()


# Fine-tuning

QUICK = FineTuning("builtin:mini", steps=5, learning_rate=2e-3, rank=4)


def boxes(n=40, word=("flimsy", "sturdy")):
    "One word decides."
    said = [f"The {w} box was tested. It came on a Monday and was put on a shelf." for w in word]
    return [Article(id=str(i), cluster=f"box {i // 2}", text=said[i % 2],
                    scores={"strength": 8 * (i % 2) + i % 3 / 2}) for i in range(n)]


@pytest.mark.slow
@pytest.mark.parametrize(("base", "rank", "steps", "share"), [
    ("builtin:mini", 0, 16, 0.85), pytest.param("builtin:minilm", 4, 8, 0.85, marks=pytest.mark.slow)])
def test_training_goes_beyond_the_head_it_starts_from(base, rank, steps, share):
    train = cut_articles([m.article for m in make_articles(32)], token_counter(base))
    truth = to_points(score_matrix([e.article for e in train]), TEN)
    error = {}
    for n, rate in ((1, 1e-9), (steps, 1e-3)):
        scorer = tune_scorer(train, TEN, "truncate", 64, FineTuning(base, steps=n, learning_rate=rate, rank=rank))
        error[n] = np.abs(scorer.predict(train) - truth).mean()
    assert error[1] < 1.1 * np.abs(truth - truth.mean(0)).mean()
    assert error[steps] < share * error[1]


@pytest.mark.slow
def test_a_training_that_was_cut_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr("distillery.filters.tune.EVERY", 2)
    some = cut_articles(boxes(24), token_counter("builtin:mini"))
    ends, whole, done = scale_ends([e.article for e in some]), [], []
    scorer = tune_scorer(some, ends, "truncate", 64, QUICK, tmp_path / "a", lambda what, step, of: whole.append(step))

    def cut(what, step, of):
        if step > 3: raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt): tune_scorer(some, ends, "truncate", 64, QUICK, tmp_path / "b", cut)
    again = tune_scorer(some, ends, "truncate", 64, QUICK, tmp_path / "b", lambda what, step, of: done.append(step))
    assert (whole, done) == ([1, 2, 3, 4, 5], [3, 4, 5])
    assert again.predict(some).tobytes() == scorer.predict(some).tobytes()
    other = tune_scorer(some, ends, "truncate", 64, FineTuning("builtin:mini", steps=5, learning_rate=1e-3, rank=4), tmp_path / "b")
    assert other.predict(some).tobytes() != scorer.predict(some).tobytes()
    assert {p.suffix for p in tmp_path.rglob("*") if p.is_file()} == {".safetensors"}


def test_a_tuned_scorer_survives_the_disk_and_refuses_a_stranger(tmp_path):
    some = cut_articles(boxes(16), token_counter("builtin:mini"))
    scorer = tune_scorer(some, scale_ends([e.article for e in some]), "head+tail", 64, QUICK)
    again = load_tuned(save_tuned(scorer, tmp_path))
    assert again.predict(some).tobytes() == scorer.predict(some).tobytes()
    with pytest.raises(DistilleryError, match="is fine-tuned"): load_scorer(tmp_path)
    facts = json.loads((tmp_path / "scorer.json").read_text())
    (tmp_path / "scorer.json").write_text(json.dumps(facts | {"base_digest": "another"}))
    with pytest.raises(DistilleryError, match="do not belong"): load_tuned(tmp_path)


@given(st.integers(3, 50), st.integers(1, 9), st.integers(0, 9))
def test_every_epoch_sees_every_article_once(n, batch, seed):
    how = FineTuning(batch=batch, seed=seed)
    seen = [i for step in range(n) for i in batch_at(step, n, how)]  # `batch` epochs
    assert all(sorted(seen[e * n:(e + 1) * n]) == list(range(n)) for e in range(batch))


@pytest.mark.slow
def test_an_encoder_reads_beyond_its_reach_in_segments():
    import torch

    cutter, network = Segmenter("builtin:minilm"), build_regressor("builtin:minilm", 2).eval()
    rows = cutter.cut(["Bread. " * 700, "Bread."])
    assert [len(r) for r in rows] == [3, 1]
    with torch.inference_mode():
        both = network.pooled(*to_batch(rows, cutter.pad_id))
        parts = [network.pooled(*to_batch([[s]], cutter.pad_id))[0] * len(s) for s in rows[0]]
    assert torch.allclose(both[0], sum(parts) / sum(map(len, rows[0])), atol=1e-4)


# The stages

def file_of(path, articles):
    return write(path, *(a.model_dump(include={"id", "cluster", "text", "scores"}) for a in articles))


@pytest.mark.slow
def test_another_length_trains_that_length_alone(tmp_path):
    def run(budgets, **more):
        config = load_config(overrides={"context.scorer": "finetune", "context.embedder": "builtin:mini", "context.budgets": budgets,
                                        "context.views": ["truncate"], "context.tune_steps": 1, "context.turns": 1, **more})
        plan = Plan(article_stages(file_of(tmp_path / "a.jsonl", boxes(20)), config, tmp_path / "c"), config, tmp_path / "c")
        done = plan.run()
        return {n for n, d in done.items() if not d.cached}, [c.level for c in read_predictions(done["context"].path)[1]]

    assert run([16])[0] == {"tuned-truncate-16", "context"}
    made, levels = run([16, 32, 4096])
    assert made == {"tuned-truncate-32", "tuned-truncate-4096", "context"}
    assert levels == ["mean score", "length alone", "truncate 16 fine-tuned", "truncate 32 fine-tuned"]  # no article is longer than 32
    assert run([16, 32, 4096])[0] == set()
    assert run([16], **{"context.tune_steps": 2})[0] == {"tuned-truncate-16", "context"}


@pytest.mark.slow
def test_a_kill_inside_a_level_costs_the_steps_since_its_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr("distillery.filters.tune.EVERY", 2)
    config = load_config(overrides={"context.scorer": "finetune", "context.embedder": "builtin:mini", "context.budgets": [16],
                                    "context.views": ["truncate"], "context.tune_steps": 5, "context.turns": 2})
    plan = Plan(article_stages(file_of(tmp_path / "a.jsonl", boxes(20)), config, tmp_path / "c"), config, tmp_path / "c")
    steps = []

    def watch(event):
        if event.kind != "progress" or not event.text.startswith("training"): return
        steps.append(event.done)
        if steps == list(range(1, 10)): raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt): plan.run(watch)
    assert steps == list(range(1, 10))  # the fourth step of the second turn, whose last checkpoint is of the second
    steps.clear()
    plan.run(watch)
    assert steps == [8, 9, 10]


@pytest.mark.slow
def test_the_small_encoder_is_one_level_more_and_moves_no_choice(toy):
    encoded, (rows, costs) = toy
    queries = rubric_queries(list(RUBRIC), RUBRIC, Words())
    view, budget = best_on_validation(rows).rsplit(" ", 1)
    blurred = encode_articles([e.article for e in encoded], Blurred(), token_counter())
    more, cost = run_level(encoded, TEN, view, int(budget), frozen_fit(TEN, queries, view, int(budget)), "int8", seen_as=blurred)
    small = [r for r in more if r.side == "test"]
    before, after = context_decision(rows, costs), context_decision([*rows, *small], [*costs, cost])
    assert eight_bits(rows) is None
    assert (after.contrasts[-1].a, after.contrasts[-1].n_items) == (f"{view} {budget} int8", 240)
    assert 0 < abs(after.contrasts[-1].diff) < 0.1
    assert after.sentence.startswith(before.sentence)
    assert "In 8 bits" in after.sentence
    assert (after.contrasts[:-1], after.verdict) == (before.contrasts, before.verdict)


class Blurred(Words):
    "The toy embedder, rounded."

    def encode(self, texts): return np.round(super().encode(texts) * 8) / 8


@pytest.mark.slow
def test_the_page_holds_a_level_against_what_the_scores_say_of_themselves(toy):
    _, (rows, _) = toy
    assert "above that" in stated_sentence(rows, "truncate 4096", 0.05)
    assert "short of that" in stated_sentence(rows, "truncate 128", 0.95)
    assert "n" in stated_sentence(rows, "truncate 128", 0.95)


@pytest.mark.parametrize(("preset", "stages"), [
    ("articles-finetune", ["context-int8", *(f"tuned-{view}-{b}" for b in (128, 512) for view in ("truncate", "head+tail")), "context"]),
    ("articles-decoder", [*(f"tuned-truncate-{b}" for b in (512, 1024, 2048, 4096)), "context"]),
])
def test_presets_plan_what_they_say(preset, stages, tmp_path):
    config = load_config(preset=preset)
    if "/" in config.context.embedder: config = load_config(preset=preset, overrides={"context.embedder": "builtin:mini"})
    assert [s.name for s in article_stages(file_of(tmp_path / "a.jsonl", boxes(4)), config, tmp_path)] == stages


@pytest.mark.slow
def test_the_decoder_preset_runs_to_its_card_with_a_built_in_base(tmp_path):
    long = [a.model_copy(update={"text": f"{a.text} " + "It stayed there. " * (60 if i % 2 else 700)}) for i, a in enumerate(boxes(20))]
    config = load_config(preset="articles-decoder", overrides={"context.embedder": "builtin:mini", "context.tune_steps": 1})
    done = Plan(article_stages(file_of(tmp_path / "a.jsonl", long), config, tmp_path / "c"), config, tmp_path / "c").run()
    rows, costs = read_predictions(done["context"].path)
    assert [c.level for c in costs[2:]] == [f"truncate {b} fine-tuned" for b in (512, 1024, 2048, 4096)]
    assert all(c.train_seconds and c.ms_per_article for c in costs[2:])
    assert context_decision(rows, costs).n_items == 4  # one turn tests a quarter of the ten topics


def test_no_length_asks_nothing_and_articles_alone_need_one(tmp_path):
    "Found out before anything is trained, not after."
    none = load_config(overrides={"context.budgets": []})
    assert context_stages(Source("handbook", tmp_path), none, tmp_path) == []
    for said in ({"context.budgets": []}, {"context.budgets": [1, 512]}):
        with pytest.raises(DistilleryError, match="no context length to compare"):
            context_stages(Source("articles", tmp_path), load_config(overrides={"articles.file": "a.jsonl", **said}), tmp_path)


def test_the_built_in_run_shares_its_export(tmp_path):
    stages = article_stages(None, load_config(preset="handbook"), tmp_path)
    assert [(s.name, s.needs) for s in stages] == [("context", ("embedder-int8",))]
    off = article_stages(None, load_config(preset="handbook", overrides={"context.int8": False}), tmp_path)
    assert [(s.name, s.needs) for s in off] == [("context", ())]


# Real articles, MiniLM

def mae(rows, level):
    scores, clusters = errors_by_level(rows)
    return mean_interval(list(scores[level].values()), [clusters[i] for i in scores[level]], scale=None)


def minilm(articles, embedder, budgets, rubric=None, ends=None, n_turns=None):
    encoded = encode_articles(articles, embedder, token_counter(), budgets=budgets)
    names = list(articles[0].scores)
    return run_context(encoded, ends or scale_ends(articles), rubric_queries(names, rubric or {}, embedder), budgets, n_turns=n_turns)


@pytest.mark.slow
def test_onestopenglish_topics_stay_together(embedder):
    articles = real("onestopenglish", scores=["level_score"], cluster="topic")
    few = set(sorted({a.cluster for a in articles})[::4])
    articles = [a for a in articles if a.cluster in few]
    sides = {(a.cluster, side) for a, side in zip(articles, split_articles(articles), strict=True)}
    assert len(sides) == len(few)
    rows, _ = minilm(articles, embedder, (128,))
    assert mae(rows, "length alone").mean < mae(rows, "mean score").mean - 0.4


@pytest.mark.slow
def test_empathic_reactions_are_near_their_noise(embedder):
    articles = real("empathic_reactions", scores=["empathy", "distress"], cluster="writer_id")[:240]
    rows, costs = minilm(articles, embedder, (256,), ends={"empathy": (1, 7), "distress": (1, 7)})
    table = {r["level"]: r for r in context_table(rows, costs)}
    assert -0.1 < float(table["truncate 256"]["Spearman"].split()[0]) < 0.6
    assert "near the noise as that" in stated_sentence(rows, "truncate 256", 0.3)
    assert float(table["truncate 256"]["SD ratio"].split()[0]) < 0.8


@pytest.mark.slow
def test_made_articles_with_minilm(embedder):
    articles = [m.article for m in make_articles()]
    rows, _ = minilm(articles, embedder, (128, 512, 4096), RUBRIC, TEN)
    against = {c.a: c for c in level_contrasts(rows, "truncate 128")}
    assert against["truncate 4096"].ci_high < 0
    for d in ("openness", "durability"):
        found = {c.a: c for c in level_contrasts(rows, "mean score", d)}
        assert found["head+tail 128"].ci_high < -0.3
        assert found["truncate 128"].ci_high > -0.1


@pytest.mark.slow
def test_eight_bits_score_as_well(tmp_path):
    some = [m.article for m in make_articles(80)]
    config = load_config(overrides={"context.budgets": [512], "context.views": ["truncate"]})
    done = Plan(article_stages(file_of(tmp_path / "a.jsonl", some), config, tmp_path / "c"), config, tmp_path / "c").run()
    rows, costs = read_predictions(done["context"].path)
    c = eight_bits(rows)
    assert (c.a, c.n_items) == ("truncate 512 int8", 80)
    assert -0.15 < c.ci_low < c.ci_high < 0.15
    assert costs[-1].ms_per_article
    assert costs[-1].train_seconds == costs[-2].train_seconds


@pytest.mark.slow
def test_all_of_onestopenglish(embedder):
    articles = real("onestopenglish", scores=["level_score"], cluster="topic")
    rows, _ = minilm(articles, embedder, (128, 512, 2048))
    for e in level_estimates(rows): assert e.n == 283
    assert {c.a: c for c in level_contrasts(rows, "mean score")}["truncate 512"].ci_high < 0


@pytest.mark.slow
def test_all_of_empathic_reactions(embedder):
    articles = real("empathic_reactions", scores=["empathy", "distress"], cluster="writer_id")
    rows, _ = minilm(articles, embedder, (256,), ends={"empathy": (1, 7), "distress": (1, 7)})
    for r in dimension_table(rows, "truncate 256"): assert 0.15 < float(r["Spearman"].split()[0]) < 0.45
    assert {c.a: c for c in level_contrasts(rows, "mean score")}["truncate 256"].ci_high < 0
