"""What the adapters of `python -m tools.adapters` learn: rated sentences, and contacts in running text."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from functions import assets
from tools import models

HELD_OUT = 100
"""Rows that no adapter sees in training."""
ASK_SENTIMENT = "Classify the sentiment of this review as positive or negative."
ASK_CONTACT = "Extract the contact as JSON."
SENTENCES = (
    "Hi, this is {name} from {company}. You can reach me at {email} or call {phone}.",
    "Please update the record: {name} now works for {company}; mail goes to {email}, phone {phone}.",
    "{name} ({company}) wrote to us yesterday from {email} and left the number {phone}.",
    "The contact for the order is {name}, {phone}, {email}, employed by {company}.",
    "Yesterday I met {name}, who runs sales at {company}. The card says {email} and {phone}.",
    "Invoice to {company}, attention {name}. Questions to {email}, or by telephone: {phone}.",
)


@dataclass(frozen=True, slots=True)
class Row:
    """What is asked, and the answer that is right."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Lesson:
    """Something to learn.

    Attributes:
        name: Of the adapter.
        steps: Of training, with 8 rows each.
        rows: All of them; the first `HELD_OUT` are not trained on.
        right: Whether an answer is right.
        answer_tokens: That the answer needs at most.
    """

    name: str
    steps: int
    rows: tuple[Row, ...]
    right: Callable[[str, Row], bool]
    answer_tokens: int

    @property
    def held_out(self) -> tuple[Row, ...]:
        """Rows to test with."""
        return self.rows[:HELD_OUT]

    @property
    def training(self) -> tuple[Row, ...]:
        """Rows to learn from."""
        return self.rows[HELD_OUT:]


def sentiment() -> Lesson:
    """Reviews that people rated clearly, half of them good (data of VADER, Hutto and Gilbert, ICWSM 2014)."""
    by_answer: dict[str, list[Row]] = {"positive": [], "negative": []}
    for rating, text in _rated():
        if 20 < len(text) < 160 and abs(rating) >= 1.0:
            answer = "positive" if rating > 0 else "negative"
            by_answer[answer].append(Row(f"{ASK_SENTIMENT}\n\n{text}", answer))
    chance = random.Random(0)
    count = min(len(rows) for rows in by_answer.values())
    rows = [row for found in by_answer.values() for row in chance.sample(found, count)]
    chance.shuffle(rows)
    return Lesson("sentiment", 120, tuple(rows), _starts_right, 4)


def contacts() -> Lesson:
    """Invented people in six sentences; held-out rows have other people, but the same sentences."""
    from faker import Faker

    fake = Faker("en_US")
    fake.seed_instance(0)
    chance = random.Random(0)
    rows = []
    for _ in range(2500):
        contact = {"name": fake.name(), "company": fake.company(), "email": fake.company_email()}
        contact["phone"] = fake.numerify("###-###-####")
        sentence = chance.choice(SENTENCES).format(**contact)
        rows.append(Row(f"{ASK_CONTACT}\n\n{sentence}", json.dumps(contact)))
    return Lesson("contacts", 110, tuple(rows), _same_json, 90)


def _rated() -> list[tuple[float, str]]:
    """(mean rating from -4 to 4, text) of the sentences of film and product reviews."""
    source = next(asset for asset in models.ASSETS if asset.folder == assets.TEXTS)
    rated = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        archive = models.download(source, folder / "download")
        models.extract(archive, folder, "hutto_ICWSM_2014.tar.gz")
        for kind in ("movieReview", "amazonReview"):
            name = f"{kind}Snippets_GroundTruth.txt"
            models.extract(folder / "hutto_ICWSM_2014.tar.gz", folder, name)
            for line in (folder / name).read_text("utf-8", errors="replace").splitlines():
                fields = line.split("\t", 2)
                if len(fields) == 3:
                    rated.append((float(fields[1]), fields[2].strip()))
    return rated


def _starts_right(text: str, row: Row) -> bool:
    return text.strip().lower().startswith(row.answer)


def _same_json(text: str, row: Row) -> bool:
    try:
        return bool(json.loads(text) == json.loads(row.answer))
    except ValueError:
        return False
