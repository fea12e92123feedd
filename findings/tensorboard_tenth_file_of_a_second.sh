#!/usr/bin/env bash
# TensorBoard reads the event files of a run in the order of their names. A name ends with the second in which its writer
# was opened, host, process, and a number that counts the writers of the process, without leading zeros: of two writers
# opened in one second, the tenth of a process is read before the ninth. What the later file says of the earlier one, here
# that steps from 11 on are logged again (SessionLog.START, `purge_step` of PyTorch's SummaryWriter), is then of no effect:
# steps come in the wrong order, and two of them twice.
#
# Seen with tensorboard 2.21.0, numpy 2.3.5, Python 3.11: steps that EventAccumulator shows, by the two writers' numbers
#   1 and 2: [10, 20, 30, 40]
#   9 and 10: [20, 30, 40, 10, 20, 30]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/read.py" <<'PYTHON'
import logging
import tempfile
from itertools import count
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

logging.getLogger("tensorboard").setLevel(logging.ERROR)


def write(folder, steps, again_from=None):
    writer = EventFileWriter(str(folder))
    if again_from is not None:
        writer.add_event(Event(step=again_from, session_log=SessionLog(status=SessionLog.START)))
    for step in steps:
        value = Summary.Value(tag="loss", simple_value=1.0)
        writer.add_event(Event(step=step, summary=Summary(value=[value])))
    writer.close()


def names(folder):
    """(second, number of the writer) of every file."""
    return sorted((int(p.name.split(".")[3]), int(p.name.rsplit(".", 1)[1])) for p in folder.iterdir())


with tempfile.TemporaryDirectory() as root:
    folders = (Path(root, f"run-{i}") for i in count())
    for wanted in (1, 9):
        number = -1
        while number < wanted:
            folder = next(folders)
            write(folder, [10, 20, 30])
            ((first, number),) = names(folder)
        write(folder, [20, 30, 40], again_from=11)
        (_, _), (second, after) = names(folder)
        if second != first:
            raise SystemExit("a second ended in between; run it again")
        log = EventAccumulator(str(folder))
        log.Reload()
        print(f"{number} and {after}:", [scalar.step for scalar in log.Scalars("loss")])
PYTHON
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet tensorboard==2.21.0 numpy==2.3.5
"$folder/venv/bin/python" "$folder/read.py" | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN' || { echo "the behaviour has changed" >&2; exit 1; }
1 and 2: [10, 20, 30, 40]
9 and 10: [20, 30, 40, 10, 20, 30]
SEEN
