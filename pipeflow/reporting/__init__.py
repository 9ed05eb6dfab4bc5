"""Tables, charts and the HTML page."""

from .html import page
from .plan_report import report_plan
from .report_files import write_report
from .run_history import RunHistory, read_run
