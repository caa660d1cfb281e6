"""BERT's tokens: lower-case words without accents, in the longest pieces that a vocabulary has."""

import re
import unicodedata

import numpy as np

_LONGEST = 100  # letters of a word; a longer one is unknown
_WORD = re.compile(r"\w+|[^\w\s]")


class WordPiece:
    """Sentences as numbers of tokens, for a vocabulary: a list of pieces.

    Chinese characters, which BERT takes for words of their own, are not told apart here.
    """

    def __init__(self, vocabulary):
        self.numbers = {piece: i for i, piece in enumerate(vocabulary)}

    def __call__(self, sentences, length):
        """`(tokens, mask)` of shape `[sentences, length]`; what is too long is cut."""
        tokens = np.full((len(sentences), length), self.numbers["[PAD]"], np.int32)
        mask = np.zeros_like(tokens)
        for i, sentence in enumerate(sentences):
            inner = [piece for word in words(sentence) for piece in self.pieces(word)]
            row = ["[CLS]", *inner[: length - 2], "[SEP]"]
            tokens[i, : len(row)] = [self.numbers[piece] for piece in row]
            mask[i, : len(row)] = 1
        return tokens, mask

    def pieces(self, word):
        """A word as pieces; those after the first begin with `##`."""
        found, start = [], 0
        while start < len(word) <= _LONGEST:
            ends = range(len(word), start, -1)
            tried = (("##" if start else "") + word[start:end] for end in ends)
            piece = next((x for x in tried if x in self.numbers), None)
            if piece is None:
                break
            found.append(piece)
            start += len(piece.removeprefix("##") if start else piece)
        return found if start == len(word) else ["[UNK]"]


def words(sentence):
    """Its words and signs, in lower case and without accents."""
    plain = unicodedata.normalize("NFD", sentence.lower())
    plain = "".join(x for x in plain if unicodedata.category(x) != "Mn")
    return _WORD.findall(plain.replace("_", " _ "))
