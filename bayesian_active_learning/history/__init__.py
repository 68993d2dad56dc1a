"""What a run leaves behind: its directory, its event logs, and how they are read.

- `RUN/config.json`: identity and environment, written once
- `RUN/<function>/<seed>/log.jsonl`: one line an event; alone enough to resume
- `RUN/<function>/<seed>/clock.jsonl`: seconds, which differ from run to run
"""

from bayesian_active_learning.history.clock import Clock
from bayesian_active_learning.history.comparison import (
    PairedDifference,
    common_rounds,
    curves_by_function,
    mean_interval,
    paired_difference,
    student_t,
)
from bayesian_active_learning.history.directory import (
    CLOCK,
    CONFIG,
    LOG,
    Run,
    cell_directory,
    default_run_name,
    list_cells,
    open_run,
    read_config,
)
from bayesian_active_learning.history.errors import HistoryError, differences, writing
from bayesian_active_learning.history.export import export_csv, export_xlsx
from bayesian_active_learning.history.joining import join_histories
from bayesian_active_learning.history.lock import cell_lock
from bayesian_active_learning.history.log import (
    EventLog,
    MemoryLog,
    read_events,
    resume_point,
    write_events,
)
from bayesian_active_learning.history.machine import environment
from bayesian_active_learning.history.records import (
    Curve,
    History,
    RoundRecord,
    curve_from_events,
    load_history,
    read_history,
    round_records,
    write_history,
)
from bayesian_active_learning.history.summary import (
    caption,
    dataset_label,
    notice,
    num_validation,
    summary_rows,
    summary_table,
    text_table,
)
from bayesian_active_learning.history.thresholds import (
    labels_to_threshold,
    median_labels_to_threshold,
    quartiles_labels_to_threshold,
)

__all__ = [
    "CLOCK",
    "CONFIG",
    "LOG",
    "Clock",
    "Curve",
    "EventLog",
    "History",
    "HistoryError",
    "MemoryLog",
    "PairedDifference",
    "RoundRecord",
    "Run",
    "caption",
    "cell_directory",
    "cell_lock",
    "common_rounds",
    "curve_from_events",
    "curves_by_function",
    "dataset_label",
    "default_run_name",
    "differences",
    "environment",
    "export_csv",
    "export_xlsx",
    "join_histories",
    "labels_to_threshold",
    "list_cells",
    "load_history",
    "mean_interval",
    "median_labels_to_threshold",
    "notice",
    "num_validation",
    "open_run",
    "paired_difference",
    "quartiles_labels_to_threshold",
    "read_config",
    "read_events",
    "read_history",
    "resume_point",
    "round_records",
    "student_t",
    "summary_rows",
    "summary_table",
    "text_table",
    "write_events",
    "write_history",
    "writing",
]
