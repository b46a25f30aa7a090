"""Measure the memory and time that preparing as many pairs as UltraFeedback has takes.

    python -m bench.prepare_memory [--rows 60917] [--tokenizer openai-community/gpt2]

The rows are words from docs/design.md in argilla's columns, as long as those of UltraFeedback:
log-normal, with the median and the 95th percentile measured on the first 800 rows of the real set.
"""

import argparse
import re
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from transformers import GPT2TokenizerFast

from trainables.data.preferences import prepare_pairs
from trainables.data.sources import load_rows

PROMPT = (81, 375)  # tokens: median and 95th percentile
ANSWER = (362, 932)
TOKENS_PER_WORD = 1.14  # of the words below, in GPT-2's tokens
Z95 = 1.645  # of the normal distribution
PROSE = Path(__file__).parents[1] / "docs" / "design.md"


def write_rows(path: Path, count: int, seed: int = 0) -> None:
    """Write `count` made-up rows to a parquet file, a thousand at a time."""
    rng = np.random.default_rng(seed)
    words = np.array(re.findall(r"[A-Za-z]+", PROSE.read_text(encoding="utf-8")))

    def text(quantiles: tuple[int, int]) -> str:
        median, p95 = quantiles
        tokens = rng.lognormal(np.log(median), np.log(p95 / median) / Z95)
        return " ".join(rng.choice(words, max(1, round(tokens / TOKENS_PER_WORD))))

    message = pa.struct([("content", pa.string()), ("role", pa.string())])
    schema = pa.schema(
        [
            ("prompt", pa.string()),
            ("chosen", pa.list_(message)),
            ("rejected", pa.list_(message)),
            ("chosen-rating", pa.float64()),
        ]
    )
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, count, 1000):
            rows = []
            for _ in range(min(1000, count - start)):
                prompt = text(PROMPT)
                asked = {"role": "user", "content": prompt}
                good, bad = ({"role": "assistant", "content": text(ANSWER)} for _ in range(2))
                rows.append({"prompt": prompt, "chosen": [asked, good], "rejected": [asked, bad]})
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))


def peak_gb() -> float:
    """Return the largest resident memory this process ever had, GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # Linux counts in kB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=60_917)
    parser.add_argument("--tokenizer", default="openai-community/gpt2", help="Hub id or folder")
    options = parser.parse_args()
    tokenizer = GPT2TokenizerFast.from_pretrained(options.tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        raw, out = Path(folder) / "raw.parquet", Path(folder) / "out"
        out.mkdir()
        write_rows(raw, options.rows)
        before = peak_gb()
        started, busy = time.monotonic(), time.process_time()
        rows = load_rows(str(raw)).data
        loaded = peak_gb()
        report = prepare_pairs(
            rows,
            tokenizer,
            max_length=1024,
            test_fraction=0.2,
            validation_pairs=min(1024, options.rows // 10),
            seed=42,
            out=out,
        )
        seconds, cpu = time.monotonic() - started, time.process_time() - busy
        written = sum(file.stat().st_size for file in out.glob("*.parquet"))
    train = report["splits"]["train"]
    for name, value in {
        "rows": options.rows,
        "raw rows, train / test": f"{train['raw']:,} / {report['splits']['test']['raw']:,}",
        "prompt tokens, median / p95": "{median} / {p95}".format(**train["prompt_tokens"]),
        "answer tokens, median / p95": "{median} / {p95}".format(**train["answer_tokens"]),
        "truncated at 1,024": f"{train['truncated']:.1%}",
        "peak memory before, GB": f"{before:.2f}",
        "peak memory with the raw rows, GB": f"{loaded:.2f}",
        "peak memory, GB": f"{peak_gb():.2f}",
        "seconds": f"{seconds:.0f}",
        "CPU seconds": f"{cpu:.0f}",
        "parquet written, MB": f"{written / 1e6:.0f}",
    }.items():
        print(f"{name:36}{value}")  # noqa: T201 (a script's output)


if __name__ == "__main__":
    main()
