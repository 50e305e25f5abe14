"""The server of the page: HTTP and server-sent events, of which a race is a stream."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse

from evaluation.launch.benchmarks import benchmarks_here, load_questions
from evaluation.page.asked import App, Guard, Race
from evaluation.page.files import LESSONS, STATIC
from evaluation.page.lanes import Json
from evaluation.page.races import Races
from evaluation.page.runs import Runs, compared
from methods import BASELINE, METHODS, MethodSpec, Option
from methods.errors import UserError

PARTS = ("race", "results", "learn")
Name = Annotated[str, Query(max_length=500)]
SHORT = 160  # characters of a question in a list


def create_app(races: Races, folder: Path, address: str, port: int) -> App:
    """The server for a pair, and the runs below a folder."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await races.close()

    app = FastAPI(openapi_url=None, lifespan=lifespan)
    _mistakes(app)
    _files(app)
    _race(app, races)
    _results(app, Runs(folder))
    _lessons(app)
    return Guard(app, address, port)


def _mistakes(app: FastAPI) -> None:
    @app.exception_handler(UserError)
    async def mistake(_: Request, error: UserError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, 400)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"][1:]))
        return JSONResponse({"error": f"{place}: {first['msg']}; correct the request"}, 422)


def _files(app: FastAPI) -> None:
    names = {path.name: path for path in STATIC.iterdir()}

    @app.get("/")
    async def page() -> FileResponse:
        return FileResponse(names["page.html"])

    @app.get("/static/{name}")
    async def file(name: str) -> FileResponse:
        if name not in names:
            raise HTTPException(404)
        return FileResponse(names[name])


def _race(app: FastAPI, races: Races) -> None:
    @app.get("/api/page")
    def page() -> Json:
        return {
            "where": f"{races.config.pair.name} · {races.config.dtype}",
            "parts": PARTS,
            "max_new_tokens": min(128, races.config.max_new_tokens),
            "baseline": BASELINE,
            "methods": [_method(spec, races) for spec in METHODS.values()],
            "benchmarks": benchmarks_here(),
        }

    @app.get("/api/questions/{benchmark}")
    def questions(benchmark: str) -> list[Json]:
        if benchmark not in benchmarks_here():
            raise HTTPException(404)
        found = load_questions(benchmark).questions
        return [{"id": q.question_id, "category": q.category, "text": q.turns[0][:SHORT]} for q in found]

    @app.post("/api/race")
    async def race(asked: Race) -> StreamingResponse:
        return StreamingResponse(_events(await races.race(asked)), media_type="text/event-stream")

    @app.post("/api/stop")
    async def stop() -> Json:
        races.stop()
        return {}


def _lessons(app: FastAPI) -> None:
    @app.get("/api/lessons")
    async def lessons() -> FileResponse:
        return FileResponse(LESSONS, media_type="application/json")


def _results(app: FastAPI, runs: Runs) -> None:
    @app.get("/api/runs")
    def rows() -> Json:
        return {"folder": str(runs.folder), "rows": runs.rows()}

    @app.get("/api/figures")
    def figures(folder: Name) -> Json:
        return runs.leaf(folder).figures

    @app.get("/api/answers")
    def answers(folder: Name, question: Name) -> Json:
        """`question`: its id as JSON, for 7 and "7" are two."""
        return runs.answers(folder, _question(question))

    @app.get("/api/compare")
    def compare(folder: Name, run: Name, other_folder: Name, other_run: Name) -> Json:
        return compared(runs.leaf(folder).run(run), runs.leaf(other_folder).run(other_run))


def _question(text: str) -> int | str:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise UserError(f"expected the id of a question as JSON, got {text[:40]!r}; choose one of the list")
    return value


async def _events(events: AsyncIterator[Json]) -> AsyncIterator[str]:
    async for event in events:
        yield f"data: {json.dumps(event, separators=(',', ':'))}\n\n"


def _method(spec: MethodSpec, races: Races) -> Json:
    """What the page tells of a method, and why it cannot run with the pair, if so."""
    return {
        "name": spec.name,
        "about": spec.about,
        "paper": spec.paper,
        "loop": spec.loop,
        "lossless": spec.lossless,
        "missing": _missing(spec, races),
        "options": [_option(name, option) for name, option in spec.options.items()],
    }


def _missing(spec: MethodSpec, races: Races) -> str:
    if spec.served:
        return "asks a server, which ./eval.sh --server names"
    missing = [kind for kind, source in races.config.weights_of(spec).items() if source is None]
    return f"needs a draft of the kind {missing[0]}" if missing else ""


def _option(name: str, option: Option) -> dict[str, Any]:
    known = {"name": name.replace("_", "-"), "default": option.default, "help": option.help}
    return known | {"words": option.words, "least": option.least, "expected": option.expected}
