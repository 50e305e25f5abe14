"""The files: answer lines, run headers, traces. Imports none of the other rooms."""
