import hashlib
import json
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from models.errors import DataError, InputError, WorkspaceError
from training import demo_shop
from training.demo_shop import DemoShop, Sizes
from training.shop.catalogue import TODAY
from training.shop.phrases import INTENTS, WORDS
from training.shop.queries import is_plural, plural
from training.shop.words import BRANDS, COLOURS, FEATURES, PRODUCT_TYPES, SIZES

SMALL = Sizes(
    products=400,
    train_queries=900,
    valid_queries=80,
    test_queries=150,
    train_lists=30,
    valid_lists=8,
    test_lists=12,
    sessions=1500,
)


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> DemoShop:
    return demo_shop.generate(tmp_path_factory.mktemp("shop") / "shop", sizes=SMALL)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def digests(directory: Path) -> dict[str, str]:
    files = sorted(file for file in directory.rglob("*") if file.is_file())
    return {str(file.relative_to(directory)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_the_same_seed_gives_the_same_bytes_and_another_seed_gives_others(shop, tmp_path):
    again = digests(demo_shop.generate(tmp_path / "again", sizes=SMALL).directory)
    other = digests(demo_shop.generate(tmp_path / "other", seed=8, sizes=SMALL).directory)
    assert digests(shop.directory) == again
    assert again.keys() == other.keys()
    assert all(again[name] != other[name] for name in again)


def test_the_default_shop_is_large_enough_to_learn_from():
    assert Sizes().products >= 5000
    assert len({kind.name for kind in PRODUCT_TYPES}) == len(PRODUCT_TYPES) >= 40
    assert 10 <= len(INTENTS) <= 15
    assert Sizes().train_lists >= 300


def test_a_product_has_a_size_of_its_types_own_system_and_a_price_not_above_its_list_price(shop):
    products = lines(shop.catalogue)
    kinds = {kind.name: kind for kind in PRODUCT_TYPES}
    assert len(products) == len({product["id"] for product in products}) == SMALL.products
    for product in products:
        kind = kinds[product["product_type"]]
        assert product["size_system"] == kind.size
        assert product["size"] is None if kind.size is None else product["size"] in SIZES[kind.size].values
        assert 0 < product["price"] <= product["list_price"]
        assert product["material"] is None or product["material"] in kind.materials
        assert product["brand"] in product["title"]
        assert product["created"] < TODAY.isoformat()
        assert (product["rating"] is None) == (product["n_ratings"] == 0)
        assert "quality" not in product


def test_intent_and_joint_files_hold_the_same_rows_and_tags_are_valid_bio(shop):
    for split in ("train", "valid", "test"):
        plain, tagged = lines(shop.intent / f"{split}.jsonl"), lines(shop.queries / f"{split}.jsonl")
        assert [(row["text"], row["label"]) for row in plain] == [(" ".join(r["tokens"]), r["label"]) for r in tagged]
        for row in tagged:
            assert len(row["tokens"]) == len(row["tags"])
            assert all(token and not token.isspace() for token in row["tokens"])
            for before, tag in zip(["O", *row["tags"]], row["tags"], strict=False):
                assert not tag.startswith("I-") or before[2:] == tag[2:]


def test_every_intent_and_every_tag_of_test_is_taught_by_train(shop):
    train, test = lines(shop.queries / "train.jsonl"), lines(shop.queries / "test.jsonl")
    assert {row["label"] for row in test} <= {row["label"] for row in train} == set(INTENTS)
    assert {tag for row in test for tag in row["tags"]} <= {tag for row in train for tag in row["tags"]}


def test_no_query_is_in_two_splits(shop):
    texts = [
        row["text"].lower() for split in ("train", "valid", "test") for row in lines(shop.intent / f"{split}.jsonl")
    ]
    assert max(Counter(texts).values()) == 1


def test_training_queries_never_use_words_kept_for_valid_and_test(shop):
    unseen_brands = {brand.lower() for brands in BRANDS.values() for brand in brands.unseen}
    for row in lines(shop.queries / "train.jsonl"):
        spans = " ".join(
            token.lower() for token, tag in zip(row["tokens"], row["tags"], strict=True) if tag.endswith("-brand")
        )
        assert not any(brand in spans for brand in unseen_brands)


@pytest.mark.parametrize("lists", [BRANDS, COLOURS, FEATURES, WORDS], ids=["brands", "colours", "features", "words"])
def test_known_and_unseen_words_do_not_overlap(lists):
    for name, ways in lists.items():
        assert not set(ways.known) & set(ways.unseen), name


def test_known_and_unseen_templates_do_not_overlap_but_for_a_bare_thing():
    for phrases in INTENTS.values():
        both = set(phrases.known) & set(phrases.unseen)
        assert both <= {"{item}", "{type}", "{types}", "{brand}"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sneaker", "sneakers"),
        ("torch", "torches"),
        ("dress", "dresses"),
        ("bookshelf", "bookshelves"),
        ("berry", "berries"),
        ("cuddly toy", "cuddly toys"),
        ("jeans", "jeans"),
        ("dog food", "dog food"),
    ],
)
def test_plurals_follow_english(name, expected):
    assert plural(name) == expected
    assert is_plural(plural("sneaker"))


def test_a_session_clicks_positions_that_it_showed_and_orders_what_it_clicked(shop):
    known = {product["id"] for product in lines(shop.catalogue)}
    sessions = lines(shop.clicks)
    assert len(sessions) == SMALL.sessions
    assert [session["timestamp"] for session in sessions] == sorted(session["timestamp"] for session in sessions)
    for session in sessions:
        assert len(set(session["shown"])) == len(session["shown"])
        assert set(session["shown"]) <= known
        assert set(session["orders"]) <= set(session["clicks"]) <= set(range(1, len(session["shown"]) + 1))


def test_products_newer_than_the_log_were_never_shown(shop):
    created = {product["id"]: product["created"] for product in lines(shop.catalogue)}
    sessions = lines(shop.clicks)
    first_day = sessions[0]["timestamp"][:10]
    assert all(created[product] < first_day for session in sessions for product in session["shown"])


def test_impressions_are_the_sessions_of_training_queries_with_the_features_of_their_lists(shop):
    rows = pq.read_table(shop.impressions / "train.parquet").to_pylist()
    listed = {
        (row["query_id"], row["doc_id"]): row for row in pq.read_table(shop.ranking / "train.parquet").to_pylist()
    }
    queries = {query_id for query_id, _ in listed}
    sessions = {session["session_id"]: session for session in lines(shop.clicks) if session["query_id"] in queries}
    assert {row["session_id"] for row in rows} == set(sessions)
    assert len(rows) == sum(len(session["shown"]) for session in sessions.values())
    for row in rows:
        session = sessions[row["session_id"]]
        assert session["shown"][row["position"] - 1] == row["doc_id"]
        assert row["clicked"] == (row["position"] in session["clicks"])
        judged = listed[row["query_id"], row["doc_id"]]
        assert set(judged) - set(row) == {"label", "ctr"}
        assert all(row[name] == judged[name] for name in set(row) & set(judged))


def test_clicks_fall_with_position_faster_than_with_relevance(tmp_path):
    # One query's products in the same session log: with examination 1/rank, position 5 gets well below half of
    # position 1's clicks, whatever is shown there.
    shop = demo_shop.generate(tmp_path / "shop", sizes=SMALL)
    clicks = Counter(position for session in lines(shop.clicks) for position in session["clicks"])
    assert clicks[1] > 2 * clicks[5] > 2 * clicks[10] > 0


def test_ranking_lists_hold_the_rows_of_the_text_pairs_with_numeric_features_and_missing_values(shop):
    missing = defaultdict(int)
    seen: set[str] = set()
    for split, n_lists in (("train", 30), ("valid", 8), ("test", 12)):
        table = pq.read_table(shop.ranking / f"{split}.parquet")
        rows, pairs = table.to_pylist(), lines(shop.pairs / f"{split}.jsonl")
        names = ("query_id", "doc_id", "label")
        assert [[row[name] for name in names] for row in rows] == [[pair[name] for name in names] for pair in pairs]
        sizes = Counter(row["query_id"] for row in rows)
        assert len(sizes) == n_lists
        assert set(sizes.values()) <= set(range(10, 41))
        assert not seen & set(sizes)
        seen |= set(sizes)
        assert {row["label"] for row in rows} <= set(range(5))
        for field in table.schema:
            assert field.name in ("query_id", "doc_id", "label") or str(field.type) == "float"
            missing[field.name] += table[field.name].null_count
    assert missing["label"] == missing["price"] == missing["title_bm25"] == 0
    assert min(missing["stock"], missing["ctr"], missing["brand_match"]) > 0


def test_no_single_feature_orders_the_lists_well(shop):
    table = pq.read_table(shop.ranking / "train.parquet")
    queries = np.unique(table["query_id"].to_numpy(), return_inverse=True)[1]
    gains = 2.0 ** table["label"].to_numpy() - 1
    for name in table.column_names[3:]:
        values = np.nan_to_num(table[name].to_numpy(), nan=-1e9)
        assert max(_ndcg10(queries, gains, values), _ndcg10(queries, gains, -values)) < 0.8, name


def _ndcg10(queries, gains, scores) -> float:
    discounts = 1 / np.log2(np.arange(2, 12))
    values = []
    for query in np.unique(queries):
        of_query = gains[queries == query]
        got = of_query[np.argsort(-scores[queries == query], kind="stable")][:10]
        best = np.sort(of_query)[::-1][:10]
        if best[0] > 0:
            values.append((got * discounts[: len(got)]).sum() / (best * discounts[: len(best)]).sum())
    return float(np.mean(values))


def test_spoiling_moves_most_training_labels_and_nothing_else(shop, tmp_path):
    spoilt = demo_shop.spoil(shop.intent, tmp_path / "spoilt")
    before, after = lines(shop.intent / "train.jsonl"), lines(spoilt / "train.jsonl")
    assert [row["text"] for row in before] == [row["text"] for row in after]
    assert Counter(row["label"] for row in before) == Counter(row["label"] for row in after)
    moved = sum(a["label"] != b["label"] for a, b in zip(before, after, strict=True))
    assert 0.5 < moved / len(before) < 0.8
    for split in ("valid", "test"):
        assert (spoilt / f"{split}.jsonl").read_bytes() == (shop.intent / f"{split}.jsonl").read_bytes()


def test_spoiling_a_directory_without_training_rows_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"train\.jsonl"):
        demo_shop.spoil(tmp_path, tmp_path / "spoilt")


def test_the_sample_ranking_is_a_test_list_in_the_shape_of_the_route(shop):
    body = demo_shop.sample_ranking(shop.directory, n_candidates=5)
    first = lines(shop.pairs / "test.jsonl")[0]
    assert body["query"] == {"text": first["query"]}
    assert [set(candidate) for candidate in body["candidates"]] == [{"id", "text", "features"}] * 5
    assert body["candidates"][0]["id"] == first["doc_id"]
    assert body["candidates"][0]["features"].keys() >= {"price", "stock", "ctr"}
    json.dumps(body, allow_nan=False)


def test_three_sample_queries_come_from_the_seed():
    assert demo_shop.sample_queries(3) == demo_shop.sample_queries(3) != demo_shop.sample_queries(4)
    assert len(demo_shop.sample_queries()) == 3


def test_an_older_shop_is_replaced_and_other_files_are_never_touched(tmp_path):
    tiny = Sizes(80, 20, 5, 5, 2, 1, 1, 10)
    demo_shop.generate(tmp_path / "shop", sizes=tiny)
    demo_shop.generate(tmp_path / "shop", seed=9, sizes=tiny)
    assert json.loads((tmp_path / "shop" / "shop.json").read_text())["seed"] == 9
    assert [path.name for path in tmp_path.iterdir()] == ["shop"]

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="holds other files"):
        demo_shop.generate(tmp_path / "mine", sizes=tiny)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_a_failure_half_way_leaves_the_older_shop_as_it_was(tmp_path, monkeypatch):
    tiny = Sizes(80, 20, 5, 5, 2, 1, 1, 10)
    demo_shop.generate(tmp_path / "shop", sizes=tiny)
    before = digests(tmp_path / "shop")

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(demo_shop, "_write_ranking", full_disk)
    with pytest.raises(WorkspaceError, match="No space left on device"):
        demo_shop.generate(tmp_path / "shop", seed=9, sizes=tiny)
    assert digests(tmp_path / "shop") == before
    assert [path.name for path in tmp_path.iterdir()] == ["shop"]


def test_an_empty_part_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match="valid_lists, got 0"):
        demo_shop.generate(tmp_path / "shop", sizes=Sizes(valid_lists=0))
