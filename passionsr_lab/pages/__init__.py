"""Pages for a browser without a kernel behind it: pictures to compare, and a report to mail."""
