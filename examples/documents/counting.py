"""Words, sentences, language and a summary of a text, by simple means."""

from __future__ import annotations

import re
from collections import Counter

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_PARAGRAPH_END = re.compile(r"\n\s*\n")
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+")

#: The commonest words of a language: they tell which one it is, and nothing about the subject.
_COMMON = {
    "English": "the of and to in a is that for it as was with be by on not or this are from at "
    "which you any but have if all such may has no other use its we will your their an can must "
    "should would does do so than these those there they them were been each when what who how "
    "about into more only some then under also our his her he she i my out up over however",
    "German": "der die das und in zu den von mit ist des sich auf für nicht ein eine als auch es "
    "an werden aus er hat dass sie nach wird bei einer um am sind noch wie einem über so zum oder "
    "haben nur war durch wenn",
    "French": "le la les de des et un une du en est que qui dans pour pas sur au par ce plus ne se "
    "avec sont il elle ou aux cette ses être vous nous mais comme leur fait",
    "Spanish": "el la los las de que y en un una es por con para no se del lo al como más o su sus "
    "pero este esta son entre cuando muy sin sobre también",
    "Italian": "il lo la gli le di che e un una è per con non si del della dei nel come più o ma "
    "anche sono alla al questo questa da",
    "Dutch": "de het een van en in is dat op te zijn met voor niet aan er om door ook bij als maar "
    "dan naar uit over wordt deze",
}
_COMMON_WORDS = {name: frozenset(words.split()) for name, words in _COMMON.items()}
_COMMON_ANYWHERE = frozenset().union(*_COMMON_WORDS.values())
#: Below this share of common words a text is in no language that is known here.
_LEAST_SHARE = 0.1
#: Letters that a word must have to say something about the subject.
_TERM_LETTERS = 4

_SUMMARY_SENTENCES = 2
_SUMMARY_WORDS = range(6, 41)
_LEAST_SHARE_OF_PROSE = 0.3


def words(text: str) -> list[str]:
    return _WORD.findall(text)


def sentences(text: str) -> list[str]:
    """The sentences, each in one line; a paragraph's end also ends a sentence."""
    pieces = (
        " ".join(piece.split())
        for paragraph in _PARAGRAPH_END.split(text)
        for piece in _SENTENCE_END.split(paragraph)
    )
    return [piece for piece in pieces if _WORD.search(piece)]


def language(words: list[str]) -> str:
    """The language whose common words are the most frequent here, or ``unknown``."""
    counts = Counter(word.lower() for word in words)
    hits = {name: sum(counts[word] for word in common) for name, common in _COMMON_WORDS.items()}
    best = max(hits, key=lambda name: hits[name])
    return best if words and hits[best] / len(words) >= _LEAST_SHARE else "unknown"


def terms(words: list[str]) -> Counter[str]:
    """How often each word occurs that tells something about the subject."""
    lower = (word.lower() for word in words if len(word) >= _TERM_LETTERS)
    return Counter(word for word in lower if word not in _COMMON_ANYWHERE)


def summary(text: str) -> str:
    """The sentences with the most frequent terms, in the order of the text."""
    weights = terms(words(text))
    scores = {}
    for place, sentence in enumerate(sentences(text)):
        found = [word.lower() for word in words(sentence)]
        if sentence not in scores and _is_prose(sentence, found):
            score = sum(weights[word] for word in found) / len(found)
            scores[sentence] = (score, -place)
    best = sorted(scores, key=lambda sentence: scores[sentence], reverse=True)
    chosen = sorted(best[:_SUMMARY_SENTENCES], key=lambda sentence: -scores[sentence][1])
    return " ".join(chosen)


def _is_prose(sentence: str, words: list[str]) -> bool:
    """Whether it reads as a sentence: no heading, no list of names, no table."""
    common = sum(word in _COMMON_ANYWHERE for word in words)
    return (
        len(words) in _SUMMARY_WORDS
        and sentence[0].isupper()
        and sentence[-1] in ".!?"
        and common / len(words) >= _LEAST_SHARE_OF_PROSE
    )
