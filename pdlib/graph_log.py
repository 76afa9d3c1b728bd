"""What `make reproduce` tells of its graph: which job starts, which is done, of how many. Snakemake's logger plugin.

What Snakemake itself says stays in its own log, below .snakemake/log, but for warnings and errors.
"""

import logging
import sys
import time
from datetime import datetime
from pathlib import Path

from snakemake.common import NOTHING_TO_BE_DONE_MSG
from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent
from snakemake_interface_logger_plugins.registry import LoggerPluginRegistry

NAME = "graph"
TARGET = "all"  # the rule that runs nothing
REPEATED = ("RuleException", "CalledProcessError")  # a failed job has told its own error
GENERAL = (None, "WorkflowError")  # Snakemake's last words where a job has failed


class LogHandler(LogHandlerBase):
    """One line on stdout as a job starts, ends or fails."""

    writes_to_stream, writes_to_file, has_filter, has_formatter, needs_rulegraph = True, False, True, True, False

    def __post_init__(self) -> None:
        self.names: dict[int, str] = {}
        self.started: dict[int, float] = {}
        self.jobs = self.done = 0
        self.failed: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Tell an event of the graph, if it is one to tell."""
        event, about = getattr(record, "event", None), vars(record)
        if event == LogEvent.RUN_INFO:
            self.jobs = sum(count for rule, count in record.stats.items() if rule not in (TARGET, "total"))
        elif event == LogEvent.JOB_INFO and record.log:
            self._start(record.jobid, Path(record.log[0]).stem)
        elif event == LogEvent.JOB_FINISHED and record.job_id in self.names:
            self._end(record.job_id)
        elif event == LogEvent.JOB_ERROR:
            self.failed.append(self.names.get(record.jobid, record.rule_name))
            self._tell(f"{self.failed[-1]} failed; what does not wait for it goes on")
        elif record.levelno >= logging.WARNING:
            if about.get("exception") not in (*REPEATED, *(GENERAL if self.failed else ())):
                self._tell(record.getMessage())
        elif record.msg == NOTHING_TO_BE_DONE_MSG:
            self._tell("Nothing to be done: every job of the graph has run")

    def close(self) -> None:
        """Tell at the end what has failed."""
        if self.failed:
            names = ", ".join(dict.fromkeys(self.failed))
            self._tell(f"failed: {names}; the errors stand above, and the same command tries again")
            self.failed = []
        super().close()

    def _start(self, job: int, name: str) -> None:
        self.names[job], self.started[job] = name, time.monotonic()
        self._tell(f"{name} starts, {len(self.names)} of {self.jobs}")

    def _end(self, job: int) -> None:
        self.done += 1
        self.failed = [name for name in self.failed if name != self.names[job]]  # another attempt has done it
        took = time.monotonic() - self.started[job]
        self._tell(f"{self.names[job]} is done after {_duration(took)}; {self.done} of {self.jobs} are done")

    def _tell(self, text: str) -> None:
        print(f"[{datetime.now():%H:%M:%S}] {text}", flush=True)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def register() -> str:
    """Make it known to Snakemake in this process; the name for `--logger`."""
    LoggerPluginRegistry().register_plugin(NAME, sys.modules[__name__])
    return NAME
