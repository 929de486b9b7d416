"""Caption -> class names: cases by hand, properties, and agreement with human labels on real captions."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glass_fast.captions import vocabulary
from glass_fast.captions.matching import (
    ClassMatcher,
    agreement,
    concept_phrases,
    concept_table,
    plurals,
    split_words,
)
from glass_fast.data.label_sets import label_set

COCO = ClassMatcher(label_set("coco").names)
VOC = ClassMatcher(label_set("voc").names)
PARTWORLD = ClassMatcher(label_set("partworld").names)


@pytest.mark.parametrize(
    ("caption", "classes"),
    [
        ("A man eating a hot dog", "person, hot dog"),
        ("a hot, dog on a mat", "dog"),
        ("Hot-dogs and hotdogs", "hot dog"),
        ("A teddy bear next to a bear", "teddy bear, bear"),
        ("Two teddy bears", "teddy bear"),
        ("people with knives and forks", "person, knife, fork"),
        ("mice, geese, oxen and calves", "mouse, bird, cow"),
        ("a flock of sheep, two buses and three ponies", "sheep, bus, horse"),
        ("a woman blow dries her hair with a hair dryer", "person, hair drier"),
        ("A boy talks on his cell phone near a pay phone", "person, cell phone"),
        ("doughnuts and a donut", "donut"),
        ("Three wine glasses and two glasses of wine", "wine glass"),
        ("a bottle of wine", "bottle"),
        ("the dining table is set; a flat screen TV on the wall", "dining table, tv"),
        ("a man's dog", "person, dog"),
        ("MOTORBIKES, bikes", "motorcycle, bicycle"),
        ("a train station", ""),
        ("the train at the train station", "train"),
        ("a bus stop, a dog house and a table cloth", ""),
        ("catamaran scattered dogma", "boat"),
        ("an orange cat", "cat"),
        ("an orange on a plate", "orange"),
        ("a black and orange motorcycle", "motorcycle"),
        ("an orange and white cat", "cat"),
        ("apples, oranges", "apple, orange"),
        ("one orange", "orange"),
        ("A baby elephant", "elephant"),
        ("a mother and baby elephant", "elephant"),
        ("a zebra and its baby", "zebra"),
        ("a woman and her baby", "person"),
        ("a baby with a carrot", "person, carrot"),
        ("baby carrots", "carrot"),
        ("a couple of zebras", "zebra"),
        ("a couple on a bench", "person, bench"),
        ("a street with no cars", ""),
        ("a room without any chairs", ""),
        ("a fire truck by a fire hydrant", "truck, fire hydrant"),
        ("a toy train car", "train"),
        ("a dog, a cat, a dog", "dog, cat"),
        ("", ""),
        ("狗和猫", ""),
    ],
)
def test_coco_captions(caption: str, classes: str) -> None:
    assert ", ".join(COCO.classes(caption)) == classes


@pytest.mark.parametrize(
    ("matcher", "caption", "classes"),
    [
        (VOC, "a couch, an airplane and a motorcycle", "sofa, aeroplane, motorbike"),
        (VOC, "a house plant beside a television", "potted plant, tv monitor"),
        (VOC, "a hot dog on a table", "dining table"),
        (VOC, "a teddy bear", ""),
        (VOC, "a wine glass and a wine bottle", "bottle"),
        (PARTWORLD, "a photo of two snowmen, a car and a plane", "snowman, car, aeroplane"),
        (PARTWORLD, "potted plants by houses and palm trees", "potted plant, house, tree"),
        (PARTWORLD, "a house plant in a house", "potted plant, house"),
        (PARTWORLD, "an umbrella, mugs and toadstools", "umbrella, cup, mushroom"),
    ],
)
def test_other_label_sets(matcher: ClassMatcher, caption: str, classes: str) -> None:
    assert ", ".join(matcher.classes(caption)) == classes


def test_names_of_the_users_own() -> None:
    """An unknown name is found with its plural; names that share a concept keep their own words."""
    mine = ClassMatcher(["fox", "man", "person", "mug"])
    assert mine.classes("two foxes, a man, a woman, a cup and a mug") == ("fox", "man", "person", "mug")
    split = ClassMatcher(["man", "woman"])
    assert split.classes("men and women and people") == ("man", "woman")
    assert ClassMatcher(["dog house"]).classes("a cat in a dog house") == ("dog house",)


def test_places_and_counts() -> None:
    text = "Dogs! A hot dog, two dogs and one hotdog."
    found = COCO.find(text)
    assert [(m.name, text[m.start : m.stop], m.count) for m in found] == [
        ("dog", "Dogs", 2),
        ("hot dog", "hot dog", 2),
    ]
    assert COCO.classes(text, 1) == ("dog",)


@pytest.mark.parametrize(
    ("name", "mine"),
    [("couch", "sofa"), ("tv", "tv monitor"), ("tvmonitor", "tv monitor"), ("giraffe", None)],
)
def test_resolve(name: str, mine: str | None) -> None:
    assert VOC.resolve(name) == mine


def test_every_name_finds_itself() -> None:
    """Singular and plural of every class name of every built-in set, in both spellings of VOC."""
    for labels in map(label_set, ("coco", "voc", "partworld")):
        matcher = ClassMatcher(labels.names)
        for name, official in zip(labels.names, labels.official, strict=True):
            for form in (name, official, *plurals(name)):
                assert matcher.classes(f"there was a {form}") == (name,), form


def test_tables_are_consistent() -> None:
    """No phrase belongs to two concepts, no forbidden phrase is a class, and every COCO, VOC and PartWorld
    name is known."""
    owners: dict[tuple[str, ...], str] = {}
    for concept in vocabulary.CONCEPTS:
        for phrase in concept_phrases(concept):
            key = tuple(word.text for word in split_words(phrase))
            assert owners.setdefault(key, concept) == concept, (phrase, owners[key], concept)
    for phrase in vocabulary.NOT_A_CLASS:
        assert tuple(word.text for word in split_words(phrase)) not in owners, phrase
    table = concept_table()
    for labels in map(label_set, ("coco", "voc", "partworld")):
        assert all(table.get(tuple(name.split())) for name in labels.names)
    assert len(vocabulary.CONCEPTS) == 80 + 4  # COCO; house, tree, snowman and mushroom
    assert set(vocabulary.ANIMALS) <= set(vocabulary.CONCEPTS)


@settings(max_examples=300)
@given(st.text(st.characters(), max_size=60))
def test_any_text(text: str) -> None:
    """Found places lie in the text in rising order, no class twice, names from the label set."""
    found = COCO.find(text)
    assert len({m.name for m in found}) == len(found) and all(m.name in COCO.names for m in found)
    assert all(0 <= m.start < m.stop <= len(text) for m in found)
    assert [m.start for m in found] == sorted(m.start for m in found)


@settings(max_examples=200)
@given(st.lists(st.sampled_from(label_set("coco").names), min_size=1, max_size=6))
def test_lists_of_names(names: list[str]) -> None:
    """A caption that lists names between words that are none gives exactly these names."""
    assert COCO.classes("behold " + ", then ".join(names)) == tuple(dict.fromkeys(names))


@settings(max_examples=200)
@given(st.lists(st.sampled_from(label_set("partworld").names), min_size=1, max_size=3))
def test_renderer_captions(names: list[str]) -> None:
    """Captions in the words of PartWorld's renderer (numbers, plurals, articles) give back exactly their
    classes."""
    from glass_fast.partworld.renderer import describe

    caption = "a photo of " + describe(names)
    assert PARTWORLD.classes(caption) == tuple(dict.fromkeys(names))


def test_agreement_by_hand() -> None:
    scores = agreement([(["a", "b"], ["a"]), (["c"], ["c", "d", "e"])])
    assert scores["precision"] == pytest.approx(2 / 3) and scores["recall"] == pytest.approx(2 / 4)
    assert agreement([])["precision"] == 1.0


def coco_pairs(folder: Path) -> tuple[list[tuple[set[str], set[str]]], list[tuple[set[str], set[str]]]]:
    """(found, labelled) classes per caption, and per image with its five captions together."""
    per_caption, per_image = [], []
    for split in ("val2017", "train2017"):
        captions = json.loads((folder / f"captions_{split}.json").read_text("utf-8"))
        instances = json.loads((folder / f"instances_{split}.json").read_text("utf-8"))
        names = {row["id"]: row["name"] for row in instances["categories"]}
        true: dict[int, set[str]] = defaultdict(set)
        for row in instances["annotations"]:
            true[row["image_id"]].add(names[row["category_id"]])
        union: dict[int, set[str]] = defaultdict(set)
        for row in captions["annotations"]:
            found = set(COCO.classes(row["caption"]))
            union[row["image_id"]] |= found
            per_caption.append((found, true[row["image_id"]]))
        per_image += [(union[image], true[image]) for image in union]
    return per_caption, per_image


def test_human_captions_against_instances(real_data: Path, record_property: Any) -> None:
    """On a COCO subset (79 val and 80 train images, 795 captions) the found classes are really in the
    picture.

    Floors are loose: one miscounted image of 159 moves the figures by about 0.3 points. Measured when
    written: precision 0.963 and recall 0.371 per caption, 0.916 and 0.516 per image. Precision cannot
    reach 1, because annotators overlook or exclude things ("on a table" shows 2 % of a table); recall is
    bounded by what people find worth saying, not by this code: most of what is missed are bottles, cups
    and chairs in the background. A matcher of bare names without synonyms and plurals has a recall of 0.19
    per caption and 0.34 per image, which the floors exclude.
    """
    folder = real_data / "coco" / "annotations"
    if not folder.is_dir():
        pytest.skip(f"no COCO annotations at {folder}")
    per_caption, per_image = coco_pairs(folder)
    assert len(per_caption) == 795 and len(per_image) == 159
    one, five = agreement(per_caption), agreement(per_image)
    record_property("caption_precision_recall", (one["precision"], one["recall"]))
    record_property("image_precision_recall", (five["precision"], five["recall"]))
    assert one["precision"] > 0.94 and one["recall"] > 0.34
    assert five["precision"] > 0.88 and five["recall"] > 0.47
