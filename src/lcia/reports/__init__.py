"""Reports: one self-contained HTML page per run, and figures."""

from lcia.reports.data import GroupRecord, ReportData, RunRecord, SampleAnswer, StepRecord
from lcia.reports.html import write_report

__all__ = ["GroupRecord", "ReportData", "RunRecord", "SampleAnswer", "StepRecord", "write_report"]
