"""The public surface uses the field's terms: no former word in docs, settings, messages, docstrings or captions.

Only docs/glossary.md and larosa/config/former_names.py name former words. The list holds words that have no other use;
`limit`, `code` or `gate` do, and are not here.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import ROOT

FORMER = {
    r"turned": "rotated",
    r"unturned": "unrotated",
    r"dials?": "level override",
    r"no number": "NaN",
    r"whole numbers?": "integers",
    r"tokens made sparse": "token policy",
    r"work ?bench": "session",
    r"byte-weighted": "weight sparsity",
    r"level asked|asked level|level_asked": "target sparsity",
    r"paper_count": "nominal sparsity",
    r"extras|extras_share": "overhead",
    r"net bytes": "bytes read, overhead included",
    r"realised": "achieved",
    r"left out": "excluded",
    r"fan[ _-]?out": "out_features",
    r"on (a|the|its) grid|quantised grid|decoder's grids?": "quantised, a format",
    r"explicit (form|transforms?|rotations?)|form=explicit": "online",
    r"larosa/blocks|blocks of 64 channels": "larosa/block_diagonal, block size 64",
    r"calibrated limits?|by limits?|limits of all levels": "thresholds",
    r"keep_weights": "dense_weights_device",
    r"transform_storage": "transform_dtype",
    r"rank_share|rank_search": "low_rank_ratio",
    r"first_token_weight": "attention_sink_weight",
    r"gate_tokens|correctness gate": "parity check",
    r"shaped_by": "identity_inputs",
    r"nats a token|a token's bytes|tokens a second": "per token, per second",
}
PATTERN = re.compile(rf"(?<![\w-])({'|'.join(FORMER)})(?![\w-])", re.IGNORECASE)
EXCEPTED = {"docs/glossary.md", "larosa/config/former_names.py"}
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SETTINGS = sorted(path for folder in ("conf", "sweeps") for path in (ROOT / folder).rglob("*.yaml"))
MODULES = sorted(path for folder in ("larosa", "analysis/larosa_analysis") for path in (ROOT / folder).rglob("*.py"))


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a page; of a module its strings, docstrings among them."""
    content = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        yield from enumerate(content.splitlines(), 1)
        return
    for node in ast.walk(ast.parse(content)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


@pytest.mark.parametrize("paths", [PAGES, SETTINGS, MODULES], ids=["pages", "settings", "modules"])
def test_no_former_word(paths: list[Path]) -> None:
    assert paths
    found = [
        f"{name(path)}:{line}: {match[0]!r}, say {instead(match[0])}"
        for path in paths
        if name(path) not in EXCEPTED
        for line, text in texts(path)
        for match in PATTERN.finditer(text)
    ]
    assert found == []


def instead(word: str) -> str:
    return next(term for former, term in FORMER.items() if re.fullmatch(former, word, re.IGNORECASE))


def test_the_pattern_finds_what_it_should() -> None:
    for text in (
        "what is turned, then rounded",
        "one dial a site",
        "+1 % net bytes",
        "read, net bytes",
        "Extras: none",
    ):
        assert PATTERN.search(text), text
    for text in ("it returned", "re-turned", "extra", "an extras-require key"):
        assert not PATTERN.search(text), text
