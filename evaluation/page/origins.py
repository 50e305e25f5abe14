"""Where each token of an answer came from, by the counts of its pass: no text is compared. Pure.

One letter for each token: p, decided by the prefill; k, a kept draft; of PEARL b, one that was verified before its own
row was scored (pre-verify), or a, one whose row was scored after it had been drafted (post-verify); c, the target's own
token in a pass that rejected drafts; o, the target's own in one that rejected none.
"""

PREFILL, KEPT, PRE_VERIFIED, POST_VERIFIED, CORRECTION, OWN = "pkbaco"
PEARL = "pearl"  # a loop


def origins(loop: str | None, tokens: int, drafted: int, accepted: int, nodes: int, prefill: bool) -> str:
    """The letters of the first `tokens` tokens of a pass, which may be cut at the answer's end.

    `nodes`: rows that it scored, of PEARL the pending token's and those of the drafts that were there when it began.
    Another library's loop does not tell what was drafted: of its passes the last token is the target's own."""
    if prefill:
        return PREFILL * tokens
    kept = accepted if drafted else tokens - 1
    own = CORRECTION if drafted > accepted else OWN
    if loop != PEARL:
        return (KEPT * kept + own)[:tokens]
    scored = min(kept, nodes - 1)
    return (POST_VERIFIED * scored + PRE_VERIFIED * (kept - scored) + own)[:tokens]
