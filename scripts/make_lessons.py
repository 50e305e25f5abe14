"""Make the lessons of the page anew: five answers of real runs, with a sentence for each pass.

    python scripts/make_lessons.py [PAIR] [--output FILE]

Answers are measured as a race of the page does, one after the other, and kept as the browser replays them.
"""

import argparse
import asyncio
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evaluation.answers.files import any_path, write_whole
from evaluation.page.asked import Race
from evaluation.page.files import LESSONS
from evaluation.page.races import Races, about
from methods.errors import CommandParser, RunError, command_line

Json = dict[str, Any]
LISTED = 8  # drafts that a sentence names


@dataclass(frozen=True)
class Lesson:
    name: str
    title: str
    intro: str
    method: str
    prompt: str
    most: int


LIST = "Repeat this list, then repeat it in reverse order: apple, pear, plum, cherry, quince, peach."
STORY = "Write a short story about a lighthouse keeper."
LESSONS_TAUGHT = (
    Lesson(
        "One by one",
        "A pass gives one token",
        "A language model, here the target, writes its answer from left to right. This is plain decoding, the baseline "
        "that every method is measured against.",
        "autoregressive",
        "Why is the sky blue? Answer in one sentence.",
        24,
    ),
    Lesson(
        "A window",
        "Draft a window, then verify it",
        "A pass takes about as long for six tokens as for one, because it waits for memory, not for arithmetic. So a "
        "cheap draft model runs ahead, and the target checks what it said all at once: speculative decoding.",
        "sps@gamma=6",
        STORY,
        48,
    ),
    Lesson(
        "Copying",
        "A draft without a model",
        "Drafts may come from anywhere, for the target checks them all. Prompt lookup copies what followed the last "
        "words when they occurred before: it costs nothing, and pays where a text repeats itself.",
        "pld",
        LIST,
        56,
    ),
    Lesson(
        "A tree",
        "Several guesses for one place",
        "A small head on the target's own state guesses the next tokens, and where it is unsure, several for the same "
        "place. The pass scores the whole tree, and the target follows the path that it agrees with.",
        "eagle2@nodes=10@depth=4",
        STORY,
        40,
    ),
    Lesson(
        "PEARL",
        "Draft while verifying",
        "Draft-then-verify has each of the two wait for the other. PEARL gives each a rank of its own: the draft "
        "drafts all the time, the target verifies all the time.",
        "pearl@gamma=4",
        STORY,
        56,
    ),
)


def quoted(text: str) -> str:
    """A token within a sentence."""
    shown = text.replace("\n", "⏎").replace("\t", "⇥")
    return f"“{shown.strip(' ') or '␣'}”"


def listed(texts: list[str]) -> str:
    more = f" and {len(texts) - LISTED} more" if len(texts) > LISTED else ""
    return " ".join(map(quoted, texts[:LISTED])) + more


def counted(number: int, thing: str) -> str:
    plural = "es" if thing.endswith("s") else "s"
    return f"{number or 'no'} {thing}{'' if number == 1 else plural}"


def _kept(kept: int) -> str:
    return f"{kept} kept" if kept else "None kept"


def sentences(loop: str, passes: list[Json]) -> list[str]:
    """What each pass did, in a sentence or two; what is new is explained where it happens first."""
    telling = {"alone": _alone, "turns": _turns, "pearl": _pearl}[loop]
    seen: set[str] = set()
    said = [_prefill(passes[0]), *(telling(each, seen) for each in passes[1:])]
    return [*said[:-1], f"{said[-1]} {_end(passes)}"]


def _prefill(each: Json) -> str:
    return (
        "The target reads the whole prompt in one pass, the prefill, and decides the first token of the answer: "
        f"{quoted(each['t'][0][1])}."
    )


def _end(passes: list[Json]) -> str:
    tokens = sum(len(each["t"]) for each in passes)
    mat = tokens / len(passes)
    return f"So {counted(tokens, 'token')} took {counted(len(passes), 'pass')}: {mat:.2f} tokens per pass, the MAT."


def _first(what: str, seen: set[str], explanation: str, later: str = "") -> str:
    if what in seen:
        return later
    seen.add(what)
    return explanation


def _alone(each: Json, seen: set[str]) -> str:
    token = quoted(each["t"][0][1])
    return _first(
        "pass",
        seen,
        f"One pass of the target decides one token, {token}. For it all of the model's weights are read from memory, "
        "and that is what takes the time.",
        f"Again one pass, one token: {token}.",
    )


def _turns(each: Json, seen: set[str]) -> str:
    own = quoted(each["t"][-1][1])
    if not each["d"]:
        return _first(
            "nothing",
            seen,
            f"Nothing is drafted here, so this is an ordinary pass: one token of the target's own, {own}. No draft, no "
            "gain, and hardly a cost.",
            f"Nothing drafted: one token of the target's own, {own}.",
        )
    return f"{_proposed(each, seen)} {_judged(each, seen, own)}"


def _proposed(each: Json, seen: set[str]) -> str:
    drafts = each["g"]
    if "p" in drafts:
        return _first(
            "tree",
            seen,
            f"The head guessed {counted(each['d'], 'token')} as a tree: the branches are alternatives for one place. "
            "One pass scored them all.",
            f"A tree of {counted(each['d'], 'guess')}.",
        )
    return _first(
        "window",
        seen,
        f"{counted(each['d'], 'token')} are drafted, {listed(drafts['x'])}: that is the window. The target scores them "
        "in one pass, and so learns what it would have said in each place.",
        f"Drafted: {listed(drafts['x'])}.",
    )


def _judged(each: Json, seen: set[str], own: str) -> str:
    kept, drafted = each["a"], each["d"]
    if "p" in each["g"]:
        return _followed(each, seen, own)
    if kept == drafted:
        return _first(
            "all",
            seen,
            f"It would have said the same everywhere, so all are kept, and the pass has decided one more, {own}: "
            f"{counted(len(each['t']), 'token')} for one pass.",
            f"All kept, and {own} behind them.",
        )
    wrong = quoted(each["g"]["x"][kept])
    agreed = f"The first {kept} {'is' if kept == 1 else 'are'} kept, but " if kept else ""
    return _first(
        "rejection",
        seen,
        f"{agreed}{wrong} is not what it would have said: it is rejected, with all behind it, and the target's own "
        f"token stands in its place, {own}: the correction. So the answer is exactly what the target alone writes.",
        f"{_kept(kept)}, {wrong} rejected; the correction is {own}.",
    )


def _followed(each: Json, seen: set[str], own: str) -> str:
    path = listed(
        [
            text
            for text, node in zip(each["g"]["x"], range(1, len(each["g"]["x"]) + 1), strict=True)
            if node in each["g"]["k"]
        ]
    )
    if not each["a"]:
        return _first(
            "no path",
            seen,
            f"None of them is what the target would have said, which is {own}: this tree was for nothing.",
            f"None kept: the target says {own}.",
        )
    return _first(
        "path",
        seen,
        f"The target follows the branch that it agrees with, {path}, and adds {own} of its own.",
        f"Kept: {path}, then {own}.",
    )


def _pearl(each: Json, seen: set[str]) -> str:
    ready, kept, drafted = each["n"] - 1, each["a"], each["d"]
    own = quoted(each["t"][-1][1])
    if ready == 0:
        begin = _first(
            "pre-verify",
            seen,
            "Nothing is drafted yet. The target scores the last token alone, and at the same time, on another rank, "
            "the draft drafts a window. Its first token is then judged by the row that the target has just computed: "
            "this is pre-verify, for it was judged before the window was verified.",
            "Behind a rejection nothing is drafted: pre-verify again.",
        )
        end = f"{own} is kept." if kept else f"It was not what the target says, {own}, so the window is void."
        return f"{begin} {end}"
    begin = _first(
        "post-verify",
        seen,
        f"Now {counted(ready, 'drafted token')} wait for their verdict. While the target scores them, the draft does "
        "not wait: it drafts the next window behind them. This is post-verify, and neither rank stands still.",
        f"Post-verify of {listed(each['g']['x'][:ready])}, while the next window is drafted.",
    )
    if kept == drafted:
        end = _first(
            "all of pearl",
            seen,
            "All are kept, and the first token of the next window with them: the draft was right to go on.",
            "All are kept, and the first of the next window." if kept > 1 else "It is kept.",
        )
        return f"{begin} {end}"
    end = _first(
        "rejection of pearl",
        seen,
        f"{_kept(kept)}; then the target says {own}. What was drafted behind it meanwhile is void: that "
        "is the price of not waiting.",
        f"{_kept(kept)}, then the target says {own}.",
    )
    return f"{begin} {end}"


async def _answer(races: Races, lesson: Lesson) -> Json:
    """The lane of a race of one method, as the browser has it."""
    lane: Json = about(lesson.method) | {"passes": []}
    asked = Race(methods=[lesson.method], prompt=lesson.prompt, max_new_tokens=lesson.most)
    async for event in await races.race(asked):
        match event["type"]:
            case "passes":
                lane["passes"] += event["passes"]
            case "answer":
                lane |= {key: event[key] for key in ("wall", "prefill", "finish")}
            case "chances":
                lane["p"] = event["p"]
            case "end" | "refused" if event["error"]:
                raise RunError(f"{lesson.method} gave no answer: {event['error']}")
    return lane


async def _lessons(races: Races) -> list[Json]:
    made = []
    for lesson in LESSONS_TAUGHT:
        lane = await _answer(races, lesson)
        told = {"name": lesson.name, "title": lesson.title, "intro": lesson.intro, "prompt": lesson.prompt}
        made.append(told | {"answer": lane, "says": sentences(lane["loop"], lane["passes"])})
        print(f"{lesson.method}: {len(lane['passes'])} passes", file=sys.stderr)
    await races.close()
    return made


def main() -> int:
    parser = CommandParser(description="Make the page's lessons from real runs.")
    parser.add_argument("pair", nargs="?", default="smollm2-135m")
    parser.add_argument("--output", type=any_path, default=LESSONS)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each rank (default 1)")
    options: argparse.Namespace = parser.parse_args()
    races = Races([options.pair, "--threads", str(options.threads)])
    lessons = asyncio.run(_lessons(races))
    document = {"pair": options.pair, "dtype": races.config.dtype, "lessons": lessons}
    write_whole(Path(options.output), json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")
    return 0


if __name__ == "__main__":
    command_line(main)
