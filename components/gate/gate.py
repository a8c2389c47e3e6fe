"""Judge stored scores and write the verdict with its plot."""

from __future__ import annotations

import base64
import json
from html import escape
from pathlib import Path

import pandas as pd
from securesystemslib.signer import Signer

from components.gate.pareto import draw_pareto
from components.gate.settings import GateSettings
from components.gate.verdict import Ruling, decide
from lineage.digests import LineageError, digest_path
from lineage.entries import Judged
from lineage.statements import VERDICT, VERDICT_FILE, make_statement, write_statement


def judge(
    settings: GateSettings, scores: Path, verdict: Path, pareto: Path, run: str, signer: Signer
) -> tuple[Ruling, Judged]:
    """Rule on the scores folder that evaluate wrote.

    Writes ``verdict`` (a folder with `VERDICT_FILE`, a signed in-toto Statement, and ``pareto.png``) and ``pareto``
    (HTML). Gives the ruling, and what the ledger is to say of it.

    Raises:
        LineageError: the scores are not those that ``evaluation.json`` names.
    """
    evaluation = json.loads((scores / "evaluation.json").read_text())
    table_digest = digest_path(scores / "scores.parquet")
    if table_digest != evaluation["scores"]:
        raise LineageError(f"{scores / 'scores.parquet'} is not the table that evaluation.json names; evaluate anew")
    table = pd.read_parquet(scores / "scores.parquet")
    ruling = decide(table, evaluation["evaluation_set"].pop("prompts"), settings)
    statement = make_statement(
        VERDICT,
        {"candidate": evaluation["candidate"]["digest"]},
        {
            "run": run,
            **ruling.model_dump(mode="json"),
            "evaluation": evaluation,
            "gate": settings.model_dump(mode="json"),
        },
    )
    verdict.mkdir(parents=True, exist_ok=True)
    digest = write_statement(statement, verdict / VERDICT_FILE, signer)
    draw_pareto(ruling, verdict / "pareto.png")
    image = base64.b64encode((verdict / "pareto.png").read_bytes()).decode()
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in ruling.reasons)
    pareto.write_text(
        f'<h2>{ruling.decision}</h2><ul>{reasons}</ul><img alt="three axes" src="data:image/png;base64,{image}">\n'
    )
    judged = Judged(
        run=run,
        candidate=evaluation["candidate"]["digest"],
        incumbent=evaluation["incumbent"]["digest"],
        decision=ruling.decision,
        verdict=digest,
    )
    return ruling, judged
