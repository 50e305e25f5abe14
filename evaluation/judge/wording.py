"""Conditions of runs in words, for the notes that a reader sees."""

from collections.abc import Iterable, Sequence

from evaluation.answers.header import UNSET, Role, RunHeader, SamplingKeys, of_role

NAMES = {
    "target.source": "target",
    "target.weight_bytes": "size of the target's weights in bytes",
    "draft.source": "draft",
    "draft.weight_bytes": "size of the draft's weights in bytes",
    "sampling.top_k": "top-k",
    "sampling.top_p": "top-p",
    "max_new_tokens": "limit of new tokens",
    "eos_token_ids": "EOS tokens",
    "benchmark_sha256": "hash of the benchmark",
    "row_invariant": "row-invariance of passes",
    "threads": "number of threads",
    "replicas": "number of replicas",
    "ranks": "number of ranks",
    "repeats": "number of repeats",
    "questions": "number of questions",
    "cpu": "CPU",
    "gpu": "GPU",
}  # of the keys of run headers; the others are called as they are

PLURAL = ("devices", "eos_token_ids")


def marked(method: str, lossy: bool) -> str:
    """A method's name, where it must not be taken for a lossless one."""
    return f"{method} (lossy)" if lossy else method


def shares_of_machine(ours: RunHeader, theirs: RunHeader) -> list[str]:
    """In what the method had more or less of the machine than the baseline: a sentence for each."""
    told = []
    for key in of_role(Role.SHARE):
        mine, other = ours[key], theirs[key]
        if mine != other:
            told.append(f"the method ran {_share(key, mine)}, the baseline {_share(key, other)}")
    return told


def _share(key: str, value: object) -> str:
    """Such as "on 2 cores (cpu:0 and cpu:1)", "with 1 thread" or "in 2 replicas"."""
    if isinstance(value, list) and value:
        return _devices(value)
    if not isinstance(value, int):
        return f"{'on' if key == 'devices' else 'with'} {key} that its run header does not name"
    return f"in {counted(value, 'replica')}" if key == "replicas" else f"with {counted(value, 'thread')}"


def _devices(devices: Sequence[str]) -> str:
    parts = {name: name.removeprefix("cpu:").split(",") for name in devices if name.startswith("cpu:")}
    cores, others = sum(map(len, parts.values())), len(devices) - len(parts)
    counts = [counted(cores, "core")] * bool(cores) + [counted(others, "device")] * bool(others)
    return f"on {listed(counts)} ({listed(devices)})"


def launches_words(launches: Iterable[int]) -> str:
    """By how many launches figures are judged: what a reader must know of their intervals."""
    counts = sorted(set(launches))
    return "this launch" if counts == [1] else f"{' or '.join(map(str, counts))} launches"


def sampling_words(sampling: SamplingKeys) -> str:
    """How the target's tokens were drawn; what is off is not named."""
    if sampling["temperature"] == 0:
        return "greedy"
    words = [f"temperature {sampling['temperature']:g}"]
    words += [f"top-k {sampling['top_k']}"] if sampling["top_k"] != 0 else []
    words += [f"top-p {sampling['top_p']:g}"] if sampling["top_p"] != 1 else []
    return ", ".join(words)


def changed(key: str, was: object, now: object) -> str:
    """A condition that was another in an earlier run, such as "the number of threads was 7, is now 2"."""
    group, _, name = key.rpartition(".")
    words = {"versions": f"version of {name}", "options": f"option {name}", "sampling": name}.get(group, key)
    was_is = ("were", "are") if key in PLURAL else ("was", "is")
    words = NAMES.get(key, words).replace("_", " ")
    return f"the {words} {was_is[0]} {valued(was)}, {was_is[1]} now {valued(now)}"


def valued(value: object) -> str:
    """A value of a header as one writes it."""
    match value:
        case None | []:
            return "none"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:g}"
        case list():
            return listed([valued(item) for item in value])
    return "not recorded" if value == UNSET else str(value)


def listed(items: Sequence[str]) -> str:
    """Such as "a, b and c"."""
    *others, last = items
    return f"{', '.join(others)} and {last}" if others else last


def counted(number: int, word: str) -> str:
    """Such as "1 core" and "2 cores"."""
    return f"{number} {word}" if number == 1 else f"{number} {word}s"
