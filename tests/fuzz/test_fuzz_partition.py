"""Any samples, any valid settings: each sample is assigned once, or an error names the reason."""

from __future__ import annotations

from collections import Counter

from few import attempt, few
from hypothesis import example, given
from hypothesis import strategies as st

from fedcmp.data.held_out import divide
from fedcmp.data.records import Sample
from fedcmp.data.scenarios import Partition, PartitionConfig, corrupt, manifest, partition
from fedcmp.data.scenarios.partition import SCENARIOS, parse_scenario
from fedcmp.data.scenarios.quality import CORRUPTIONS, QualityConfig
from fedcmp.data.scenarios.quantity import SIZES, QuantityConfig
from fedcmp.data.scenarios.topic import ALPHAS, TopicConfig
from fedcmp.federation.sampling import plan_run
from fedcmp.federation.settings import FederationConfig

NAMES = st.text(max_size=3)
SHARES = st.floats(0, 1) | st.sampled_from([0.0, 1.0, 0.5])
UNEQUAL = st.floats(0, 20) | st.sampled_from([0.0, 1e-300, 1.0, 20.0])
SPREAD = st.floats(*ALPHAS) | st.sampled_from([1.0, *ALPHAS])
SPLIT_BY = [name for name, row in SCENARIOS.items() if row.assign]


@st.composite
def samples(draw: st.DrawFn) -> list[Sample]:
    kinds = draw(st.lists(st.tuples(NAMES, st.none() | NAMES, st.none() | NAMES), min_size=1, max_size=60))
    texts = draw(st.lists(st.text(min_size=1, max_size=4), min_size=1, max_size=5))
    return [
        Sample(f"s{n}", "x.png", texts[n % len(texts)], domain, label, f"a:{n}", topic)
        for n, (domain, label, topic) in enumerate(kinds)
    ]


@st.composite
def configs(draw: st.DrawFn) -> PartitionConfig:
    words = [draw(st.sampled_from(SPLIT_BY)), *draw(st.sets(st.sampled_from(["quality", "quantity"])))]
    config = PartitionConfig(
        "+".join(words),
        draw(st.integers(1, 12)),
        draw(SHARES),
        TopicConfig(draw(SPREAD), draw(st.sampled_from(["label", "source"]))),
        QualityConfig(draw(SHARES), draw(SHARES), draw(st.sampled_from(CORRUPTIONS))),
        QuantityConfig(draw(st.sampled_from(SIZES)), draw(UNEQUAL), draw(UNEQUAL), draw(st.integers(1, 4))),
    )
    if config.clients == 1 and config.quality.kind == "foreign":
        config.clients = 2
    config.validate()
    return config


def ids(split: Partition, held: list[Sample]) -> list[set[str]]:
    return [{held[position].id for position in client} for client in split.clients]


PLAIN = [Sample(f"s{n}", "", "c", "d") for n in range(9)]


@given(samples(), configs(), st.integers(-5, 2**70))
@few(120)
@example(PLAIN, PartitionConfig("quantity", 3), 0)
@example(PLAIN, PartitionConfig("quantity", 3, quantity=QuantityConfig(sigma=20.0, min_samples=1)), 0)
def test_each_sample_is_assigned_once_and_corrupted_where_it_is_said(
    held: list[Sample], config: PartitionConfig, seed: int
) -> None:
    split, message = attempt(lambda: partition(held, config, seed))
    if split is None:
        unnamed = any(not one.domain.strip() or not one.domain.isprintable() for one in held)
        assert "samples" in message or (unnamed and "partition.clients: a name" in message)
        return
    assert len(split.clients) == config.clients
    owners = Counter(position for client in split.clients for position in client)
    assert set(owners.values()) <= {1}
    scenario = parse_scenario(config.scenario)
    if not (scenario.split_by == "domain" and scenario.quantity):  # there the only owner keeps only its share
        assert set(owners) == set(range(len(held)))
    if scenario.quantity:
        assert min(map(len, split.clients)) >= config.quantity.min_samples
    assert ids(partition(held[::-1], config, seed), held[::-1]) == ids(split, held)
    hurt = corrupt(held, split.clients, config.quality, seed)
    named = {position for client in hurt.positions for position in client}
    for position, (before, after) in enumerate(zip(held, hurt.samples, strict=True)):
        assert (before.id, before.image, before.domain) == (after.id, after.image, after.domain)
        assert before.caption == after.caption or position in named
    for client, positions in zip(split.clients, hurt.positions, strict=True):
        assert set(positions) <= set(client)
    splits = {"train": held, "val": held[:2], "test": held[:2]}
    written = manifest(split._replace(corrupted=hurt.positions), splits, config)
    assert written["sizes"] == list(map(len, split.clients))
    assert written["clients"] == {str(k): sorted(one) for k, one in enumerate(ids(split, held))}


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=6),
    st.builds(
        FederationConfig, rounds=st.integers(1, 8), local_steps=st.integers(0, 5), batch_size=st.integers(1, 8),
        passes=st.integers(1, 3), clients_per_round=st.integers(0, 6), dropout=st.floats(0, 0.99),
        min_clients=st.integers(1, 3),
    ),
    st.integers(0, 9),
)  # fmt: skip
@few(100)
def test_each_sample_is_used_at_most_once_a_pass(sizes: list[int], config: FederationConfig, seed: int) -> None:
    config.min_clients = min(config.min_clients, config.clients_per_round or config.min_clients)
    config.validate()
    clients = [list(range(1000 * k, 1000 * k + size)) for k, size in enumerate(sizes)]
    plan, message = attempt(lambda: plan_run(clients, config, seed))
    if plan is None:
        assert "client" in message
        return
    used = Counter(index for one in plan.rounds for task in one.tasks for batch in task.batches for index in batch)
    assert max(used.values()) <= config.passes
    assert sum(used.values()) == plan.num_samples
    for number, one in enumerate(plan.rounds):
        assert one.tasks
        assert one.samples_before == sum(before.num_samples for before in plan.rounds[:number])
        assert len({task.client_id for task in one.tasks}) == len(one.tasks)
        assert not {task.client_id for task in one.tasks} & set(one.dropped)
        for task in one.tasks:
            assert {index // 1000 for batch in task.batches for index in batch} == {task.client_id}


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.sampled_from([None, "train", "val", "test"]), st.none() | st.integers(0, 4)),
        min_size=1, max_size=40,
    ),
    st.none() | st.integers(0, 8), st.none() | st.integers(0, 8), st.integers(0, 9),
)  # fmt: skip
@few(100)
def test_no_picture_is_on_two_sides(
    rows: list[tuple[int, str | None, int | None]], val: int | None, test: int | None, seed: int
) -> None:
    marks = [(picture, picture) for picture, _, _ in rows]
    splits, groups = [split for _, split, _ in rows], [None if one is None else str(one) for _, _, one in rows]
    found, message = attempt(lambda: divide(marks, splits, val, test, seed, groups))
    if found is None:
        assert message
        return
    assert len(found.sides) == len(rows)
    for one in set(marks):
        assert len({side for mark, side in zip(marks, found.sides, strict=True) if mark == one} - {None}) <= 1
