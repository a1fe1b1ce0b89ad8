import pytest

from functions import text

POEM = "The sea, the SEA!\nIt's the open sea.\n\nO sea\n"


@pytest.fixture
def poem(tmp_path):
    path = tmp_path / "poem.txt"
    path.write_text(POEM)
    return str(path)


def counts_of(poem, lines):
    return [text.count(chunk) for chunk in text.split(poem, lines)]


@pytest.mark.parametrize("lines", [1, 2, 3, 100])
def test_count_does_not_depend_on_the_pieces(poem, lines):
    ranked = text.rank(counts_of(poem, lines), top=3)
    assert ranked == {"top": {"sea": 4, "the": 3, "it's": 1}, "words": 10, "distinct": 5}


def test_split_gives_back_the_text(poem):
    assert "".join(text.split(poem, 2)) == POEM


def test_split_takes_the_text_itself():
    assert "".join(text.split(POEM, 2)) == POEM


def test_keyed_way_gives_the_same(poem):
    pairs = list(text.shuffle(iter(counts_of(poem, 1))))
    by_key = {}
    for pair in pairs:
        assert all(word[0] == pair["key"] for word in pair["value"])
        by_key.setdefault(pair["key"], []).append(pair["value"])
    reduced = [text.add(parts) for parts in by_key.values()]
    assert text.rank(reduced) == text.rank(counts_of(poem, 1))


def test_empty_text(tmp_path):
    (tmp_path / "empty.txt").write_text("")
    assert list(text.split(str(tmp_path / "empty.txt"))) == []
    assert text.rank([]) == {"top": {}, "words": 0, "distinct": 0}


def test_fill():
    assert text.fill("Dear {text}!", "you") == "Dear you!"
