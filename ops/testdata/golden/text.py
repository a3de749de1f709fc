"""Cases of the operators on strings; results from ONNX Runtime."""
import numpy as np
from golden import run, write

cases = []
add = lambda *a, **k: cases.append(run(*a, **k))
s = lambda *v: np.array(v, object)
add("StringConcat", [s("a", "b", "ü").reshape(3, 1), s("x", "").reshape(1, 2)], opset=20)
for x in (s("a b  c", " lead", "", "tail ", "one").reshape(5),):
    add("StringSplit", [x], 2, opset=20, name="split at space")
    add("StringSplit", [x], 2, opset=20, maxsplit=1, name="split once")
    add("StringSplit", [x[[0, 1, 3, 4]]], 2, opset=20, delimiter=" ", name="split at delimiter")  # "" gives no part there, one in Python
    add("StringSplit", [s("a--b---c", "--", "x")], 2, opset=20, delimiter="--", maxsplit=1, name="split at dashes")
add("RegexFullMatch", [s("abc", "ab", "xabc", "abcabc")], pattern="(abc)+", opset=20)
words = s("Monday", "tuesday", "THURSDAY", "Monday")
for action in ("NONE", "LOWER", "UPPER"):
    for sensitive in (0, 1):
        add("StringNormalizer", [words], case_change_action=action, is_case_sensitive=sensitive, stopwords=["monday", "THURSDAY"], locale="C",
            name=f"normalize {action} {sensitive}")
add("StringNormalizer", [s("x", "y").reshape(1, 2)], is_case_sensitive=1, stopwords=["x", "y"], locale="C", name="normalize to nothing")
ids = np.array([[1, 1, 3, 3, 3, 7], [8, 6, 7, 5, 6, 8]], np.int64)
for mode in ("TF", "IDF", "TFIDF"):
    for skips in (0, 2):
        add("TfIdfVectorizer", [ids], mode=mode, min_gram_length=1, max_gram_length=2, max_skip_count=skips, ngram_counts=[0, 4],
            ngram_indexes=[0, 1, 2, 3, 4, 5, 6], pool_int64s=[2, 3, 5, 4, 5, 6, 7, 8, 6, 7], weights=[2.0, 3, 4, 5, 6, 7, 8], name=f"{mode} {skips}")
        add("TfIdfVectorizer", [s("a", "b", "a", "c", "b", "c")], mode=mode, min_gram_length=1, max_gram_length=3, max_skip_count=skips, ngram_counts=[0, 2, 6],
            ngram_indexes=[4, 0, 1, 2, 3], pool_strings=["a", "b", "a", "b", "b", "c", "a", "c", "c"], name=f"words {mode} {skips}")
write("text.json", cases)
