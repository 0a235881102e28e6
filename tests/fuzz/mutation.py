"""What damages a text: bytes flipped, cut, doubled, moved; words that parsers stumble on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

LARGEST_BYTES = 1 << 16

ODDITIES = (
    *(
        b"\0",
        b"\xff",
        b"\xc0\x80",
        b"\xed\xa0\x80",
        b"\xf4\x90\x80\x80",
        b"\xef\xbb\xbf",
        b"\x1b[31m",
    ),
    *(b"\xc2\x85", b"\xe2\x80\xa8", b"\xe2\x80\xae", b"\xc2\xa0", b"\xd9\xa3", b"\xf0\x9f\x98\x80"),
    *(
        b"\r",
        b"\r\n",
        b"\n\n",
        b"\t",
        b"\x0b",
        b"\x0c",
        b"\x7f",
        b" " * 40,
        b"\\",
        b"'",
        b'"',
        b"`",
    ),
    *(b"-1", b"0", b"-0", b"+1", b"1e9", b"1e999", b"nan", b"inf", b"0x10", b"010", b"1_000"),
    *(
        b"9" * 30,
        b"9" * 5000,
        b"18446744073709551616",
        b"9223372036854775807",
        b"0.1",
        b".5",
        b"1.",
    ),
)
"""What is a surprise anywhere."""


@dataclass(frozen=True)
class _Damage:
    """Where a text is damaged, and with what."""

    rng: Random
    text: bytes
    start: int
    end: int
    words: Sequence[bytes]
    others: Sequence[bytes]

    def put(self, content: bytes, *, over: bool = False) -> bytes:
        """The text with some content in it, before what was there or in its place."""
        return self.text[: self.start] + content + self.text[self.end if over else self.start :]


def mutate(
    rng: Random, text: bytes, words: Sequence[bytes] = (), others: Sequence[bytes] = ()
) -> bytes:
    """The text with one to a few damages; ``words`` are the format's, ``others`` texts like it."""
    for _ in range(1 + min(int(rng.expovariate(0.7)), 8)):
        start = rng.randrange(len(text) + 1)
        end = min(len(text), start + 1 + int(rng.expovariate(0.15)))
        text = rng.choice(_DAMAGES)(_Damage(rng, text, start, end, words, others))
    return text[:LARGEST_BYTES]


def _flipped(here: _Damage) -> bytes:
    if here.start == len(here.text):
        return here.text
    flipped = here.text[here.start] ^ (1 << here.rng.randrange(8))
    return here.text[: here.start] + bytes([flipped]) + here.text[here.start + 1 :]


def _cut_out(here: _Damage) -> bytes:
    return here.put(b"", over=True)


def _cut_off(here: _Damage) -> bytes:
    return here.text[: here.start]


def _repeated(here: _Damage) -> bytes:
    times = here.rng.choice((2, 2, 3, 17, 200))
    return here.put(here.text[here.start : here.end] * times, over=True)


def _with_oddity(here: _Damage) -> bytes:
    return here.put(here.rng.choice(ODDITIES), over=here.rng.random() < _EVERY_SECOND)


def _with_word(here: _Damage) -> bytes:
    return here.put(here.rng.choice(here.words or ODDITIES), over=here.rng.random() < _EVERY_SECOND)


def _with_bytes(here: _Damage) -> bytes:
    return here.put(here.rng.randbytes(here.rng.randrange(1, 6)), over=True)


def _joined(here: _Damage) -> bytes:
    other = here.rng.choice(here.others or (here.text,))
    return here.text[: here.start] + other[here.rng.randrange(len(other) + 1) :]


def _moved_line(here: _Damage) -> bytes:
    """A line doubled, dropped, indented anew, or swapped with another."""
    lines = here.text.split(b"\n")
    one, other = here.rng.randrange(len(lines)), here.rng.randrange(len(lines))
    kind = here.rng.choice(("double", "drop", "indent", "swap"))
    if kind == "double":
        lines.insert(other, lines[one])
    elif kind == "drop":
        del lines[one]
    elif kind == "indent":
        lines[one] = b" " * here.rng.randrange(6) + lines[one].lstrip()
    else:
        lines[one], lines[other] = lines[other], lines[one]
    return b"\n".join(lines)


_EVERY_SECOND = 0.5
_DAMAGES: tuple[Callable[[_Damage], bytes], ...] = (
    *(_flipped, _cut_out, _cut_off, _repeated, _with_bytes, _joined, _moved_line),
    *(_with_oddity, _with_oddity, _with_word, _with_word, _with_word),
)
