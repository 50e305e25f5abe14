"""Is the harness itself right? Runs it on scripted models, of which all is known beforehand, and compares.

    ./eval.sh --calibrate [FOLDER]          (python evaluation/calibrate.py does the same)

A scripted model waits for as long as its pass is to take, and says what it is told to. So methods/theory.py knows the
speedup of each loop; the run, its ranks, link, files and verdict are those of every run. Writes calibration.json into
FOLDER, where a report shows it. The exit status is 0 if all is within 1%, or on a busy machine within 3%; 1 if not;
3 if the machine was too busy to measure.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evaluation.answers.files import any_path
from evaluation.show.tables import terminal
from methods.errors import CommandParser, command_line
from methods.paths import ROOT

WORK = ROOT / "results/local/calibration"
STATUS = {"exact": 0, "near": 0, "wrong": 1, "busy": 3}


def main() -> int:
    parser = CommandParser(
        prog="eval.sh --calibrate",
        description="Compare what the harness measures of scripted models with what theory says. Exit status 0 if it "
        "is right, 1 if it is wrong, 3 if the machine was too busy to tell.",
    )
    parser.add_argument(
        "folder", metavar="FOLDER", type=any_path, nargs="?", default=WORK, help="where to (default: %(default)s)"
    )
    folder = parser.parse_args().folder

    from evaluation.answers.calibration import write_calibration
    from evaluation.launch.calibration import SCRIPTS, calibrate, cases_here
    from evaluation.launch.measure import check_writable
    from evaluation.show.calibration import print_calibration

    check_writable(folder)
    output = terminal()
    found = calibrate(WORK / "run", cases_here(), SCRIPTS, output)
    folder.mkdir(parents=True, exist_ok=True)
    path = write_calibration(folder, found)
    print_calibration(found, output)
    output.print(str(path), soft_wrap=True)
    return STATUS[found.verdict]


if __name__ == "__main__":
    command_line(main)
