"""Plain text out of MediaWiki markup: prose, headings and list items stay; the rest goes."""

from __future__ import annotations

import html
import re

_GONE = re.compile(
    r"<!--.*?-->|<ref[^<>]*/>|<ref.*?</ref>|<math.*?</math>|<gallery.*?</gallery>"
    r"|<timeline.*?</timeline>|<nowiki\s*/>|__[A-Z]+__",
    re.DOTALL | re.IGNORECASE,
)
_TEMPLATE = re.compile(r"\{\{[^{}]*\}\}")
_TABLE = re.compile(r"\{\|(?:(?!\{\||\|\}).)*\|\}", re.DOTALL)
_FILE_LINK = re.compile(r"\[\[(?:File|Image|Category|[a-z\-]{2,12}):[^\[\]]*\]\]", re.IGNORECASE)
_LINK = re.compile(r"\[\[(?:[^\[\]|]*\|)?([^\[\]|]*)\]\]")
_WEB_LINK = re.compile(r"\[(?:https?|ftp)://[^\s\]]*\s*([^\]]*)\]")
_TAG = re.compile(r"</?[a-zA-Z][^<>]*>")
_QUOTES = re.compile(r"'{2,5}")
_HEADING = re.compile(r"^=+\s*(.*?)\s*=+\s*$", re.MULTILINE)
_LIST_MARK = re.compile(r"^[*#:;]+\s*", re.MULTILINE)
_BLANKS = re.compile(r"[ \t]+$", re.MULTILINE)
_GAPS = re.compile(r"\n{3,}")
_MOST_NESTING = 12


def plain_text(markup: str) -> str:
    """The readable text of an article."""
    text = _without(_GONE, html.unescape(markup))
    text = _inside_out(_TEMPLATE, "", text)
    text = _inside_out(_TABLE, "", text)
    text = _inside_out(_LINK, r"\1", _inside_out(_FILE_LINK, "", _inner_links(text)))
    for pattern, kept in ((_WEB_LINK, r"\1"), (_TAG, ""), (_QUOTES, ""), (_HEADING, r"\1")):
        text = pattern.sub(kept, text)
    for pattern in (_LIST_MARK, _BLANKS):
        text = pattern.sub("", text)
    return _GAPS.sub("\n\n", text).strip()


def _inner_links(text: str) -> str:
    """Links inside an image's caption first, so that the image is then free of brackets."""
    plain = re.compile(r"\[\[(?!(?:File|Image):)(?:[^\[\]|]*\|)?([^\[\]|:]*)\]\]", re.IGNORECASE)
    return plain.sub(r"\1", text)


def _without(pattern: re.Pattern[str], text: str) -> str:
    return pattern.sub("", text)


def _inside_out(pattern: re.Pattern[str], kept: str, text: str) -> str:
    for _ in range(_MOST_NESTING):
        shorter = pattern.sub(kept, text)
        if shorter == text:
            break
        text = shorter
    return text
