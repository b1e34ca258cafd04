"""Where the notebooks find what stands in `window`, `overlap`, `token_time` and `summary`."""

from colo_lib.analysis.trace.overlap import verdict_overlap
from colo_lib.analysis.trace.summary import profiled_words
from colo_lib.analysis.trace.token_time import gen_times
from colo_lib.analysis.trace.window import view_of, views_alone

__all__ = ["gen_times", "profiled_words", "verdict_overlap", "view_of", "views_alone"]
