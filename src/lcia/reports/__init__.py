"""Reports: one self-contained HTML page per run, and figures."""

from lcia.reports.data import GroupRecord, ReportData, RunRecord, SampleAnswer, StepRecord

__all__ = ["GroupRecord", "ReportData", "RunRecord", "SampleAnswer", "StepRecord"]
