"""Makes the goldens of the released slow tokenizer for tests/text: a small model, and ids of odd strings.

The ids are those of transformers' slow ``LlamaTokenizer``, which version 5 removed, so this needs its own environment:

python -m venv /tmp/goldens && /tmp/goldens/bin/pip install transformers==4.57.6 sentencepiece==0.2.3 protobuf
/tmp/goldens/bin/python scripts/make_tokenizer_goldens.py

It writes tests/text/goldens/released-small.model (trained on the texts of tests/text/odd_strings.py) and
released-small.json: versions, and the text and ids of each string. Every run writes the same two files.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import sentencepiece
import transformers

TESTS = Path(__file__).resolve().parents[1] / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "text")]

from odd_strings import odd_strings, train_sentencepiece, training_texts  # noqa: E402
from released_files import NUM_PIECES, SMALL_MODEL, write_released_tokenizer  # noqa: E402

NUM_STRINGS = 2000
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


def prompts() -> list[str]:
    """Whole conversations as the released template renders them."""
    first = (
        f"<|system|>\n{SYSTEM}<|end|>\n<|user|>\n<image>\nWhich way does the red circle turn?<|end|>\n<|assistant|>\n"
    )
    further = "It turns left.<|end|>\n<|user|>\n  How many times?\n<|end|>\n<|assistant|>\n"
    return [first, first + further, further, first.partition("<|end|>\n")[2]]


def main() -> None:
    """Writes the two files."""
    train_sentencepiece(SMALL_MODEL, training_texts(), NUM_PIECES)
    with tempfile.TemporaryDirectory() as folder:
        write_released_tokenizer(Path(folder))
        tokenizer = transformers.LlamaTokenizer.from_pretrained(folder, legacy=False)
    texts = [*prompts(), *odd_strings(NUM_STRINGS, seed=1)]
    goldens = {
        "made_by": {"transformers": transformers.__version__, "sentencepiece": sentencepiece.__version__},
        "special": sorted(tokenizer.all_special_tokens),
        "ids": [[text, tokenizer(text).input_ids] for text in texts],
    }
    path = SMALL_MODEL.with_suffix(".json")
    rows = ",\n".join(json.dumps(row, separators=(",", ":")) for row in goldens.pop("ids"))
    path.write_text(f'{json.dumps(goldens)[:-1]}, "ids": [\n{rows}\n]}}\n', "ascii")
    print(
        f"{path}: {len(texts)} strings, {path.stat().st_size} bytes; {SMALL_MODEL}: {SMALL_MODEL.stat().st_size} bytes"
    )


if __name__ == "__main__":
    main()
