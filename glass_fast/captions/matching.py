"""Caption -> class names: longest phrase first over words, with plurals and synonyms.

GLASS takes the nouns of a caption and maps them to class names; the rule is not published (method notes
1.0). This one needs no model, is the same on every machine, and its words are a table that can be read and
extended (:mod:`glass_fast.captions.vocabulary`).
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from glass_fast.captions import vocabulary as words

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*|\d+")
_POSSESSIVE = re.compile(r"['’]s$")
_VOWELS = "aeiou"


@dataclass(frozen=True)
class Match:
    """One class found in a caption.

    Attributes:
        name: class name of the label set.
        start: index of the first character of its first mention.
        stop: index after the last character of that mention.
        count: how many times the class is mentioned.
    """

    name: str
    start: int
    stop: int
    count: int = 1


@dataclass(frozen=True)
class _Word:
    text: str
    start: int
    stop: int
    joined: bool
    """Whether only spaces or hyphens separate it from the word before: phrases do not reach over a comma."""


def split_words(text: str) -> list[_Word]:
    """Lower-case words with their places in ``text``; hyphens separate, a possessive ``'s`` is dropped."""
    found: list[_Word] = []
    for match in _WORD.finditer(text):
        plain = unicodedata.normalize("NFC", match.group().casefold())
        plain = _POSSESSIVE.sub("", plain).replace("'", "").replace("’", "")
        if plain:
            between = text[found[-1].stop : match.start()] if found else ","
            found.append(_Word(plain, match.start(), match.end(), not between.strip(" -‐‑")))
    return found


def plurals(phrase: str) -> tuple[str, ...]:
    """Plural spellings of a singular phrase; its last word changes, unless the table says otherwise.

    Several spellings may be given where writers differ ("buses", "busses"); one that is no English word
    does no harm.
    """
    if phrase in words.IRREGULAR_PLURALS:
        return words.IRREGULAR_PLURALS[phrase]
    head, _, last = phrase.rpartition(" ")
    prefix = head + " " if head else ""
    if last in words.IRREGULAR_PLURALS:
        return tuple(prefix + form for form in words.IRREGULAR_PLURALS[last])
    return tuple(prefix + form for form in _regular(last))


def _regular(word: str) -> tuple[str, ...]:
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return (word + "es",)
    if word.endswith("y") and word[-2:-1] not in (*_VOWELS, ""):
        return (word[:-1] + "ies", word + "s")
    if word.endswith("o"):
        return (word + "s", word + "es")
    return (word + "s",)


def _key(phrase: str) -> tuple[str, ...]:
    return tuple(word.text for word in split_words(phrase))


def _forms(phrase: str) -> list[tuple[str, ...]]:
    """Word tuples under which a phrase is found: singular and plurals."""
    return [key for key in map(_key, (phrase, *plurals(phrase))) if key]


def concept_phrases(concept: str) -> list[str]:
    """All singular phrases of a concept, its name first, with the age words of animals ("baby elephant")."""
    others = [phrase.strip() for phrase in words.CONCEPTS[concept].split(",")]
    phrases = [concept, *(phrase for phrase in others if phrase)]
    if concept in words.ANIMALS:
        phrases += [f"{age} {phrase}" for phrase in list(phrases) for age in words.AGE_WORDS]
    return phrases


@functools.cache
def concept_table() -> dict[tuple[str, ...], str]:
    """Words of every known phrase -> concept; phrases that show no class -> empty text."""
    table: dict[tuple[str, ...], str] = {}
    for concept in words.CONCEPTS:
        for phrase in concept_phrases(concept):
            for key in _forms(phrase):
                table.setdefault(key, concept)
    for phrase in words.NOT_A_CLASS:
        for key in _forms(phrase):
            table.setdefault(key, "")
    return table


class ClassMatcher:
    """Finds the classes of one label set in captions.

    A name of the label set that is a known word ("sofa", "tv monitor", "aeroplane") brings all words of
    its concept; an unknown name is found literally and in its plural. Where several names share a concept,
    each owns its own word; the other words go to the name that the concept has ("person" beside "man"),
    else to none.

    Args:
        names: class names in label order.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        concepts = concept_table()
        claims: dict[str, list[str]] = {}
        owners: dict[str, str] = {}
        table: dict[tuple[str, ...], str | None] = {}
        for name in self.names:
            concept = concepts.get(_key(name))
            if concept:
                claims.setdefault(concept, []).append(name)
        for concept, claimants in claims.items():
            if len(claimants) == 1 or concept in claimants:
                owners[concept] = concept if concept in claimants else claimants[0]
        for key, concept in concepts.items():
            table[key] = owners.get(concept)
        for name in reversed(self.names):
            for key in _forms(name):
                table[key] = name
        self._table = table
        self._longest = max((len(key) for key in table), default=1)
        self._colours = {(word,) for word in words.COLOUR_CLASSES}

    def resolve(self, name: str) -> str | None:
        """The label-set name for a foreign class name ("couch" -> "sofa"), or None when there is none."""
        return self._table.get(_key(name))

    def find(self, caption: str) -> list[Match]:
        """Classes in the order of their first mention, each once, with the number of mentions.

        Args:
            caption: any text; upper case, punctuation and hyphens do not matter.
        """
        tokens = split_words(caption)
        found: dict[str, Match] = {}
        position = 0
        while position < len(tokens):
            length = self._match_length(tokens, position)
            name = (
                self._table.get(tuple(t.text for t in tokens[position : position + length]))
                if length
                else None
            )
            if name is not None and self._is_shown(caption, tokens, position, length):
                first = found.get(name)
                last = tokens[position + length - 1]
                found[name] = (
                    Match(name, tokens[position].start, last.stop)
                    if first is None
                    else Match(name, first.start, first.stop, first.count + 1)
                )
            position += max(length, 1)
        return list(found.values())

    def classes(self, caption: str, limit: int | None = None) -> tuple[str, ...]:
        """Names only, at most ``limit`` of them, in the order of the caption."""
        return tuple(match.name for match in self.find(caption)[:limit])

    def _match_length(self, tokens: Sequence[_Word], position: int) -> int:
        """Words of the longest known phrase at ``position``, 0 when there is none."""
        reach = 1
        while reach < self._longest and position + reach < len(tokens) and tokens[position + reach].joined:
            reach += 1
        for length in range(reach, 0, -1):
            if tuple(token.text for token in tokens[position : position + length]) in self._table:
                return length
        return 0

    def _is_shown(self, caption: str, tokens: Sequence[_Word], position: int, length: int) -> bool:
        """Whether the caption says that the thing is there, in the sense of the class."""
        return not (
            _is_negated(tokens, position)
            or _describes_animal(tokens, position, length)
            or self._is_colour(caption, tokens, position, length)
        )

    def _is_colour(self, caption: str, tokens: Sequence[_Word], position: int, length: int) -> bool:
        """Whether a class word that is a colour too describes the next word here ("an orange cat")."""
        if tuple(token.text for token in tokens[position : position + length]) not in self._colours:
            return False
        if position > 1 and tokens[position - 1].text == "and" and tokens[position - 2].text in words.COLOURS:
            return True
        following = tokens[position + length : position + length + 2]
        if not following or caption[tokens[position].stop : following[0].start].strip(" "):
            return False
        if following[0].text == "and" and len(following) == 2 and following[1].text in words.COLOURS:
            return True
        return following[0].text not in words.NOUN_FOLLOWERS


def _is_negated(tokens: Sequence[_Word], position: int) -> bool:
    """Whether "no", "without" or "without any" comes directly before."""
    before = [token.text for token in tokens[max(position - 2, 0) : position]]
    if before and before[-1] == "any":
        before.pop()
    return bool(before) and before[-1] in words.NEGATIONS


def _describes_animal(tokens: Sequence[_Word], position: int, length: int) -> bool:
    """Whether an age word is meant for an animal: "a mother and baby elephant", "a zebra with its baby"."""
    if length != 1 or tokens[position].text not in words.AGE_WORDS:
        return False
    concepts = concept_table()

    def animal(start: int, size: int) -> bool:
        return concepts.get(tuple(token.text for token in tokens[start : start + size])) in words.ANIMALS

    if position + 2 < len(tokens) and tokens[position + 1].text in ("and", "or"):
        return any(animal(position + 2, size) for size in (1, 2, 3))
    owned = position > 0 and tokens[position - 1].text in words.OWNERS
    return owned and any(animal(start, size) for start in range(position) for size in (1, 2))


def agreement(pairs: Iterable[tuple[Iterable[str], Iterable[str]]]) -> dict[str, float]:
    """Micro-averaged precision and recall of found classes against true ones.

    Args:
        pairs: (found, true) class names per image or caption.

    Returns:
        ``precision``, ``recall`` (0 to 1; 1 where nothing is found or nothing is there) and the counts
        ``true_positive``, ``false_positive``, ``false_negative``.
    """
    hit = wrong = missed = 0
    for found, true in pairs:
        a, b = set(found), set(true)
        hit += len(a & b)
        wrong += len(a - b)
        missed += len(b - a)
    return {
        "precision": hit / (hit + wrong) if hit + wrong else 1.0,
        "recall": hit / (hit + missed) if hit + missed else 1.0,
        "true_positive": hit,
        "false_positive": wrong,
        "false_negative": missed,
    }
