"""Where files lie in memory."""

from hypothesis import given
from hypothesis import strategies as st

from dataflower.checkpoint.digest import CHUNK_BYTES, chunk_count, chunks, model_digest
from dataflower.checkpoint.layout import PAGE_BYTES, SEGMENT_BYTES, TAIL_BYTES, pages, pieces, place

SIZES = st.integers(0, 200 * 1024 * 1024)


@given(st.lists(SIZES, max_size=8))
def test_files_follow_each_other_page_by_page(sizes: list[int]) -> None:
    placed = place((str(i), size) for i, size in enumerate(sizes))
    at = 0
    for file, size in zip(placed, sizes, strict=True):
        assert file.offset >= at
        assert file.offset % PAGE_BYTES == 0
        assert file.offset - at < PAGE_BYTES
        at = file.offset + size


@given(SIZES)
def test_pieces_hold_what_they_must_and_waste_little(nbytes: int) -> None:
    whole, tail = pieces(nbytes)
    held = whole * SEGMENT_BYTES + tail
    assert held >= nbytes
    assert tail % PAGE_BYTES == 0
    assert tail <= TAIL_BYTES
    assert held - pages(nbytes) < SEGMENT_BYTES - TAIL_BYTES


@given(SIZES)
def test_chunks_cover_a_file_and_stay_inside_segments(nbytes: int) -> None:
    found = list(chunks(nbytes))
    assert len(found) == chunk_count(nbytes)
    assert sum(length for _, length in found) == nbytes
    assert SEGMENT_BYTES % CHUNK_BYTES == 0
    assert all(offset % CHUNK_BYTES == 0 for offset, _ in found)


def test_a_digest_stands_for_names_sizes_and_contents_in_any_order() -> None:
    files = [("a", 1, "00"), ("b", 2, "11")]
    digest = model_digest(files)
    assert digest == model_digest(reversed(files))
    assert (
        len({digest, model_digest([("a", 1, "01"), ("b", 2, "11")]), model_digest([("c", 1, "00"), ("b", 2, "11")])})
        == 3
    )
