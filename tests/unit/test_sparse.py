import pytest
import torch

from dspa.map.sparse import SparseRows, pack, unpack


def rows_of(matrix: torch.Tensor) -> SparseRows:
    return SparseRows.from_dense(matrix)


def same(one: SparseRows, other: SparseRows) -> bool:
    bits = [None if r.value is None else r.value.view(torch.int32).tolist() for r in (one, other)]
    return torch.equal(one.start, other.start) and torch.equal(one.column, other.column) and bits[0] == bits[1]


def random_rows(seed: int, n: int, width: int, share: float, levels: int | None) -> SparseRows:
    draw = torch.Generator().manual_seed(seed)
    matrix = torch.randn(n, width, generator=draw)
    if levels is not None:
        matrix = (matrix * levels / 4).round() / levels
    return rows_of(matrix * (torch.rand(n, width, generator=draw) < share))


@pytest.mark.parametrize("levels", [None, 5, 1000], ids=["any floats", "few values", "more than 255 values"])
@pytest.mark.parametrize(("width", "share"), [(29, 0.5), (4096, 0.3), (4096, 0.001), (70_000, 0.0001), (70_000, 0.1)])
def test_rows_come_back_to_the_bit(width, share, levels):
    rows = random_rows(1, 7, width, share, levels)
    assert same(unpack(pack(rows), 7, width), rows)


def test_unusual_floats_and_empty_rows_come_back_to_the_bit():
    start = torch.tensor([0, 0, 12, 12, 24])
    unusual = torch.tensor([float("nan"), -0.0, 0.0, float("inf"), 1e-45, -float("inf")])
    column = torch.arange(12, dtype=torch.int32).repeat(2)
    rows = SparseRows(start, column, unusual.repeat(4), 12)
    assert same(unpack(pack(rows), 4, 12), rows)
    nothing = SparseRows.from_dense(torch.zeros(3, 12))
    assert same(unpack(pack(nothing), 3, 12), nothing)
    pattern = SparseRows(start, column, None, 12)
    assert same(unpack(pack(pattern), 4, 12), pattern)


def test_values_are_stored_as_they_are_where_two_bytes_cannot_tell_them_apart():
    value = torch.cat([torch.ones(900_000), torch.arange(70_000) + 2.0])
    rows = SparseRows(torch.tensor([0, len(value)]), torch.arange(len(value), dtype=torch.int32), value, len(value))
    packed = pack(rows)
    assert "value" in packed and "book" not in packed
    assert same(unpack(packed, 1, rows.width), rows)


def test_a_thousand_triples_take_at_most_ten_megabytes_at_sixteen_thousand_latents():
    """Gates open on 5 % of latents; answers of about 200 tokens with some 64 active latents each, on which
    some 3,000 latents differ."""
    draw = torch.Generator().manual_seed(0)
    n, width = 100, 16384
    rate = (torch.rand(width, generator=draw) ** 20) * 0.08
    lengths = torch.randint(150, 250, (2, n, 1), generator=draw)
    counts = torch.binomial(lengths.float().expand(2, n, width), rate.expand(2, n, width), generator=draw)
    shares = counts / lengths
    difference = rows_of(shares[0] - shares[1])
    gates = rows_of((torch.rand(n, width, generator=draw) < 0.05).float())
    assert 2500 < len(difference.column) / n < 3500
    size = sum(t.nbytes for rows in (difference, SparseRows(gates.start, gates.column, None, width))
               for t in pack(rows).values())  # fmt: skip
    assert size <= 10e6 * n / 1000


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("length", lambda t: t[:-1], "'length' must hold 5 counts, found 4"),
        ("length", lambda t: t + 1, "'length' says"),
        ("length", None, "tensor 'length' is missing"),
        ("bits", lambda t: t[:, 1:], r"'bits' has shape \(5, 11\), expected \(5, 12\)"),
        ("bits", lambda t: t.int(), "tensor 'bits' is torch.int32, expected torch.uint8"),
        ("book", lambda t: t[1:], "do not belong together"),
        ("code", lambda t: t * 0 + 255, "have a wide code, but 'wide' holds 0"),
        ("code", lambda t: t * 0 + 200, "a code lies outside its row's book"),
    ],
)
def test_what_was_changed_is_refused(name, change, message):
    packed = pack(random_rows(3, 5, 96, 0.9, 5))
    assert {"length", "bits", "book", "code"} <= set(packed)
    tensor = packed.pop(name)
    if change is not None:
        packed[name] = change(tensor)
    with pytest.raises(ValueError, match=message):
        unpack(packed, 5, 96)


def test_columns_that_do_not_ascend_or_lie_outside_are_refused():
    packed = pack(random_rows(4, 3, 5000, 0.002, None))
    for column in (packed["column"].int().flip(0), packed["column"].int() * 0 + 5000):
        with pytest.raises(ValueError, match=r"columns must ascend within each row and lie in 0\.\.4999"):
            unpack(packed | {"column": column.to(torch.uint16)}, 3, 5000)
