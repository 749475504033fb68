"""Everything that measures: probes, timelines, predictions, checks, results, reports."""
